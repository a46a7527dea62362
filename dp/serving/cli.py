"""The command `python -m dp sample CHECKPOINT`: sample images to the same files that the app saves."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from dp.checkpoints.classes import classes_of, label_of
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
GUIDANCE = ("guidance", "guidance_interval")
KINDS_HELP = """\
the kind of file; by default chosen by the suffix of --out, or png
  png     one PNG with all images; png4, png8: four and eight times as large
  images  a ZIP with one PNG per image
  strip   one PNG with ten steps of the first image side by side
  gif     an animation of the run, x_t and x0 side by side
  mp4     the same as a video
  zip     a ZIP with every step"""


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dp sample",
        usage="%(prog)s CHECKPOINT [options]",
        description="Sample images from a diffusion model. The file also stores the settings.",
        epilog="example: python -m dp sample faces-32 --images 9 --seed 7 --out faces.gif",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    add = parser.add_argument
    help_text = "a name below checkpoints/, a checkpoint folder, a run folder, or user/name on the Hub"
    add("checkpoint", metavar="CHECKPOINT", help=help_text)
    add("--images", type=int, default=IMAGES, metavar="N", help="number of images; image i uses seed + i (%(default)s)")
    add("--timesteps", type=int, metavar="N", help=f"sampling steps (the model's own, or {TIMESTEPS})")
    add("--sampler", choices=SAMPLERS, help=f"%(choices)s (the model's own, or {SAMPLER})", metavar="NAME")
    add("--label", metavar="NAME", help="class of the images, by its name or number (none)")
    help_text = "weight of the class, 0 to 20; 1 costs least, others twice as much (the model's own, or 1)"
    add("--guidance", type=float, metavar="X", help=help_text)
    help_text = "guide only between these two times, 0 to 1 (the model's own, or all)"
    add("--guidance-interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help=help_text)
    help_text = "noise schedule: %(choices)s (that of training)"
    add("--schedule", choices=SCHEDULES, metavar="NAME", help=help_text)
    help_text = "overshoot each step's target time by this many steps (0)"
    add("--time-difference", type=float, default=0.0, metavar="STEPS", help=help_text)
    add("--eta", type=float, default=0.0, metavar="X", help="amount of new noise in each DDIM step, 0 to 1 (0)")
    add("--seed", type=int, metavar="N", help="the same seed gives the same images (random)")
    add("--walk-to", type=int, metavar="N", help="interpolate from the seed to this one in equal steps (slerp)")
    add("--out", type=Path, default=Path(), metavar="PATH", help="a file, or the folder for it (this folder)")
    add("--kind", choices=KINDS, metavar="KIND", help=KINDS_HELP)
    return parser


def main() -> None:
    parser = options()
    stdio.protect()
    args = parser.parse_args()
    try:
        set_thread_count()
        file = args.out if args.out.suffix and not args.out.is_dir() else None
        kind, (folder, model) = kind_of(file, args.kind), locate(args.checkpoint)
        settings = read_options(args, folder)
        handle = sample(folder, settings)
        name, content = export(handle.trajectory.frames, handle.provenance | {"checkpoint": model}, kind)
        path = file or args.out / name
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{message_of(error)}\n")
    except KeyboardInterrupt:
        parser.exit(130)  # 128 + SIGINT, as in a shell
    print(f"{path} (seed {handle.provenance['seed']})")


def read_options(args: argparse.Namespace, folder: Path) -> SampleSettings:
    """Return the settings of the command for the model in `folder`, whose own come before the defaults."""
    config = read_config(folder) if folder.is_dir() else {"network": {}}  # the engine says what is wrong with it
    if "length" in config["network"]:
        words = "is a model of sequences, and this command writes images"
        raise ValueError(f"{folder.name} {words}: use DiffusionPolicy.from_pretrained(...).sample() instead")
    own = {"timesteps": TIMESTEPS, "sampler": SAMPLER} | config.get("sampling", {})
    label = label_of(args.label, classes_of(config)) if args.label is not None else 0
    if not label:
        own = {key: value for key, value in own.items() if not key.startswith("guidance")}
    chosen = {key: value for key in (*own, *GUIDANCE) if (value := getattr(args, key)) is not None}
    given = {"noise_schedule": args.schedule, "eta": args.eta, "seed": args.seed, "label": label or None}
    settings = SampleSettings(args.images, **own | chosen, **given, walk_to=args.walk_to)
    steps = check_number("--time-difference", args.time_difference, 0, settings.timesteps, whole=False)
    return replace(settings, time_difference=steps / settings.timesteps)


def kind_of(file: Path | None, given: str | None) -> str:
    """Return the kind of file for a name. Raises ValueError for an unknown suffix."""
    suffix = file.suffix.lower() if file else ""
    kind = given or (suffix[1:] if suffix[1:] in KINDS else "png")
    if file and suffix != KINDS[kind]:
        raise ValueError(f"a file of the kind {quote(kind)} ends with {KINDS[kind]}, which {quote(str(file))} does not")
    return kind


def locate(checkpoint: str) -> tuple[Path, str]:
    """Return a checkpoint's folder and its name. Raises ValueError or HubError if it cannot be used."""
    path, run = Path(checkpoint).resolve(), RunFolder(checkpoint)
    if steps := run.checkpoint_steps():
        return run.checkpoint(steps[-1]).resolve(), f"{run.name}/{steps[-1]:06d}"
    if path.is_dir():
        read_config(path)
        return path, path.name
    if (folder := models.resolve(checkpoint)).is_dir():
        return folder, checkpoint
    return BUNDLED / path.name, path.name  # if it does not exist, the engine lists the names that do


def sample(folder: Path, settings: SampleSettings) -> RunHandle:
    """Sample to the end, with a progress bar on a terminal. Raises ValueError if the run fails."""
    handle = Engine(folder.parent).submit(settings, folder.name)
    with tqdm(total=settings.timesteps, unit="step", disable=None) as progress:
        for frame in handle:
            progress.update(frame.index - progress.n)
    if handle.state == "failed":
        raise ValueError(handle.error)
    return handle
