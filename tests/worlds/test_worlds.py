"""The world of paths: distances and ways in closed form, the expert on many scenes, metrics of paths made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dp.worlds.expert import GOOD, HORIZON, draw_demonstrations, find_ways, good_ways, plan, plan_many, way_codes
from dp.worlds.geometry import lengths, point_distance, resample, segment_distance, winding
from dp.worlds.metrics import judge, relative_length, share_difference, way_shares
from dp.worlds.scenes import CLEARANCE, MAX_OBSTACLES, WALL, Scene, SceneError, Scenes, disc, random_scenes, wall

ROUND = Scene((0.1, 0.5), (0.9, 0.5), [disc(0.5, 0.5, 0.15)])  # a disc in the middle of the straight way
ABOVE, BELOW = [(0.1, 0.5), (0.5, 0.8), (0.9, 0.5)], [(0.1, 0.5), (0.5, 0.2), (0.9, 0.5)]
STRAIGHT = [(0.1, 0.5), (0.5, 0.5), (0.9, 0.5)]


def as_paths(*paths) -> np.ndarray:
    return np.array(paths, np.float64).transpose(0, 2, 1)


def batch(scene: Scene, count: int) -> Scenes:
    return Scenes.of([scene] * count)


# ----------------------------------------------------------------------------
# Geometry


def test_distances_are_those_of_points_along_the_segments():
    a, b, c, d = np.random.default_rng(0).uniform(size=(4, 200, 2))
    along = np.linspace(0, 1, 401)[:, None, None]
    on_ab, on_cd = a + along * (b - a), c + along * (d - c)
    by_hand = np.sqrt(((a - on_cd) ** 2).sum(axis=-1)).min(axis=0)
    np.testing.assert_allclose(point_distance(a, c, d), by_hand, atol=2e-3)
    found = segment_distance(a, b, c, d)
    nearest = np.minimum.reduce([point_distance(point, c, d) for point in on_ab])
    np.testing.assert_allclose(found, nearest, atol=3e-3)
    assert (found == 0).any()
    np.testing.assert_allclose(segment_distance(c, d, b, a), found, atol=1e-12)
    assert point_distance(a, c, c) == pytest.approx(np.hypot(*(a - c).T))  # a segment that is a point


def test_two_ways_around_differ_by_a_whole_turn():
    above, below = (winding(np.array([path]), batch(ROUND, 1).obstacles)[0, 0] for path in (ABOVE, BELOW))
    assert above == pytest.approx(-np.pi) and below == pytest.approx(np.pi)
    assert way_codes(np.array([ABOVE, BELOW]), batch(ROUND, 2)).tolist() == [0, 1]  # below, the disc is on the left


def test_resampled_points_are_at_equal_distances():
    path = np.array([[(0, 0), (0, 0), (0.3, 0), (0.3, 0.6), (0.3, 0.6)]])
    found = resample(path, 10)[0]
    expected = [(0.1 * i, 0) for i in range(4)] + [(0.3, 0.1 * i) for i in range(1, 7)]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert (resample(np.full((1, 3, 2), 0.5), 4) == 0.5).all()  # without any length


# ----------------------------------------------------------------------------
# The expert


def test_the_expert_succeeds_in_every_scene_with_a_way():
    rng = np.random.default_rng(0)
    drawn = random_scenes(230, rng)
    planned, found = plan_many(drawn, rng)
    scenes, paths = drawn[found][:200], planned[found][:200]
    assert len(paths) == 200 and paths.dtype == np.float32 and paths.shape[1:] == (2, HORIZON)
    outcomes = judge(scenes, paths)
    assert outcomes.succeeds.all()
    np.testing.assert_allclose(paths[:, :, 0], scenes.start, atol=1e-6)
    np.testing.assert_allclose(paths[:, :, -1], scenes.goal, atol=1e-6)
    assert np.percentile(outcomes.clearance, 5) > 0.015 and paths.min() >= 0 and paths.max() <= 1
    points = paths.transpose(0, 2, 1).astype(float)
    turns = np.diff(points, 2, axis=1)
    spacing = outcomes.length / (HORIZON - 1)
    bends = np.sqrt((turns**2).sum(axis=-1)).max(axis=1) / spacing  # radians, about, at the sharpest point
    assert np.median(bends) < 0.3 and np.percentile(bends, 95) < 0.8
    for i in range(0, 200, 10):  # each goes a good way, and no detour
        ways = good_ways(scenes.scene(i))
        assert outcomes.length[i] < 1.1 * ways[outcomes.way[i]]
        assert max(ways.values()) <= GOOD * min(ways.values())
    assert np.mean([len(good_ways(scenes.scene(i))) > 1 for i in range(50)]) > 0.5


def test_the_expert_takes_both_ways_around_equally_often():
    assert good_ways(ROUND).keys() == {0, 1}
    scenes = batch(ROUND, 400)
    paths, found = plan_many(scenes, np.random.default_rng(0))
    shares = way_shares(judge(scenes, paths).way)
    assert found.all() and share_difference(shares, {0: 0.5, 1: 0.5}) < 0.08  # three standard deviations
    aside = Scene((0.1, 0.5), (0.9, 0.5), [disc(0.5, 0.65, 0.2), wall(0.5, 0.65, 0.5, 1.0)])
    assert list(good_ways(aside)) == [3]  # the wall leaves no way above


def test_a_path_around_a_disc_is_hardly_longer_than_the_shortest():
    """The taut string around a circle of radius R, from a at both sides: 2 sqrt(a² - R²) + 2 R asin(R / a)."""
    a, bounds = 0.4, []
    for radius in (0.15, 0.15 + CLEARANCE):
        bounds.append(2 * np.sqrt(a**2 - radius**2) + 2 * radius * np.arcsin(radius / a))
    for seed in range(4):
        assert bounds[0] < lengths(plan(ROUND, seed).T.astype(float)) < 1.04 * bounds[1]


def test_demonstrations_depend_on_their_numbers_alone():
    scenes, paths = draw_demonstrations(20, seed=3, step=5)
    again, same = draw_demonstrations(20, seed=3, step=5)
    assert np.array_equal(paths, same) and np.array_equal(scenes.observations(), again.observations())
    assert judge(scenes, paths).succeeds.all()
    for seed, step in ((3, 6), (4, 5)):
        assert not np.array_equal(paths, draw_demonstrations(20, seed, step)[1])
    assert np.array_equal(draw_demonstrations(7, 3, 5)[1], paths[:7])
    assert len(draw_demonstrations(300, 0)[1]) == 300  # more than one batch of scenes


def test_a_scene_is_planned_alone_as_among_others():
    scenes, _ = draw_demonstrations(5, seed=1)
    rows = [0, 1, 2, 3, 4]
    many = [good_ways(scenes.scene(i)) for i in rows]
    for i in rows:
        code = int(judge(scenes[i : i + 1], plan(scenes.scene(i), 7)[None]).way[0])
        assert code in many[i]


# ----------------------------------------------------------------------------
# Scenes without an answer


@pytest.mark.parametrize(
    "scene, words",
    [
        (Scene((0.5, 0.5), (0.9, 0.5), [disc(0.1, 0.1, 0.05), disc(0.5, 0.5, 0.1)]), "start .* lies inside obstacle 2"),
        (Scene((0.1, 0.5), (0.9, 0.5), [wall(0.9, 0.3, 0.9, 0.7)]), r"goal \(0.90, 0.50\) lies inside obstacle 1"),
        (Scene((0.1, 0.5), (0.9, 0.5), [disc(0.25, 0.5, 0.14)]), "is only 0.010 away from obstacle 1: move one"),
        (Scene((0.1, 0.5), (0.9, 0.5), [wall(0.5, -0.1, 0.5, 1.1)]), "there is no way from the start to the goal"),
        (Scene((0.1, 0.5), (0.9, 0.5), [wall(0.5, 0, 0.5, 0.49), wall(0.5, 0.54, 0.5, 1)]), "there is no way"),
    ],
    ids=["start inside", "goal inside", "start too near", "no way", "a gap that is too narrow"],
)
def test_a_scene_without_an_answer_says_why(scene, words):
    with pytest.raises(SceneError, match=words):
        plan(scene)


def test_a_way_that_a_coarse_graph_misses_is_found():
    scene = Scene((0.07, 0.14), (0.86, 0.93), [(0.94, 0.61, 0.77, 0.95, 0.01)])  # the goal is behind it, near a corner
    assert not find_ways(scene.arrays()).good.any() and find_ways(scene.arrays(), fine=True).good.any()
    outcomes = judge(batch(scene, 1), plan(scene)[None])
    assert outcomes.succeeds.all() and int(outcomes.way[0]) in good_ways(scene)


def test_overlapping_obstacles_are_one():
    scene = Scene((0.1, 0.5), (0.9, 0.5), [disc(0.5, 0.4, 0.12), disc(0.5, 0.55, 0.12), wall(0.4, 0.5, 0.6, 0.5)])
    assert sorted(good_ways(scene)) == [0, 7]  # above all of them, or below
    outcomes = judge(batch(scene, 8), np.stack([plan(scene, seed) for seed in range(8)]))
    assert outcomes.succeeds.all() and set(outcomes.way.tolist()) == {0, 7}


def test_the_easiest_scenes():
    free = Scene((0.1, 0.2), (0.9, 0.8))
    assert good_ways(free) == {0: pytest.approx(1.0)}
    np.testing.assert_allclose(plan(free), np.linspace((0.1, 0.2), (0.9, 0.8), HORIZON).T, atol=1e-6)
    nowhere = Scene((0.3, 0.3), (0.3, 0.3), [disc(0.7, 0.7, 0.1)])
    np.testing.assert_allclose(plan(nowhere), np.full((2, HORIZON), 0.3), atol=1e-6)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (((1.2, 0), (0, 0)), r"start must be \(x, y\) in the unit square, got \(1.2, 0\)"),
        (((0, 0), (float("nan"), 0)), "goal must be"),
        (((0, 0), (0, "a")), "goal must be"),
        ((0.5, (0, 0)), "start must be .* got 0.5"),
        (((0, 0), (1, 1), [0.5]), "an obstacle must be"),
        (((0, 0), (1, 1), [disc(0.5, 0.5, 0.1)] * 7), "at most 6 obstacles, got 7"),
        (((0, 0), (1, 1), [disc(0.5, 0.5, 0)]), "the radius above 0"),
        (((0, 0), (1, 1), [(0.5, 0.5, 0.1)]), r"an obstacle must be .* got \(0.5, 0.5, 0.1\)"),
    ],
    ids=str,
)
def test_a_bad_scene_is_refused_with_its_value(arguments, words):
    with pytest.raises(ValueError, match=words):
        Scene(*arguments)


def test_an_observation_holds_the_scene_and_zeros_for_what_is_not_there():
    found = Scene((0.1, 0.2), (0.9, 0.8), [disc(0.5, 0.25, 0.1), wall(0, 0, 1, 0.5)]).observation()
    assert found.shape == (2 + MAX_OBSTACLES, 8) and found.dtype == np.float32
    expected = [
        [1, 0, 0, -0.8, -0.6, -0.8, -0.6, 0],
        [1, 1, 0, 0.8, 0.6, 0.8, 0.6, 0],
        [1, 0, 1, 0, -0.5, 0, -0.5, 1],
        [1, 0, 1, -1, -1, 1, 0, 10 * WALL],
    ]
    np.testing.assert_allclose(found[:4], expected, atol=1e-6)
    assert not found[4:].any()


def test_a_scene_comes_back_from_its_arrays():
    assert ROUND.arrays().scene(0) == ROUND
    scenes = random_scenes(30, np.random.default_rng(1))
    again = Scenes.of([scenes.scene(i) for i in range(30)])
    assert np.array_equal(again.observations(), scenes.observations())


# ----------------------------------------------------------------------------
# Metrics


def test_metrics_of_paths_made_by_hand():
    elsewhere, never = [*ABOVE[:2], (0.9, 0.6)], [(0.1, 0.5), (float("nan"), 0.8), (0.9, 0.5)]
    outcomes = judge(batch(ROUND, 5), as_paths(ABOVE, BELOW, STRAIGHT, elsewhere, never))
    assert outcomes.arrives.tolist() == [True, True, True, False, True]
    assert outcomes.collides.tolist() == [False, False, True, False, True]
    assert outcomes.succeeds.tolist() == [True, True, False, False, False]
    height = 0.4 * 0.3 / 0.5  # of the center over the hypotenuse
    assert outcomes.clearance[:3] == pytest.approx([height - 0.15, height - 0.15, -0.15])
    assert outcomes.length[:4] == pytest.approx([1.0, 1.0, 0.8, 0.5 + np.hypot(0.4, 0.2)])
    assert outcomes.way[:2].tolist() == [0, 1]
    assert relative_length(outcomes, outcomes._replace(length=outcomes.length / 2)) == pytest.approx(2)
    assert np.isnan(relative_length(outcomes._replace(arrives=np.zeros(5, bool)), outcomes))
    free = judge(batch(Scene((0.1, 0.5), (0.9, 0.5)), 1), as_paths(STRAIGHT))
    assert free.succeeds.all() and np.isinf(free.clearance).all()
    with pytest.raises(ValueError, match=r"paths must be \(2, 2, L\), one for each scene, got \(1, 2, 3\)"):
        judge(batch(ROUND, 2), as_paths(ABOVE))


def test_a_path_between_two_of_its_points_may_collide():
    scene = Scene((0.1, 0.5), (0.9, 0.5), [wall(0.5, 0.3, 0.5, 0.7)])
    outcomes = judge(batch(scene, 1), as_paths([(0.1, 0.5), (0.9, 0.5)]))
    assert outcomes.collides.all() and outcomes.clearance == pytest.approx([-WALL])


def test_shares_of_the_ways():
    assert way_shares([0, 1, 1, 4]) == {0: 0.25, 1: 0.5, 4: 0.25}
    assert share_difference({0: 0.25, 1: 0.75}, {0: 0.5, 1: 0.5}) == 0.25
    assert share_difference({0: 1.0}, {0: 0.4, 5: 0.6}) == pytest.approx(0.6)
    assert share_difference({}, {}) == 0
