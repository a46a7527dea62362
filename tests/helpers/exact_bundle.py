"""A bundled model whose training images are here."""

import json
import zipfile

import numpy as np
import torch
from models import randomize
from tiny_runs import NETWORK

from dp.data.codec import encode_png
from dp.diffusion.policy import DiffusionPolicy
from dp.diffusion.settings import SampleSettings
from dp.networks.rin import RIN

IMAGES = np.random.default_rng(1).integers(0, 256, (9, 8, 8, 3), np.uint8)


def bundle(folder, name="tiny", classes=(), **card):
    """A bundled model with its training images, in folders by class, if it has any. All of its latents are alike."""
    options = {key: value for key, value in NETWORK.items() if key != "type"}
    network = randomize(RIN(**options, num_classes=len(classes)))
    with torch.no_grad():
        network.latents.copy_(network.latents[:1].expand_as(network.latents))
    DiffusionPolicy(network, noise_schedule="cosine").save_pretrained(folder / name)
    path = folder / name / "config.json"
    config = json.loads(path.read_text()) | ({"classes": list(classes)} if classes else {})
    path.write_text(json.dumps(config | card))
    with zipfile.ZipFile(folder / name / "images.zip", "w") as archive:
        for i, image in enumerate(IMAGES):
            at = f"{classes[i % len(classes)]}/" if classes else ""
            archive.writestr(f"{at}{i}.png", encode_png(image))
    return folder


def finished(engine, name, **settings):
    handle = engine.submit(SampleSettings(**settings), name)
    for _ in handle:
        pass
    assert handle.state == "done", handle.error
    return handle
