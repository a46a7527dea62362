"""Samplers: their order of convergence, their tables in closed form, plans, and the settings of a run."""

import re

import numpy as np
import pytest
import torch
from gaussian import best_predictions
from torch import Tensor

from dp.diffusion.plan import Plan, make_plan
from dp.diffusion.samplers import SAMPLERS, consistency, ddim, ddpm, dpmpp_2m, dpmpp_2m_sde, is_stochastic, update
from dp.diffusion.schedules import Level, level, make_schedule
from dp.diffusion.settings import SampleSettings
from dp.system.validation import MAX_SEED, MAX_TIMESTEPS

# Every sampler, DDIM at each kind of eta.
EVERY = {name: (name, 0.0) for name in SAMPLERS} | {f"ddim eta {eta}": ("ddim", eta) for eta in (0.4, 1.0)}
every_sampler = pytest.mark.parametrize("sampler, eta", EVERY.values(), ids=EVERY)
# For the best denoiser; consistency sampling needs a model that predicts the end of the path, not the mean.
SOLVERS = {name: run for name, run in EVERY.items() if name != "consistency"}
every_solver = pytest.mark.parametrize("sampler, eta", SOLVERS.values(), ids=SOLVERS)


def at_lambda(values, scale: float = 1.0) -> Level:
    """Levels [K] of given lambda = log_snr / 2; the samplers do not look at t."""
    lam = torch.as_tensor(values, dtype=torch.float64).reshape(-1)
    gamma = torch.sigmoid(2 * (lam - np.log(scale)))
    return Level(torch.sigmoid(-lam), gamma, scale * gamma.sqrt(), (1 - gamma).sqrt(), 2 * lam)


def grid(values, scale: float = 1.0) -> tuple[Level, Level]:
    """The levels t and s of a run through these lambdas."""
    return at_lambda(values[:-1], scale), at_lambda(values[1:], scale)


# ----------------------------------------------------------------------------
# Order of convergence


def moments(t: Level, table: Tensor, mu: float = 0.3, s: float = 0.5) -> tuple[float, float, float]:
    """The mean of x_s at the end of a run on Gaussian pixels N(mu, s²) that starts at its true distribution, the
    standard deviation, and how far a single pixel that starts one deviation out is from that mean, without fresh noise.
    The best x0 is affine in x_t, so that the run of (x_t, x0_prev) is linear and needs no samples.
    """
    first = t.at(0)
    deviation = (first.alpha**2 * s**2 + first.sigma**2).sqrt().item()
    mean, pixel = np.array([first.alpha.item() * mu, 0.0]), np.array([deviation, 0.0])
    covariance = np.outer(pixel, pixel)
    for k, (a, b, c, d) in enumerate(table.tolist()):
        alpha, sigma = t.alpha[k].item(), t.sigma[k].item()
        offset = best_predictions(0.0, alpha, sigma, mu, s)["x0"]
        slope = best_predictions(1.0, alpha, sigma, mu, s)["x0"] - offset
        matrix = np.array([[a + (b + c) * slope, -c], [slope, 0]])
        mean = matrix @ mean + np.array([(b + c) * offset, offset])
        pixel = matrix @ pixel
        covariance = matrix @ covariance @ matrix.T + np.diag([d**2, 0])
    return mean[0], covariance[0, 0] ** 0.5, pixel[0]


@pytest.mark.parametrize("sampler, order", [("ddim", 1), ("dpmpp_2m", 2)])
def test_convergence_has_the_papers_order(sampler, order):
    # Along the probability-flow ODE a pixel stays as many deviations from the mean as it was.
    errors, mu, s = [], 0.3, 0.5
    for steps in (40, 80, 160, 320):
        t, target = grid(np.linspace(-4, 4, steps + 1))
        last = target.at(-1)
        mean, _, pixel = moments(t, SAMPLERS[sampler](t, target, 0.0), mu, s)
        exact = last.alpha * mu + (last.alpha**2 * s**2 + last.sigma**2).sqrt()
        errors.append(abs(mean + pixel - exact.item()))
    observed = np.log2(np.divide(errors[:-1], errors[1:]))
    assert (observed >= order - 0.1).all() and observed[-1] <= order + 0.1, observed


@pytest.mark.parametrize("mu, s", [(0.04, 0.24), (0.3, 0.5)])
@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
@every_solver
def test_a_thousand_steps_give_back_the_data(sampler, eta, name, mu, s):
    """Within 3 % of the deviation, which ancestral sampling falls short by, or 2 % without fresh noise."""
    plan = plan_of(1000, sampler=sampler, eta=eta, schedule=name, trained=name)
    mean, deviation, _ = moments(plan.t, plan.table, mu, s)
    tolerance = 0.03 if is_stochastic(sampler, eta) else 0.02
    assert abs(mean - mu) < tolerance * s and abs(deviation - s) < tolerance * s


# ----------------------------------------------------------------------------
# Tables in closed form

LEVELS = at_lambda([-10.0, -3.0, 0.0, 0.1, 4.0]), at_lambda([-9.9, 2.0, 0.1, 5.0, 4.001])


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("lambdas", [(-1.0, -0.5, 0.0), (-2.0, -1.7, 0.9), (-3.0, -0.2, -0.1)], ids=str)
@pytest.mark.parametrize("sampler, base", [(dpmpp_2m, 0.0), (dpmpp_2m_sde, 1.0)])
def test_the_second_order_is_exact_for_an_x0_linear_in_lambda(sampler, base, lambdas, scale):
    # With unequal steps, because an inverted ratio of them telescopes on regular grids.
    t, s = grid(lambdas, scale)
    line = [0.2 - 0.3 * lam for lam in (*lambdas[:2], sum(lambdas[1:]) / 2)]
    _, b, c, _ = sampler(t, s, 0.0)[1]
    torch.testing.assert_close(b * line[1] + c * (line[1] - line[0]), b * line[2], rtol=0, atol=1e-12)
    for column in (0, 1, 3):  # and the rest of the table is that of the first-order sampler
        assert torch.equal(sampler(t, s, 0.0)[:, column], ddim(t, s, base)[:, column])


@pytest.mark.parametrize("sampler, base", [(dpmpp_2m, 0.0), (dpmpp_2m_sde, 1.0)])
def test_without_a_usable_past_the_second_order_samplers_are_the_first_order_ones(sampler, base):
    # The first step; one where the level stood still, as a clipped schedule does (0 / 0); one that reaches t = 0.
    t, s = grid([-5, -5, -1, 0])
    s = Level(*(torch.cat([value[:2], end]) for value, end in zip(s, level(make_schedule("linear"), torch.zeros(1)))))
    assert torch.equal(sampler(t, s, 0.0), ddim(t, s, base))
    t, s = grid([-5, -4, -1, 0])
    assert (sampler(t, s, 0.0)[1:, 2] > 0).all() and sampler(t, s, 0.0)[0, 2] == 0


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_the_fresh_noise_has_the_posterior_variance(eta):
    t, s = LEVELS
    # Ho et al. 2020, eq. 7, written with ratios of alpha² and sigma².
    posterior = s.sigma**2 / t.sigma**2 * (t.sigma**2 - (t.alpha / s.alpha) ** 2 * s.sigma**2)
    torch.testing.assert_close(ddpm(t, s)[:, 3] ** 2, posterior)
    torch.testing.assert_close(ddim(t, s, eta)[:, 3] ** 2, eta**2 * posterior)


def test_ddpm_has_the_posterior_mean():
    t, s = LEVELS
    # Kingma et al. 2021, eq. 32-33: alpha_t|s and sigma²_t|s.
    alpha, sigma2 = t.alpha / s.alpha, t.sigma**2 - (t.alpha / s.alpha) ** 2 * s.sigma**2
    mean = torch.stack([alpha * s.sigma**2, s.alpha * sigma2], dim=1) / t.sigma[:, None] ** 2
    torch.testing.assert_close(ddpm(t, s)[:, :2], mean)


@every_solver
def test_a_step_to_the_same_level_changes_nothing(sampler, eta):
    t = at_lambda([-4, 0, 2])
    row = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).expand(3, 4)
    torch.testing.assert_close(SAMPLERS[sampler](t, t, eta), row, rtol=0, atol=1e-15)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_consistency_sampling_of_the_true_paths_gives_back_gaussian_pixels(steps):
    """Along the probability-flow ODE a pixel of N(mu, s²) keeps its number of deviations z, so the consistency function
    is mu + s z. Every x0, and with it every x_s, then has the distribution of the data, in as few steps as one.
    """
    mu, s = 0.3, 0.5
    plan = plan_of(steps, sampler="consistency", schedule="sigmoid", trained="sigmoid")
    assert torch.equal(plan.table, consistency(plan.t, plan.s))
    mean, variance = 0.0, 1.0  # of x_t
    for t, (a, b, c, d) in zip(map(plan.t.at, range(steps)), plan.table.tolist(), strict=True):
        slope = s / (t.alpha**2 * s**2 + t.sigma**2).sqrt().item()
        mean_x0, variance_x0 = mu + slope * (mean - t.alpha.item() * mu), slope**2 * variance
        assert mean_x0 == pytest.approx(mu, abs=1e-4) and variance_x0 == pytest.approx(s**2, abs=1e-4)
        assert a == c == 0  # only x0 and fresh noise count
        mean, variance = b * mean_x0, b**2 * variance_x0 + d**2
    assert (mean, variance) == (mean_x0, variance_x0)


STEEP = [
    ("linear", {}),
    ("linear", {"clip_min": 1e-300}),
    ("cosine", {"tau": 0.01}),
    ("cosine", {"tau": 40.0}),
    ("sigmoid", {"tau": 0.1}),
    ("sigmoid", {"start": -60.0, "end": 60.0, "tau": 0.1}),
    ("sigmoid", {"start": 20.0, "end": 40.0}),
]
SMOOTH = [("cosine", {}), ("sigmoid", {}), ("sigmoid", {"start": -2.0, "tau": 0.7}), ("cosine", {"start": 0.1})]


@every_sampler
def test_every_plan_keeps_the_marginals_and_stays_finite(sampler, eta):
    """The two invariants of every row: with the true x0, x_s has mean alpha_s x0 and variance sigma_s². Where
    sigma_s = 0 the row is (0, scale, 0, 0): x0 itself.
    """
    for schedule in STEEP + SMOOTH:
        for steps, difference, scale, strength in [
            (1, 0.0, 1.0, 1.0),
            (2, 0.0, 0.5, 1.0),
            (3, 0.1, 0.4, 0.7),
            (50, 0.0, 0.5, 1.0),
            (50, 0.03, 1.0, 0.3),
        ]:
            settings = {"time_difference": difference, "strength": strength, "eta": eta}
            plan = plan_of(steps, sampler=sampler, schedule=schedule[0], kwargs=schedule[1], scale=scale, **settings)
            (a, b, _, d), (t, s) = plan.table.unbind(1), (plan.t, plan.s)
            assert plan.table.isfinite().all() and plan.network_time.isfinite().all()
            torch.testing.assert_close(a * t.alpha + b, s.alpha, rtol=0, atol=1e-12)
            noisy = t.sigma > 0
            variance = a**2 * t.sigma**2 + d**2
            torch.testing.assert_close(variance[noisy], s.sigma[noisy] ** 2, rtol=1e-9, atol=1e-15)
            at_zero = torch.tensor([0, scale, 0, 0], dtype=torch.float64).expand(steps, 4)[s.sigma == 0]
            assert torch.equal(plan.table[s.sigma == 0], at_zero)


def normal(b: int, seed: int = 0) -> Tensor:
    return torch.randn(b, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_an_update_takes_each_row_with_its_own_coefficients():
    x_t, x0, before, noise, rows = normal(3), normal(3, 1), normal(3, 2), normal(3, 3), normal(3, 4)[:, 0, 0]
    x_s = update(x_t, x0, before, noise, rows)
    for i in range(3):
        a, b, c, d = rows[i]
        torch.testing.assert_close(x_s[i], a * x_t[i] + b * x0[i] + c * (x0[i] - before[i]) + d * noise[i])
    rows = rows * torch.tensor([1, 1, 0, 0])
    assert torch.equal(update(x_t, x0, None, None, rows), update(x_t, x0, before, noise, rows))


# ----------------------------------------------------------------------------
# Plans


def plan_of(
    steps: int, time_difference=0.0, sampler="ddim", schedule="cosine", trained="cosine", scale=1.0, kwargs=None, **more
) -> Plan:
    lengths = {"timesteps": steps, "time_difference": time_difference}
    settings = SampleSettings(sampler=sampler, noise_schedule=schedule, schedule_kwargs=kwargs, **lengths, **more)
    return make_plan(settings, make_schedule(trained), scale)


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
        plan = plan_of(steps, min(difference / steps, 1), sampler="ddpm")
        reached = (~plan.draws).tolist()
        assert reached == [k + 1 + difference >= steps for k in range(steps)], steps
        assert (plan.s.sigma[reached] == 0).all(), steps


@every_sampler
def test_stochastic_samplers_draw_noise_on_every_step_that_ends_above_time_0(sampler, eta):
    plan = plan_of(5, 0.25, sampler, eta=eta)
    is_noisy = sampler in ("ddpm", "dpmpp_2m_sde", "consistency") or eta > 0
    assert is_noisy == is_stochastic(sampler, eta)
    assert plan.draws.tolist() == [is_noisy and k < 3 for k in range(5)]
    assert (plan.table[:, 3] > 0).tolist() == plan.draws.tolist()


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
    with pytest.raises(ValueError, match=r"'euler'.*ddim, ddpm, dpmpp_2m, dpmpp_2m_sde, consistency"):
        SampleSettings(sampler="euler")
    with pytest.raises(ValueError, match=r"'log'.*linear, cosine, sigmoid"):
        SampleSettings(noise_schedule="log")


def test_a_schedules_keywords_are_checked_with_it():
    with pytest.raises(ValueError, match=r"tau.*-1"):
        SampleSettings(noise_schedule="cosine", schedule_kwargs={"tau": -1})


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m", "dpmpp_2m_sde", "consistency"])
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
    filled = SampleSettings(**asked).with_defaults(OWN)
    assert (filled.noise_schedule, filled.schedule_kwargs) == (name, kwargs)


def test_what_the_call_leaves_open_is_the_policys_own_and_what_it_names_wins():
    filled = SampleSettings(batch_size=2, seed=5).with_defaults(OWN)
    assert (filled.batch_size, filled.seed, filled.timesteps, filled.sampler) == (2, 5, 7, "ddpm")
    assert filled.time_difference == 0.2
    asked = SampleSettings(timesteps=3, sampler="dpmpp_2m", time_difference=0).with_defaults(OWN)
    assert (asked.timesteps, asked.sampler, asked.time_difference, asked.seed) == (3, "dpmpp_2m", 0, None)
