"""Scenes: the unit square with a start, a goal and up to six obstacles, discs and walls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dp.system.validation import is_number, quote
from dp.worlds.geometry import Array, norm, point_distance

MAX_OBSTACLES = 6
WALL = 0.015  # half the thickness of a wall
CLEARANCE = 0.03  # which the expert keeps, also between the ends of a path and the obstacles
TOKENS, FEATURES = 2 + MAX_OBSTACLES, 8  # of an observation
FAR = (9.0, 9.0, 9.0, 9.0, 0.0)  # stands for an obstacle that is not there
MIN_WAY = 0.55  # from the start to the goal of a random scene


class SceneError(ValueError):
    """A scene in which nothing can be planned. The message says why, and what to do."""


@dataclass(frozen=True)
class Scene:
    """start, goal: points (x, y) in the unit square. obstacles: up to six of (x0, y0, x1, y1, radius), see
    `dp.worlds.geometry`; `disc` and `wall` make them. They may overlap and lie partly outside of the square. Raises
    ValueError, with the value, for anything else.
    """

    start: tuple[float, float]
    goal: tuple[float, float]
    obstacles: Sequence[Sequence[float]] = ()

    def __post_init__(self):
        for name in ("start", "goal"):
            point = _as_tuple(getattr(self, name))
            if len(point) != 2 or not all(is_number(value) and 0 <= value <= 1 for value in point):
                raise ValueError(f"{name} must be (x, y) in the unit square, got {quote(getattr(self, name))}")
            object.__setattr__(self, name, point)
        obstacles = tuple(map(_as_tuple, self.obstacles))
        if len(obstacles) > MAX_OBSTACLES:
            raise ValueError(f"a scene has at most {MAX_OBSTACLES} obstacles, got {len(obstacles)}: remove some")
        for each in obstacles:
            is_valid = len(each) == 5 and all(is_number(value) and -1 <= value <= 2 for value in each)
            if not is_valid or not 0 < each[4] <= 1:
                rule = "(x0, y0, x1, y1, radius), the points within -1 to 2 and the radius above 0 and at most 1"
                raise ValueError(f"an obstacle must be {rule}; got {quote(each)}")
        object.__setattr__(self, "obstacles", obstacles)

    def arrays(self) -> Scenes:
        """Return the scene as a batch of one."""
        return Scenes.of([self])

    def observation(self) -> np.ndarray:
        """Return what a policy observes: [8,8] float32, see `Scenes.observations`."""
        return self.arrays().observations()[0]


def _as_tuple(value: Any) -> tuple:
    return tuple(value) if isinstance(value, Sequence | np.ndarray) else ()


def disc(x: float, y: float, radius: float) -> tuple[float, ...]:
    return x, y, x, y, radius


def wall(x0: float, y0: float, x1: float, y1: float) -> tuple[float, ...]:
    return x0, y0, x1, y1, WALL


@dataclass(frozen=True, eq=False)
class Scenes:
    """B scenes as arrays, float64: start and goal [B,2], and obstacles [B,6,5], FAR for those that are not there."""

    start: Array
    goal: Array
    obstacles: Array

    @classmethod
    def of(cls, scenes: Sequence[Scene]) -> Scenes:
        obstacles = np.tile(np.array(FAR), (len(scenes), MAX_OBSTACLES, 1))
        for i, scene in enumerate(scenes):
            if scene.obstacles:
                obstacles[i, : len(scene.obstacles)] = scene.obstacles
        ends = (np.array([getattr(scene, name) for scene in scenes], float) for name in ("start", "goal"))
        return cls(*ends, obstacles)

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, rows) -> Scenes:
        """Return the scenes of `rows`, a slice, a mask or indices."""
        return Scenes(self.start[rows], self.goal[rows], self.obstacles[rows])

    def scene(self, row: int) -> Scene:
        obstacles = self.obstacles[row][self.is_present()[row]]
        return Scene(tuple(self.start[row].tolist()), tuple(self.goal[row].tolist()), obstacles.tolist())

    def is_present(self) -> np.ndarray:
        """Return which obstacles are there, [B,6] bool."""
        return self.obstacles[..., 4] > 0

    def observations(self) -> np.ndarray:
        """Return what a policy observes: [B,8,8] float32, a token each for the start, the goal and the obstacles.
        Features: 1, is the goal, is an obstacle, x0, y0, x1, y1 from -1 to 1 over the square (of a point twice the
        same), and ten times the radius. Zeros stand for obstacles that are not there.
        """
        tokens = np.zeros((len(self), TOKENS, FEATURES), np.float32)
        tokens[..., 0] = 1
        tokens[:, 1, 1] = 1
        tokens[:, 2:, 2] = 1
        tokens[:, 0, 3:7], tokens[:, 1, 3:7] = (np.tile(point, 2) * 2 - 1 for point in (self.start, self.goal))
        tokens[:, 2:, 3:7] = self.obstacles[..., :4] * 2 - 1
        tokens[:, 2:, 7] = 10 * self.obstacles[..., 4]
        tokens[:, 2:][~self.is_present()] = 0
        return tokens


def check_scene(scene: Scene) -> None:
    """Raise SceneError if the start or the goal is inside an obstacle, or closer to one than the expert's clearance."""
    for name in ("start", "goal"):
        point = np.array(getattr(scene, name))
        for number, obstacle in enumerate(scene.obstacles, 1):
            ends = np.array(obstacle[:2]), np.array(obstacle[2:4])
            gap = point_distance(point, *ends) - obstacle[4]
            if gap < CLEARANCE:
                where = "lies inside" if gap < 0 else f"is only {gap:.3f} away from"
                place = ", ".join(f"{value:.2f}" for value in point)
                raise SceneError(f"the {name} ({place}) {where} obstacle {number}: move one of them")


def random_scenes(count: int, rng: np.random.Generator) -> Scenes:
    """Return `count` scenes: in most of them an obstacle lies on the straight way, so that there are several ways
    around. The ends keep their distance from the obstacles; a way between them may still be missing.
    """
    start = rng.uniform(0.05, 0.95, (count, 2))
    away = rng.uniform(0, 2 * np.pi, count)
    goal = start + rng.uniform(MIN_WAY, 0.9, (count, 1)) * np.stack([np.cos(away), np.sin(away)], axis=1)
    outside = ((goal < 0.05) | (goal > 0.95)).any(axis=1)
    goal[outside] = 1 - start[outside]  # through the middle, unless that is too short
    short = norm(goal - start) < MIN_WAY
    corner = rng.uniform(0.05, 0.25, (count, 2))
    start[short], goal[short] = corner[short], 1 - corner[short, ::-1]

    obstacles = np.tile(np.array(FAR), (count, MAX_OBSTACLES, 1))
    middle = rng.uniform(0.08, 0.92, (count, MAX_OBSTACLES, 2))
    between = start + rng.uniform(0.3, 0.7, (count, 1)) * (goal - start) + rng.normal(0, 0.04, (count, 2))
    on_the_way = rng.random(count) < 0.85
    middle[on_the_way, 0] = between[on_the_way]
    turn, half = rng.uniform(0, np.pi, (count, MAX_OBSTACLES)), rng.uniform(0.08, 0.2, (count, MAX_OBSTACLES))
    is_wall = rng.random((count, MAX_OBSTACLES)) < 0.35
    reach = np.where(is_wall, half, 0)[..., None] * np.stack([np.cos(turn), np.sin(turn)], axis=-1)
    radius = np.where(is_wall, WALL, rng.uniform(0.05, 0.14, (count, MAX_OBSTACLES)))
    made = np.concatenate([middle - reach, middle + reach, radius[..., None]], axis=-1)
    gaps = [point_distance(end[:, None], made[..., :2], made[..., 2:4]) - radius for end in (start, goal)]
    is_wanted = np.arange(MAX_OBSTACLES) < rng.integers(1, MAX_OBSTACLES + 1, (count, 1))
    keep = is_wanted & (np.minimum(*gaps) > CLEARANCE + 0.02)
    obstacles[keep] = made[keep]
    # Those that are there come first.
    order = np.argsort(~keep, axis=1, kind="stable")
    return Scenes(start, goal, np.take_along_axis(obstacles, order[..., None], axis=1))
