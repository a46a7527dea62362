"""Measure samples for the model cards and the benchmarks: classify them, and find their nearest training images."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS, BATCH, PEAK_LR = (32, 64, 128), 128, 2e-3
CHUNK = 256  # samples compared at once with all training images


def train_classifier(images: np.ndarray, labels: np.ndarray, steps: int = 1500, seed: int = 0) -> nn.Sequential:
    """Return a small convolutional network, trained on images uint8 [N,H,W,C] with labels [N] from 1, as `classify`
    takes it. It sees them shifted by up to two pixels.
    """
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    layers, width = [], images.shape[-1]
    for wider in WIDTHS:
        layers += [nn.Conv2d(width, wider, 3, padding=1), nn.BatchNorm2d(wider), nn.ReLU(), nn.MaxPool2d(2)]
        width = wider
    network = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(int(labels.max())))
    pixels, targets = to_input(images), torch.from_numpy(labels).long() - 1
    network(pixels[:2])  # sets the size of the last layer
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_LR, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(pixels), (BATCH,), generator=random)
        down, right = torch.randint(5, (2,), generator=random).tolist()
        side = pixels.shape[-1]
        shifted = F.pad(pixels[chosen], (2, 2, 2, 2), mode="replicate")[..., down : down + side, right : right + side]
        loss = F.cross_entropy(network(shifted), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return network.eval()


@torch.no_grad()
def accuracy(classifier: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images uint8 [N,H,W,C] that the classifier gives their label [N], from 1."""
    found = torch.cat([classifier(part).argmax(1) + 1 for part in to_input(images).split(CHUNK)])
    return (found.numpy() == labels).mean().item()


def variety(images: np.ndarray, labels: np.ndarray) -> float:
    """Return the root mean square distance between two of images uint8 [N,H,W,C] of the same class, averaged over the
    pairs of each class and then over the classes; black to white is 1.
    """
    means = []
    for label in np.unique(labels):
        flat = torch.from_numpy(images[labels == label]).flatten(1).float() / 255
        means.append(torch.pdist(flat).mean().item() / flat.shape[1] ** 0.5)
    return float(np.mean(means))


def to_input(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def nearest_images(samples: np.ndarray, images: np.ndarray, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest of `images` [N,H,W,C], mirrored or not if they may be, for each of `samples` [B,H,W,C], and
    its distance: the root mean square over the pixels, on a scale where black to white is 1.
    """
    every = np.concatenate([images, images[:, :, ::-1]]) if mirrored else images
    flat = torch.from_numpy(every.reshape(len(every), -1)).float() / 255
    index, distances = [], []
    for part in torch.from_numpy(samples.reshape(len(samples), -1)).float().div(255).split(CHUNK):
        squares = torch.cdist(part, flat, compute_mode="use_mm_for_euclid_dist")
        nearest = squares.argmin(1)
        index.append(nearest)
        distances.append((part - flat[nearest]).square().mean(1).sqrt())  # exactly: a product of matrices rounds
    return every[torch.cat(index).numpy()], torch.cat(distances).numpy()
