"""Classes and guidance, against three classes of Gaussian pixels, whose conditional and unconditional denoisers are
known, and against a RIN with classes whose branches run in calls of their own.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gaussian import reference_gamma, reference_noise
from torch import nn

from dp import DiffusionPolicy, SampleSettings
from dp.diffusion.plan import make_plan
from dp.diffusion.samplers import SAMPLERS
from dp.diffusion.state import init_state

TRAINED = ("sigmoid", {"start": -3.0, "end": 4.0, "tau": 0.9})
CLASSES = ((0.5, -0.6, 0.2), (0.3, 0.4, 0.35), (0.2, 0.1, 0.1))  # of each class: its share, mean and deviation


def best_x0(x_t, alpha, sigma, label):
    """The posterior mean of pixels that are independent draws from one class, or from any if the label is 0."""
    chosen = CLASSES if label == 0 else (CLASSES[label - 1],)
    weights, means = [], []
    for share, mu, s in chosen:
        variance = alpha**2 * s**2 + sigma**2
        weights.append(share * np.exp(-((x_t - alpha * mu) ** 2) / (2 * variance)) / np.sqrt(variance))
        means.append(mu + alpha * s**2 * (x_t - alpha * mu) / variance)
    return sum(w * m for w, m in zip(weights, means)) / sum(weights)


class ClassDenoiser(nn.Module):
    """The best network for those classes."""

    def __init__(self, objective):
        super().__init__()
        self.objective, self.num_classes, self.channels, self.image_size = objective, len(CLASSES), 1, 4

    def forward(self, x, time, x_self_cond=None, latents=None, condition=None, return_latents=False):
        gamma = reference_gamma(*TRAINED, time.numpy())
        labels = [0] * len(x) if condition is None else condition.tolist()
        rows = [
            predict(row, np.sqrt(g), np.sqrt(1 - g), label, self.objective)
            for row, g, label in zip(x.numpy(), gamma, labels, strict=True)
        ]
        return torch.from_numpy(np.stack(rows)), x.new_zeros(len(x), 0, 1)


def predict(x_t, alpha, sigma, label, objective):
    x0 = best_x0(x_t, alpha, sigma, label)
    eps = (x_t - alpha * x0) / sigma
    return {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0}[objective]


def reference_steps(label, g, interval, *, objective, timesteps, seed, count):
    """Every x0 of a DDIM run that is guided in the interval, from the papers' equations."""
    x_t = reference_noise(seed, count, 1, 4, 4)()
    for k in range(timesteps):
        t, s = 1 - k / timesteps, 1 - (k + 1) / timesteps
        gammas = reference_gamma(*TRAINED, np.array([t, max(s, 0)]))
        (alpha, alpha_s), (sigma, sigma_s) = np.sqrt(gammas), np.sqrt(1 - gammas)
        with_class, without = (predict(x_t, alpha, sigma, one, objective) for one in (label, 0))
        is_guided = interval[0] <= t <= interval[1]
        guided = without + g * (with_class - without) if is_guided else with_class
        # x0 and eps solve x_t = alpha x0 + sigma eps and the equation of the objective.
        second = {"x0": (1, 0), "eps": (0, 1), "v": (-sigma, alpha)}[objective]
        x0 = np.linalg.solve([(alpha, sigma), second], [x_t.ravel(), guided.ravel()])[0].reshape(x_t.shape)
        x0 = np.clip(x0, -1, 1)
        yield x0
        x_t = alpha_s * x0 + sigma_s * (x_t - alpha * x0) / sigma


def make_policy(network, objective="v"):
    name, kwargs = TRAINED
    return DiffusionPolicy(network, objective=objective, noise_schedule=name, schedule_kwargs=kwargs).double()


@pytest.mark.parametrize("objective", ["x0", "eps", "v"])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.25, 0.75), (0.9, 0.9)])
@pytest.mark.parametrize("g", [0, 0.5, 1, 1.5, 3, 20])
def test_every_step_of_a_guided_run_is_the_exact_one(g, interval, objective):
    policy = make_policy(ClassDenoiser(objective), objective)
    for label in (1, 2, 3):
        given = {"timesteps": 12, "seed": 5}
        steps = policy.stream(3, sampler="ddim", label=label, guidance=g, guidance_interval=interval, **given)
        for step, x0 in zip(steps, reference_steps(label, g, interval, objective=objective, count=3, **given)):
            np.testing.assert_allclose(step.x0.numpy(), x0, atol=1e-6)


def test_guidance_changes_the_images_toward_their_class():
    policy = make_policy(ClassDenoiser("v"))
    means = [policy.sample(8, timesteps=20, seed=0, label=1, guidance=g).mean() for g in (0, 1, 2)]
    assert means[0] > means[1] > means[2]  # class 1 is the darkest


@pytest.fixture
def policy(tiny_rin):
    return DiffusionPolicy(tiny_rin(num_classes=4), timesteps=6, consistency=True)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guidance_1_is_the_conditional_model_and_0_the_unconditional_one_to_the_bit(policy, sampler):
    run = {"sampler": sampler, "seed": 3}
    conditional, unconditional = policy.sample(3, label=2, **run), policy.sample(3, **run)
    assert not torch.equal(conditional, unconditional)
    assert torch.equal(policy.sample(3, label=2, guidance=1, **run), conditional)
    assert torch.equal(policy.sample(3, label=0, **run), unconditional)
    assert torch.equal(policy.sample(3, label=2, guidance=0, **run), unconditional)
    # Outside the interval the conditional model runs, whatever the guidance.
    assert torch.equal(policy.sample(3, label=2, guidance=5, guidance_interval=(0.01, 0.02), **run), conditional)


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.7)])
@pytest.mark.parametrize("g", [0, 2.5])
def test_each_branch_keeps_its_own_latents(policy, g, interval):
    """The same run with a network call for each branch."""
    settings = SampleSettings(2, sampler="ddim", seed=1, label=(3, 1), guidance=g, guidance_interval=interval)
    condition, none = torch.tensor([3, 1]), torch.tensor([0, 0])
    state = policy.init_state(settings)
    carry = None
    while not state.is_finished:
        time = state.plan.network_time[state.index].expand(2)
        carries = [carry and {"x0": carry["x0"], "latents": carry[key]} for key in ("latents", "latents_none")]
        is_guided = interval[0] <= time[0] <= interval[1]
        zeros = torch.zeros(2, *policy.model.latents.shape)
        latents, latents_none = zeros, zeros
        if not (is_guided and g == 0):
            prediction, latents = policy.predict(state.x_t, time, carries[0], condition)
        if is_guided:
            without, latents_none = policy.predict(state.x_t, time, carries[1], none)
            prediction = without if g == 0 else without + g * (prediction - without)
        carry = {"x0": policy.to_x0(prediction, state.x_t, time), "latents": latents, "latents_none": latents_none}
        [(state, _)] = policy.step([state])
        assert state.carry.keys() == carry.keys()
        for key, value in carry.items():
            torch.testing.assert_close(state.carry[key], value, atol=1e-5, rtol=1e-4)


MIXED = [
    {"label": 2, "guidance": 3.0, "sampler": "dpmpp_2m"},
    {"label": (0, 1, 4), "guidance": 1.5, "sampler": "ddpm", "guidance_interval": (0.2, 0.6)},
    {"label": None, "sampler": "dpmpp_2m_sde"},
    {"label": 1, "guidance": 0.0, "sampler": "ddim", "eta": 0.5},
    {"label": (4, 0, 0), "sampler": "ddim"},
]


def test_rows_with_labels_guidance_none_and_mixed_samplers_equal_the_row_alone(policy):
    runs = [SampleSettings(3, timesteps=5 + i, seed=10 * i, **run) for i, run in enumerate(MIXED)]
    states, ends = [policy.init_state(run) for run in runs], {}
    for _ in range(5):
        states = [state for state, _ in policy.step(states)]
    for number, state in enumerate(states):
        ends[number] = list(policy.run(state))[-1].x0 if not state.is_finished else state.carry["x0"]
    for number, run in enumerate(runs):
        for row in range(3):
            state = policy.init_state(run)[row : row + 1]
            alone = list(policy.run(state))[-1].x0
            torch.testing.assert_close(ends[number][row : row + 1], alone, atol=1e-4, rtol=0)


def test_a_guided_image_takes_two_rows_of_the_network_call(policy):
    run = SampleSettings(5, timesteps=4, label=(1, 0, 2, 3, 0), guidance=2, guidance_interval=(0.4, 0.8), seed=0)
    state, rows = policy.init_state(run), []
    while not state.is_finished:
        rows.append(state.network_rows)
        parts = state.split(4)
        assert sum(map(len, parts)) == 5 and all(part.network_rows <= 4 for part in parts)
        assert [len(part) for part in state.split(1)] == [1] * 5  # an image is never split
        [(state, _)] = policy.step([state])
    assert rows == [5, 8, 8, 5]  # at 1, 0.75, 0.5 and 0.25
    assert run.most_rows == 10


def test_the_guided_steps_are_those_whose_network_time_lies_in_the_interval(policy):
    settings = SampleSettings(1, timesteps=5, label=1, guidance=2, guidance_interval=(0.4, 0.8))
    plan = make_plan(settings.with_defaults(policy.defaults), policy.schedule)
    assert plan.guided.tolist() == [False, True, True, True, False]  # at 1, 0.8, 0.6, 0.4, 0.2: both ends count


def test_a_start_image_a_mask_and_a_walk_work_with_labels(policy):
    start, mask = torch.rand(3, 8, 8), torch.zeros(8, 8, dtype=torch.bool)
    mask[:4] = True
    images = policy.sample(2, seed=1, start=start, mask=mask, strength=0.8, label=(1, 2), guidance=2)
    assert torch.allclose(images[:, :, :4], start[:, :4].expand(2, -1, -1, -1), atol=1e-6)
    walk = policy.sample(3, seed=1, walk_to=7, label=3, guidance=2)
    assert torch.allclose(walk[:1], policy.sample(1, seed=1, label=3, guidance=2), atol=1e-4)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"label": 5}, "label 5 does not exist: the classes of this model are 1 to 4, and 0 means none"),
        ({"label": -1}, "label must be a whole number of at least 0, got -1"),
        ({"label": 1.5}, "label must be one class, or one for each of the 2 images, got 1.5"),
        ({"label": True}, "label must be a whole number of at least 0, got True"),
        ({"label": "cats"}, "label must be one class, or one for each of the 2 images, got 'cats'"),
        ({"label": (1, 2, 3)}, r"label must be one class, or one for each of the 2 images, got \(1, 2, 3\)"),
        ({"guidance": 2}, "guidance = 2 needs a label"),
        ({"guidance": 2, "label": (0, 0)}, "guidance = 2 needs a label"),
        ({"guidance": -1, "label": 1}, r"guidance must lie in \[0, 20\], got -1"),
        ({"guidance": float("nan"), "label": 1}, r"guidance must lie in \[0, 20\], got nan"),
        ({"guidance_interval": (0.5, 0.2)}, r"guidance_interval must be \(low, high\)"),
        ({"guidance_interval": 0.5}, "guidance_interval must be"),
        ({"guidance_interval": (0, "1")}, "guidance_interval must be"),
    ],
)
def test_bad_labels_and_guidance_are_refused_with_the_value(policy, given, words):
    with pytest.raises(ValueError, match=words):
        policy.sample(2, **given)


def test_an_unconditional_model_refuses_labels(tiny_rin):
    policy = DiffusionPolicy(tiny_rin(), timesteps=2)
    assert policy.num_classes == 0
    with pytest.raises(ValueError, match="label 1 does not exist: this model has no classes"):
        policy.sample(1, label=1)
    assert torch.equal(policy.sample(1, seed=0, label=0), policy.sample(1, seed=0))


# ----------------------------------------------------------------------------
# Training


def test_a_dropped_class_is_no_class(policy):
    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([1, 2, 3, 0])
    t, noise = torch.rand(4, dtype=torch.float64), torch.randn(4, 3, 8, 8)

    def losses(condition, drop):
        drop = torch.tensor(drop)
        return policy(images, condition, t=t, noise=noise, self_condition=True, drop=drop, per_image=True)[0]

    kept, none = losses(labels, [False] * 4), losses(labels, [True] * 4)
    assert torch.equal(none, losses(None, [False] * 4))
    assert (kept != none).tolist() == [True, True, True, False]
    assert torch.equal(losses(labels, [False, True, False, False]), torch.where(labels == 2, none, kept))


def test_coins_are_drawn_last_and_only_for_classes(tiny_rin):
    images = torch.rand(4, 3, 8, 8)

    def next_draw(policy, condition=None):
        torch.manual_seed(0)
        policy(images, condition)
        return torch.rand(1).item()

    networks = [tiny_rin(), tiny_rin(num_classes=4)]
    plain, classed = (DiffusionPolicy(network) for network in networks)
    labels = torch.tensor([1, 2, 3, 4])
    assert next_draw(plain) == next_draw(plain, labels) == next_draw(classed) != next_draw(classed, labels)
    always = DiffusionPolicy(networks[1], condition_drop_prob=1)
    torch.manual_seed(1)
    with_labels = always(images, labels)
    torch.manual_seed(1)
    assert torch.equal(with_labels, always(images))


@pytest.mark.parametrize("condition", [[1, 2, 3], [1, 2, 3, 5], [0, 0, 0, -1], [1.0, 2.0, 3.0, 4.0]])
def test_a_bad_condition_is_refused(policy, condition):
    with pytest.raises(ValueError, match="condition must"):
        policy(torch.rand(4, 3, 8, 8), torch.tensor(condition))


@pytest.mark.parametrize("objective", ["x0", "eps", "v"])
def test_the_uniform_weight_is_1(objective, tiny_rin):
    alpha, sigma = torch.linspace(0, 1, 9), torch.linspace(1, 0, 9)
    policy = DiffusionPolicy(tiny_rin(), objective=objective, uniform_loss_weight=True)
    assert policy.loss_weight(alpha, sigma).tolist() == [1] * 9
    assert DiffusionPolicy(tiny_rin(), objective=objective).loss_weight(alpha, sigma).tolist() != [1] * 9


def test_init_state_copies_the_labels(policy):
    settings = SampleSettings(3, timesteps=2, label=[2, 0, 1], guidance=1.5, seed=0).with_defaults(policy.defaults)
    assert settings.label == (2, 0, 1) and settings.guidance_interval == (0.0, 1.0)
    state = init_state(make_plan(settings, policy.schedule), settings, torch.empty(0, 3, 8, 8))
    assert state.condition.tolist() == [2, 0, 1] and state.condition.dtype == torch.int64 and state.guidance == 1.5
    assert state[1:].condition.tolist() == [0, 1]
