"""Measure what guidance does to the samples of a model with classes: how many a classifier puts in the class that was
asked for, how close they are to images that training has not seen, and how close to their nearest training images.

    pip install -r benchmarks/requirements.txt
    python checkpoints/make.py draw creatures-32 images/creatures
    python benchmarks/guidance.py creatures-32 images/creatures

The classifier is a small one, trained on the same images (checkpoints/judging.py); scores.py describes the distances.
All settings start from the same noise. Quality per class is the Fréchet distance from the test images of the class,
averaged over the classes; with few samples it is large even for perfect ones, so compare it within the table only.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from measure import print_table
from scores import HeldOut, features, frechet
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "checkpoints")]  # so that it runs from a clone without installing

from judging import accuracy, nearest_images, train_classifier
from make import test_folder

from dp import DiffusionPolicy, ImageDataset
from dp.data.codec import to_uint8

GUIDANCE = (1.0, 1.5, 2.0, 3.0, 5.0)
INTERVAL = (0.1, 0.8)  # of times; guidance is off outside
BATCH = 65


def to_tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="name of a bundled model with classes")
    parser.add_argument("folder", type=Path, help="the folder of its training images; the test images are next to it")
    parser.add_argument("--samples", type=int, default=520, help="samples per setting (default 520)")
    parser.add_argument("--guidance", type=float, nargs="+", default=GUIDANCE, help="(default 1 1.5 2 3 5)")
    args = parser.parse_args()

    folder = ROOT / "checkpoints" / args.checkpoint
    sampling = json.loads((folder / "config.json").read_text(encoding="utf-8"))["sampling"]
    policy = DiffusionPolicy.from_pretrained(folder).eval()
    options = {"convert_image_to": "L" if policy.channels == 1 else "RGB", "classes": True}
    training = ImageDataset(args.folder, policy.image_size, **options)
    test = ImageDataset(test_folder(args.folder), policy.image_size, **options)
    of_test = np.asarray(test.labels)
    classifier = train_classifier(training.images, np.asarray(training.labels))
    print(f"The classifier recognizes {accuracy(classifier, test.images, of_test):.1%} of {len(test)} test images.")
    unseen = np.median(nearest_images(test.images, training.images, mirrored=False)[1])
    print(f"Their median distance from the nearest training image is {unseen:.4f}.\n", flush=True)
    held_out = HeldOut(to_tensor(test.images))
    test_features = features(to_tensor(test.images))

    labels, rows = np.resize(np.arange(1, policy.num_classes + 1), args.samples), []
    for interval in ((0.0, 1.0), INTERVAL):
        for guidance in args.guidance:
            if guidance == 1 and interval == INTERVAL:
                continue  # the same as without it
            settings = sampling | {"guidance": guidance, "guidance_interval": interval}
            parts = [(i, tuple(labels[i : i + BATCH].tolist())) for i in range(0, args.samples, BATCH)]
            images = torch.cat([policy.sample(len(part), seed=i, label=part, **settings) for i, part in parts])
            samples, found = to_uint8(images), features(images)
            per_class = [
                frechet(found[labels == label], test_features[of_test == label]) for label in set(labels.tolist())
            ]
            nearest = np.median(nearest_images(samples, training.images, mirrored=False)[1])
            where = "everywhere" if interval == (0.0, 1.0) else "t from {:g} to {:g}".format(*interval)
            row = (f"{guidance:g}", where, f"{accuracy(classifier, samples, labels):.1%}")
            row += tuple(f"{score:.1f}" for score in held_out.score(images))
            rows.append((*row, f"{np.mean(per_class):.1f}", f"{nearest / unseen:.2f}"))
            print(rows[-1], flush=True)
    columns = (
        "guidance",
        "where",
        "right class",
        "sliced Wasserstein",
        "Fréchet",
        "Fréchet per class",
        "nearest / unseen",
    )
    print()
    print_table(columns, rows)


if __name__ == "__main__":
    main()
