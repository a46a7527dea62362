"""Samplers: their order on an equation with a known solution, single steps in closed form, rows that do not mix, plans,
and what may be asked for.
"""

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from gaussian import best_predictions
from torch import Tensor

from dp.checks import MAX_SEED, MAX_TIMESTEPS
from dp.samplers import DDIM, DDPM, SAMPLERS, DPMSolverPP2M, SampleSettings, make_plan
from dp.schedules import Level, level, make_schedule

EVERY = [DDIM(), DDIM(0.4), DDIM(1.0), DDPM(), DPMSolverPP2M()]
DETERMINISTIC = [DDIM(), DPMSolverPP2M()]
SHAPE = (2, 4, 4)


def at_lambda(values, scale: float = 1.0) -> Level:
    """Levels [B] of given lambda = log_snr / 2; the samplers do not look at t."""
    lam = torch.as_tensor(values, dtype=torch.float64).reshape(-1)
    gamma = torch.sigmoid(2 * (lam - np.log(scale)))
    return Level(torch.sigmoid(-lam), gamma, scale * gamma.sqrt(), (1 - gamma).sqrt(), 2 * lam)


def normal(b: int, seed: int = 0, dtype=torch.float64) -> Tensor:
    return torch.randn(b, *SHAPE, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def one_image(value: float) -> Tensor:
    return torch.full((1, 1, 1, 1), value, dtype=torch.float64)


def scalars(at: Level) -> tuple[float, float, float]:
    return at.alpha.item(), at.sigma.item(), at.log_snr.item() / 2


# ----------------------------------------------------------------------------
# Order of convergence


def error_on_gaussian_data(sampler, steps: int, mu: float = 0.3, s: float = 0.5) -> float:
    """How far the sampler ends from the probability-flow ODE's solution, on a grid uniform in lambda from -4 to 4."""
    grid = [at_lambda(lam) for lam in np.linspace(-4, 4, steps + 1)]
    x_t = start = one_image(1.7)
    memory = sampler.init(x_t)
    for t, s_ in pairwise(grid):
        x0 = best_predictions(x_t, *scalars(t)[:2], mu, s)["x0"]
        x_t, memory = sampler.step(x_t, x0, t, s_, None, memory)
    # Along the flow a point keeps its number of standard deviations from the mean.
    first, last = grid[0], grid[-1]
    deviations = [(at.alpha**2 * s**2 + at.sigma**2).sqrt() for at in (first, last)]
    exact = last.alpha * mu + (start - first.alpha * mu) * deviations[1] / deviations[0]
    return (x_t - exact).abs().item()


@pytest.mark.parametrize("sampler, order", [(DDIM(), 1), (DPMSolverPP2M(), 2)], ids=["ddim", "dpmpp_2m"])
def test_convergence_has_the_papers_order(sampler, order):
    errors = [error_on_gaussian_data(sampler, steps) for steps in (40, 80, 160, 320)]
    observed = np.log2(np.divide(errors[:-1], errors[1:]))
    assert (observed >= order - 0.1).all() and observed[-1] <= order + 0.1, observed


# ----------------------------------------------------------------------------
# Single steps


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("lambdas", [(-1.0, -0.5, 0.0), (-2.0, -1.7, 0.9), (-3.0, -0.2, -0.1)], ids=str)
def test_2m_is_exact_for_an_x0_linear_in_lambda(lambdas, scale):
    # With unequal steps, because an inverted ratio of them telescopes on regular grids.
    def line(lam: float) -> Tensor:
        return one_image(0.2 - 0.3 * lam)

    before, t, s = (at_lambda(lam, scale) for lam in lambdas)
    sampler, x_t = DPMSolverPP2M(), one_image(0.4)
    x_t, memory = sampler.step(x_t, line(lambdas[0]), before, t, None, sampler.init(x_t))
    x_s, _ = sampler.step(x_t, line(lambdas[1]), t, s, None, memory)
    (alpha_t, sigma_t, lambda_t), (alpha_s, sigma_s, lambda_s) = scalars(t), scalars(s)
    d = (x_s - sigma_s / sigma_t * x_t) / (alpha_s - alpha_t * sigma_s / sigma_t)
    torch.testing.assert_close(d, line((lambda_t + lambda_s) / 2), rtol=0, atol=1e-12)


def test_2m_remembers_the_call_before_and_the_level_at_which_it_was_made():
    x_t, x0, sampler = normal(2), normal(2, 1), DPMSolverPP2M()
    t, s = at_lambda([-2, -1]), at_lambda([0, 1])
    _, memory = sampler.step(x_t, x0, t, s, None, sampler.init(x_t))
    assert torch.equal(memory["x0"], x0) and torch.equal(memory["log_snr"], t.log_snr) and memory["seen"].all()


def test_2m_without_a_past_is_ddim():
    x_t, x0, t, s = normal(3), normal(3, 1), at_lambda([-2, -1, 0]), at_lambda([-1, 0, 3])
    first, _ = DPMSolverPP2M().step(x_t, x0, t, s, None, DPMSolverPP2M().init(x_t))
    assert torch.equal(first, DDIM().step(x_t, x0, t, s, None, {})[0])


def test_2m_where_the_level_stood_still_is_ddim():
    # Two calls at one level (a clipped schedule is flat there) say nothing of a slope: 0 / 0.
    x_t, x0, t, s, sampler = normal(1), normal(1, 1), at_lambda(-5), at_lambda(-1), DPMSolverPP2M()
    _, memory = sampler.step(x_t, normal(1, 2), t, t, None, sampler.init(x_t))
    assert torch.equal(sampler.step(x_t, x0, t, s, None, memory)[0], DDIM().step(x_t, x0, t, s, None, {})[0])


def spread(sampler, t: Level, s: Level) -> Tensor:
    """The coefficient of the fresh noise [B]."""
    zero = torch.zeros(len(t.t), 1, 1, 1, dtype=torch.float64)
    return sampler.step(zero, zero, t, s, zero + 1, sampler.init(zero))[0].flatten()


LEVELS = at_lambda([-10.0, -3.0, 0.0, 0.1, 4.0]), at_lambda([-9.9, 2.0, 0.1, 5.0, 4.001])


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_the_fresh_noise_has_the_posterior_variance(eta):
    t, s = LEVELS
    # Ho et al. 2020, eq. 7, written with ratios of alpha² and sigma².
    posterior = s.sigma**2 / t.sigma**2 * (t.sigma**2 - (t.alpha / s.alpha) ** 2 * s.sigma**2)
    torch.testing.assert_close(spread(DDPM(), t, s) ** 2, posterior)
    torch.testing.assert_close(spread(DDIM(eta), t, s) ** 2, eta**2 * posterior)


def test_ddim_at_eta_1_has_ddpms_variance_to_the_bit():
    assert torch.equal(spread(DDIM(1.0), *LEVELS), spread(DDPM(), *LEVELS))


@pytest.mark.parametrize("sampler", EVERY, ids=str)
def test_a_true_x0_keeps_the_marginal(sampler):
    # If x_t = alpha_t x0 + sigma_t eps and x0 is known, x_s has mean alpha_s x0 and variance sigma_s²: the coefficients
    # of eps and of the fresh noise make up sigma_s together.
    t, s = LEVELS

    def step(x0: float, eps: float, noise: float) -> Tensor:
        x_t = (t.alpha * x0 + t.sigma * eps)[:, None, None, None]
        full = torch.full_like
        return sampler.step(x_t, full(x_t, x0), t, s, full(x_t, noise), sampler.init(x_t))[0].flatten()

    torch.testing.assert_close(step(1, 0, 0), s.alpha)
    torch.testing.assert_close(step(0, 1, 0) ** 2 + step(0, 0, 1) ** 2, s.sigma**2)


@pytest.mark.parametrize("sampler", EVERY, ids=str)
def test_a_step_to_where_we_are_changes_nothing(sampler):
    x_t, t = normal(3), at_lambda([-4, 0, 2])
    x_s, _ = sampler.step(x_t, normal(3, 1), t, t, normal(3, 2), sampler.init(x_t))
    torch.testing.assert_close(x_s, x_t, rtol=0, atol=1e-15)


@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("sampler", EVERY, ids=str)
def test_a_step_to_time_0_gives_exactly_x0_times_scale(sampler, name, scale):
    times = torch.tensor([1.0, 0.6, 0.3, 0.01], dtype=torch.float64)
    schedule = make_schedule(name)
    before, t, s = (level(schedule, at, scale) for at in (times, 0.9 * times, 0 * times))
    x_t, x0 = normal(4, dtype=torch.float32), normal(4, 1, dtype=torch.float32)
    # With a past, which the solver must not extrapolate from here, and with noise, which must not be added.
    _, memory = sampler.step(x_t, normal(4, 2, torch.float32), before, t, x_t, sampler.init(x_t))
    assert torch.equal(sampler.step(x_t, x0, t, s, normal(4, 3, torch.float32), memory)[0], torch.tensor(scale) * x0)


@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=str)
def test_a_deterministic_sampler_needs_no_noise(sampler):
    x_t, x0, t, s = normal(2), normal(2, 1), at_lambda([-1, 0]), at_lambda([0, 1])
    x_s, _ = sampler.step(x_t, x0, t, s, None, sampler.init(x_t))
    assert not sampler.is_stochastic
    assert torch.equal(x_s, sampler.step(x_t, x0, t, s, normal(2, 2), sampler.init(x_t))[0])


@pytest.mark.parametrize("sampler", EVERY, ids=str)
def test_rows_at_different_levels_are_the_rows_alone(sampler):
    # Rows 0 and 3 are at their first step, 1 and 4 at a later one, 2 at its last.
    x_t, x0, noise = normal(5, 1), normal(5, 2), normal(5, 3)
    schedule = make_schedule("sigmoid")
    t = level(schedule, torch.tensor([1.0, 0.7, 0.2, 0.9, 0.4]))
    s = level(schedule, torch.tensor([0.8, 0.1, 0.0, 0.5, 0.3]))
    memory = sampler.init(x_t)
    if memory:
        later = torch.tensor([False, True, True, False, True])
        before = {"x0": normal(5, 4), "log_snr": t.log_snr - torch.tensor([1.0, 2, 3, 4, 5]), "seen": later}
        memory = {key: torch.where(later.view(-1, *[1] * (v.ndim - 1)), before[key], v) for key, v in memory.items()}
    together, memory_together = sampler.step(x_t, x0, t, s, noise, memory)
    for i in range(5):
        row = slice(i, i + 1)
        own = {key: value[row] for key, value in memory.items()}
        alone, memory_alone = sampler.step(x_t[row], x0[row], t.at(row), s.at(row), noise[row], own)
        torch.testing.assert_close(alone, together[row], rtol=0, atol=1e-14)
        assert all(torch.equal(memory_alone[key], memory_together[key][row]) for key in memory)


STEEP = [
    ("linear", {}),
    ("linear", {"clip_min": 1e-300}),
    ("cosine", {"tau": 0.01}),
    ("cosine", {"tau": 40.0}),
    ("sigmoid", {"tau": 0.1}),
    ("sigmoid", {"start": -60.0, "end": 60.0, "tau": 0.1}),
    ("sigmoid", {"start": 20.0, "end": 40.0}),
]


@pytest.mark.parametrize("steps", [1, 2, 3, 50])
@pytest.mark.parametrize("schedule", STEEP, ids=str)
@pytest.mark.parametrize("sampler", EVERY, ids=str)
def test_the_steepest_schedules_stay_finite(sampler, schedule, steps):
    plan = make_plan(sampler, make_schedule(*schedule), make_schedule("sigmoid"), steps, 0.0, 0.5)
    x_t = normal(1, dtype=torch.float32)
    memory = sampler.init(x_t)
    for k in range(steps):
        t, s = plan.t.at(slice(k, k + 1)), plan.s.at(slice(k, k + 1))
        x_t, memory = sampler.step(
            x_t, normal(1, k, torch.float32).clamp(-1, 1), t, s, normal(1, -k, torch.float32), memory
        )
        assert torch.isfinite(x_t).all()
    assert torch.isfinite(plan.network_time).all()


# ----------------------------------------------------------------------------
# Plans


def plan_of(steps: int, time_difference: float = 0.0, sampler=DDIM(), schedule="cosine", trained="cosine", scale=1.0):  # noqa: B008
    return make_plan(sampler, make_schedule(schedule), make_schedule(trained), steps, time_difference, scale)


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_times_run_from_1_to_0_in_equal_intervals(steps):
    plan = plan_of(steps)
    grid = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps
    assert len(plan) == steps
    torch.testing.assert_close(plan.t.t, grid[:-1], rtol=0, atol=1e-15)
    torch.testing.assert_close(plan.s.t, grid[1:], rtol=0, atol=1e-15)
    assert plan.t.t[0] == 1 and plan.s.t[-1] == 0


def test_the_time_difference_moves_only_the_target_and_moves_all_of_its_level():
    plan, shifted = plan_of(10), plan_of(10, 0.15)
    assert all(map(torch.equal, plan.t, shifted.t)) and torch.equal(plan.network_time, shifted.network_time)
    torch.testing.assert_close(shifted.s.t, (plan.s.t - 0.15).clamp(min=0))
    assert all(map(torch.equal, shifted.s, level(make_schedule("cosine"), shifted.s.t)))


@pytest.mark.parametrize("difference", [1, 2, 3])
def test_a_time_difference_of_whole_steps_reaches_time_0_that_many_steps_earlier(difference):
    # The interface's slider speaks in whole steps. 0.3 - 3 / 10 must be 0: of a target of 6e-17 the solver would think
    # that the middle of the step can be extrapolated to, and it would draw noise for nothing.
    for steps in range(1, 251):
        plan = plan_of(steps, min(difference / steps, 1), sampler=DDPM())
        reached = [not plan.needs_noise(k) for k in range(steps)]
        assert reached == [k + 1 + difference >= steps for k in range(steps)], steps
        assert (plan.s.sigma[reached] == 0).all(), steps


@pytest.mark.parametrize("sampler", EVERY, ids=str)
def test_noise_is_needed_by_stochastic_samplers_but_at_time_0(sampler):
    plan = plan_of(5, 0.25, sampler)
    assert [plan.needs_noise(k) for k in range(5)] == [sampler.is_stochastic and k < 3 for k in range(5)]


def test_under_its_own_schedule_the_network_is_told_the_grids_own_times():
    plan = plan_of(9, 0.1)
    assert torch.equal(plan.network_time, plan.t.t)


@pytest.mark.parametrize("trained", ["linear", "cosine", "sigmoid"])
def test_under_another_schedule_the_network_is_told_the_time_of_the_same_level(trained):
    plan = plan_of(9, schedule="sigmoid" if trained == "linear" else "linear", trained=trained)
    told = make_schedule(trained).gamma(plan.network_time)
    torch.testing.assert_close(told, plan.t.gamma, rtol=0, atol=1e-12)
    assert not torch.allclose(plan.network_time[1:], plan.t.t[1:], atol=1e-3)


def test_scale_is_in_alpha_and_in_nothing_else():
    plain, scaled = plan_of(6), plan_of(6, scale=0.25)
    torch.testing.assert_close(scaled.t.alpha, plain.t.alpha / 4)
    assert torch.equal(scaled.t.sigma, plain.t.sigma) and torch.equal(scaled.network_time, plain.network_time)
    torch.testing.assert_close(scaled.t.log_snr, plain.t.log_snr - 2 * np.log(4))


# ----------------------------------------------------------------------------
# What may be asked for

WRONG = {
    "batch_size": [0, -1, 2.0, "2", None, True],
    "timesteps": [0, -1, MAX_TIMESTEPS + 1, 2.5, "10", True],
    "seed": [-1, MAX_SEED, 0.5, "0", True],
    "sampler": ["", "DDIM", "euler"],
    "time_difference": [-0.01, 1.01, float("nan"), "0.1", True],
    "eta": [-0.1, 1.1, float("nan"), "0.5", None, True],
    "noise_schedule": ["", "quadratic"],
}


@pytest.mark.parametrize("key, value", [(key, value) for key, values in WRONG.items() for value in values])
def test_a_setting_out_of_range_is_refused_with_its_value(key, value):
    with pytest.raises(ValueError, match=re.escape(repr(value))):
        SampleSettings(**{key: value})


def test_unknown_names_list_the_names():
    with pytest.raises(ValueError, match=r"'euler'.*ddim, ddpm, dpmpp_2m"):
        SampleSettings(sampler="euler")
    with pytest.raises(ValueError, match=r"'log'.*linear, cosine, sigmoid"):
        SampleSettings(noise_schedule="log")


def test_a_schedules_keywords_are_checked_with_it():
    with pytest.raises(ValueError, match=r"tau.*-1"):
        SampleSettings(noise_schedule="cosine", schedule_kwargs={"tau": -1})


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
def test_eta_is_refused_where_it_means_nothing(sampler):
    with pytest.raises(ValueError, match=rf"0\.5.*{sampler}"):
        SampleSettings(sampler=sampler, eta=0.5)


@pytest.mark.parametrize(
    "edge",
    [
        {"batch_size": 1, "timesteps": 1, "seed": 0, "time_difference": 0, "eta": 0},
        {"timesteps": MAX_TIMESTEPS, "seed": MAX_SEED - 1, "time_difference": 1, "eta": 1},
    ],
    ids=str,
)
def test_the_ends_of_every_range_are_allowed(edge):
    SampleSettings(**edge)


OWN = SampleSettings(
    timesteps=7, sampler="ddpm", noise_schedule="sigmoid", schedule_kwargs={"tau": 0.9}, time_difference=0.2
)


@pytest.mark.parametrize(
    "asked, name, kwargs",
    [
        ({}, "sigmoid", {"tau": 0.9}),
        ({"noise_schedule": "cosine"}, "cosine", {}),
        ({"noise_schedule": "sigmoid"}, "sigmoid", {}),
        ({"schedule_kwargs": {"start": -2}}, "sigmoid", {"start": -2}),
        ({"schedule_kwargs": {}}, "sigmoid", {}),
        ({"noise_schedule": "cosine", "schedule_kwargs": {"tau": 2}}, "cosine", {"tau": 2}),
    ],
    ids=str,
)
def test_a_schedules_name_and_its_keywords_travel_together(asked, name, kwargs):
    filled = SampleSettings(**asked).filled_from(OWN)
    assert (filled.noise_schedule, filled.schedule_kwargs) == (name, kwargs)


def test_what_the_call_leaves_open_is_the_policys_own_and_what_it_names_wins():
    filled = SampleSettings(batch_size=2, seed=5).filled_from(OWN)
    assert (filled.batch_size, filled.seed, filled.timesteps, filled.sampler) == (2, 5, 7, "ddpm")
    assert filled.time_difference == 0.2
    asked = SampleSettings(timesteps=3, sampler="dpmpp_2m", time_difference=0).filled_from(OWN)
    assert (asked.timesteps, asked.sampler, asked.time_difference, asked.seed) == (3, "dpmpp_2m", 0, None)


@pytest.mark.parametrize("name", SAMPLERS)
def test_settings_make_their_sampler(name):
    assert SampleSettings(sampler=name).make_sampler() == SAMPLERS[name]()
    assert SampleSettings(sampler="ddim", eta=0.5).make_sampler() == DDIM(0.5)
