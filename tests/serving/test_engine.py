"""The engine: every request gets what it would get alone, whoever else is running, and whatever happens to them."""

import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from dp.data.codec import to_uint8
from dp.diffusion.policy import DiffusionPolicy
from dp.diffusion.settings import SampleSettings
from dp.serving import model_cache
from dp.serving.engine import Engine

MIXTURE = [
    SampleSettings(3, timesteps=9, sampler="ddim", seed=1),
    SampleSettings(2, timesteps=4, sampler="ddpm", noise_schedule="cosine", seed=2),
    SampleSettings(1, timesteps=14, sampler="dpmpp_2m", noise_schedule="linear", seed=3),
    SampleSettings(4, timesteps=7, sampler="ddim", eta=0.5, time_difference=0.1, seed=4),
    SampleSettings(1, timesteps=1, sampler="ddpm", seed=5),
]
LONG = SampleSettings(2, timesteps=5000, seed=0)  # longer than any test


@pytest.fixture
def root(tiny_rin, tmp_path):
    for name, seed in (("one", 0), ("two", 1)):
        network = tiny_rin()
        with_other_weights = {key: value * (1 + 0.3 * seed) for key, value in network.state_dict().items()}
        network.load_state_dict(with_other_weights)
        DiffusionPolicy(network, timesteps=5).save_pretrained(tmp_path / name)
    return tmp_path


def finish(handle):
    return [frame.index for frame in handle]


def soon(condition, seconds=150):
    """Wait until `condition` holds; fails if it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


@contextmanager
def held(engine):
    """The engine begins to tick only at the end of the block, when everybody who was submitted in it is ready."""
    engine._thread = threading.Thread(target=engine._work, daemon=True)
    yield
    soon(lambda: all(request.is_ready for request in engine._requests.values()))
    engine._thread.start()


def assert_as_alone(handle, settings, alone):
    """alone: a policy, or the folder of its checkpoint."""
    assert (handle.state, handle.error) == ("done", None)
    policy = alone if isinstance(alone, DiffusionPolicy) else DiffusionPolicy.from_pretrained(alone)
    images = policy.sample(**vars(settings))
    # In a batch of another shape the last bits of a float may differ, and with them a pixel on a rounding edge.
    difference = np.abs(handle.frame.x0.astype(int) - to_uint8(images).astype(int))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.05


@pytest.mark.parametrize("row_budget", [64, 4, 1])
def test_each_request_of_a_mixture_gets_what_it_gets_alone(root, row_budget):
    engine = Engine(root, row_budget=row_budget, device="cpu")
    names = ["one", "two", "one", "one", "two"]
    handles = [engine.submit(settings, name) for settings, name in zip(MIXTURE, names)]
    for handle, settings, name in zip(handles, MIXTURE, names):
        indices = finish(handle)
        assert indices == sorted(set(indices)) and indices[-1] == settings.timesteps
        assert_as_alone(handle, settings, root / name)


def random_settings(random):
    sampler = random.choice(["ddim", "ddpm", "dpmpp_2m"])
    return SampleSettings(
        int(random.integers(1, 7)),
        timesteps=int(random.integers(1, 21)),
        sampler=str(sampler),
        noise_schedule=str(random.choice(["linear", "cosine", "sigmoid"])),
        time_difference=float(random.choice([0.0, 0.01])),
        eta=float(random.choice([0.0, 0.7])) if sampler == "ddim" else 0.0,
        seed=int(random.integers(2**31)),
    )


def test_forty_at_random_with_joins_and_cancels_in_between(root):
    alone = {name: DiffusionPolicy.from_pretrained(root / name) for name in ("one", "two")}
    random = np.random.default_rng(0)
    engine = Engine(root, row_budget=16, device="cpu")
    requests, cancelled = [], []
    for i in range(40):
        settings = random_settings(random)
        requests.append((engine.submit(settings, name := str(random.choice(["one", "two"]))), settings, name))
        if i % 8 == 7:
            cancelled.append(engine.submit(LONG, name))
        time.sleep(float(random.uniform(0, 0.03)))
        if i % 16 == 15:
            cancelled[-1].cancel()
    for handle in cancelled:
        handle.cancel()
    for handle, settings, name in requests:
        finish(handle)
        assert_as_alone(handle, settings, alone[name])
    for handle in cancelled:
        finish(handle)
        assert handle.state == "stopped"


def test_requests_of_one_checkpoint_share_network_calls(root, monkeypatch):
    engine = Engine(root, device="cpu")
    policy = engine.policy("one")
    sizes, step = [], policy.step
    monkeypatch.setattr(policy, "step", lambda batch: sizes.append(len(batch)) or step(batch))
    with held(engine):
        handles = [engine.submit(settings, "one") for settings in MIXTURE]
    for handle in handles:
        finish(handle)
    assert len(sizes) == max(settings.timesteps for settings in MIXTURE)
    assert sum(sizes) == sum(settings.timesteps for settings in MIXTURE)


# ----------------------------------------------------------------------------
# Taking turns


def served(engine, monkeypatch):
    """For each tick from now on, who had a turn."""
    turns, tick = [], engine._serve
    monkeypatch.setattr(engine, "_serve", lambda turn: turns.append({r.handle for r, _ in turn}) or tick(turn))
    return turns


def test_a_newcomer_takes_its_first_step_in_the_next_tick_however_many_are_running(root, monkeypatch):
    engine = Engine(root, row_budget=4, device="cpu")
    others = [engine.submit(SampleSettings(2, timesteps=100_000, seed=0), "one") for _ in range(20)]
    soon(lambda: all(other.frame for other in others))
    turns = served(engine, monkeypatch)
    for _ in range(5):
        before = len(turns)
        newcomer = engine.submit(SampleSettings(4, timesteps=2, seed=0), "two")
        soon(lambda newcomer=newcomer: engine._requests[newcomer.request_id].pending or newcomer.frame)
        ready = len(turns)
        next(iter(newcomer))
        first = next(i for i, turn in enumerate(turns) if newcomer in turn)
        assert before <= first <= ready + 1
        finish(newcomer)
    for other in others:
        other.cancel()


def test_rotation_is_fair_and_a_large_request_goes_in_parts(root, monkeypatch):
    engine = Engine(root, row_budget=4, device="cpu")
    turns = served(engine, monkeypatch)
    with held(engine):
        handles = [engine.submit(SampleSettings(n, timesteps=30, seed=n), "one") for n in (1, 2, 3, 4, 10, 1, 2)]
    for handle in handles:
        finish(handle)
    while_all_ran = turns[: next(i for i in range(len(turns)) if len(set.union(*turns[i:])) < len(handles)) - 1]
    gaps = Counter()
    for handle in handles:
        mine = [i for i, turn in enumerate(while_all_ran) if handle in turn]
        gaps[handle] = max(np.diff(mine))
    assert max(gaps.values()) <= len(handles)
    for handle in handles:
        assert_as_alone(handle, handle.trajectory.settings, root / "one")


def test_a_flood_of_newcomers_starves_nobody(root):
    engine = Engine(root, row_budget=2, device="cpu")
    old = engine.submit(SampleSettings(2, timesteps=20, seed=0), "one")
    flood = [engine.submit(SampleSettings(2, timesteps=1, seed=0), "one") for _ in range(2)]
    while old.is_live:
        flood = [handle for handle in flood if handle.is_live]
        flood += [engine.submit(SampleSettings(2, timesteps=1, seed=0), "one") for _ in range(6 - len(flood))]
        time.sleep(0.001)
    assert_as_alone(old, old.trajectory.settings, root / "one")


def test_a_cold_checkpoint_keeps_nobody_waiting(root, monkeypatch):
    engine = Engine(root, device="cpu")
    running = engine.submit(LONG, "one")
    next(iter(running))
    loading = threading.Event()
    load = model_cache.load
    monkeypatch.setattr(model_cache, "load", lambda path: loading.wait(60) and load(path))
    cold = engine.submit(SampleSettings(1, timesteps=1, seed=0), "two")
    before = running.frame.index
    soon(lambda: running.frame.index > before + 20)
    also = engine.submit(SampleSettings(1, timesteps=1, seed=0), "one")
    assert finish(also) == [1] and cold.state == "waiting"
    loading.set()
    assert finish(cold) == [1]
    running.cancel()


# ----------------------------------------------------------------------------
# Ends, wanted and unwanted


def test_cancel_keeps_the_frames_and_frees_the_rows(root):
    engine = Engine(root, device="cpu")
    handle = engine.submit(LONG, "one")
    frames = iter(handle)
    next(frames)
    handle.cancel()
    list(frames)  # ends, because the engine lets go
    assert handle.state == "stopped" and handle.frame is not None and handle.frame.index < 5000
    assert handle.trajectory.frames[-1] is handle.frame
    request = engine._requests[handle.request_id]
    assert (request.pending, request.advanced, request.partial_frames, request.policy) == ([], [], [], None)


def test_a_request_that_is_cancelled_before_it_begins_never_runs(root):
    engine = Engine(root, device="cpu")
    handle = engine.submit(LONG, "one")
    handle.cancel()
    finish(handle)
    assert handle.state == "stopped"
    soon(lambda: not any(thread.name == "dp-prepare" for thread in threading.enumerate()))
    assert not engine._requests[handle.request_id].is_ready


def test_what_is_wrong_is_told_to_its_own_reader_only(root):
    (root / "one" / "model.safetensors").write_bytes(b"not weights")
    engine = Engine(root, device="cpu")
    broken = engine.submit(SampleSettings(1, timesteps=2, seed=0), "one")
    unknown = engine.submit(SampleSettings(1, timesteps=2, seed=0), "nowhere")
    fine = engine.submit(SampleSettings(1, timesteps=2, seed=0), "two")
    assert [finish(handle)[-1:] for handle in (broken, unknown, fine)] == [[], [], [2]]
    assert (broken.state, unknown.state, fine.state) == ("failed", "failed", "done")
    assert "model.safetensors cannot be read" in broken.error
    assert "no checkpoint 'nowhere'; there are: one, two" in unknown.error


@pytest.mark.parametrize("most", [5, 2])
def test_out_of_memory_lowers_the_row_budget_and_the_pictures_are_the_same(root, most):
    engine = Engine(root, row_budget=64, device="cpu")

    def allocate(module, inputs):
        if len(inputs[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    engine.policy("one").model.register_forward_pre_hook(allocate)
    with held(engine):
        handles = [engine.submit(settings, "one") for settings in MIXTURE]
    for handle, settings in zip(handles, MIXTURE):
        finish(handle)
        if most >= 4 or handle.state == "done":
            assert_as_alone(handle, settings, root / "one")
        else:
            assert handle.error == "not enough memory for this run; choose fewer images"
    assert engine.row_budget <= most + 2
    after = engine.submit(SampleSettings(7, timesteps=3, seed=1), "one")
    finish(after)
    assert_as_alone(after, after.trajectory.settings, root / "one")


def test_a_step_that_fails_half_way_draws_the_same_noise_again(root):
    policy = DiffusionPolicy.from_pretrained(root / "one")
    rows = policy.init_state(SampleSettings(3, timesteps=6, sampler="ddpm", seed=4))
    for _ in range(3):
        [(rows, _)] = policy.step([rows])
    expected = rows.with_noise_rewound().draw_noise()
    torch.testing.assert_close(rows.draw_noise(), expected, rtol=0, atol=0)  # and now its streams are one draw too far
    torch.testing.assert_close(rows.with_noise_rewound().draw_noise(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("trouble", ["an error", "not a number"])
def test_the_trouble_of_one_request_ends_that_one_only(root, trouble):
    engine = Engine(root, device="cpu")

    def spoil(module, inputs, output):
        victim = torch.isclose(inputs[1], torch.tensor(1 - 1 / 7))  # only the request of 7 steps stands there
        if trouble == "an error" and victim.any():
            raise RuntimeError("no luck")
        return torch.where(victim[:, None, None, None], torch.nan, output[0]), output[1]

    engine.policy("one").model.register_forward_hook(spoil)
    with held(engine):
        handles = [engine.submit(settings, "one") for settings in MIXTURE]
    for handle, settings in zip(handles, MIXTURE):
        finish(handle)
        if settings.timesteps == 7:
            assert handle.state == "failed" and handle.frame.index == 1
            assert ("no luck" if trouble == "an error" else "at step 2 is not finite") in handle.error
        else:
            assert_as_alone(handle, settings, root / "one")


# ----------------------------------------------------------------------------
# Readers


def test_a_reader_that_comes_late_sees_the_last_frame(root):
    engine = Engine(root, device="cpu")
    handle = engine.submit(SampleSettings(1, timesteps=3, seed=0), "one")
    soon(lambda: not handle.is_live)
    assert finish(handle) == [3]


BUSY = """
import sys
from dp.serving.engine import Engine
from dp.diffusion.settings import SampleSettings
next(iter(Engine(sys.argv[1], device="cpu").submit(SampleSettings(64, 1000, seed=0), sys.argv[2])))
"""


def test_a_program_may_end_in_the_middle_of_a_run(root):
    name = Engine(root).checkpoints()[0].name
    done = subprocess.run([sys.executable, "-c", BUSY, root, name], capture_output=True, text=True, timeout=250)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_slow_reader_slows_nobody(root):
    engine = Engine(root, device="cpu")
    slow, has_one, may_go_on = [], threading.Event(), threading.Event()

    def read(handle):
        for frame in handle:
            slow.append(frame.index)
            has_one.set()
            may_go_on.wait()

    with held(engine):
        handles = [engine.submit(SampleSettings(2, timesteps=100, seed=i), "one") for i in range(2)]
        reader = threading.Thread(target=read, args=handles[:1])
        reader.start()
    assert has_one.wait(150)
    quick = finish(handles[1])
    soon(lambda: not handles[0].is_live)  # although its reader is still at an early frame
    may_go_on.set()
    reader.join(150)
    assert quick[-1] == 100 and slow[-1] == 100 and len(slow) == 2


def test_a_trajectory_holds_every_step_of_a_short_run(root):
    engine = Engine(root, device="cpu")
    settings = SampleSettings(3, timesteps=9, sampler="ddpm", seed=3)
    handle = engine.submit(settings, "one")
    finish(handle)
    steps = list(DiffusionPolicy.from_pretrained(root / "one").stream(**vars(settings)))
    frames = handle.trajectory.frames
    assert [frame.index for frame in frames] == list(range(1, 10))
    for frame, step in zip(frames, steps):
        assert (frame.time, frame.log_snr, frame.timesteps) == (step.time, step.log_snr, 9)
        for shown, exact in ((frame.x_t, step.x_t), (frame.x0, step.x0)):
            assert np.abs(shown.astype(int) - to_uint8((exact + 1) / 2).astype(int)).max() <= 1


def test_a_trajectory_of_a_long_run_is_thinned_evenly_and_keeps_both_ends(root):
    engine = Engine(root, device="cpu", memory_for_trajectories=40 * 2 * 3 * 8 * 8)
    long = engine.submit(SampleSettings(1, timesteps=100, seed=0), "one")
    finish(long)
    indices = [frame.index for frame in long.trajectory.frames]
    assert len(indices) == 40 and indices[0] == 1 and indices[-1] == 100
    assert set(np.diff(indices)) == {2, 3}
    named = engine.submit(SampleSettings(1, timesteps=100, seed=0), "one", keep=(2, 51, 100))
    finish(named)
    assert {1, 2, 51, 100} <= {frame.index for frame in named.trajectory.frames}
    thin = engine.submit(SampleSettings(20, timesteps=100, seed=0), "one")  # more than the memory there is
    finish(thin)
    assert len(thin.trajectory.frames) == 8
    assert engine.find(long.request_id) is None  # had to make room


def test_a_run_that_nobody_watches_any_more_is_parked_and_goes_on_when_someone_does(root, monkeypatch):
    engine = Engine(root, device="cpu")
    policy, allowed = engine.policy("one"), threading.Semaphore(3)
    tick = policy.step
    monkeypatch.setattr(policy, "step", lambda batch: allowed.acquire(timeout=150) and tick(batch))
    settings = SampleSettings(2, timesteps=30, sampler="ddpm", seed=8)
    handle = engine.submit(settings, "one")
    first, second = handle.subscribe(), handle.subscribe()
    soon(lambda: handle.frame)
    first.close()
    first.close()  # counts once
    allowed.release(3)
    soon(lambda: handle.frame.index == 6)
    assert handle.state == "running"
    second.close()
    allowed.release(1000)
    soon(lambda: handle.state == "parked")
    index = handle.frame.index
    time.sleep(0.1)
    assert handle.frame.index == index < 30 and handle.is_live
    again = engine.find(handle.request_id)
    assert again is handle and handle.trajectory.frames[0].index == 1
    with_it = handle.subscribe()
    finish(handle)
    with_it.close()
    assert_as_alone(handle, settings, root / "one")


def test_a_parked_run_can_be_stopped_and_is_forgotten_in_time(root):
    engine = Engine(root, device="cpu", ttl_s=0.3)
    handles = [engine.submit(LONG, "one") for _ in range(2)]
    for handle in handles:
        handle.subscribe().close()
    soon(lambda: all(handle.state == "parked" for handle in handles))
    handles[0].cancel()
    soon(lambda: handles[0].state == "stopped")
    soon(lambda: not engine._requests)
    assert handles[1].state == "stopped" and engine.find(handles[1].request_id) is None


def test_a_run_that_a_program_reads_is_never_parked(root):
    engine = Engine(root, device="cpu")
    handle = engine.submit(SampleSettings(1, timesteps=50, seed=0), "one")
    next(iter(handle))  # and looks away
    soon(lambda: handle.state == "done")


# ----------------------------------------------------------------------------
# Checkpoints


def test_many_threads_may_ask_for_checkpoints_at_once(root, tiny_rin):
    names = [f"model-{i}" for i in range(6)]
    for name in names:
        DiffusionPolicy(tiny_rin()).save_pretrained(root / name)
    engine, got = Engine(root, device="cpu", memory_for_policies=1), []
    threads = [threading.Thread(target=lambda name=name: got.append(engine.policy(name))) for name in names * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == len(threads) and len(engine._models._models) == 1


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


def test_a_checkpoint_that_is_replaced_serves_the_next_request(root, tmp_path_factory):
    engine = Engine(root, device="cpu")
    settings = SampleSettings(1, timesteps=3, seed=0)
    finish(before := engine.submit(settings, "one"))
    DiffusionPolicy.from_pretrained(root / "two").save_pretrained(root / "one")
    finish(after := engine.submit(settings, "one"))
    assert_as_alone(after, settings, root / "two")
    assert np.abs(before.frame.x0.astype(int) - after.frame.x0.astype(int)).max() > 1


def test_the_checkpoint_that_was_not_used_for_longest_leaves_first(root, tiny_rin):
    DiffusionPolicy(tiny_rin()).save_pretrained(root / "three")
    one = DiffusionPolicy.from_pretrained(root / "one")
    size = sum(value.nbytes for value in one.state_dict().values())
    engine = Engine(root, device="cpu", memory_for_policies=2 * size)
    for name in ("one", "two", "one", "three"):
        engine.policy(name)
    assert list(engine._models._models) == ["one", "three"]
