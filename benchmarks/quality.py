"""Compare sample quality after equal training time: each library trains on the same folder for the same time on the
same number of cores, then samples 512 images in 50 DDIM steps. The samples are compared with held-out flips and shifts
of the images; scores.py describes the scores and their limits.

    pip install -r benchmarks/requirements.txt
    python checkpoints/make.py draw faces-32 images/faces
    python benchmarks/quality.py images/faces --minutes 10 30 --at-once 2

Each run is a separate process. It and its data-loading workers are pinned to an equal share of the cores. The time
includes reading the folder but not sampling.
"""

from __future__ import annotations

import argparse
import os
import queue
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from measure import print_table
from scores import HeldOut, flips_and_shifts
from trainers import TRAINERS, DpAdapter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "checkpoints"))

from make import MODELS

from dp import ImageDataset
from dp.data.codec import encode_png, make_grid, to_uint8

BUNDLED = MODELS["faces-32"]
IMAGE_SIZE = BUNDLED.network["image_size"]
STEPS_PER_CHECK = 10  # training steps between checks of the time budget
SHEET_SIZE = 64  # samples on a sheet

# Each library's own settings, adapted to minutes on a CPU: small networks, and learning rates to match. dp has those of
# the bundled model (checkpoints/make.py) with smaller batches; rin-pytorch has the same width, depth and latents.
SETTINGS = {
    "dp": {
        "network": BUNDLED.network,
        "policy": BUNDLED.policy,
        "training": {key: BUNDLED.training[key] for key in ("train_lr", "lr_warmup_steps", "ema_decay", "weight_decay")}
        | {"train_batch_size": 16},
    },
    "rin-pytorch": {
        "network": dict(dim=128, image_size=IMAGE_SIZE, patch_size=4, depth=2, num_latents=32, heads=4, dim_head=32),
        "training": dict(train_batch_size=32, train_lr=1e-3, ema_decay=0.995),
    },
    "denoising-diffusion-pytorch": {
        "network": dict(dim=32, image_size=IMAGE_SIZE, dim_mults=(1, 2, 4), flash_attn=True),
        "training": dict(train_batch_size=32, train_lr=1e-3, ema_decay=0.995),
    },
}


def train_and_sample(name: str, folder: Path, minutes: float, samples: int, bf16: bool) -> dict:
    """Train library `name` for `minutes`. Return its samples [samples,C,H,W], training steps and images/s."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as results:
        start, budget, steps = time.monotonic(), minutes * 60, 0
        adapter = TRAINERS[name](folder, Path(results), **SETTINGS[name], bf16=bf16)
        while (spent := time.monotonic() - start) < budget:
            if isinstance(adapter, DpAdapter) and steps:  # end the decay with the budget
                adapter.trainer.lr_decay_steps = round(steps * budget / spent)
            adapter.train(STEPS_PER_CHECK)
            steps += STEPS_PER_CHECK
        images = torch.cat([adapter.sample(64, seed=i) for i in range(0, samples, 64)])[:samples]
        return {"images": images, "steps": steps, "rate": steps * adapter.batch_size / spent}


def run_in_process(name: str, minutes: float, args: argparse.Namespace, slots: queue.Queue) -> dict:
    """Run `train_and_sample` in a new interpreter, pinned to free cores from `slots`."""
    cores = slots.get()
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result.pt"
            command = [sys.executable, __file__, str(args.folder), "--samples", str(args.samples)]
            command += ["--minutes", str(minutes), "--only", name, "--child", str(result), *map(str, cores)]
            subprocess.run(command + ["--float32"] * args.float32, check=True, stderr=subprocess.PIPE, text=True)
            return torch.load(result)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{name} failed:\n{error.stderr}") from None
    finally:
        slots.put(cores)


def child(args: argparse.Namespace) -> None:
    """Train, sample and save the result in the process that `run_in_process` started."""
    result, *cores = args.child
    os.sched_setaffinity(0, map(int, cores))
    torch.set_num_threads(len(cores))
    [name], [minutes] = args.only, args.minutes
    torch.save(train_and_sample(name, args.folder, minutes, args.samples, not args.float32), result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="images to train on")
    parser.add_argument("--minutes", type=float, nargs="+", default=[5, 10, 30], help="budgets (default 5 10 30)")
    parser.add_argument("--samples", type=int, default=512, help="samples per run (default 512)")
    parser.add_argument("--at-once", type=int, default=1, help="concurrent runs, which split the cores (default 1)")
    parser.add_argument("--only", nargs="+", choices=TRAINERS, default=list(TRAINERS), help="(default all)")
    parser.add_argument("--float32", action="store_true", help="train in float32 instead of bfloat16 autocast")
    parser.add_argument("--sheets", type=Path, help="folder to write sheets of samples to")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)  # result file and cores
    args = parser.parse_args()
    if args.child:
        return child(args)

    dataset = ImageDataset(args.folder, IMAGE_SIZE)
    originals = torch.stack([dataset[i] for i in range(len(dataset))])
    held_out = HeldOut(flips_and_shifts(originals))
    cores = sorted(os.sched_getaffinity(0))
    cores_per_run = len(cores) // args.at_once
    slots: queue.Queue = queue.Queue()
    for i in range(args.at_once):
        slots.put(cores[i * cores_per_run : (i + 1) * cores_per_run])
    print(f"{len(originals)} images, {IMAGE_SIZE} px, {cores_per_run} core(s) per run", end="")
    print(f", {args.samples} samples\n", flush=True)

    # The longest runs first, so that no core is idle for long at the end.
    jobs = [(minutes, name) for minutes in sorted(args.minutes, reverse=True) for name in args.only]
    with ThreadPoolExecutor(args.at_once) as pool:
        results = dict(zip(jobs, pool.map(lambda job: run_in_process(job[1], job[0], args, slots), jobs), strict=True))
    rows = []
    for minutes, name in sorted(jobs):
        images, steps, rate = results[minutes, name].values()
        rows.append((f"{minutes:g}", name, steps, rate, *held_out.score(images)))
        if args.sheets:
            args.sheets.mkdir(parents=True, exist_ok=True)
            sheet = make_grid(to_uint8(images[:SHEET_SIZE]).repeat(2, 1).repeat(2, 2), 8)
            (args.sheets / f"{name}-{minutes:g}.png").write_bytes(encode_png(sheet))
    mirrored = torch.cat([originals, originals.flip(-1)])
    rows.append(("", "training images", "", "", *held_out.score(mirrored)))
    print_table(("minutes", "library", "steps", "images/s", "sliced Wasserstein", "Fréchet"), rows)


if __name__ == "__main__":
    main()
