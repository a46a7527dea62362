"""`python -m dp train RUN` trains the run in a folder, as one process or, under torchrun or `accelerate launch`, as one
of several. `python -m dp train PICTURES --out RUN` begins that run first. `--trial` trains for ten steps instead and
prints how long they took; `--on hf-jobs` trains on a rented machine.

Loads no torch by itself. Images are prepared by a process of its own, whose memory is free again while the run waits
for the device.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

import dp
from dp.data.archives import archive_kinds
from dp.system import environment, stdio
from dp.system.atomic_files import replacing, write_json
from dp.system.records import readable
from dp.system.validation import check_encodable, message_of, quote
from dp.training import processes, worker
from dp.training.presets import NAME_LENGTH, PRESETS, SIZES, Settings
from dp.training.remote import cli as remote_cli
from dp.training.run_folder import RunFolder

SHOWN = 10  # pictures that are not used, and why
INTERRUPTED = b"\nsaving before exit; the same command resumes the run. Press Ctrl-C again to exit at once.\n"
HELP = {  # of the settings, named as in dp.training.presets.Settings
    "name": "of the run (that of the pictures)",
    "image_size": f"side in pixels at which the pictures are trained on: {', '.join(map(str, SIZES))}",
    "width": "of the network, a multiple of 16; wider draws better, and takes longer",
    "depth": "of the network: blocks, one after another",
    "batch": "pictures in each step",
    "lr": "learning rate; if the loss jumps, halve it",
    "steps": "how long to train; a finished run continues if this is more than it has done",
    "save_every": "steps from one checkpoint, with samples, to the next",
    "seed": "the same seed trains the same model (0)",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dp train",
        usage="%(prog)s RUN\n       %(prog)s PICTURES... --out RUN [settings]",
        description="Train a model on images. Ctrl-C saves and pauses the run; the same command resumes it.",
        epilog="example: python -m dp train my/pictures --out runs/mine --steps 5000",
    )
    add_options(parser)
    remote_cli.add_options(parser)
    parser.add_argument("--trial", action="store_true", help="try ten steps, and write how long they took as JSON")
    stdio.protect()
    args = parser.parse_args()
    try:
        cores, device = environment.cores(), environment.device() or "device"
        run = run_of(args)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{message_of(error)}\n")
    except KeyboardInterrupt:
        sys.exit(130)  # as shells count it
    if args.prepare:
        return
    if cores:  # as in dp.system.device; torch reads it when it is loaded
        os.environ["OMP_NUM_THREADS"] = str(max(1, cores // worker.PROCESSES))
    if hasattr(os, "nice"):
        os.nice(10)  # sampling on the same processor has priority
    try:
        if args.on:
            remote_cli.begin(run, args)
            pause_on_interrupt(run)
            remote_cli.watch(run)
        elif args.trial:
            print(json.dumps(worker.trial(run)))
        elif worker.RANK == 0:
            with run.held():
                pause_on_interrupt(run)
                worker.follow(run, device)
        elif worker.wait_for_the_first(run):
            worker.train(run)
    except (ValueError, OSError, MemoryError) as error:  # for people; status.json has the rest
        sys.exit(message_of(error))
    except KeyboardInterrupt:
        sys.exit(130)
    if worker.PROCESSES > 1:
        # Threads of torch's still let go of tensors, and abort a process in which Python has ended.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def add_options(parser: argparse.ArgumentParser) -> None:
    """`source`, and all that says what a new run is to be."""
    parser.add_argument(
        "source", nargs="+", help="a run folder; or with --out images: a folder, zip or tar archives, files"
    )
    parser.add_argument("--out", metavar="RUN", help="begin a run in this folder; go on with it where it is there")
    parser.add_argument("--prepare", action="store_true", help="only begin it: python -m dp train RUN trains")
    group = parser.add_argument_group("settings of a new run")
    lines = [f"{name}: {p.image_size} x {p.image_size}, {p.steps:,} steps" for name, p in PRESETS.items()]
    words = f"what the other settings begin with; {'; '.join(lines)} (quick)"
    group.add_argument("--preset", choices=PRESETS, metavar="NAME", help=words)
    for name, words in HELP.items():
        default = getattr(PRESETS["quick"], name)
        form = {"type": type(default), "metavar": {int: "N", float: "X", str: "NAME"}[type(default)]}
        group.add_argument(f"--{name.replace('_', '-')}", help=f"{words} ({default})" if default else words, **form)
    words = "do not mirror pictures at random: for letters, and whatever has a left and a right"
    group.add_argument("--no-flips", dest="flips", action="store_false", default=None, help=words)


def run_of(args: argparse.Namespace) -> RunFolder:
    """The run that is asked for; a new one has been prepared. Raises ValueError with what is wrong."""
    given = {name: value for name in (*HELP, "flips") if (value := getattr(args, name)) is not None}
    if args.preset:
        given = {key: value for key, value in vars(PRESETS[args.preset]).items() if key != "name"} | given
    if not args.out and len(args.source) > 1:
        raise ValueError("one run at a time; to begin one with these pictures, say where it is to lie: --out runs/mine")
    run = RunFolder(args.out or args.source[0])
    if run.config_file.exists():
        if given:
            go_on(run, given)
    elif not args.out:
        raise ValueError(
            f"there is no training run in {quote(args.source[0])}; to begin one with the pictures there, say where it "
            "is to lie: --out runs/mine"
        )
    else:
        begin(run, Settings(**vars(PRESETS["quick"]) | given), args)
    return run


def go_on(run: RunFolder, given: dict[str, Any]) -> None:
    """Extend a finished run where only more steps are given than it has. Raises ValueError where the run was not begun
    with these settings: going on would not be the same run.
    """
    begun = vars(Settings()) | Settings.values_of(run.config())
    others = [name for name, value in given.items() if begun[name] != value]
    if others == ["steps"] and given["steps"] > begun["steps"]:
        if not int(os.environ.get("RANK", 0)):  # of several processes the first one; the others wait for it
            processes.extend(run, given["steps"])
    elif others:
        other = others[0]
        was = f"{other.replace('_', ' ')} {begun[other]}"
        raise ValueError(
            f"the run in {quote(str(run.path))} was begun with {was}, not {given[other]}: leave the settings out to go "
            "on with it, or begin another one elsewhere"
        )


def begin(run: RunFolder, settings: Settings, args: argparse.Namespace) -> None:
    if missing := [source for source in args.source if not Path(source).exists()]:
        raise ValueError(f"there is no file or folder {quote(missing[0])}")
    check_encodable("the path of a run's folder", str(run.path.resolve()))  # safetensors opens no other
    if run.path.exists() and not (run.path.is_dir() and not any(run.path.iterdir())):
        raise ValueError(f"{quote(str(run.path))} holds other things than a training run; choose another place")
    if args.prepare:
        return prepare(run, settings, args.source)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("several processes would each begin the run: begin it alone with --prepare, then train it")
    if code := subprocess.run([sys.executable, "-m", "dp", "train", *sys.argv[1:], "--prepare"]).returncode:
        sys.exit(code)


def prepare(run: RunFolder, settings: Settings, sources: list[str]) -> None:
    """The run folder, whole or not at all; and what there is to say of the pictures."""
    first = Path(sources[0]).resolve()
    stem = first.name if first.is_dir() else archive_kinds.stem(first.name) or first.stem
    name = "pictures" if len(sources) > 1 else readable(stem)
    with replacing(run.path) as aside:
        aside.mkdir()
        with tqdm(unit=" files", disable=None) as progress:
            for seen in dp.prepare(sources, aside / "dataset", settings.image_size):
                progress.total = seen.total
                progress.update(seen.done - progress.n)
        write_json(aside / "config.json", settings.config(name[:NAME_LENGTH], len(seen.report.used), time.time()))
    refused = [f"  {name}: {reason}" for name, reason in seen.report.refused]
    more = [f"  and {len(refused) - SHOWN:,} more"] if len(refused) > SHOWN else []
    print("\n".join([*seen.report.sentences(), *refused[:SHOWN], *more]), flush=True)


def pause_on_interrupt(run: RunFolder) -> None:
    """Ctrl-C asks the run to pause; once more, and this process ends at once."""

    def ask(*_) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run.ask("pause")
        with suppress(OSError):  # the terminal is gone
            os.write(2, INTERRUPTED)  # print might just be in the middle of a line of its own

    signal.signal(signal.SIGINT, ask)
