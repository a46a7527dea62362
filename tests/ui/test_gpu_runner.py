"""Runs on a lent GPU, as their readers see them. Outside ZeroGPU the platform's decorator changes nothing, so each call
runs in a thread of this process; the forked workers are in tests/browser/test_zero_gpu.py.
"""

import itertools
import threading
import time

import numpy as np
import pytest

from dp import DiffusionPolicy, SampleSettings
from dp.data.codec import to_uint8
from dp.serving.engine import Engine
from dp.serving.handle import SampleRequest
from dp.ui.zero_gpu import ABORTED, GpuRunner

SETTINGS = SampleSettings(2, timesteps=6, seed=3)
LONG = SampleSettings(2, timesteps=1000, seed=3)


@pytest.fixture
def engine(tmp_path, tiny_rin):
    DiffusionPolicy(tiny_rin()).save_pretrained(tmp_path / "one")
    return Engine(tmp_path, device="cpu")


@pytest.fixture
def runner(engine):
    return GpuRunner(engine)


def ended(handle):
    list(handle)
    return handle.state


def first_frame(handle):
    return next(iter(handle))


def test_a_lent_gpu_gives_the_engines_frames_and_provenance(engine, runner):
    [handle] = runner.submit_all([SampleRequest("one", SETTINGS)])
    other = engine.submit(SETTINGS, "one")
    assert ended(handle) == ended(other) == "done"
    assert [frame.index for frame in handle.trajectory.frames] == [1, 2, 3, 4, 5, 6]
    for mine, theirs in zip(handle.trajectory.frames, other.trajectory.frames, strict=True):
        np.testing.assert_allclose(mine.x0, theirs.x0, atol=1)
        np.testing.assert_allclose(mine.moved, theirs.moved, atol=0.01)
    assert handle.trajectory.log_snr == other.trajectory.log_snr
    assert handle.provenance == other.provenance


def test_the_requests_of_a_call_run_one_after_the_other(engine, runner):
    requests = [SampleRequest("one", SampleSettings(2, timesteps=k, seed=3)) for k in (2, 5)]
    handles = runner.submit_all(requests)
    assert [ended(handle) for handle in handles] == ["done", "done"]
    for request, handle in zip(requests, handles, strict=True):
        images = engine.policy("one").sample(2, timesteps=request.settings.timesteps, seed=3)
        np.testing.assert_allclose(handle.frame.x0, to_uint8(images), atol=1)


def test_a_long_run_keeps_evenly_chosen_steps_and_those_asked_for(runner):
    [handle] = runner.submit_all([SampleRequest("one", LONG, keep=frozenset({500}))])
    assert ended(handle) == "done"
    steps = [frame.index for frame in handle.trajectory.frames]
    assert steps[0] == 1 and steps[-1] == 1000 and 500 in steps and len(steps) <= 129


@pytest.mark.parametrize("leave", ["cancel", "close"])
def test_a_run_that_is_stopped_or_left_ends_at_once_and_keeps_its_frames(runner, leave):
    [handle] = runner.submit_all([SampleRequest("one", LONG)])
    subscription = handle.subscribe()
    first_frame(handle)
    handle.cancel() if leave == "cancel" else subscription.close()
    assert handle.state == "stopped" and runner.find(handle.request_id) is handle
    kept = len(handle.trajectory.frames)
    time.sleep(0.1)
    assert len(handle.trajectory.frames) == kept > 0 and handle.state == "stopped"


def test_a_run_that_is_stopped_while_its_model_loads_requests_no_gpu(engine, runner, monkeypatch):
    gate, done, load, requested = threading.Event(), threading.Event(), engine.policy, []
    monkeypatch.setattr(engine, "policy", lambda name: gate.wait(60) and load(name))
    monkeypatch.setattr(runner, "_call", lambda requests: requested.append(requests) or iter(()))
    run = runner._run
    monkeypatch.setattr(runner, "_run", lambda *arguments: (run(*arguments), done.set()))
    [handle] = runner.submit_all([SampleRequest("one", SETTINGS)])
    handle.cancel()
    assert handle.state == "stopped"
    gate.set()
    assert done.wait(60) and requested == []


def test_a_discarded_run_cannot_be_found(runner):
    [handle] = runner.submit_all([SampleRequest("one", LONG)])
    handle.discard()
    assert handle.state == "stopped" and runner.find(handle.request_id) is None


def test_an_error_ends_the_run_it_hit_and_those_that_never_began(runner):
    first, second, third = runner.submit_all(
        [SampleRequest("one", SETTINGS), SampleRequest("two", SETTINGS), SampleRequest("one", SETTINGS)]
    )
    assert [ended(handle) for handle in (first, second, third)] == ["failed"] * 3
    assert "there is no checkpoint 'two'" in first.error
    assert second.error == third.error == "did not finish"


def test_a_call_that_falls_silent_ends_after_the_requested_time(runner, monkeypatch):
    monkeypatch.setattr("dp.ui.zero_gpu.seconds_needed", lambda requests: 0)
    monkeypatch.setattr("dp.ui.zero_gpu.GRACE_S", 0.2)
    silence, call = threading.Event(), runner._call

    def fall_silent(requests):
        yield from itertools.islice(call(requests), 2)
        silence.wait(60)

    monkeypatch.setattr(runner, "_call", fall_silent)
    handles = runner.submit_all([SampleRequest("one", LONG), SampleRequest("one", SETTINGS)])
    assert [ended(handle) for handle in handles] == ["failed", "failed"]
    assert [handle.error for handle in handles] == [ABORTED, "did not finish"]
    assert handles[0].frame.index >= 1
    silence.set()


def test_ended_runs_are_evicted_when_memory_is_short(engine, runner):
    [old] = runner.submit_all([SampleRequest("one", SETTINGS)])
    ended(old)
    engine.memory_for_trajectories = old.trajectory.nbytes - 1
    [new] = runner.submit_all([SampleRequest("one", SETTINGS)])
    assert runner.find(old.request_id) is None and runner.find(new.request_id) is new
    assert ended(new) == "done"
