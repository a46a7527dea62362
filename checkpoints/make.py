"""Make the bundled models from a font: draw the images, train, and write the checkpoint folder with its card.

    python checkpoints/make.py draw faces-32 images/faces
    python checkpoints/make.py train faces-32 images/faces runs/faces-32
    python checkpoints/make.py bundle faces-32 images/faces runs/faces-32 --device "two cores of a CPU"

The images are glyphs of Noto Color Emoji (SIL Open Font License 1.1), by default from Debian's package
fonts-noto-color-emoji. `draw` needs fontTools (in tests/requirements.txt) to read the font's character map.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # so that it runs from a clone without installing

from dp import RIN, DiffusionPolicy, ImageDataset, Trainer
from dp.checkpoints import folder as checkpoint
from dp.data.codec import encode_png, make_grid, to_uint8
from dp.system.atomic_files import replacing
from dp.training.run_folder import RunFolder

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
FONT_SIZE = 109  # the one bitmap size that the font holds
GLYPH = (136, 128)
SAMPLES, PAIRS = 64, 12  # on the card

# Unicode ranges, both ends included.
FACES = [(0x2639, 0x263A), (0x1F600, 0x1F644), (0x1F910, 0x1F917), (0x1F920, 0x1F925), (0x1F927, 0x1F92F)]
FACES += [(0x1F970, 0x1F976), (0x1F978, 0x1F97A), (0x1F9D0, 0x1F9D0), (0x1FAE0, 0x1FAE5), (0x1FAE8, 0x1FAE8)]

# One entry per bundled model: its glyphs, network and training.
MODELS = {
    "faces-32": {
        "glyphs": FACES,
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
        # For these images, the content is decided where there is little more than noise (gamma from 0.001 to 0.07). So
        # the schedule reaches further there, and min-SNR is off, as it gives these levels almost no weight: see "Which
        # levels to train on" in benchmarks/README.md.
        "policy": dict(
            timesteps=50,
            noise_schedule="sigmoid",
            schedule_kwargs=dict(start=-3.0, end=7.0),
            min_snr_loss_weight=False,
            train_prob_self_cond=0.5,
        ),
        "training": dict(
            train_batch_size=32,
            train_lr=1.5e-3,
            train_num_steps=8000,
            lr_warmup_steps=200,
            lr_decay_steps=8000,
            ema_decay=0.99,
            weight_decay=0.01,
            save_and_sample_every=1000,
            num_samples=64,
            sample_steps=25,
            amp=True,
            mixed_precision_type="bf16",
        ),
    },
}


def draw(ranges: list[tuple[int, int]], folder: Path, font_path: str = FONT) -> int:
    """Draw each glyph of `ranges` that the font has, on white, as folder/<code point>.png. Return their number."""
    from fontTools.ttLib import TTFont

    folder.mkdir(parents=True, exist_ok=True)
    font = ImageFont.truetype(font_path, FONT_SIZE)
    points = [
        point for point in sorted(TTFont(font_path).getBestCmap()) if any(low <= point <= high for low, high in ranges)
    ]
    side = max(GLYPH)
    for point in points:
        glyph = Image.new("RGBA", (side, side), "white")
        ImageDraw.Draw(glyph).text((0, (side - GLYPH[1]) // 2), chr(point), font=font, embedded_color=True)
        glyph.convert("RGB").save(folder / f"{point:05x}.png")
    return len(points)


def train(name: str, images: Path, run: Path) -> None:
    """Train the model `name`, resuming from the last checkpoint of the run, if there is one."""
    model = MODELS[name]
    trainer = Trainer(
        DiffusionPolicy(RIN(**model["network"]), **model["policy"]), images, results_folder=run, **model["training"]
    )
    print(trainer.dataset.report)
    trainer.resume()
    trainer.train()


def bundle(name: str, images: Path, run: Path, device: str) -> None:
    """Write checkpoints/<name>/ from the run's last checkpoint: weights in half precision, samples, and the card. The
    previous folder is replaced when everything is done.
    """
    steps = RunFolder(run).checkpoint_steps()
    if not steps:
        raise SystemExit(f"there is no checkpoint in {run}: train first")
    newest = RunFolder(run).checkpoint(steps[-1])
    config = checkpoint.read_config(newest)
    dataset = ImageDataset(images, config["network"]["image_size"])
    title = {"step": config["step"], "dataset": f"{images.name} of Noto Color Emoji", "license": "ofl-1.1"}
    with replacing(HERE / name) as folder:
        network, config = checkpoint.load(newest)
        checkpoint.save(folder, network, config | title, dtype=torch.float16)
        policy = DiffusionPolicy.from_pretrained(folder)
        samples = to_uint8(policy.sample(SAMPLES, timesteps=25, sampler="ddim", seed=0))
        save_upscaled(samples, folder / "samples.png", columns=8)
        nearest, distances = nearest_images(samples, dataset.images)
        pairs = np.concatenate([samples[:PAIRS], nearest[:PAIRS]])
        save_upscaled(pairs, folder / "nearest.png", columns=PAIRS)
        text = card(
            name,
            config,
            run,
            parameters=sum(p.numel() for p in policy.parameters()) / 1e6,
            weights_mb=(folder / "model.safetensors").stat().st_size / 1e6,
            images=len(dataset),
            distances=distances,
            between=nearest_images(dataset.images, dataset.images, skip_self=True)[1],
            device=device,
        )
        (folder / "README.md").write_text(text, encoding="utf-8")


def nearest_images(samples: np.ndarray, images: np.ndarray, skip_self: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest of `images`, mirrored or not, for each of `samples` [B,H,W,C], and its distance: the root mean
    square over the pixels, on a scale where black to white is 1.
    """
    both = np.concatenate([images, images[:, :, ::-1]])
    a, b = (x.reshape(len(x), -1).astype(np.float32) / 255 for x in (samples, both))
    distances = np.sqrt(((a[:, None] - b[None]) ** 2).mean(-1))
    if skip_self:
        n = np.arange(len(images))
        distances[n, n] = distances[n, n + len(images)] = np.inf
    index = distances.argmin(1)
    return both[index], distances.min(1)


def save_upscaled(array: np.ndarray, path: Path, columns: int, times: int = 3) -> None:
    path.write_bytes(encode_png(make_grid(array.repeat(times, 1).repeat(times, 2), columns)))


def card(name: str, config: dict, run: Path, **measured) -> str:
    """Fill in card.md from the run's records and the measurements."""
    by_step = {}  # a resumed run logs again
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):  # a line torn by a crash
            record = json.loads(line)
            by_step[record["step"]] = record
    records = [record for step, record in sorted(by_step.items()) if step <= config["step"]]
    batch = MODELS[name]["training"]["train_batch_size"]
    between, distances = np.median(measured["between"]), measured["distances"]
    facts = {key: config["network"][key] for key in ("depth", "num_latents", "dim_latent", "dim")}
    facts |= {key: config["policy"][key] for key in ("objective", "noise_schedule")}
    keywords = [f"{key} {value:g}" for key, value in config["policy"]["schedule_kwargs"].items()]
    facts |= {
        "name": name,
        "keywords": f" ({', '.join(keywords)})" if keywords else "",
        "weighting": "min-SNR weighting" if config["policy"]["min_snr_loss_weight"] else "every level with weight 1",
        "side": config["network"]["image_size"],
        "samples": SAMPLES,
        "pairs": PAIRS,
        "self_cond": config["policy"]["train_prob_self_cond"],
        "step": config["step"],
        "batch": batch,
        "seen": config["step"] * batch,
        "passes": config["step"] * batch / measured["images"],
        "minutes": sum((records[1]["step"] - records[0]["step"]) * batch / r["images_per_s"] for r in records) / 60,
        "loss": np.mean([r["loss"] for r in records if r["step"] > config["step"] - 100]),
        "median": np.median(distances),
        "low": distances.min(),
        "high": distances.max(),
        "close": int((distances < between / 2).sum()),
    }
    template = (HERE / "card.md").read_text(encoding="utf-8")
    return template.format(**(measured | facts | {"between": between}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["draw", "train", "bundle"])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("images", type=Path, help="the folder of training images")
    parser.add_argument("run", type=Path, nargs="?", help="the run folder (train and bundle)")
    parser.add_argument("--device", default="a device that was not named", help="what it was trained on (bundle)")
    args = parser.parse_args()
    if args.action == "draw":
        print(f"{draw(MODELS[args.model]['glyphs'], args.images)} images in {args.images}")
    elif args.run is None:
        parser.error(f"{args.action} needs the run folder")
    elif args.action == "train":
        train(args.model, args.images, args.run)
    else:
        bundle(args.model, args.images, args.run, args.device)


if __name__ == "__main__":
    main()
