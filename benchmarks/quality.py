"""Quality for equal minutes: each tool trains on the same folder for the same time on the same cores, then draws 512
images in 50 DDIM steps, which are compared with held-out flips and shifts of the pictures (see scores.py, also for what
the scores cannot tell).

    pip install -r benchmarks/requirements.txt
    python checkpoints/make.py draw faces-32 pictures/faces
    python benchmarks/quality.py pictures/faces --minutes 10 30 --at-once 2

Each run is a process of its own with an equal share of the cores, bound to it with its data-loading workers. Time
starts before the folder is read, and does not count the drawing of samples.
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

import contenders
import torch
from contenders import CONTENDERS
from measure import print_table
from scores import HeldOut

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "checkpoints"))

from make import MODELS

from dp import ImageDataset
from dp.data.codec import encode_png, make_grid, to_uint8

BUNDLED = MODELS["faces-32"]
IMAGE_SIZE = BUNDLED["network"]["image_size"]
SLICE = 10  # training steps between looks at the clock
SHEET = 64  # samples on a sheet

# Each tool's own settings, scaled to minutes of a CPU: small networks, and learning rates to match. Ours are those of
# the bundled model (checkpoints/make.py) in smaller batches; rin-pytorch has the same width, depth and latents.
SETTINGS = {
    "dp": {
        "network": BUNDLED["network"],
        "policy": BUNDLED["policy"],
        "training": {
            key: BUNDLED["training"][key] for key in ("train_lr", "lr_warmup_steps", "ema_decay", "weight_decay")
        }
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
    """One contender's whole run: its samples, and the steps and images/s that it came to."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as results:
        start, budget, steps = time.monotonic(), minutes * 60, 0
        contender = CONTENDERS[name](folder, Path(results), **SETTINGS[name], bf16=bf16)
        while (spent := time.monotonic() - start) < budget:
            if isinstance(contender, contenders.Ours) and steps:  # the decay ends where the time ends
                contender.trainer.lr_decay_steps = round(steps * budget / spent)
            contender.advance(SLICE)
            steps += SLICE
        images = torch.cat([contender.sample(64, seed=i) for i in range(0, samples, 64)])[:samples]
        return {"images": images, "steps": steps, "rate": steps * contender.batch_size / spent}


def in_own_process(name: str, minutes: float, args: argparse.Namespace, slots: queue.Queue) -> dict:
    """`train_and_sample` in a fresh interpreter, bound to cores that are free."""
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
    result, *cores = args.child
    os.sched_setaffinity(0, map(int, cores))
    torch.set_num_threads(len(cores))
    [name], [minutes] = args.only, args.minutes
    torch.save(train_and_sample(name, args.folder, minutes, args.samples, not args.float32), result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, nargs="+", default=[5, 10, 30], help="budgets (default 5 10 30)")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side; the cores are shared out among them")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--float32", action="store_true", help="instead of bfloat16 autocast, for all")
    parser.add_argument("--sheets", type=Path, help="folder for sheets of samples")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)  # where to write, and the cores to run on
    args = parser.parse_args()
    if args.child:
        return child(args)

    dataset = ImageDataset(args.folder, IMAGE_SIZE)
    pictures = torch.stack([dataset[i] for i in range(len(dataset))])
    held_out = HeldOut(pictures)
    cores = sorted(os.sched_getaffinity(0))
    each = len(cores) // args.at_once
    slots: queue.Queue = queue.Queue()
    for i in range(args.at_once):
        slots.put(cores[i * each : (i + 1) * each])
    print(f"{len(pictures)} pictures, {IMAGE_SIZE} px, {each} core(s) each, {args.samples} samples\n", flush=True)

    # The longest first, so that no core waits for long at the end.
    jobs = [(minutes, name) for minutes in sorted(args.minutes, reverse=True) for name in args.only]
    with ThreadPoolExecutor(args.at_once) as pool:
        results = dict(zip(jobs, pool.map(lambda job: in_own_process(job[1], job[0], args, slots), jobs), strict=True))
    rows = []
    for minutes, name in sorted(jobs):
        images, steps, rate = results[minutes, name].values()
        rows.append((f"{minutes:g}", name, steps, rate, *held_out.score(images)))
        if args.sheets:
            args.sheets.mkdir(parents=True, exist_ok=True)
            sheet = make_grid(to_uint8(images[:SHEET]).repeat(2, 1).repeat(2, 2), 8)
            (args.sheets / f"{name}-{minutes:g}.png").write_bytes(encode_png(sheet))
    both = torch.cat([pictures, pictures.flip(-1)])
    rows.append(("", "the pictures themselves", "", "", *held_out.score(both)))
    print_table(("minutes", "tool", "steps", "images/s", "sliced Wasserstein", "Fréchet"), rows)


if __name__ == "__main__":
    main()
