"""A training run from the command line: a new one of somebody's pictures, or the one that is there. Loads no torch by
itself; the pictures are prepared by a process of its own, whose memory is free again while the run waits for its turn.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

import dp
from dp.data.archives import archive_kinds
from dp.system.atomic_files import replacing, write_json
from dp.system.records import readable
from dp.system.validation import check_encodable, quote
from dp.training import processes
from dp.training.presets import NAME_LENGTH, PRESETS, SIZES, Settings
from dp.training.run_folder import RunFolder

SHOWN = 10  # pictures that are not used, and why
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
