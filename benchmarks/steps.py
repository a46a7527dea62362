"""Measure sample quality against the number of steps, for every sampler, noise schedule and time difference. The app's
defaults are based on the results.

    pip install -r benchmarks/requirements.txt
    python checkpoints/make.py draw faces-32 images/faces
    python benchmarks/steps.py faces-32 images/faces
    python checkpoints/make.py draw creatures-32 images/creatures
    python benchmarks/steps.py creatures-32 images/creatures-test

Measuring everything takes hours on a CPU. Each result is appended to benchmarks/steps/<checkpoint>.jsonl at once, one
per line, and settings that are in the file are skipped. The script can therefore be interrupted and restarted, and
--steps, --samplers etc. can select a part. The samples of a model with classes, equally many of each and without
guidance, are compared with images that it has not seen; those of a model without classes with flips and shifts of its
training images. scores.py describes the scores and their limits.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from measure import print_table
from scores import HeldOut, flips_and_shifts

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # so that it runs from a clone without installing

import dp.diffusion.schedules
from dp import DiffusionPolicy, ImageDataset
from dp.diffusion.samplers import SAMPLERS
from dp.system.device import best_device

STEPS = (1, 2, 4, 6, 8, 10, 15, 20, 30, 50, 100, 250, 1000)
DIFFERENCES = (0.0, 1.0, 2.0)  # in steps
BATCH = 64
SETTING = ("sampler", "schedule", "difference", "steps")
SCHEDULES = ("trained", *dp.diffusion.schedules.SCHEDULES)  # the checkpoint's own, and each with default keywords
SCORES = {"swd": "sliced Wasserstein", "frechet": "Fréchet"}
BASELINE = {"sampler": "ddpm", "schedule": "trained", "difference": 0.0, "steps": 1000}


def settings(args: argparse.Namespace) -> Iterator[dict]:
    """Yield the selected settings, the cheapest first."""
    for steps in sorted(args.steps):
        for selected in itertools.product(args.samplers, args.schedules, args.differences):
            yield dict(zip(SETTING, (*selected, steps), strict=True))


def sample(policy: DiffusionPolicy, setting: dict, count: int) -> torch.Tensor:
    """Return images [count,C,H,W] of seeds 0 to count - 1, from the same noise for every setting."""
    steps = setting["steps"]
    keywords = {"timesteps": steps, "sampler": setting["sampler"]}
    keywords["noise_schedule"] = None if setting["schedule"] == "trained" else setting["schedule"]
    keywords["time_difference"] = min(setting["difference"] / steps, 1.0)
    labels = [i % policy.num_classes + 1 if policy.num_classes else 0 for i in range(count)]
    batches = [labels[i : i + BATCH] for i in range(0, count, BATCH)]
    return torch.cat(
        [policy.sample(len(b), seed=i * BATCH, label=tuple(b), **keywords) for i, b in enumerate(batches)]
    ).cpu()


def read_results(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def print_results(results: list[dict]) -> None:
    """Print a table per score, with a row per sampler, schedule and difference and a column per number of steps."""
    steps = sorted({result["steps"] for result in results})
    rows = sorted({tuple(result[key] for key in SETTING[:3]) for result in results})
    by_setting = {tuple(result[key] for key in SETTING): result for result in results}
    baseline = by_setting.get(tuple(BASELINE[key] for key in SETTING))
    for key, name in SCORES.items():
        print(f"\n{name} (in parentheses: excess over DDPM in 1,000 steps, in %):\n")
        table = []
        for row in rows:
            cells = []
            for n in steps:
                result = by_setting.get((*row, n))
                excess = f" ({100 * (result[key] / baseline[key] - 1):+.0f})" if result and baseline else ""
                cells.append(f"{result[key]:.1f}{excess}" if result else "")
            table.append((*row, *cells))
        print_table((*SETTING[:3], *map(str, steps)), table)


def plot(results: list[dict], path: Path) -> None:
    """Plot the scores without time difference against steps: a panel per score and schedule, a line per sampler."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(SCORES), len(SCHEDULES), figsize=(14, 6.5), sharex=True, sharey="row", dpi=110)
    for (key, name), row in zip(SCORES.items(), axes, strict=True):
        for schedule, axis in zip(SCHEDULES, row, strict=True):
            for sampler in SAMPLERS:
                selected = {"sampler": sampler, "schedule": schedule, "difference": 0.0}
                line = sorted((r["steps"], r[key]) for r in results if selected.items() <= r.items())
                axis.plot(*zip(*line), marker="o", markersize=4, label=sampler) if line else None
            axis.set(xscale="log", yscale="log", title=f"{schedule} schedule")
            axis.grid(alpha=0.3, which="both")
        row[0].set_ylabel(name)
    axes[0][0].legend()
    for axis in axes[-1]:
        axis.set_xlabel("steps")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="name of a bundled model")
    parser.add_argument("folder", type=Path, help="its training images, or for a model with classes its test images")
    parser.add_argument(
        "--steps", type=int, nargs="*", default=STEPS, help="without values: only print and plot results"
    )
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, help="(default all that the model has)")
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=SCHEDULES, help="(default all)")
    parser.add_argument(
        "--differences", type=float, nargs="+", default=DIFFERENCES, help="time differences in steps (default 0 1 2)"
    )
    parser.add_argument("--samples", type=int, default=256, help="samples per setting (default 256)")
    args = parser.parse_args()

    path = HERE / "steps" / f"{args.checkpoint}.jsonl"
    path.parent.mkdir(exist_ok=True)
    policy = DiffusionPolicy.from_pretrained(HERE.parent / "checkpoints" / args.checkpoint).to(best_device()).eval()
    args.samplers = args.samplers or [name for name in SAMPLERS if name != "consistency" or policy.consistency]
    dataset = ImageDataset(args.folder, policy.image_size, convert_image_to="L" if policy.channels == 1 else "RGB")
    images = torch.stack([dataset[i] for i in range(len(dataset))])
    held_out = HeldOut(images if policy.num_classes else flips_and_shifts(images))
    measured = [{key: result[key] for key in SETTING} for result in read_results(path)]
    for setting in settings(args):
        if setting not in measured:
            scores = held_out.score(sample(policy, setting, args.samples))
            rounded = {key: round(value, 2) for key, value in scores._asdict().items()}
            line = json.dumps(setting | {"samples": args.samples} | rounded)
            print(line, flush=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
    results = read_results(path)
    print_results(results)
    plot(results, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
