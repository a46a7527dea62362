"""The engine: every request gets what it would get alone, whoever else is running."""

import threading
import time

import numpy as np
import pytest

from dp.engine import Engine
from dp.images import to_uint8
from dp.policy import DiffusionPolicy
from dp.samplers import SampleSettings

MIXTURE = [
    SampleSettings(3, timesteps=9, sampler="ddim", seed=1),
    SampleSettings(2, timesteps=4, sampler="ddpm", noise_schedule="cosine", seed=2),
    SampleSettings(1, timesteps=14, sampler="dpmpp_2m", noise_schedule="linear", seed=3),
    SampleSettings(4, timesteps=7, sampler="ddim", eta=0.5, time_difference=0.1, seed=4),
    SampleSettings(1, timesteps=1, sampler="ddpm", seed=5),
]


@pytest.fixture
def root(tiny_rin, tmp_path):
    for name, seed in (("one", 0), ("two", 1)):
        network = tiny_rin()
        with_other_weights = {key: value * (1 + 0.3 * seed) for key, value in network.state_dict().items()}
        network.load_state_dict(with_other_weights)
        DiffusionPolicy(network, timesteps=5).save_pretrained(tmp_path / name)
    return tmp_path


def finish(ticket):
    return [frame.index for frame in ticket]


def assert_as_alone(ticket, settings, folder):
    images = DiffusionPolicy.from_pretrained(folder).sample(**vars(settings))
    # In a batch of another shape the last bits of a float may differ, and with them a pixel on a rounding edge.
    difference = np.abs(ticket.frame.images.astype(int) - to_uint8(images).astype(int))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


@pytest.mark.parametrize("row_budget", [64, 4, 1])
def test_each_request_of_a_mixture_gets_what_it_gets_alone(root, row_budget):
    engine = Engine(root, row_budget=row_budget, device="cpu")
    names = ["one", "two", "one", "one", "two"]
    tickets = [engine.submit(settings, name) for settings, name in zip(MIXTURE, names)]
    for ticket, settings, name in zip(tickets, MIXTURE, names):
        indices = finish(ticket)
        assert indices == sorted(set(indices)) and indices[-1] == settings.timesteps
        assert ticket.state == "done"
        assert_as_alone(ticket, settings, root / name)


def test_requests_of_one_checkpoint_share_network_calls(root, monkeypatch):
    engine = Engine(root, device="cpu")
    policy = engine.policy("one")
    sizes, tick = [], policy.tick
    monkeypatch.setattr(policy, "tick", lambda batch: sizes.append(len(batch)) or tick(batch))
    engine._thread = threading.Thread(target=engine._work, daemon=True)  # started once everybody is in line
    tickets = [engine.submit(settings, "one") for settings in MIXTURE]
    engine._thread.start()
    for ticket in tickets:
        finish(ticket)
    assert len(sizes) == max(settings.timesteps for settings in MIXTURE)
    assert sum(sizes) == sum(settings.timesteps for settings in MIXTURE)


def test_a_newcomer_does_not_wait_for_the_end_of_others(root):
    engine = Engine(root, row_budget=4, device="cpu")
    long = engine.submit(SampleSettings(4, timesteps=2000, seed=0), "one")
    next(iter(long))
    short = engine.submit(SampleSettings(4, timesteps=2, seed=0), "one")
    finish(short)
    assert short.state == "done" and long.is_live
    long.cancel()


def test_cancel_keeps_the_newest_frame_and_frees_the_rows(root):
    engine = Engine(root, device="cpu")
    ticket = engine.submit(SampleSettings(2, timesteps=5000, seed=0), "one")
    frames = iter(ticket)
    next(frames)
    ticket.cancel()
    list(frames)  # ends, because the engine lets go
    assert ticket.state == "stopped" and ticket.frame is not None and ticket.frame.index < 5000
    assert not engine._running


def test_what_is_wrong_is_told_to_its_own_reader_only(root):
    (root / "one" / "model.safetensors").write_bytes(b"not weights")
    engine = Engine(root, device="cpu")
    broken = engine.submit(SampleSettings(1, timesteps=2, seed=0), "one")
    unknown = engine.submit(SampleSettings(1, timesteps=2, seed=0), "nowhere")
    fine = engine.submit(SampleSettings(1, timesteps=2, seed=0), "two")
    assert [finish(ticket)[-1:] for ticket in (broken, unknown, fine)] == [[], [], [2]]
    assert (broken.state, unknown.state, fine.state) == ("failed", "failed", "done")
    assert "model.safetensors cannot be read" in broken.error
    assert "no checkpoint 'nowhere'; there are: one, two" in unknown.error


def test_a_reader_that_comes_late_sees_the_last_frame(root):
    engine = Engine(root, device="cpu")
    ticket = engine.submit(SampleSettings(1, timesteps=3, seed=0), "one")
    deadline = time.monotonic() + 30
    while ticket.is_live and time.monotonic() < deadline:
        time.sleep(0.01)
    assert finish(ticket) == [3]


def test_checkpoints_are_read_again(root, tiny_rin):
    engine = Engine(root, device="cpu")
    assert [entry.name for entry in engine.checkpoints()] == ["one", "two"]
    DiffusionPolicy(tiny_rin()).save_pretrained(root / "three")
    (root / "two" / "config.json").write_text("{")
    assert {entry.name: bool(entry.problem) for entry in engine.checkpoints()} == {
        "one": False,
        "three": False,
        "two": True,
    }
