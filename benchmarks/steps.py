"""Quality against network calls, for every sampler, noise schedule and time difference: the app's defaults come from
this table.

    pip install -r benchmarks/requirements.txt
    python checkpoints/make.py draw faces-32 pictures/faces
    python benchmarks/steps.py faces-32 pictures/faces

All of it takes hours on a CPU. Each result joins benchmarks/steps/<checkpoint>.jsonl as it comes, one line each, and is
not measured again; so it may be stopped and gone on with, and a narrower choice (--calls, --samplers, ...) measured
first. The scores, against held-out flips and shifts of the pictures, and what they cannot tell: scores.py.
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
from scores import HeldOut

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # so that it runs from a clone without installing

import dp.diffusion.schedules
from dp import DiffusionPolicy, ImageDataset
from dp.diffusion.samplers import SAMPLERS
from dp.system.device import best_device

CALLS = (4, 6, 8, 10, 15, 20, 30, 50, 100, 250, 1000)
DIFFERENCES = (0.0, 1.0, 2.0)  # in steps
BATCH = 64
SETTING = ("sampler", "schedule", "difference", "calls")
SCHEDULES = ("trained", *dp.diffusion.schedules.SCHEDULES)  # the checkpoint's own, and all with their default keywords
SCORES = {"swd": "sliced Wasserstein", "frechet": "Fréchet"}
NORM = {"sampler": "ddpm", "schedule": "trained", "difference": 0.0, "calls": 1000}  # what the others are held against


def settings(args: argparse.Namespace) -> Iterator[dict]:
    """The cheap ones first."""
    for calls in sorted(args.calls):
        for chosen in itertools.product(args.samplers, args.schedules, args.differences):
            yield dict(zip(SETTING, (*chosen, calls), strict=True))


def sample(policy: DiffusionPolicy, setting: dict, count: int) -> torch.Tensor:
    """Images of seeds 0 to count - 1, the same noise for every setting."""
    calls = setting["calls"]
    keywords = {"timesteps": calls, "sampler": setting["sampler"]}
    keywords["noise_schedule"] = None if setting["schedule"] == "trained" else setting["schedule"]
    keywords["time_difference"] = min(setting["difference"] / calls, 1.0)
    return torch.cat([policy.sample(min(BATCH, count - i), seed=i, **keywords) for i in range(0, count, BATCH)]).cpu()


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def print_results(results: list[dict]) -> None:
    """One table for each score: a row for each sampler, schedule and difference, a column for each number of calls."""
    calls = sorted({result["calls"] for result in results})
    rows = sorted({tuple(result[key] for key in SETTING[:3]) for result in results})
    by_setting = {tuple(result[key] for key in SETTING): result for result in results}
    norm = by_setting.get(tuple(NORM[key] for key in SETTING))
    for key, name in SCORES.items():
        print(f"\n{name}; in brackets the excess over DDPM in 1,000 calls, in %:\n")
        table = []
        for row in rows:
            cells = []
            for n in calls:
                result = by_setting.get((*row, n))
                excess = f" ({100 * (result[key] / norm[key] - 1):+.0f})" if result and norm else ""
                cells.append(f"{result[key]:.1f}{excess}" if result else "")
            table.append((*row, *cells))
        print_table((*SETTING[:3], *map(str, calls)), table)


def plot(results: list[dict], path: Path) -> None:
    """A panel for each score and schedule, no time difference: score against calls, a line for each sampler."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(SCORES), len(SCHEDULES), figsize=(14, 6.5), sharex=True, sharey="row", dpi=110)
    for (key, name), row in zip(SCORES.items(), axes, strict=True):
        for schedule, axis in zip(SCHEDULES, row, strict=True):
            for sampler in SAMPLERS:
                chosen = {"sampler": sampler, "schedule": schedule, "difference": 0.0}
                line = sorted((r["calls"], r[key]) for r in results if chosen.items() <= r.items())
                axis.plot(*zip(*line), marker="o", markersize=4, label=sampler) if line else None
            axis.set(xscale="log", yscale="log", title=f"{schedule} schedule")
            axis.grid(alpha=0.3, which="both")
        row[0].set_ylabel(name)
    axes[0][0].legend()
    for axis in axes[-1]:
        axis.set_xlabel("network calls")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="the name of a bundled model")
    parser.add_argument("folder", type=Path, help="the pictures that it was trained on")
    parser.add_argument("--calls", type=int, nargs="*", default=CALLS, help="none: print what has been measured")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=SCHEDULES)
    parser.add_argument("--differences", type=float, nargs="+", default=DIFFERENCES, help="time differences, in steps")
    parser.add_argument("--samples", type=int, default=256)
    args = parser.parse_args()

    path = HERE / "steps" / f"{args.checkpoint}.jsonl"
    path.parent.mkdir(exist_ok=True)
    policy = DiffusionPolicy.from_pretrained(HERE.parent / "checkpoints" / args.checkpoint).to(best_device()).eval()
    dataset = ImageDataset(args.folder, policy.image_size)
    held_out = HeldOut(torch.stack([dataset[i] for i in range(len(dataset))]))
    measured = [{key: result[key] for key in SETTING} for result in read(path)]
    for setting in settings(args):
        if setting not in measured:
            scores = held_out.score(sample(policy, setting, args.samples))
            rounded = {key: round(value, 2) for key, value in scores._asdict().items()}
            line = json.dumps(setting | {"samples": args.samples} | rounded)
            print(line, flush=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
    results = read(path)
    print_results(results)
    plot(results, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
