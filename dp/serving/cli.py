"""`python -m dp sample CHECKPOINT`: pictures without a browser, in the very files that the app saves."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from dp.checkpoints.folder import read_config
from dp.diffusion.samplers import SAMPLERS
from dp.diffusion.schedules import SCHEDULES
from dp.diffusion.settings import IMAGES, SAMPLER, TIMESTEPS, SampleSettings
from dp.hub import models
from dp.serving.engine import Engine
from dp.serving.files import KINDS, export
from dp.serving.handle import RunHandle
from dp.system import stdio
from dp.system.atomic_files import replacing
from dp.system.device import set_thread_count
from dp.system.validation import check_number, message_of, quote
from dp.training.run_folder import RunFolder

BUNDLED = Path(__file__).resolve().parents[2] / "checkpoints"
KINDS_HELP = """\
what to write; by default what the name of --out ends with, or png
  png     all pictures in one
  images  a ZIP with each picture by itself
  strip   ten moments of the first picture, side by side, as PNG
  gif     the run as an animation, noise and prediction side by side
  mp4     the same as a film
  zip     a ZIP with every step"""


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dp sample",
        usage="%(prog)s CHECKPOINT [options]",
        description="Draw pictures with a diffusion model, to a file that carries the settings it was made with.",
        epilog="example: python -m dp sample faces-32 --images 9 --seed 7 --out faces.gif",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    add = parser.add_argument
    words = "a name below checkpoints/, a folder, a training run's, or user/name on the Hub"
    add("checkpoint", metavar="CHECKPOINT", help=words)
    add("--images", type=int, default=IMAGES, metavar="N", help="how many; image i has seed + i (%(default)s)")
    add("--timesteps", type=int, default=TIMESTEPS, metavar="N", help="network calls (%(default)s)")
    add("--sampler", choices=SAMPLERS, default=SAMPLER, help="%(choices)s (%(default)s)", metavar="NAME")
    words = "where the steps are spent: %(choices)s (as the model was trained)"
    add("--schedule", choices=SCHEDULES, metavar="NAME", help=words)
    words = "how many steps further than the next one starts from each step goes (0)"
    add("--time-difference", type=float, default=0.0, metavar="STEPS", help=words)
    add("--eta", type=float, default=0.0, metavar="X", help="fresh noise in DDIM's steps, 0 to 1 (0)")
    add("--seed", type=int, metavar="N", help="the same seed gives the same pictures (a new one each time)")
    add("--walk-to", type=int, metavar="N", help="instead, walk from the seed's pictures to this one's in equal steps")
    add("--out", type=Path, default=Path(), metavar="PATH", help="a file, or a folder to name it in (this folder)")
    add("--kind", choices=KINDS, metavar="KIND", help=KINDS_HELP)
    return parser


def main() -> None:
    parser = options()
    stdio.protect()
    args = parser.parse_args()
    try:
        set_thread_count()
        file = args.out if args.out.suffix and not args.out.is_dir() else None
        settings, kind, (folder, model) = settings_of(args), kind_of(file, args.kind), found(args.checkpoint)
        handle = drawn(folder, settings)
        name, content = export(handle.trajectory.frames, handle.provenance | {"checkpoint": model}, kind)
        path = file or args.out / name
        with replacing(path) as aside:
            aside.write_bytes(content)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{message_of(error)}\n")
    except KeyboardInterrupt:
        parser.exit(130)  # as shells count it
    print(f"{path} (seed {handle.provenance['seed']})")


def settings_of(args: argparse.Namespace) -> SampleSettings:
    asked = {"sampler": args.sampler, "noise_schedule": args.schedule, "eta": args.eta, "seed": args.seed}
    settings = SampleSettings(args.images, args.timesteps, **asked, walk_to=args.walk_to)
    steps = check_number("--time-difference", args.time_difference, 0, settings.timesteps, whole=False)
    return replace(settings, time_difference=steps / settings.timesteps)


def kind_of(file: Path | None, asked: str | None) -> str:
    """Return the kind of file for a name. Raises ValueError for an unknown suffix."""
    suffix = file.suffix.lower() if file else ""
    kind = asked or (suffix[1:] if suffix[1:] in KINDS else "png")
    if file and suffix != KINDS[kind]:
        raise ValueError(f"a file of the kind {quote(kind)} ends with {KINDS[kind]}, which {quote(str(file))} does not")
    return kind


def found(checkpoint: str) -> tuple[Path, str]:
    """The folder of a checkpoint, and what to call it. Raises ValueError where there is none."""
    path, run = Path(checkpoint).resolve(), RunFolder(checkpoint)
    if milestones := run.checkpoint_steps():
        return run.checkpoint(milestones[-1]).resolve(), f"{run.name}/{milestones[-1]:06d}"
    if path.is_dir():
        read_config(path)
        return path, path.name
    if (folder := models.resolve(checkpoint)).is_dir():
        return folder, checkpoint
    return BUNDLED / path.name, path.name  # where there is none, the names are told later


def drawn(folder: Path, settings: SampleSettings) -> RunHandle:
    """The run, at its end; with a bar where somebody sees it. Raises ValueError with what went wrong."""
    handle = Engine(folder.parent).submit(settings, folder.name)
    with tqdm(total=settings.timesteps, unit="step", disable=None) as progress:
        for frame in handle:
            progress.update(frame.index - progress.n)
    if handle.state == "failed":
        raise ValueError(handle.error)
    return handle
