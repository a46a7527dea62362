"""Distances between paths and obstacles, and the side on which a path passes one.

An obstacle is a capsule: a segment from (x0, y0) to (x1, y1) with all that is nearer to it than its radius. A disc is
one whose segment is a point, and a wall one that is thin. All functions broadcast over leading axes, and all lengths
are in units of the side of the world.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def dot(a: Array, b: Array) -> Array:
    return a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1]  # much faster than a sum over an axis of two


def norm(a: Array) -> Array:
    return np.sqrt(dot(a, a))


def cross(a: Array, b: Array) -> Array:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def nearest_on_segment(p: Array, a: Array, b: Array) -> Array:
    """Return the point [...,2] of the segment from a to b that is nearest to p, all [...,2]."""
    along = b - a
    square = dot(along, along)
    fraction = dot(p - a, along) / np.where(square > 0, square, 1)
    return a + np.clip(fraction, 0, 1)[..., None] * along


def point_distance(p: Array, a: Array, b: Array) -> Array:
    """Return the distance [...] of p to the segment from a to b."""
    return norm(p - nearest_on_segment(p, a, b))


def segment_distance(a: Array, b: Array, c: Array, d: Array) -> Array:
    """Return the distance [...] between the segments from a to b and from c to d: 0 where they cross."""
    ends = [point_distance(a, c, d), point_distance(b, c, d), point_distance(c, a, b), point_distance(d, a, b)]
    ab, cd = b - a, d - c
    apart = cross(ab, c - a) * cross(ab, d - a) < 0, cross(cd, a - c) * cross(cd, b - c) < 0
    return np.where(apart[0] & apart[1], 0, np.minimum.reduce(ends))


def clearance(paths: Array, obstacles: Array) -> Array:
    """Return the least distance [B,N] of each path [B,L,2] to each obstacle [B,N,5]; negative inside of it."""
    a, b = paths[:, None, :-1], paths[:, None, 1:]
    distances = segment_distance(a, b, obstacles[:, :, None, 0:2], obstacles[:, :, None, 2:4])
    return distances.min(axis=2) - obstacles[..., 4]


def winding(paths: Array, obstacles: Array) -> Array:
    """Return the angle [B,N], in radians, by which each path [B,L,2] turns around the middle of each obstacle [B,N,5]:
    positive where the obstacle lies to the left of the way. It is the same for all paths from one point to another that
    can be deformed into each other without crossing that obstacle, and differs by turns of 2 pi between others.
    """
    middle = (obstacles[..., 0:2] + obstacles[..., 2:4]) / 2
    away = paths[:, None] - middle[:, :, None]  # [B,N,L,2]
    a, b = away[..., :-1, :], away[..., 1:, :]
    return np.arctan2(cross(a, b), dot(a, b)).sum(axis=-1)


def lengths(paths: Array) -> Array:
    """Return the length [...] of paths [...,L,2]."""
    return norm(np.diff(paths, axis=-2)).sum(axis=-1)


def resample(paths: Array, count: int) -> Array:
    """Return paths [B,L,2] with `count` points at equal distances along them [B,count,2]. The ends stay."""
    steps = norm(np.diff(paths, axis=1))
    at = np.concatenate([np.zeros((len(paths), 1)), steps.cumsum(axis=1)], axis=1)  # [B,L]
    wanted = at[:, -1:] * np.linspace(0, 1, count)
    # The segment of each wanted place: how many points lie before it.
    index = np.clip((at[:, None, :] <= wanted[:, :, None]).sum(axis=2) - 1, 0, paths.shape[1] - 2)
    rows = np.arange(len(paths))[:, None]
    size = steps[rows, index]
    fraction = np.where(size > 0, (wanted - at[rows, index]) / np.where(size > 0, size, 1), 0)
    found = paths[rows, index] + np.clip(fraction, 0, 1)[..., None] * (paths[rows, index + 1] - paths[rows, index])
    found[:, -1] = paths[:, -1]
    return found
