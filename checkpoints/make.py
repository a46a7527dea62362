"""How the bundled models are made, from nothing but a font: draw the pictures, train, then write the checkpoint folder
with its card.

    python checkpoints/make.py draw faces-32 pictures/faces
    python checkpoints/make.py train faces-32 pictures/faces runs/faces-32
    python checkpoints/make.py bundle faces-32 pictures/faces runs/faces-32

The pictures are the glyphs of Noto Color Emoji (SIL Open Font License 1.1), by default where Debian's package
fonts-noto-color-emoji puts it. `draw` needs fontTools (in tests/requirements.txt) to read the font's character map.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from a clone without installing

from dp import RIN, DiffusionPolicy, Trainer

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
FONT_SIZE = 109  # the one bitmap size that the font holds
GLYPH = (136, 128)

# Unicode ranges, both ends included.
NOT_PICTURES = [
    (0x0, 0xA8),
    (0xAA, 0xAD),
    (0x200D, 0x200D),
    (0x1F1E6, 0x1F1FF),
    (0x1F3FB, 0x1F3FF),
    (0xFE00, 0xFE0F),
    (0xE0000, 0xFFFFF),
]
FACES = [(0x2639, 0x263A), (0x1F600, 0x1F644), (0x1F910, 0x1F917), (0x1F920, 0x1F925), (0x1F927, 0x1F92F)]
FACES += [(0x1F970, 0x1F976), (0x1F978, 0x1F97A), (0x1F9D0, 0x1F9D0), (0x1FAE0, 0x1FAE5), (0x1FAE8, 0x1FAE8)]

# One entry per bundled model: which pictures, which network, which training.
MODELS = {
    "faces-32": {
        "pictures": FACES,
        "network": dict(
            dim=128,
            image_size=32,
            patch_size=4,
            depth=2,
            num_latents=32,
            heads=4,
            dim_head=32,
            conv_widths=(64,),
            conv_blocks=2,
        ),
        "policy": dict(timesteps=50),
        "training": dict(
            train_batch_size=64,
            train_lr=1.5e-3,
            train_num_steps=7500,
            lr_warmup_steps=200,
            lr_decay_steps=7500,
            ema_decay=0.99,
            weight_decay=0.01,
            save_and_sample_every=500,
            num_samples=64,
            sample_steps=25,
            amp=True,
            mixed_precision_type="bf16",
        ),
    },
}


def draw(ranges: list[tuple[int, int]], folder: Path, font_path: str = FONT) -> int:
    """Each glyph of `ranges` that the font holds, on a white square, as folder/<code point>.png. Returns how many."""
    from fontTools.ttLib import TTFont

    folder.mkdir(parents=True, exist_ok=True)
    font = ImageFont.truetype(font_path, FONT_SIZE)
    points = [
        point for point in sorted(TTFont(font_path).getBestCmap()) if any(low <= point <= high for low, high in ranges)
    ]
    points = [point for point in points if not any(low <= point <= high for low, high in NOT_PICTURES)]
    side = max(GLYPH)
    for point in points:
        glyph = Image.new("RGBA", (side, side), "white")
        ImageDraw.Draw(glyph).text((0, (side - GLYPH[1]) // 2), chr(point), font=font, embedded_color=True)
        glyph.convert("RGB").save(folder / f"{point:05x}.png")
    return len(points)


def train(name: str, pictures: Path, run: Path) -> None:
    """Train the model `name`, going on from the run's last milestone if there is one."""
    model = MODELS[name]
    trainer = Trainer(
        DiffusionPolicy(RIN(**model["network"]), **model["policy"]), pictures, results_folder=run, **model["training"]
    )
    print(trainer.dataset.report)
    if milestones := trainer.run.milestones():
        trainer.load(milestones[-1])
    trainer.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["draw", "train", "bundle"])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("pictures", type=Path, help="the folder of pictures")
    parser.add_argument("run", type=Path, nargs="?", help="the run folder (train and bundle)")
    args = parser.parse_args()
    if args.action == "draw":
        print(f"{draw(MODELS[args.model]['pictures'], args.pictures)} pictures in {args.pictures}")
    elif args.run is None:
        parser.error(f"{args.action} needs the run folder")
    else:
        {"train": train}[args.action](args.model, args.pictures, args.run)


if __name__ == "__main__":
    main()
