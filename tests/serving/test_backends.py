"""The OpenVINO backend: the reference's images, prepared in the background, and the reference whatever goes wrong."""

import os
import shutil
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from test_engine import held

from dp.data.codec import to_uint8
from dp.diffusion.policy import DiffusionPolicy
from dp.diffusion.samplers import SAMPLERS
from dp.diffusion.settings import SampleSettings
from dp.serving import backends
from dp.serving.backends import CACHE, OPENVINO, TORCH
from dp.serving.engine import Engine
from dp.system import background
from dp.ui.sampling.page_values import describe_run

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ("faces-32", "creatures-32", "letters-32")
SHORT = SampleSettings(2, timesteps=3, seed=5)

openvino = find_spec("openvino")


@pytest.fixture(autouse=True, scope="module")
def no_stream_is_closed():
    """OpenVINO imports absl, if that is there, whose log handler keeps the standard error of that moment, one of
    pytest's, and closes it when another server configures logging. Give it the real one.
    """
    if openvino:
        backends.load_openvino()
        if absl := sys.modules.get("absl.logging"):
            absl.get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture(autouse=True)
def installed(request):
    """Skip the tests that need OpenVINO where it is not installed; in CI it must be."""
    is_needed = request.function is not test_where_it_is_not_installed_torch_serves_without_a_word
    if is_needed and not openvino and not os.environ.get("CI"):
        pytest.skip("OpenVINO is not installed: pip install -r requirements-cpu.txt")


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """The tests wait for each conversion, so it must not wait for others."""
    monkeypatch.setattr(backends, "QUIET_S", 0)
    monkeypatch.setattr(background, "NICE", 0)


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A cache that the tests of this file share, so that each network is converted once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def root(tiny_rin, tmp_path):
    """Checkpoints of tiny networks, of both interfaces and one with classes."""
    for name, options in {"one": {}, "two": {"conv_widths": (8,), "num_classes": 3}}.items():
        DiffusionPolicy(tiny_rin(**options), timesteps=5).save_pretrained(tmp_path / name)
    return tmp_path


@pytest.fixture
def copied(root, home, monkeypatch):
    """Let the conversion of `one` take no time: what it makes is copied. Return its folder in the cache of `home`."""
    model = accelerated(root, home=home, names=["one"])._models.get("one")
    [kept] = (home / CACHE).glob(f"{model.digest[:32]}-*")
    monkeypatch.setattr(backends, "convert", lambda _, file: shutil.copytree(kept, file.parent, dirs_exist_ok=True))
    return kept


def finish(handle):
    assert handle.wait(120) and (handle.state, handle.error) == ("done", None)
    return handle


def wait_for(engine):
    """Wait until no backend is being prepared."""
    deadline = time.monotonic() + 120
    while engine._models.converter._thread:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def accelerated(*roots, home, names):
    """Return an engine whose models of these names have both backends."""
    engine = Engine(*roots, device="cpu", runs=home, accelerate=True)
    for name in names:
        engine.policy(name)
    wait_for(engine)
    assert {engine._models.get(name).backend for name in names} == {OPENVINO}
    return engine


def both(engine, name):
    model = engine._models.get(name)
    return model.policy, model.openvino


def assert_one_gray_level(images, others):
    assert np.abs(images.astype(int) - others.astype(int)).max() <= 1


# ----------------------------------------------------------------------------
# The same images


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_model_predicts_what_the_reference_does(name, home):
    policy, other = both(accelerated(ROOT / "checkpoints", home=home, names=[name]), name)
    state = policy.init_state(SampleSettings(3, timesteps=4, seed=1))
    label = torch.tensor([1, 0, 2]).clamp(max=policy.num_classes)
    guidance = torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)
    times, carries = torch.tensor([1.0, 0.6, 0.2], dtype=torch.float64), [None, None]
    with torch.no_grad():
        for condition, weight in ((None, None), (label, None), (label, guidance), (label, guidance)):
            results = [p.denoise(state.x_t, times, c, condition, weight) for p, c in zip((policy, other), carries)]
            (x0, carry), (own, own_carry) = results
            torch.testing.assert_close(own, x0, rtol=0, atol=1e-4)
            for key in carry:
                scale = carry[key].abs().max().clamp(min=1)
                torch.testing.assert_close(own_carry[key] / scale, carry[key] / scale, rtol=0, atol=1e-4)
            carries = [carry, own_carry]
        for rows in (1, 17):
            x, time_of = torch.randn(rows, *policy.sample_shape), torch.rand(rows)
            torch.testing.assert_close(other.model(x, time_of), policy.model(x, time_of), rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "consistency"])
def test_a_run_is_within_one_gray_level_alone_and_in_a_mixture(sampler, home):
    engine = accelerated(ROOT / "checkpoints", home=home, names=["letters-32"])
    policy, _ = both(engine, "letters-32")
    mixture = [
        SampleSettings(2, timesteps=20, sampler=sampler, seed=3),
        SampleSettings(2, timesteps=20, sampler=sampler, seed=4, label=7, guidance=3.0),
        SampleSettings(1, timesteps=6, sampler="ddpm", seed=5, label=2, guidance=2.0, guidance_interval=(0.2, 0.8)),
    ]
    with held(engine):
        handles = [engine.submit(settings, "letters-32") for settings in mixture]
    for handle, settings in zip(handles, mixture):
        assert finish(handle).provenance["backend"] == OPENVINO
        assert_one_gray_level(handle.frame.x0, to_uint8(policy.sample(**vars(settings))))


def test_several_threads_may_call_it_at_once(root, home):
    policy, other = both(accelerated(root, home=home, names=["two"]), "two")
    wrong = []

    def sample(seed):
        images, expected = (
            p.sample(1 + seed % 3, timesteps=8, seed=seed, label=2, guidance=2.0) for p in (other, policy)
        )
        if (images - expected).abs().max() > 1e-3:
            wrong.append(seed)

    threads = [threading.Thread(target=sample, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ----------------------------------------------------------------------------
# A run and its backend


def test_a_run_keeps_the_backend_that_it_began_with(root, home, copied, monkeypatch):
    gate, compiled = threading.Event(), backends.Converter._compiled
    monkeypatch.setattr(backends.Converter, "_compiled", lambda *given: gate.wait(60) and compiled(*given))
    engine = Engine(root, device="cpu", runs=home, accelerate=True)
    early = engine.submit(SampleSettings(2, timesteps=50_000, seed=0), "one")
    next(iter(early))
    gate.set()
    wait_for(engine)
    steps, step = [], engine._models.get("one").openvino.step
    monkeypatch.setattr(
        engine._models.get("one").openvino, "step", lambda states: steps.append(len(states)) or step(states)
    )
    late = finish(engine.submit(SHORT, "one"))
    assert early.is_live and set(steps) == {1} and len(steps) == SHORT.timesteps  # no call is shared
    assert (early.provenance["backend"], late.provenance["backend"]) == (TORCH, OPENVINO)
    early.cancel()
    early.wait(60)


def test_a_replay_and_a_branch_use_the_backend_of_their_run(root, home):
    engine = Engine(root, device="cpu", runs=home, accelerate=True)
    engine._models.converter = None  # later
    settings = SampleSettings(2, timesteps=6, sampler="ddpm", seed=2, label=1, guidance=2.0)
    by_torch = finish(engine.submit(settings, "two"))
    engine = accelerated(root, home=home, names=["two"])
    model = engine._models.get("two")
    run = finish(engine.submit(settings, "two"))
    policy, state = engine.replayed(run.request_id, 1, 6)
    assert policy is model.openvino
    [(_, step)] = policy.step([state])
    assert_one_gray_level(to_uint8((step.x0 + 1) / 2)[0], run.frame.x0[1])
    attention = engine.attention(run.request_id, 1, 6)
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(attention.shape[:-1]))
    assert engine.branches(run.request_id, 0, 3)[0].shape == (3, 3, 8, 8)
    assert engine.take_apart(run.request_id, 0, 3).x0.shape == (1, 3, 8, 8)
    branch = finish(engine.branch_off(run.request_id, 0, 3))
    assert branch.provenance["backend"] == OPENVINO
    assert_one_gray_level(by_torch.frame.x0, run.frame.x0)
    model.openvino = None  # as after it was evicted and loaded again
    assert engine.replayed(run.request_id, 1, 6)[0] is model.policy


def test_in_bfloat16_a_row_alone_equals_the_row_in_a_batch(home):
    if not backends.has_bfloat16():
        pytest.skip("this CPU has no instructions for bfloat16")
    engine = Engine(ROOT / "checkpoints", device="cpu", runs=home, accelerate=True, precision="bf16")
    engine.policy("letters-32")
    wait_for(engine)
    settings = SampleSettings(3, timesteps=20, sampler="dpmpp_2m", seed=3, label=7, guidance=3.0)
    run = finish(engine.submit(settings, "letters-32"))
    assert run.provenance["backend"] == OPENVINO + "-bf16" and describe_run(run.provenance)[-2] == "bfloat16"
    policy, state = engine.replayed(run.request_id, 1, 20)
    [(_, step)] = policy.step([state])
    assert np.array_equal(to_uint8((step.x0 + 1) / 2)[0], run.frame.x0[1])
    reference = to_uint8(engine.policy("letters-32").sample(**vars(settings)))
    assert 0 < np.abs(run.frame.x0.astype(int) - reference).mean() < 5  # the same letters, in gray levels of 255


def test_without_instructions_for_bfloat16_it_uses_float32(root, home, capfd, monkeypatch):
    monkeypatch.setattr(backends, "has_bfloat16", lambda: False)
    engine = Engine(root, device="cpu", runs=home, accelerate=True, precision="bf16")
    for name in ("one", "two"):
        engine.policy(name)
        wait_for(engine)
        assert finish(engine.submit(SHORT, name)).provenance["backend"] == OPENVINO
    assert capfd.readouterr().err.splitlines() == [
        "DP_PRECISION=bf16 has no effect: this CPU has no instructions for bfloat16"
    ]


def test_a_branch_of_a_run_made_by_torch_goes_on_with_torch(root, home):
    engine = Engine(root, device="cpu", runs=home, accelerate=True)
    engine._models.converter, converter = None, engine._models.converter
    run = finish(engine.submit(SHORT, "one"))
    engine._models.converter = converter
    os.utime(root / "one" / "config.json")  # so that it is loaded again
    engine.policy("one")
    wait_for(engine)
    assert engine._models.get("one").backend == OPENVINO
    assert finish(engine.branch_off(run.request_id, 0, 2)).provenance["backend"] == TORCH
    assert engine.replayed(run.request_id, 0, 2)[0] is engine._models.get("one").policy


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.mark.parametrize("busy_s, ready_s", [(0, 3), (5, 8), (1000, 15)])
def test_it_is_prepared_when_nobody_runs_anything_or_after_a_while(monkeypatch, busy_s, ready_s):
    clock = Clock()
    monkeypatch.setattr(backends, "time", clock)
    monkeypatch.setattr(backends, "QUIET_S", 3)
    backends.Converter(None, lambda: clock.now < busy_s)._wait_for_quiet()
    assert clock.now == pytest.approx(ready_s, abs=0.25)


def test_its_weights_count_as_memory(root, home):
    model = accelerated(root, home=home, names=["one"])._models.get("one")
    own = sum(value.nbytes for value in model.policy.state_dict().values())
    assert model.nbytes >= 1.9 * own


# ----------------------------------------------------------------------------
# Whatever goes wrong


def assert_torch(engine, capfd, words, name="one"):
    """The engine serves a model with the reference, and says why in one line."""
    engine.policy(name)
    wait_for(engine)
    assert finish(engine.submit(SHORT, name)).provenance["backend"] == TORCH
    said = capfd.readouterr().err.splitlines()
    assert len(said) == bool(words) and all(words in line for line in said), said


def raising(error):
    def fail(*_):
        raise error

    return fail


@pytest.mark.parametrize(
    "error, words",
    [
        (RuntimeError("Exception from a.cpp:5:\nthis CPU is not supported\n"), "this CPU is not supported"),
        (MemoryError(), "MemoryError"),
        (ImportError("libgomp.so: no such file"), "libgomp.so: no such file"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
@pytest.mark.parametrize("where", ["load_openvino", "OpenVINONetwork", "convert"])
def test_a_failure_leaves_the_model_to_torch(root, tmp_path, capfd, monkeypatch, where, error, words):
    if where != "convert":
        monkeypatch.setattr(
            backends, "convert", lambda _, file: [file.with_suffix(x).touch() for x in (".xml", ".bin")]
        )
    monkeypatch.setattr(backends, where, raising(error))
    engine = Engine(root, device="cpu", runs=tmp_path / "home", accelerate=True)
    assert_torch(engine, capfd, words)
    os.utime(root / "one" / "config.json")  # loaded again, it is not tried again
    assert_torch(engine, capfd, "")


def test_a_conversion_that_is_killed_leaves_the_model_to_torch(root, tmp_path, capfd, monkeypatch):
    start = subprocess.Popen

    def start_and_kill(*given, **options):
        process = start(*given, **options)
        process.kill()
        return process

    monkeypatch.setattr(subprocess, "Popen", start_and_kill)
    engine = Engine(root, device="cpu", runs=tmp_path / "home", accelerate=True)
    assert_torch(engine, capfd, "the conversion ended with code -9" if os.name != "nt" else "the conversion ended")
    assert list((tmp_path / "home" / CACHE).iterdir()) == []


@pytest.mark.parametrize("damage", ["cut short", "other weights", "wrong numbers", "not XML", "empty folder"])
def test_a_damaged_cache_is_made_again(root, copied, tmp_path, capfd, damage):
    kept = shutil.copytree(copied, tmp_path / "home" / CACHE / copied.name)
    weights = kept / "model.bin"
    if damage == "cut short":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "other weights":
        weights.write_bytes(bytes(weights.stat().st_size))
    elif damage == "wrong numbers":
        weights.write_bytes(bytes(weights.stat().st_size))
        (kept / "sha256").write_text(backends.checksum(kept))
    elif damage == "not XML":
        (kept / "model.xml").write_text("<net")
    else:
        weights.unlink()
        (kept / "model.xml").unlink()
    engine = accelerated(root, home=tmp_path / "home", names=["one"])
    assert finish(engine.submit(SHORT, "one")).provenance["backend"] == OPENVINO
    assert capfd.readouterr().err == "" and weights.stat().st_size > 0


@pytest.mark.parametrize("nowhere", [None, os.devnull], ids=["no home", "/dev/null"])
def test_without_a_folder_nothing_is_kept(root, copied, nowhere):
    engine = accelerated(root, home=nowhere, names=["one"])
    assert finish(engine.submit(SHORT, "one")).provenance["backend"] == OPENVINO


def test_the_cache_is_bounded(tmp_path):
    for i in range(backends.KEPT + 3):
        (tmp_path / f"{i}").mkdir()
        os.utime(tmp_path / f"{i}", (i, i))
    backends.prune(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {str(i) for i in range(3, backends.KEPT + 3)}


def test_wrong_numbers_are_not_used(root, copied, tmp_path, capfd, monkeypatch):
    infer = backends.OpenVINONetwork.infer
    monkeypatch.setattr(backends.OpenVINONetwork, "infer", lambda *given: tuple(x * 1.01 for x in infer(*given)))
    engine = Engine(root, device="cpu", runs=tmp_path / "home", accelerate=True)
    assert_torch(engine, capfd, "its results differ from PyTorch's by 0.01")


def test_a_call_that_fails_is_made_by_torch_and_the_run_goes_on(root, home, capfd, monkeypatch):
    engine = accelerated(root, home=home, names=["one"])
    policy, other = both(engine, "one")
    calls, infer = [], other.model.infer
    fails = raising(RuntimeError("bad allocation"))
    monkeypatch.setattr(other.model, "infer", lambda x: infer(x) if len(calls) < 2 and not calls.append(1) else fails())
    run = finish(engine.submit(SampleSettings(2, timesteps=6, seed=1), "one"))
    assert run.provenance["backend"] == OPENVINO and len(calls) == 2
    assert_one_gray_level(run.frame.x0, to_uint8(policy.sample(2, timesteps=6, seed=1)))
    assert capfd.readouterr().err.splitlines() == [
        "OpenVINO failed, so PyTorch takes over: RuntimeError: bad allocation"
    ]
    assert finish(engine.submit(SHORT, "one")).provenance["backend"] == TORCH


def test_where_it_is_not_installed_torch_serves_without_a_word():
    script = "import sys; sys.modules['openvino'] = None\n"  # as if it was not there
    script += "from test_backends import *\nimport tempfile\nfrom models import models_dir, MODEL\n"
    script += "engine = Engine(models_dir(), device='cpu', runs=tempfile.mkdtemp(), accelerate=True)\n"
    script += "backends.QUIET_S = 0; engine.policy(MODEL); wait_for(engine)\n"
    script += "print(finish(engine.submit(SHORT, MODEL)).provenance['backend'])\n"
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests/helpers", ROOT / "tests/serving")))
    options = {"capture_output": True, "text": True, "timeout": 120, "env": os.environ | {"PYTHONPATH": path}}
    done = subprocess.run([sys.executable, "-c", script], **options)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [TORCH], "")


def test_it_reports_nothing_to_its_makers():
    script = "from dp.serving.backends import load_openvino\nimport sys\nload_openvino().convert_model\n"
    script += "assert sys.modules['openvino_telemetry'] is None and not any(n.startswith('openvino_telemetry.') "
    script += "for n in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
