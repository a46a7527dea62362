"""Schedules: the formulas against numpy, their inverses, levels that stay finite in the worst corners, bad keywords."""

import re
from itertools import product

import numpy as np
import pytest
import torch
from cases import case
from gaussian import reference_gamma

from dp.diffusion.schedules import SCHEDULES, level, make_schedule

ORDINARY = [
    ("linear", {}),
    ("cosine", {}),
    ("sigmoid", {}),
    ("cosine", {"start": 0.2, "end": 1.0, "tau": 2.0}),
    ("cosine", {"tau": 0.35}),  # a fractional power of cos(π/2), which rounds to just below 0
    ("cosine", {"start": 0.1, "end": 0.9, "tau": 1.5, "clip_min": 1e-3}),
    ("sigmoid", {"start": 0.0, "end": 3.0, "tau": 0.9}),
    ("sigmoid", {"start": 0.3, "end": 2.5, "tau": 0.7, "clip_min": 1e-4}),
]
EXTREME = [
    ("sigmoid", {"tau": 0.1}),  # 1 - gamma rounds to 0 at many times in float32
    ("sigmoid", {"start": -60.0, "end": 60.0, "tau": 0.1}),  # and at nearly half of all times in float64
    ("sigmoid", {"start": 20.0, "end": 40.0}),  # so far out that a sigmoid has only a few values left
    ("cosine", {"start": 0.0, "end": 1e-4}),
    ("cosine", {"tau": 0.01}),
    ("cosine", {"tau": 40.0}),
    ("linear", {"clip_min": 1e-300}),
    ("linear", {"clip_min": 0.999}),
]
EVERY = ORDINARY + EXTREME
TIMES = torch.linspace(0, 1, 4001, dtype=torch.float64)


def ids(case):
    return re.sub(r"[{}' ]", "", f"{case[0]}({case[1]})")


@pytest.fixture(params=EVERY, ids=ids)
def every(request):
    return request.param


@pytest.fixture(params=ORDINARY, ids=ids)
def ordinary(request):
    return request.param


def test_gamma_is_the_formula(ordinary):
    # A few roundings of numbers of at most 1, over a difference v_end - v_start of about 0.1 at least.
    np.testing.assert_allclose(
        make_schedule(*ordinary).gamma(TIMES).numpy(), reference_gamma(*ordinary, TIMES), atol=1e-14
    )


def test_gamma_never_rises_within_its_bounds(every):
    schedule = make_schedule(*every)
    gamma = schedule.gamma(TIMES)
    assert (gamma.diff() <= 0).all()
    assert gamma.min() >= schedule.clip_min and gamma.max() <= 1


def test_no_noise_at_all_is_left_at_time_0(every):
    # To the bit, wherever 0 lies in the batch (vector instructions may round otherwise than scalar ones): a step that
    # reaches t = 0 is known by its sigma being 0.
    schedule = make_schedule(*every)
    for steps in (1, 2, 3, 4, 7, 8, 100):
        grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[1:]
        assert schedule.gamma(grid)[-1] == 1, steps


def test_almost_no_signal_is_left_at_time_1(ordinary):
    schedule = make_schedule(*ordinary)
    assert schedule.gamma(torch.ones(1, dtype=torch.float64)) == schedule.clip_min


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (1, 1, 1, 1)])
def test_both_maps_are_elementwise_and_keep_shape_and_dtype(ordinary, shape):
    schedule = make_schedule(*ordinary)
    t = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for map_ in (schedule.gamma, schedule.time):
        value = map_(t)
        assert value.shape == t.shape and value.dtype == t.dtype
        one_by_one = torch.tensor([map_(x).item() for x in t.flatten()], dtype=t.dtype).reshape(shape)
        torch.testing.assert_close(value, one_by_one, rtol=0, atol=1e-14)  # vector and scalar code differ by roundings


def test_float32_times_stay_float32_and_finite(ordinary):
    # float32's cos(π/2) is below 0, and a fractional power of that is NaN.
    schedule = make_schedule(*ordinary)
    for value in (schedule.gamma(TIMES.float()), schedule.time(TIMES.float())):
        assert value.dtype == torch.float32 and torch.isfinite(value).all()


def test_the_inverse_finds_the_time_again(ordinary):
    schedule = make_schedule(*ordinary)
    gamma = schedule.gamma(TIMES)
    unclipped = gamma > schedule.clip_min
    # A rounding of the time near 1 moves gamma by up to 1e-12, because the cosine with tau < 1/2 is vertical there.
    torch.testing.assert_close(schedule.gamma(schedule.time(gamma)), gamma, rtol=0, atol=1e-12)
    # Where gamma is all but 1 many times share it (the cosine is flat at 0), so that the time is known only to the
    # square root of a rounding.
    torch.testing.assert_close(schedule.time(gamma)[unclipped], TIMES[unclipped], rtol=0, atol=1e-7)
    steep = unclipped & (gamma < 0.999)
    torch.testing.assert_close(schedule.time(gamma)[steep], TIMES[steep], rtol=0, atol=1e-10)


def test_the_inverse_stays_in_0_to_1_and_never_rises(every):
    schedule = make_schedule(*every)
    time = schedule.time(torch.cat([TIMES, torch.tensor([5e-324, 1e-300, 1e-20])]).sort().values)
    assert (time >= 0).all() and (time <= 1).all() and (time.diff() <= 0).all()
    # At either end the time is whichever of those that share the level.
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(
        schedule.gamma(schedule.time(ends)), ends.clamp(min=schedule.clip_min), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_a_level_is_derived_from_gamma_and_finite_everywhere(every, scale):
    schedule = make_schedule(*every)
    at = level(schedule, TIMES, scale)
    assert all(value.dtype == torch.float64 and value.shape == TIMES.shape for value in at)
    assert all(torch.isfinite(value).all() for value in at)
    assert torch.equal(at.t, TIMES) and torch.equal(at.gamma, schedule.gamma(TIMES))
    torch.testing.assert_close(at.alpha, scale * at.gamma.sqrt())
    torch.testing.assert_close(at.sigma**2, 1 - at.gamma, rtol=0, atol=1e-15)
    noisy = at.sigma > 0
    torch.testing.assert_close(at.log_snr[noisy], 2 * (at.alpha / at.sigma)[noisy].log(), rtol=1e-12, atol=1e-12)
    assert (at.log_snr.diff() <= 0).all()


def test_a_level_is_float64_however_its_time_came():
    # A float32 sigmoid rounds 1 - gamma to 0 here: log-SNR would be infinite, and inf - inf follows.
    early = torch.tensor([0.1, 0.2], dtype=torch.float32)
    at = level(make_schedule("sigmoid", {"tau": 0.1}), early)
    assert (at.sigma > 0).all() and at.log_snr[0] > at.log_snr[1]
    assert make_schedule("sigmoid", {"tau": 0.1}).gamma(early).eq(1).all()  # that it does


def test_a_level_is_indexed_field_by_field():
    at = level(make_schedule("cosine"), TIMES)
    assert at.at(7) == tuple(value[7] for value in at)
    assert torch.equal(at.at(TIMES > 0.5).log_snr, at.log_snr[TIMES > 0.5])


def test_equal_keywords_make_equal_schedules():
    # "the same schedule as in training" is asked by ==
    assert make_schedule("sigmoid", {"tau": 1}) == make_schedule("sigmoid") == make_schedule("sigmoid", None)
    assert make_schedule("sigmoid", {"tau": 0.9}) != make_schedule("sigmoid")


@pytest.mark.parametrize("name", ["", "Linear", "quadratic", None])
def test_an_unknown_name_lists_the_names(name):
    with pytest.raises(ValueError, match=rf"{name!r}.*linear, cosine, sigmoid"):
        make_schedule(name)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("clip_min", [0, -1e-9, 1, 1.5, float("nan"), float("inf"), "0.1", None, True])
def test_a_clip_outside_0_to_1_is_refused_with_its_value(name, clip_min):
    with pytest.raises(ValueError, match=rf"clip_min.*{re.escape(str(clip_min))}"):
        make_schedule(name, {"clip_min": clip_min})


@pytest.mark.parametrize("name", ["cosine", "sigmoid"])
@pytest.mark.parametrize(
    "kwargs",
    [
        {"tau": 0},
        {"tau": -0.5},
        {"tau": float("nan")},
        {"tau": float("inf")},
        {"tau": "1"},
        {"start": 0.75, "end": 0.25},
        {"start": 0.5, "end": 0.5},
        {"start": float("nan")},
        {"end": float("inf")},
    ],
    ids=str,
)
def test_keywords_out_of_range_are_refused_with_their_values(name, kwargs):
    with pytest.raises(ValueError) as error:
        make_schedule(name, kwargs)
    assert all(f"{key}" in str(error.value) and f"{value}" in str(error.value) for key, value in kwargs.items())


@pytest.mark.parametrize("kwargs", [{"start": -0.01}, {"end": 1.01}, {"start": -3, "end": 3}], ids=str)
def test_a_cosine_outside_its_quarter_wave_is_refused_with_its_values(kwargs):
    with pytest.raises(ValueError) as error:
        make_schedule("cosine", kwargs)
    assert all(f"{value}" in str(error.value) for value in kwargs.values())


@pytest.mark.parametrize(
    "kwargs", [{"start": 50, "end": 60}, {"start": 1, "end": 3, "tau": 1e-3}, {"start": 0, "end": 1e-320}], ids=str
)
def test_a_sigmoid_that_is_flat_in_floating_point_is_refused(kwargs):
    with pytest.raises(ValueError, match=rf"{kwargs['start']}.*{kwargs['end']}"):
        make_schedule("sigmoid", kwargs)


@pytest.mark.parametrize("kwargs", [[1], "tau", 3])
def test_keywords_that_are_no_mapping_are_refused(kwargs):
    with pytest.raises(ValueError, match=re.escape(repr(kwargs))):
        make_schedule("sigmoid", kwargs)


@pytest.mark.parametrize("name, key", [("linear", "tau"), ("linear", "start"), ("sigmoid", "gamma"), ("cosine", "Tau")])
def test_an_unknown_keyword_is_refused_with_its_value(name, key):
    with pytest.raises(ValueError, match=rf"{key}.*0\.75.*clip_min"):
        make_schedule(name, {key: 0.75})


HUGE = 10**400  # an integer that no float can hold


@pytest.mark.parametrize(
    "name, kwargs",
    [
        ("sigmoid", {"start": -1e308, "end": 1e308}),
        ("sigmoid", {"end": HUGE}),
        ("sigmoid", {"start": -HUGE}),
        ("cosine", {"tau": HUGE}),
        ("linear", {"clip_min": HUGE}),
    ],
    ids=lambda value: str(value)[:30],
)
def test_keywords_that_no_finite_level_comes_of_are_refused(name, kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        make_schedule(name, kwargs)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("tau", [5e-324, 1e-300, 1e-3, 1e3, 1e300, 1.7e308])
def test_extreme_keywords_give_finite_levels_or_a_value_error(name, tau):
    all_ends = {}, {"start": 0, "end": 1}, {"start": 0.25, "end": 0.25 + 1e-16}, {"end": 1e308}
    for clip_min, ends in product((5e-324, 1e-300, 1 - 1e-16), all_ends):
        kwargs = {"clip_min": clip_min} | ({"tau": tau, **ends} if name != "linear" else {})
        with case(kwargs):
            try:
                schedule = make_schedule(name, kwargs)
            except ValueError:
                continue
            at = level(schedule, torch.linspace(0, 1, 101, dtype=torch.float64))
            assert all(value.isfinite().all() for value in (*at, schedule.time(at.gamma)))


def test_a_scale_of_which_no_finite_level_comes_is_refused():
    with pytest.raises(ValueError, match="scale=1e-320"):
        level(make_schedule("sigmoid"), TIMES, scale=1e-320)
