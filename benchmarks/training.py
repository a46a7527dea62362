"""Compare training speed end to end, from the same folder of PNGs: this library's Trainer, rin-pytorch's at the same
width, depth, latents and patch size, and denoising-diffusion-pytorch's with its own U-Net.

    pip install -r benchmarks/requirements.txt
    python checkpoints/make.py draw faces-32 images/faces
    python benchmarks/training.py images/faces --side 136 1024

The other libraries decode every image again in each epoch, so their speed depends on the size of the images. --side
resizes the images to the given sizes first.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from measure import print_table, time_alternating
from PIL import Image
from trainers import TRAINERS, TrainerAdapter


def resize_folder(folder: Path, side: int, output_dir: Path) -> Path:
    """Write every PNG of `folder`, resized to side x side pixels, to `output_dir` and return that."""
    output_dir.mkdir()
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC).save(output_dir / path.name)
    return output_dir


def settings(args: argparse.Namespace) -> dict[str, dict]:
    rin = {"dim": args.dim, "image_size": args.image_size, "patch_size": args.patch_size, "depth": args.depth}
    rin |= {"num_latents": args.latents, "heads": 4, "dim_head": 32}  # rin-pytorch's defaults
    training = {"train_batch_size": args.batch, "train_lr": 1e-4}
    unet = {"dim": 64, "image_size": args.image_size, "flash_attn": True}  # as in the library's README
    return {
        "dp": {"network": rin, "policy": {}, "training": training},
        "rin-pytorch": {"network": rin, "training": training},
        "denoising-diffusion-pytorch": {"network": unet, "training": training},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="PNGs to train on")
    parser.add_argument("--side", type=int, nargs="+", default=[136], help="side of the PNGs in pixels (default 136)")
    for name, value in dict(dim=256, image_size=64, patch_size=8, depth=4, latents=64, batch=16).items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=value, help=f"(default {value})")
    parser.add_argument("--rounds", type=int, default=5, help="(default 5)")
    parser.add_argument("--steps", type=int, default=7, help="steps per round (default 7, an epoch of 112 images)")
    parser.add_argument("--only", nargs="+", choices=TRAINERS, default=list(TRAINERS), help="(default all)")
    parser.add_argument("--bf16", action="store_true", help="train with bfloat16 autocast instead of float32")
    args = parser.parse_args()

    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for side in args.side:
            folder = resize_folder(args.folder, side, Path(temporary) / f"{side}")
            built: dict[str, TrainerAdapter] = {}
            first_step: dict[str, float] = {}
            for name in args.only:
                torch.manual_seed(0)
                start = time.perf_counter()
                built[name] = TRAINERS[name](
                    folder, Path(temporary) / f"{side}-{name}", **settings(args)[name], bf16=args.bf16
                )
                built[name].train(1)
                first_step[name] = time.perf_counter() - start
            calls = {name: lambda t=t: t.train(args.steps) for name, t in built.items()}
            seconds = time_alternating(calls, args.rounds)
            rates = {name: args.steps * t.batch_size / seconds[name] for name, t in built.items()}
            for name, rate in rates.items():
                rows.append((side, name, rate, rates[args.only[0]] / rate, first_step[name]))
    precision = "bfloat16 autocast" if args.bf16 else "float32"
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {precision}, batches of {args.batch}\n")
    print_table(("PNG side", "trainer", "images/s", f"speedup of {args.only[0]}", "time to first step, s"), rows)


if __name__ == "__main__":
    main()
