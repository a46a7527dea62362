"""Branches in the engine: requests like any other, that begin in the middle of a run."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from dp import DiffusionPolicy, Engine, SampleSettings
from dp.data.codec import to_uint8
from dp.diffusion.endings import branch_off
from dp.diffusion.replay import state_at_step

SETTINGS = SampleSettings(3, timesteps=6, sampler="dpmpp_2m", seed=2, label=(2, 0, 1), guidance=2.0)


@pytest.fixture
def policy(tiny_rin, tmp_path):
    policy = DiffusionPolicy(tiny_rin(num_classes=3))
    policy.save_pretrained(tmp_path / "tiny")
    return policy


def run_in(engine, settings=SETTINGS, **given):
    handle = engine.submit(settings, "tiny", **given)
    list(handle)
    return handle


@pytest.mark.parametrize("row_budget", [64, 3])
@pytest.mark.parametrize("row", [0, 1])
def test_a_branch_is_a_request_with_the_frames_from_its_step_on(policy, tmp_path, row_budget, row):
    engine = Engine(tmp_path, device="cpu", row_budget=row_budget)
    run = run_in(engine)
    others = [engine.submit(SETTINGS, "tiny") for _ in range(2)]
    branch = engine.branch_off(run.request_id, row, 3)
    assert engine.find(branch.request_id) is branch
    assert branch.wait(30) and (branch.state, branch.error) == ("done", None)
    assert all(other.wait(30) and other.state == "done" for other in others)
    settings = SETTINGS.with_defaults(policy.defaults)
    state = branch_off(policy, settings, state_at_step(policy, settings, row, 3, None, None), 8)
    steps = list(policy.run(state))
    assert [frame.index for frame in branch.trajectory.frames] == [step.index for step in steps] == [3, 4, 5, 6]
    for frame, step in zip(branch.trajectory.frames, steps):
        expected = to_uint8((step.x0 + 1) / 2)
        assert np.abs(frame.x0.astype(int) - expected).max() <= 1
    own = {"batch_size": 3, "sampler": "dpmpp_2m", "eta": 0.0, "walk_to": None}
    assert branch.provenance["branch"] == {"row": row, "step": 3} | own
    assert (branch.provenance["batch_size"], branch.provenance["sampler"]) == (8, "dpmpp_2m_sde")


def test_a_branch_keeps_the_known_pixels_of_its_run(policy, tmp_path):
    engine = Engine(tmp_path, device="cpu")
    start, mask = torch.rand(3, 8, 8), torch.arange(64).reshape(8, 8) % 2 == 0
    run = run_in(engine, SampleSettings(2, timesteps=4, seed=1, strength=0.7), start=start, mask=mask)
    branch = engine.branch_off(run.request_id, 1, 2, 5)
    assert branch.wait(30) and branch.frame.x0.shape == (5, 8, 8, 3)
    expected = to_uint8(start[None])[0][mask.numpy()]
    assert all((image[mask.numpy()] == expected).all() for image in branch.frame.x0)


def test_a_branch_can_be_parked_resumed_and_stopped(policy, tmp_path):
    engine = Engine(tmp_path, device="cpu")
    run = run_in(engine, SampleSettings(1, timesteps=400, sampler="ddim", seed=0))
    branch = engine.branch_off(run.request_id, 0, 2)
    subscription = branch.subscribe()
    next(iter(branch))
    subscription.close()
    deadline = time.monotonic() + 30
    while branch.state == "running" and time.monotonic() < deadline:
        time.sleep(0.001)
    assert branch.state == "parked" and not branch.wait(0.01)
    branch.subscribe()
    branch.cancel()
    assert branch.wait(30) and branch.state == "stopped"


def test_what_cannot_branch_off_is_an_error_with_the_reason(policy, tmp_path):
    engine = Engine(tmp_path, device="cpu")
    run = run_in(engine)
    with pytest.raises(ValueError, match="no longer has this run"):
        engine.branch_off("unknown", 0, 1)
    with pytest.raises(ValueError, match="image must be a whole number from 0 to 2, got 3"):
        engine.branch_off(run.request_id, 3, 1)
    for index in (0, 7):
        branch = engine.branch_off(run.request_id, 0, index)
        assert (
            branch.wait(30)
            and branch.state == "failed"
            and f"in 1 to 6, the steps of this run; got {index}" in branch.error
        )
    branch = engine.branch_off(run.request_id, 0, 6)
    assert branch.wait(30)
    for replay in (engine.attention, engine.branches, engine.take_apart, engine.branch_off):
        with pytest.raises(ValueError, match="is a branch of another one"):
            replay(branch.request_id, 0, 6)
