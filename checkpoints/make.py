"""Make the bundled models: draw the images, train, and write the checkpoint folder with its card.

    python checkpoints/make.py draw creatures-32 images/creatures
    python checkpoints/make.py train creatures-32 images/creatures runs/creatures-32
    python checkpoints/make.py bundle creatures-32 images/creatures runs/creatures-32 --device "two cores of a CPU"

`bundle` replaces the folder: docs/recordings.py makes what the page shows of the model before the first run.

`draw` also writes the images that training never sees, next to the others: images/creatures-test. drawing.py says what
the images are and what drawing them needs, which is in checkpoints/requirements.txt.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import drawing
import numpy as np
import torch
from judging import accuracy, nearest_images, train_classifier, variety

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # so that it runs from a clone without installing

from dp import RIN, DiffusionPolicy, ImageDataset, Trainer
from dp.checkpoints import folder as checkpoint
from dp.data.codec import encode_png, make_grid, to_pillow, to_uint8
from dp.system.atomic_files import replacing
from dp.training.presets import FAST_LR, FAST_SHARE
from dp.training.run_folder import RunFolder

COLUMNS, PAIRS = 12, 12  # samples of each class on the card; pairs of a sample and its nearest training image
UNCONDITIONAL = 64  # samples on the card of a model without classes
MEASURED = 520  # samples that the numbers on the card of a model with classes come from
BATCH = 65
SAMPLER_TITLES = {"dpmpp_2m": "DPM-Solver++(2M)", "consistency": "consistency sampling"}
GUIDED = 2.0  # guidance of one of two sheets, and of half of the measured samples
BUNDLED = 512  # images that a folder holds, at most
FEW = (1, 2, 4)  # steps in which a fast model is compared with its original

# The latents stay distinct with these two: see "The latents" in benchmarks/README.md.
DISTINCT_LATENTS = dict(qk_norm=True, latent_std=1.0)
NETWORK = dict(dim=128, image_size=32, patch_size=4, depth=2, num_latents=32, heads=4, dim_head=32)
NETWORK |= dict(conv_widths=(64,), conv_blocks=2) | DISTINCT_LATENTS
TRAINING = dict(train_batch_size=32, train_lr=1.5e-3, lr_warmup_steps=200, weight_decay=0.01, ema_decay=0.99)
TRAINING |= dict(save_and_sample_every=1000, num_samples=64, sample_steps=20, amp=True, mixed_precision_type="bf16")
POLICY = dict(timesteps=50, noise_schedule="sigmoid", train_prob_self_cond=0.5)


class Model(NamedTuple):
    """One bundled model. steps: of training. sampling: what the page begins with. The rest is for its config and card:
    what its images are and where they are from.
    """

    draw: Callable[..., tuple[drawing.Drawn, drawing.Drawn]]
    network: dict[str, Any]
    policy: dict[str, Any]
    training: dict[str, Any]
    steps: int
    sampling: dict[str, Any]
    license: str
    dataset: str
    images: str
    origin: str
    read_gain: float = 1.0  # with which training begins: a larger one makes each latent read fewer patches
    more_steps: int = 0  # after the others, at a tenth of the peak learning rate
    start: str = ""  # the bundled model that is made fast


MODELS = {
    "creatures-32": Model(
        drawing.draw_creatures,
        NETWORK | dict(num_classes=len(drawing.STYLES)),
        POLICY | dict(schedule_kwargs=dict(start=-3.0, end=5.0)),
        TRAINING | dict(augment_horizontal_flip=False),
        16_000,
        dict(timesteps=20, sampler="dpmpp_2m", guidance=1.0),
        "cc0-1.0",
        "40,000 avatars in ten styles",
        "avatars of ten styles of DiceBear, 4,000 of each, drawn at 64×64 and averaged to 32×32",
        "DiceBear (https://www.dicebear.com) made all ten styles and gave them to the public domain, CC0 1.0.",
    ),
    "letters-32": Model(
        drawing.draw_letters,
        # Convolutions would draw the strokes without any help from the latents.
        NETWORK | dict(channels=1, num_classes=26, patch_size=2, conv_widths=(), query_std=3.0),
        POLICY | dict(schedule_kwargs=dict(start=-3.0, end=5.0)),
        TRAINING | dict(augment_horizontal_flip=False),
        10_000,
        # See "What guidance does" in benchmarks/README.md.
        dict(timesteps=20, sampler="dpmpp_2m", guidance=2.0, guidance_interval=[0.1, 0.8]),
        "ofl-1.1",
        "the capitals of free fonts",
        "capitals of fonts in Debian's packages, drawn at 128×128 and averaged to 32×32",
        "The fonts and this model: SIL Open Font License 1.1. [fonts.txt](fonts.txt) lists the families.",
        read_gain=2.0,
        more_steps=6_000,
    ),
    "faces-32": Model(
        drawing.draw_faces,
        NETWORK | dict(query_std=3.0),
        # For so few images, the content is decided where there is little more than noise (gamma from 0.001 to 0.07), so
        # the schedule reaches further there: see "Which levels to train on" in benchmarks/README.md.
        POLICY | dict(schedule_kwargs=dict(start=-3.0, end=7.0)),
        TRAINING,
        5_500,
        dict(timesteps=20, sampler="dpmpp_2m"),
        "ofl-1.1",
        "112 emoji faces, so few that it copies many of them",
        "faces of the Noto Color Emoji font, drawn at 136×136 on white, resized to 32×32, mirrored at random",
        "The font and this model: SIL Open Font License 1.1.",
        read_gain=2.0,
    ),
}

CREATURES = MODELS["creatures-32"]
MODELS["creatures-32-fast"] = CREATURES._replace(
    policy=CREATURES.policy | dict(timesteps=4, consistency=True),
    training=CREATURES.training
    | dict(train_lr=FAST_LR * CREATURES.training["train_lr"], lr_warmup_steps=80)
    | dict(save_and_sample_every=400, num_samples=16),
    steps=round(FAST_SHARE * CREATURES.steps),
    sampling=dict(timesteps=4, sampler="consistency", guidance=1.0),
    start="creatures-32",
)


def train(name: str, images: Path, run: Path) -> None:
    """Train the model `name`, resuming from the last checkpoint of the run, if there is one."""
    model = MODELS[name]
    torch.manual_seed(0)
    network = RIN(**model.network)
    for block in network.blocks:
        torch.nn.init.constant_(block.read.qk_gain, model.read_gain)
    if model.start:
        checkpoint.load_weights(HERE / model.start, network)
    policy = DiffusionPolicy(network, **model.policy)
    length = dict(train_num_steps=model.steps + model.more_steps, lr_decay_steps=model.steps)
    trainer = Trainer(policy, images, results_folder=run, **model.training, **length)
    print(trainer.dataset.report)
    trainer.resume()
    trainer.train()


def bundle(name: str, images: Path, run: Path, device: str) -> None:
    """Write checkpoints/<name>/ from the run's last checkpoint: weights in half precision, images (all, or a
    sample of many), the card and its pictures. The previous folder is replaced when everything is done.
    """
    model, steps = MODELS[name], RunFolder(run).checkpoint_steps()
    if not steps:
        raise SystemExit(f"there is no checkpoint in {run}: train first")
    newest = RunFolder(run).checkpoint(steps[-1])
    network, config = checkpoint.load(newest)
    title = {"dataset": model.dataset, "license": model.license, "sampling": model.sampling}
    title |= {"original": model.start} if model.start else {}
    mode = {"convert_image_to": "L" if config["network"]["channels"] == 1 else "RGB"}
    dataset = ImageDataset(images, drawing.SIDE, **mode, classes="classes" in config)
    if len(dataset) <= BUNDLED:
        title["training_set"] = {"mirrored": model.training.get("augment_horizontal_flip", True)}
    with replacing(HERE / name) as folder:
        checkpoint.save(folder, network, config | title, dtype=torch.float16)
        policy = DiffusionPolicy.from_pretrained(folder).eval()
        save_images(dataset, folder / "images.zip")
        facts = facts_about(name, config, run, dataset, device)
        facts["parameters"] = sum(p.numel() for p in policy.parameters()) / 1e6
        facts["weights_mb"] = (folder / "model.safetensors").stat().st_size / 1e6
        if "classes" in config:
            test = ImageDataset(test_folder(images), drawing.SIDE, **mode, classes=True)
            facts |= with_classes(policy, model.sampling, dataset, test, folder)
            if name == "letters-32":
                families = sorted({path.stem.rsplit(" ", 1)[0] for path in images.rglob("*.png")})
                (folder / "fonts.txt").write_text("\n".join(families) + "\n", encoding="utf-8")
        else:
            facts |= without_classes(policy, model.sampling, dataset, folder)
        parts = ["", "-classes" if "classes" in config else "-copies"]
        if model.start:
            facts["table"] = beside_original(policy, model, dataset, test)
            parts += ["-fast"]
        text = "".join((HERE / f"card{part}.md").read_text(encoding="utf-8") for part in parts)
        (folder / "README.md").write_text(text.format(**facts), encoding="utf-8")


def with_classes(
    policy: DiffusionPolicy, sampling: dict, dataset: ImageDataset, test: ImageDataset, folder: Path
) -> dict:
    """Save sheets with a row for each class, with guidance and without, and the nearest training images.
    Return the facts for the card.
    """
    classes = dataset.classes
    for name, weight in (("guided.webp", GUIDED), ("plain.webp", 1.0)):
        rows = [
            draw_samples(policy, COLUMNS, [label], sampling | {"guidance": weight})
            for label in range(1, len(classes) + 1)
        ]
        save_sheet(np.concatenate(rows), folder / name, COLUMNS)
    labels = np.resize(np.arange(1, len(classes) + 1), MEASURED)
    guided, plain = (
        draw_samples(policy, MEASURED, list(labels), sampling | {"guidance": weight}) for weight in (GUIDED, 1.0)
    )
    nearest, distances = nearest_images(guided, dataset.images, mirrored=False)
    save_sheet(np.concatenate([guided[:PAIRS], nearest[:PAIRS]]), folder / "nearest.webp", PAIRS)
    classifier = train_classifier(dataset.images, np.asarray(dataset.labels))
    unseen = nearest_images(test.images, dataset.images, mirrored=False)[1]
    low, high = sampling.get("guidance_interval", (0, 1))
    return {
        "interval": f" at times from {low:g} to {high:g}" if (low, high) != (0, 1) else "",
        "classes": ", ".join(classes),
        "guidance": GUIDED,
        "default_guidance": sampling["guidance"],
        "measured": MEASURED,
        "median": np.median(distances),
        "unseen": np.median(unseen),
        "plain_median": np.median(nearest_images(plain, dataset.images, mirrored=False)[1]),
        "ratio": np.median(distances) / np.median(unseen),
        "test_images": len(test),
        "test_accuracy": accuracy(classifier, test.images, np.asarray(test.labels)),
        "guided_accuracy": accuracy(classifier, guided, labels),
        "plain_accuracy": accuracy(classifier, plain, labels),
    }


def without_classes(policy: DiffusionPolicy, sampling: dict, dataset: ImageDataset, folder: Path) -> dict:
    """Save a sheet of samples, and the nearest training images. Return the facts for the card."""
    samples = draw_samples(policy, UNCONDITIONAL, [0], sampling)
    nearest, distances = nearest_images(samples, dataset.images, mirrored=True)
    save_sheet(samples, folder / "samples.webp", columns=8)
    save_sheet(np.concatenate([samples[:PAIRS], nearest[:PAIRS]]), folder / "nearest.webp", PAIRS)
    others = [np.delete(dataset.images, i, axis=0) for i in range(len(dataset))]
    between = [
        nearest_images(image[None], rest, mirrored=True)[1] for image, rest in zip(dataset.images, others, strict=True)
    ]
    return {
        "measured": UNCONDITIONAL,
        "median": np.median(distances),
        "low": distances.min(),
        "high": distances.max(),
        "between": np.median(between),
        "close": int((distances < np.median(between) / 2).sum()),
    }


def beside_original(policy: DiffusionPolicy, model: Model, dataset: ImageDataset, test: ImageDataset) -> str:
    """Return a Markdown table of a fast model in FEW steps, of its original with its own settings, and of the test
    images: how near they are to training images, and how much those of a class differ.
    """
    original, own = DiffusionPolicy.from_pretrained(HERE / model.start).eval(), MODELS[model.start].sampling
    labels = np.resize(np.arange(1, len(dataset.classes) + 1), MEASURED)
    runs = [
        (f"this model, {steps} step{'s' * (steps > 1)}", policy, model.sampling | {"timesteps": steps}) for steps in FEW
    ]
    runs.append((f"{model.start}, {own['timesteps']} steps", original, own))
    found = [(name, draw_samples(one, MEASURED, list(labels), sampling), labels) for name, one, sampling in runs]
    found.append(("test images", test.images, np.asarray(test.labels)))
    lines = ["| | nearest | variety |", "|---|---|---|"]
    for name, images, classes in found:
        nearest = np.median(nearest_images(images, dataset.images, mirrored=False)[1])
        lines.append(f"| {name} | {nearest:.3f} | {variety(images, classes):.3f} |")
    return "\n".join(lines)


def draw_samples(policy: DiffusionPolicy, count: int, labels: list[int], sampling: dict) -> np.ndarray:
    """Return `count` samples of seeds 0, 1, ..., uint8 [count,H,W,C]; `labels` are theirs, or one for all."""
    samples = []
    for i in range(0, count, BATCH):
        size = min(BATCH, count - i)
        chosen = {"label": tuple(int(label) for label in (labels * count)[i : i + size])} if any(labels) else {}
        samples.append(to_uint8(policy.sample(size, seed=i, **sampling, **chosen)))
    return np.concatenate(samples)


def save_images(dataset: ImageDataset, path: Path) -> None:
    """Write a ZIP of BUNDLED images, evenly chosen, or of all if they are fewer, in class folders."""
    chosen = np.unique(np.linspace(0, len(dataset) - 1, BUNDLED).round().astype(int))
    with zipfile.ZipFile(path, "w") as archive:
        for i in chosen:
            label = f"{dataset.classes[dataset.labels[i] - 1]}/" if dataset.classes else ""
            # Without the time of day, so that the same images are the same file.
            archive.writestr(zipfile.ZipInfo(f"{label}{i:05d}.png"), encode_png(dataset.images[i]))


def save_sheet(images: np.ndarray, path: Path, columns: int) -> None:
    """Save images [N,H,W,C] twice as large in a grid, as a WebP: several times smaller than a PNG."""
    to_pillow(make_grid(images.repeat(2, 1).repeat(2, 2), columns)).save(path, quality=90, method=6)


def test_folder(images: Path) -> Path:
    return images.with_name(f"{images.name}-test")


def facts_about(name: str, config: dict, run: Path, dataset: ImageDataset, device: str) -> dict:
    """Return what the card says about the network and its training, from the run's records."""
    by_step = {}  # a resumed run logs again
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):  # a line torn by a crash
            record = json.loads(line)
            if "loss" in record:  # not the record of a resume
                by_step[record["step"]] = record
    records = [record for step, record in sorted(by_step.items()) if step <= config["step"]]
    model, batch = MODELS[name], MODELS[name].training["train_batch_size"]
    keywords = ", ".join(f"{key} {value:g}" for key, value in config["policy"]["schedule_kwargs"].items())
    facts = {key: config["network"][key] for key in ("depth", "num_latents", "dim_latent", "dim")}
    facts |= {key: getattr(model, key) for key in ("license", "dataset", "images", "origin")}
    return facts | {
        "name": name,
        "folder": f"images/{name.split('-')[0]}",
        "side": drawing.SIDE,
        "count": len(dataset),
        "interface": "a convolutional interface"
        if config["network"]["conv_widths"]
        else "patches of {0}×{0}".format(config["network"]["patch_size"]),
        "more": f", the last {model.more_steps:,} at a tenth of the learning rate" * bool(model.more_steps),
        "queries": "; each latent adds a learned embedding to its queries" * bool(config["network"].get("query_std")),
        "schedule": f"{config['policy']['noise_schedule']} ({keywords})",
        "sampler": f"{model.sampling['timesteps']} steps of {SAMPLER_TITLES[model.sampling['sampler']]}",
        "objective": f"v, tuned from {model.start} for consistency" if model.start else "v with min-SNR weights",
        "start": model.start,
        "self_cond": config["policy"]["train_prob_self_cond"],
        "step": config["step"],
        "seen": config["step"] * batch,
        "batch": batch,
        "passes": config["step"] * batch / len(dataset),
        "minutes": sum((records[1]["step"] - records[0]["step"]) * batch / r["images_per_s"] for r in records) / 60,
        "device": device,
        "loss": np.mean([r["loss"] for r in records if r["step"] > config["step"] - 100]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["draw", "train", "bundle"])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("images", type=Path, help="the folder of training images")
    parser.add_argument("run", type=Path, nargs="?", help="the run folder (train and bundle)")
    parser.add_argument("--device", default="a device that was not named", help="what it was trained on (bundle)")
    args = parser.parse_args()
    if args.action == "draw":
        for drawn, folder in zip(MODELS[args.model].draw(), (args.images, test_folder(args.images)), strict=True):
            print(f"{drawing.save(drawn, folder)} images in {folder}")
    elif args.run is None:
        parser.error(f"{args.action} needs the run folder")
    elif args.action == "train":
        train(args.model, args.images, args.run)
    else:
        bundle(args.model, args.images, args.run, args.device)


if __name__ == "__main__":
    main()
