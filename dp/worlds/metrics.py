"""How good paths are: whether they arrive without a collision, how near they pass, how long they are, and which way
around they go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dp.worlds.expert import way_codes
from dp.worlds.geometry import clearance, lengths, norm
from dp.worlds.scenes import Scenes

ARRIVED = 0.03  # distance from the start, and from the goal, within which a path begins and ends there


class Outcomes(NamedTuple):
    """The outcomes of B paths, each field [B]. arrives: whether the path leads from the start to the goal. clearance:
    the distance to the closest obstacle, negative where it runs through one and infinite without obstacles. length: in
    sides of the square. way: its code (`dp.worlds.expert.way_codes`).
    """

    arrives: np.ndarray
    clearance: np.ndarray
    length: np.ndarray
    way: np.ndarray

    @property
    def collides(self) -> np.ndarray:
        return ~(self.clearance > 0)  # also where it is not a number

    @property
    def succeeds(self) -> np.ndarray:
        return self.arrives & ~self.collides


def judge(scenes: Scenes, paths: np.ndarray) -> Outcomes:
    """Return the outcomes of paths [B,2,L], each in its own of B scenes. Raises ValueError for other shapes."""
    if paths.ndim != 3 or paths.shape[:2] != (len(scenes), 2) or paths.shape[2] < 2:
        raise ValueError(f"paths must be ({len(scenes)}, 2, L), one for each scene, got {paths.shape}")
    points = np.asarray(paths, np.float64).transpose(0, 2, 1)
    gaps = norm(points[:, 0] - scenes.start), norm(points[:, -1] - scenes.goal)
    between = np.where(scenes.is_present(), clearance(points, scenes.obstacles), np.inf).min(axis=1)
    return Outcomes(np.maximum(*gaps) <= ARRIVED, between, lengths(points), way_codes(points, scenes))


def relative_length(outcomes: Outcomes, expert: Outcomes) -> float:
    """Return the mean length of the paths that succeed, each divided by that of the expert's in the same scene. Not a
    number if none does. The expert may have gone another way around.
    """
    ratios = (outcomes.length / expert.length)[outcomes.succeeds & expert.succeeds]
    return float(ratios.mean()) if len(ratios) else float("nan")


def way_shares(ways: Sequence[int] | np.ndarray) -> dict[int, float]:
    """Return the share of each way, by its code, among paths of one scene."""
    codes, counts = np.unique(np.asarray(ways, np.int64), return_counts=True)
    return {int(code): int(count) / len(ways) for code, count in zip(codes, counts)}


def share_difference(found: Mapping[int, float], expected: Mapping[int, float]) -> float:
    """Return the largest difference between the shares of any way, 0 to 1."""
    return max((abs(found.get(way, 0) - expected.get(way, 0)) for way in found.keys() | expected.keys()), default=0.0)
