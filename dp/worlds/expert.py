"""The expert: a smooth, short path from the start to the goal, with clearance, around the obstacles on either side.

Around each obstacle stands a box with the expert's clearance. The corners of the boxes, the start and the goal are the
nodes of a visibility graph, in which the shortest way through each corner is found (Lozano-Pérez & Wesley 1979, "An
algorithm for planning collision-free paths among polyhedral obstacles"). Those ways are told apart by the side on which
they pass each obstacle; of each kind the shortest counts, and among those that are not much longer than the shortest of
all, one is chosen at random. It is then pulled taut and smoothed. All of it is done for many scenes at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dp.worlds.geometry import Array, clearance, nearest_on_segment, norm, resample, segment_distance, winding
from dp.worlds.scenes import CLEARANCE, MAX_OBSTACLES, Scene, SceneError, Scenes, check_scene, random_scenes

HORIZON = 32  # points of a path
GOOD = 1.25  # a way is good if it is at most this much longer than the shortest
BORDER = 0.01  # which paths keep from the border of the square
HOPS, FINE_HOPS = 6, 12  # most edges from the start to a node, and from there to the goal
BATCH = 256  # scenes at once: larger batches leave the processor's cache


class Ways(NamedTuple):
    """The shortest way through each of N nodes, for B scenes. corners: [B,N,V,2], some of the V points repeated. code:
    [B,N], see `way_codes`. length: [B,N], infinite where there is no such way. good: [B,N] bool, True for one way of
    each good code.
    """

    corners: Array
    code: np.ndarray
    length: Array
    good: np.ndarray


def plan(scene: Scene, rng: np.random.Generator | int = 0) -> np.ndarray:
    """Return a path [2,32] float32 of the expert. Raises SceneError, with the reason, where nothing can be planned."""
    check_scene(scene)
    rng = np.random.default_rng(rng)
    paths, found = plan_many(scene.arrays(), rng)
    if not found[0]:
        paths, found = plan_many(scene.arrays(), rng, fine=True)
    if not found[0]:
        raise SceneError(
            f"there is no way from the start to the goal that keeps {CLEARANCE} from every obstacle: move one of them"
        )
    return paths[0]


def good_ways(scene: Scene) -> dict[int, float]:
    """Return the code of each good way (`way_codes`) with the length of its shortest polyline, shortest first. The
    expert takes each equally often. Empty where there is no way at all.
    """
    check_scene(scene)
    ways = find_ways(scene.arrays())
    if not ways.good.any():
        ways = find_ways(scene.arrays(), fine=True)
    found = zip(ways.length[0][ways.good[0]].tolist(), ways.code[0][ways.good[0]].tolist())
    return {code: length for length, code in sorted(found)}


def draw_demonstrations(count: int, seed: int, step: int = 0) -> tuple[Scenes, np.ndarray]:
    """Return `count` random scenes, each with a path of the expert, [count,2,32] float32 in [0, 1]. They are a function
    of the numbers (count, seed, step) alone, and differ from step to step.
    """
    rng = np.random.default_rng([seed, step])
    scenes, paths = [], []
    while sum(map(len, paths)) < count:
        drawn = random_scenes(BATCH, rng)
        planned, found = plan_many(drawn, rng)
        scenes.append(drawn[found])
        paths.append(planned[found])
    whole = (np.concatenate([getattr(part, name) for part in scenes]) for name in ("start", "goal", "obstacles"))
    return Scenes(*whole)[:count], np.concatenate(paths)[:count]


def plan_many(scenes: Scenes, rng: np.random.Generator, fine: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return a path of each scene [B,2,32] float32, and whether one was found [B] bool; the rows of those without are
    the straight line. The ways are chosen with `rng`. fine: as in `find_ways`.
    """
    ways = find_ways(scenes, fine)
    found = ways.good.any(axis=1)
    chosen = np.where(ways.good, rng.random(ways.good.shape), -1).argmax(axis=1)
    rows = np.arange(len(scenes))
    corners = ways.corners[rows, chosen]
    corners[~found] = scenes.start[~found, None]
    corners[~found, -1] = scenes.goal[~found]
    taut = smooth(corners, scenes.obstacles)
    # Rarely a path slips across a thin wall all the same, or is pushed off one obstacle into another.
    failed = ~is_free(taut, scenes.obstacles) | (way_codes(taut, scenes) != ways.code[rows, chosen])
    taut[failed] = resample(corners[failed], HORIZON)
    found &= ~failed | is_free(taut, scenes.obstacles)
    return np.ascontiguousarray(taut.transpose(0, 2, 1), dtype=np.float32), found


def is_free(paths: Array, obstacles: Array) -> np.ndarray:
    """Return whether each path [B,L,2] touches no obstacle, [B] bool."""
    return clearance(paths, obstacles).min(axis=1) > 0


def way_codes(paths: Array, scenes: Scenes) -> np.ndarray:
    """Return which way each path [B,L,2] goes, [B] int64: bit i is set where it has obstacle i on its left."""
    left = (winding(paths, scenes.obstacles) > 0) & scenes.is_present()
    return left @ (1 << np.arange(MAX_OBSTACLES))


# ----------------------------------------------------------------------------
# The visibility graph


def find_ways(scenes: Scenes, fine: bool = False) -> Ways:
    """Return the ways through the visibility graph of each scene. With few nodes it misses the only way of some scenes,
    17 of 6,000 random ones; a `fine` graph, which takes some 10 ms a scene, found all of those.
    """
    nodes = graph_nodes(scenes, fine)
    edges, hops, count = graph_edges(nodes, scenes.obstacles), FINE_HOPS if fine else HOPS, nodes.shape[1]
    (from_start, before), (to_goal, after) = (shortest(edges, source, hops) for source in (0, 1))
    rows, via = np.arange(len(nodes))[:, None], np.broadcast_to(np.arange(count), from_start.shape)
    indices = [via]
    for _ in range(hops):
        indices.insert(0, before[rows, indices[0]])
        indices.append(after[rows, indices[-1]])
    corners = nodes[rows[..., None], np.stack(indices, axis=-1)]  # [B,N,V,2]
    length = from_start + to_goal
    length[(indices[0] != 0) | (indices[-1] != 1)] = np.inf
    flat = scenes.obstacles.repeat(count, axis=0)
    left = winding(corners.reshape(-1, *corners.shape[2:]), flat) > 0
    left = left.reshape(len(nodes), count, -1) & scenes.is_present()[:, None]
    code = left @ (1 << np.arange(MAX_OBSTACLES))
    return Ways(corners, code, length, first_of_each(code, length))


def graph_nodes(scenes: Scenes, fine: bool) -> Array:
    """Return the nodes [B,N,2], all inside the square: start, goal, and the corners of a box around each obstacle, or
    with `fine` those of an octagon around each of its ends. N is 26, or 98.
    """
    a, b, radius = scenes.obstacles[..., 0:2], scenes.obstacles[..., 2:4], scenes.obstacles[..., 4, None]
    along = b - a
    size = norm(along)[..., None]
    toward = (scenes.goal - scenes.start)[:, None]
    toward = toward / norm(toward)[..., None].clip(1e-9)
    along = np.where(size > 0, along / np.where(size > 0, size, 1), toward)  # the box of a disc faces the goal
    across = np.stack([-along[..., 1], along[..., 0]], axis=-1)
    reach = radius + CLEARANCE * 1.02  # a little outside of what the edges must keep
    if fine:
        angles = np.arange(8) * np.pi / 4 + np.pi / 8
        places = [(end, c, s) for end in (a, b) for c, s in np.stack([np.cos(angles), np.sin(angles)], axis=1)]
        reach = reach / np.cos(np.pi / 8)  # of the corners, whose edges then keep the distance
    else:
        places = [(end, i, j) for end, i in ((a, -1), (b, 1)) for j in (-1, 1)]
    corners = [end + i * reach * along + j * reach * across for end, i, j in places]
    corners = np.concatenate(corners, axis=1).clip(BORDER, 1 - BORDER)
    return np.concatenate([scenes.start[:, None], scenes.goal[:, None], corners], axis=1)


def graph_edges(nodes: Array, obstacles: Array) -> Array:
    """Return the lengths [B,N,N] of the edges between nodes, infinite where one comes too near to an obstacle."""
    count = nodes.shape[1]
    i, j = np.triu_indices(count, 1)
    a, b = nodes[:, i], nodes[:, j]
    length = norm(a - b)
    for k in range(MAX_OBSTACLES):
        c, d = obstacles[:, k, None, 0:2], obstacles[:, k, None, 2:4]
        near = segment_distance(a, b, c, d) < obstacles[:, k, None, 4] + CLEARANCE * 0.99
        length = np.where(near, np.inf, length)
    edges = np.full((len(nodes), count, count), np.inf)
    edges[:, i, j] = edges[:, j, i] = length
    return edges


def shortest(edges: Array, source: int, hops: int) -> tuple[Array, np.ndarray]:
    """Return the distance of each node from `source` [B,N], over at most `hops` edges, and the node before it on the
    way, itself for the source and for nodes out of reach. Bellman 1958.
    """
    distance = np.full(edges.shape[:2], np.inf)
    distance[:, source] = 0
    before = np.broadcast_to(np.arange(distance.shape[1]), distance.shape).copy()
    for _ in range(hops):
        through = distance[:, :, None] + edges
        best = through.argmin(axis=1)
        shorter = np.take_along_axis(through, best[:, None], axis=1)[:, 0]
        better = shorter < distance - 1e-12
        distance, before = np.where(better, shorter, distance), np.where(better, best, before)
    return distance, before


def first_of_each(code: np.ndarray, length: Array) -> np.ndarray:
    """Return [B,N] bool, True for the shortest way of each code that is good."""
    good = length <= GOOD * length.min(axis=1, keepdims=True)
    good &= np.isfinite(length)
    order = np.lexsort((length, code), axis=1)
    in_order = np.take_along_axis(np.where(good, code, -1), order, axis=1)
    is_first = np.ones_like(good)
    is_first[:, 1:] = in_order[:, 1:] != in_order[:, :-1]
    first = np.zeros_like(good)
    np.put_along_axis(first, order, is_first, axis=1)
    return good & first


# ----------------------------------------------------------------------------
# Smoothing


def smoothing_matrix(count: int, stiffness: float) -> Array:
    """Return the matrix [count,count] that smooths a path and keeps its ends: one implicit step of diffusion."""
    matrix = np.eye(count)
    for i in range(1, count - 1):
        matrix[i, i - 1 : i + 2] += stiffness * np.array([-1, 2, -1])
    return np.linalg.inv(matrix)


PULL, FAIR = smoothing_matrix(HORIZON, 0.7), smoothing_matrix(HORIZON, 1.0)
ROUNDS, EVENLY = 9, 3  # pulls, and those after which the points are spread evenly again
FAIRINGS = 2
WIDE, NARROW = CLEARANCE + 0.02, CLEARANCE - 0.01  # the distance kept while pulling, and in the end


def smooth(corners: Array, obstacles: Array) -> Array:
    """Return the polylines [B,V,2] pulled taut around the obstacles, as smooth paths [B,32,2].

    They are first pulled around the obstacles at some distance, so that the smoothing after it may cut their curves.
    Each pull is gentle, and the points stay close together: otherwise a path slips across a thin wall.
    """
    paths = resample(corners, HORIZON)
    for _ in range(ROUNDS // EVENLY):
        for _ in range(EVENLY):
            paths = push_out(PULL @ paths, obstacles, WIDE)
        paths = resample(paths, HORIZON)
    for _ in range(FAIRINGS):
        paths = FAIR @ resample(paths, HORIZON)
    return resample(push_out(paths, obstacles, NARROW), HORIZON)


def push_out(paths: Array, obstacles: Array, gap: float) -> Array:
    """Return paths with the points that are nearer than `gap` to an obstacle moved straight away from it. The ends
    stay.
    """
    inner = paths[:, 1:-1]
    for k in range(MAX_OBSTACLES):
        a, b, reach = obstacles[:, k, None, 0:2], obstacles[:, k, None, 2:4], obstacles[:, k, None, 4] + gap
        nearest = nearest_on_segment(inner, a, b)
        away = inner - nearest
        distance = norm(away).clip(1e-9)
        inner = np.where((distance < reach)[..., None], nearest + away * (reach / distance)[..., None], inner)
    return np.concatenate([paths[:, :1], inner.clip(BORDER, 1 - BORDER), paths[:, -1:]], axis=1)
