"""Training end to end from the same folder of PNGs: our Trainer beside rin-pytorch's, at equal width, depth, latents
and patches, and beside denoising-diffusion-pytorch's own U-Net.

    pip install -r benchmarks/requirements.txt
    python checkpoints/make.py draw faces-32 pictures/faces
    python benchmarks/training.py pictures/faces --side 136 1024

The peers decode every picture again in each epoch, so their speed depends on how large the pictures are: --side
enlarges them first.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import contenders
import torch
from contenders import CONTENDERS
from measure import alternate, print_table
from PIL import Image


def enlarged(folder: Path, side: int, into: Path) -> Path:
    """Every picture of the folder as a PNG of side x side."""
    into.mkdir()
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as picture:
            picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC).save(into / path.name)
    return into


def settings(args: argparse.Namespace) -> dict[str, dict]:
    rin = {"dim": args.dim, "image_size": args.image_size, "patch_size": args.patch_size, "depth": args.depth}
    rin |= {"num_latents": args.latents, "heads": 4, "dim_head": 32}  # heads as by rin-pytorch's defaults
    training = {"train_batch_size": args.batch, "train_lr": 1e-4}
    unet = {"dim": 64, "image_size": args.image_size, "flash_attn": True}  # as in its README
    return {
        "dp": {"network": rin, "policy": {}, "training": training},
        "rin-pytorch": {"network": rin, "training": training},
        "denoising-diffusion-pytorch": {"network": unet, "training": training},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, nargs="+", default=[136], help="pixels on a side of the PNGs (default 136)")
    for name, value in dict(dim=256, image_size=64, patch_size=8, depth=4, latents=64, batch=16).items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=value, help=f"default {value}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=7, help="in each round; 7 of 16 are one epoch of 112 pictures")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast, for all")
    args = parser.parse_args()

    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for side in args.side:
            folder = enlarged(args.folder, side, Path(temporary) / f"{side}")
            built: dict[str, contenders.Contender] = {}
            first = {}
            for name in args.only:
                torch.manual_seed(0)
                start = time.perf_counter()
                built[name] = CONTENDERS[name](
                    folder, Path(temporary) / f"{side}-{name}", **settings(args)[name], bf16=args.bf16
                )
                built[name].advance(1)
                first[name] = time.perf_counter() - start
            seconds = alternate({name: lambda c=c: c.advance(args.steps) for name, c in built.items()}, args.rounds)
            rates = {name: args.steps * c.batch_size / seconds[name] for name, c in built.items()}
            for name, rate in rates.items():
                rows.append((side, name, rate, rates[args.only[0]] / rate, first[name]))
    precision = "bfloat16 autocast" if args.bf16 else "float32"
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {precision}, batches of {args.batch}\n")
    print_table(("PNG side", "trainer", "images/s", f"{args.only[0]} to it", "first step after, s"), rows)


if __name__ == "__main__":
    main()
