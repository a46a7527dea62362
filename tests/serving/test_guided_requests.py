"""Requests with classes and guidance in the engine: what each gets alone, within the row budget, whatever it is."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import numpy as np
import pytest
import torch

from dp import DiffusionPolicy, Engine, SampleSettings
from dp.data.codec import to_uint8
from dp.networks.attention import read_attention

RUNS = [
    SampleSettings(3, timesteps=6, sampler="ddim", seed=1, label=(1, 0, 3), guidance=3),
    SampleSettings(2, timesteps=4, sampler="ddpm", seed=2, label=2, guidance=1.5, guidance_interval=(0.3, 0.8)),
    SampleSettings(4, timesteps=7, sampler="dpmpp_2m", seed=3),
    SampleSettings(1, timesteps=5, sampler="dpmpp_2m_sde", seed=4, label=3, guidance=0),
]


@pytest.fixture
def policy(tiny_rin, tmp_path):
    policy = DiffusionPolicy(tiny_rin(num_classes=3), timesteps=5)
    policy.save_pretrained(tmp_path / "classed")
    return policy


@pytest.fixture
def most_rows(monkeypatch):
    """The largest network call."""
    seen = [0]

    def noted(policy, x_t, *args, predict=DiffusionPolicy.predict, **kwargs):
        seen[0] = max(seen[0], len(x_t))
        return predict(policy, x_t, *args, **kwargs)

    monkeypatch.setattr(DiffusionPolicy, "predict", noted)
    return seen


@pytest.mark.parametrize("row_budget", [64, 5, 2, 1])
def test_guided_requests_get_what_they_get_alone_within_the_row_budget(policy, tmp_path, most_rows, row_budget):
    engine = Engine(tmp_path, row_budget=row_budget, device="cpu")
    handles = [engine.submit(settings, "classed") for settings in RUNS]
    for handle in handles:
        assert [frame.index for frame in handle][-1] == handle.trajectory.settings.timesteps
    assert most_rows[0] <= max(row_budget, 2)  # a guided image always fits
    for handle, settings in zip(handles, RUNS, strict=True):
        assert (handle.state, handle.error) == ("done", None)
        images = to_uint8(policy.sample(**vars(settings)))
        difference = np.abs(handle.frame.x0.astype(int) - images.astype(int))
        assert difference.max() <= 1 and (difference > 0).mean() < 0.05


def test_a_run_out_of_memory_halves_the_budget_by_its_rows(policy, tmp_path, monkeypatch):
    def predict(policy, x_t, *args, predict=DiffusionPolicy.predict, **kwargs):
        if len(x_t) > 6:
            raise torch.OutOfMemoryError("too many rows")
        return predict(policy, x_t, *args, **kwargs)

    monkeypatch.setattr(DiffusionPolicy, "predict", predict)
    engine = Engine(tmp_path, row_budget=64, device="cpu")
    settings = SampleSettings(6, timesteps=3, sampler="ddpm", seed=0, label=1, guidance=2)
    handle = engine.submit(settings, "classed")
    list(handle)
    assert (handle.state, handle.error) == ("done", None) and engine.row_budget == 6
    monkeypatch.undo()
    images = to_uint8(policy.sample(**vars(settings)))
    assert np.abs(handle.frame.x0.astype(int) - images.astype(int)).max() <= 1


def test_a_parked_guided_run_goes_on_where_it_was(policy, tmp_path):
    engine = Engine(tmp_path, device="cpu")
    settings = SampleSettings(2, timesteps=300, sampler="ddpm", seed=0, label=(1, 2), guidance=2)
    handle = engine.submit(settings, "classed")
    subscription = handle.subscribe()
    next(iter(handle))
    subscription.close()
    while handle.state == "running":
        time.sleep(0.001)
    assert handle.state in ("parked", "done")
    handle.subscribe()
    list(handle)
    images = to_uint8(policy.sample(**vars(settings)))
    assert handle.state == "done" and np.abs(handle.frame.x0.astype(int) - images.astype(int)).max() <= 1


def test_the_record_of_a_run_holds_its_labels_and_is_json(policy, tmp_path):
    engine = Engine(tmp_path, device="cpu")
    handle = engine.submit(RUNS[0], "classed")
    list(handle)
    made_with = json.loads(json.dumps(handle.provenance))
    assert (made_with["label"], made_with["guidance"], made_with["guidance_interval"]) == ([1, 0, 3], 3, [0, 1])
    again = SampleSettings(**{name: made_with[name] for name in asdict(RUNS[0])})
    assert torch.equal(policy.sample(**vars(again)), policy.sample(**vars(RUNS[0])))


def test_a_label_that_the_model_lacks_fails_the_request_with_the_reason(policy, tmp_path):
    handle = Engine(tmp_path, device="cpu").submit(SampleSettings(1, label=4), "classed")
    list(handle)
    assert handle.state == "failed" and "label 4 does not exist: the classes of this model are 1 to 3" in handle.error


def test_look_inside_shows_the_conditional_branch(policy, tmp_path):
    engine = Engine(tmp_path, device="cpu")
    settings = SampleSettings(2, timesteps=4, sampler="ddim", seed=0, label=(2, 3), guidance=2)
    handle = engine.submit(settings, "classed")
    list(handle)
    state = policy.init_state(settings)
    for _ in range(2):
        [(state, _)] = policy.step([state])
    time = state.plan.network_time[2].expand(2)
    carry, condition = state.carry, torch.tensor([2, 3])
    given = {"x_self_cond": carry["x0"], "latents": carry["latents"], "condition": condition}
    with torch.no_grad():
        *_, blocks = policy.model(state.x_t, time.float(), **given, return_attention=True)
    expected = torch.stack([weights.mean(dim=1) for weights in blocks], dim=1)
    torch.testing.assert_close(read_attention(policy, state), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(engine.attention(handle.request_id, row=1, index=3), expected[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("index, guidance", [(1, 1.0), (3, 3.0)])  # outside the interval, and inside
def test_the_branches_of_a_step_are_the_models_own_and_the_guided_one_is_the_runs(policy, tmp_path, index, guidance):
    engine = Engine(tmp_path, device="cpu")
    settings = SampleSettings(2, timesteps=4, seed=0, label=(2, 3), guidance=3, guidance_interval=(0.0, 0.7))
    handle = engine.submit(settings, "classed")
    list(handle)
    (without, conditional, guided), used = engine.branches(handle.request_id, row=1, index=index)
    *_, step = (step for step in policy.stream(**vars(settings)) if step.index <= index)
    torch.testing.assert_close(guided, step.x0[1], atol=1e-4, rtol=0)
    assert used == guidance
    # The network predicts v; x0 = alpha x_t - sigma v, where nothing is clamped.
    combined = without + guidance * (conditional - without)
    inside = (without.abs() < 0.99) & (conditional.abs() < 0.99) & (combined.abs() < 0.99)
    assert inside.float().mean() > 0.2 and not torch.allclose(without, conditional, atol=1e-3)
    torch.testing.assert_close(guided[inside], combined[inside], atol=1e-4, rtol=0)
    if index == 1:  # nothing is carried yet
        plain = DiffusionPolicy(policy.model, **policy.config)
        first = next(plain.stream(2, timesteps=4, seed=0))
        torch.testing.assert_close(without, first.x0[1], atol=1e-4, rtol=0)
