"""The `train` command.

`python -m dp train RUN` trains the run in a folder, as one process or, under torchrun or `accelerate launch`, as one of
several. `python -m dp train IMAGES --out RUN` creates the run first. `--benchmark` times ten steps instead of training,
and `--on hf-jobs` trains on a rented machine.

Loads no torch by itself. Images are prepared in a subprocess, so that its memory is free again while the run waits for
the device.
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
from dp.training.presets import MAX_NAME_LENGTH, PRESETS, SIZES, Settings
from dp.training.remote import cli as remote_cli
from dp.training.run_folder import RunFolder

MAX_LISTED = 10  # rejected images
INTERRUPTED = b"\nsaving before exit; the same command resumes the run. Press Ctrl-C again to exit at once.\n"
HELP = {  # for the fields of dp.training.presets.Settings
    "name": "name of the run (default: that of the images)",
    "image_size": f"side in pixels to which the images are scaled: {', '.join(map(str, SIZES))}",
    "width": "network width, a multiple of 16; wider networks are slower and draw better",
    "depth": "network depth: the number of blocks",
    "batch": "images per step",
    "lr": "learning rate; halve it if the loss jumps",
    "steps": "steps in total; a finished run continues if this is more than before",
    "save_every": "steps between checkpoints, each with sample images",
    "seed": "random seed; the same seed trains the same model (0)",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dp train",
        usage="%(prog)s RUN\n       %(prog)s IMAGES... --out RUN [settings]\n       %(prog)s RUN --fast --out NEW",
        description="Train a model on images. Ctrl-C saves and pauses the run; the same command resumes it.",
        epilog="example: python -m dp train my/images --out runs/mine --steps 5000",
    )
    add_options(parser)
    remote_cli.add_options(parser)
    parser.add_argument("--benchmark", action="store_true", help="time ten steps and print the result as JSON")
    stdio.protect()
    args = parser.parse_args()
    try:
        cores, device = environment.cores(), environment.device() or processes.DEFAULT_DEVICE
        run = open_run(args)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{message_of(error)}\n")
    except KeyboardInterrupt:
        sys.exit(130)  # the exit code of Ctrl-C in shells
    if args.prepare:
        return
    if cores:  # as in dp.system.device; torch reads it when it is loaded
        os.environ["OMP_NUM_THREADS"] = str(max(1, cores // worker.PROCESSES))
    if hasattr(os, "nice"):
        os.nice(10)  # sampling on the same processor has priority
    try:
        if args.on:
            remote_cli.start_job(run, args)
            pause_on_interrupt(run)
            remote_cli.watch(run)
        elif args.benchmark:
            print(json.dumps(worker.benchmark(run)))
        elif worker.RANK == 0:
            with run.hold_lock():
                pause_on_interrupt(run)
                worker.wait_and_train(run, device)
        elif worker.wait_for_first_process(run):
            worker.train(run)
    except (ValueError, OSError, MemoryError) as error:  # the traceback is in status.json
        sys.exit(message_of(error))
    except KeyboardInterrupt:
        sys.exit(130)
    if worker.PROCESSES > 1:
        # torch's threads still release tensors, which aborts a process whose interpreter has shut down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the source and the settings of a new run."""
    parser.add_argument(
        "source", nargs="+", help="a run folder; or, with --out, images: a folder, zip or tar archives, or files"
    )
    parser.add_argument("--out", metavar="RUN", help="create a run in this folder, or resume the run there")
    text = "make the model of the finished run RUN fast, in a new run: tune it to draw in 1 to 4 calls"
    parser.add_argument("--fast", action="store_true", help=text)
    parser.add_argument("--prepare", action="store_true", help="create the run only; python -m dp train RUN trains it")
    group = parser.add_argument_group("settings of a new run")
    lines = [f"{name}: {p.image_size} x {p.image_size}, {p.steps:,} steps" for name, p in PRESETS.items()]
    text = f"defaults of the other settings; {'; '.join(lines)} (quick)"
    group.add_argument("--preset", choices=PRESETS, metavar="NAME", help=text)
    for name, text in HELP.items():
        default = getattr(PRESETS["quick"], name)
        form = {"type": type(default), "metavar": {int: "N", float: "X", str: "NAME"}[type(default)]}
        group.add_argument(f"--{name.replace('_', '-')}", help=f"{text} ({default})" if default else text, **form)
    text = "do not mirror images at random; use for letters and other images where left and right differ"
    group.add_argument("--no-flips", dest="flips", action="store_false", default=None, help=text)
    text = "learn the folders directly below IMAGES as classes, which can then be sampled by name"
    group.add_argument("--classes", action="store_true", default=None, help=text)


def open_run(args: argparse.Namespace) -> RunFolder:
    """Return the run that the arguments name, after creating or extending it. Raises ValueError for bad arguments."""
    given = {name: value for name in (*HELP, "flips", "classes") if (value := getattr(args, name)) is not None}
    if args.preset:
        given = {key: value for key, value in vars(PRESETS[args.preset]).items() if key != "name"} | given
    if not args.out and len(args.source) > 1:
        raise ValueError("only one run can be trained at a time; to create one from these images, add --out runs/mine")
    if args.fast and (given or not args.out or len(args.source) > 1):
        raise ValueError("--fast takes a finished run and --out, the folder of the new one; it has no other settings")
    run = RunFolder(args.out or args.source[0])
    if args.fast and not run.config_file.exists():
        check_free(run)
        check_alone()
        path = run.path.resolve()
        processes.make_fast(RunFolder(args.source[0]), path.parent, path.name)
    elif run.config_file.exists():
        if given:
            apply_settings(run, given)
    elif not args.out:
        raise ValueError(
            f"there is no training run in {quote(args.source[0])}; to create one from the images there, add --out "
            "runs/mine"
        )
    else:
        create_run(run, Settings(**vars(PRESETS["quick"]) | given), args)
    return run


def apply_settings(run: RunFolder, given: dict[str, Any]) -> None:
    """Extend a finished run if the given settings differ from its own only in more steps. Raises ValueError for any
    other difference, which would make it another run.
    """
    current = vars(Settings()) | Settings.values_from_config(run.config())
    changed = [name for name, value in given.items() if current[name] != value]
    if changed == ["steps"] and given["steps"] > current["steps"]:
        if not int(os.environ.get("RANK", 0)):  # of several processes, only the first extends the run
            processes.extend(run, given["steps"])
    elif changed:
        name = changed[0]
        was = f"{name.replace('_', ' ')} {current[name]}"
        raise ValueError(
            f"the run in {quote(str(run.path))} was created with {was}, not {given[name]}: omit the settings to resume "
            "it, or create a new run in another folder"
        )


def create_run(run: RunFolder, settings: Settings, args: argparse.Namespace) -> None:
    """Create a run from images, in a subprocess unless `--prepare` is given."""
    if missing := [source for source in args.source if not Path(source).exists()]:
        raise ValueError(f"there is no file or folder {quote(missing[0])}")
    check_free(run)
    if args.prepare:
        return prepare(run, settings, args.source)
    check_alone()
    if code := subprocess.run([sys.executable, "-m", "dp", "train", *sys.argv[1:], "--prepare"]).returncode:
        sys.exit(code)


def check_free(run: RunFolder) -> None:
    """Raise ValueError unless a run can be created in this folder."""
    check_encodable("the path of a run's folder", str(run.path.resolve()))  # safetensors cannot open others
    if run.path.exists() and not (run.path.is_dir() and not any(run.path.iterdir())):
        raise ValueError(f"{quote(str(run.path))} is neither empty nor a training run; choose another folder")


def check_alone() -> None:
    """Raise ValueError if this is one of several processes."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("several processes cannot create a run together: create it with --prepare, then train it")


def prepare(run: RunFolder, settings: Settings, sources: list[str]) -> None:
    """Write the run folder, completely or not at all, and print a summary of the accepted and rejected images."""
    first = Path(sources[0]).resolve()
    stem = first.name if first.is_dir() else archive_kinds.stem(first.name) or first.stem
    name = "images" if len(sources) > 1 else readable(stem)
    with replacing(run.path) as temporary:
        temporary.mkdir()
        with tqdm(unit=" files", disable=None) as bar:
            for progress in dp.prepare(sources, temporary / "dataset", settings.image_size):
                bar.total = progress.total
                bar.update(progress.done - bar.n)
        report = progress.report
        config = settings.config(name[:MAX_NAME_LENGTH], len(report.accepted), time.time(), report.classes)
        write_json(temporary / "config.json", config)
    rejected = [f"  {name}: {reason}" for name, reason in progress.report.rejected]
    more = [f"  and {len(rejected) - MAX_LISTED:,} more"] if len(rejected) > MAX_LISTED else []
    print("\n".join([*progress.report.summary_lines(), *rejected[:MAX_LISTED], *more]), flush=True)


def pause_on_interrupt(run: RunFolder) -> None:
    """Make Ctrl-C request a pause, and a second Ctrl-C end this process at once."""

    def request_pause(*_) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run.request("pause")
        with suppress(OSError):  # the terminal is closed
            os.write(2, INTERRUPTED)  # print is not reentrant, and may have been interrupted by this signal

    signal.signal(signal.SIGINT, request_pause)
