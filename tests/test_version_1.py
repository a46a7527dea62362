"""Files of the first version load and give the same images, see tests/data/version-1/README.md."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from urllib.parse import parse_qsl, urlsplit

import pytest
import torch
from gaussian import GaussianDenoiser
from pages import ROOT
from safetensors.torch import load_file

from dp import DiffusionPolicy, Trainer
from dp.checkpoints.tensor_names import current_names
from dp.diffusion.settings import SampleSettings
from dp.serving.engine import Engine
from dp.serving.files import read_settings
from dp.training.run_folder import RunFolder
from dp.ui.sampling.page_values import parse_link

DATA = ROOT / "tests" / "data" / "version-1"
TRAINED = "network", "objective", "trained", "scale"  # keys of a run; the others are its sample settings
NETWORKS = "gaussian", "patches", "convolutions"
RUNS = json.loads((DATA / "samples.json").read_text())


@pytest.fixture(scope="module")
def images():
    return load_file(DATA / "samples.safetensors")


@pytest.fixture(scope="module")
def networks():
    return {name: DiffusionPolicy.from_pretrained(DATA / f"checkpoint-{name}").model for name in NETWORKS[1:]}


def policy_of(run, networks):
    (name, kwargs), scale, objective = run["trained"], run["scale"], run["objective"]
    gaussian = GaussianDenoiser(0.2, 0.4, objective=objective, trained=(name, kwargs), scale=scale)
    network = networks.get(run["network"], gaussian)
    return DiffusionPolicy(network, objective=objective, noise_schedule=name, schedule_kwargs=kwargs, scale=scale)


def sampled_together(policy, runs, images):
    """Return the images of these runs, sampled together."""
    rows = {}
    for number, run in runs.items():
        settings = {key: value for key, value in run.items() if key not in TRAINED}
        start = images["start"].to(next(policy.parameters()).dtype) if settings.pop("start", False) else None
        mask = images["mask"].bool() if settings.pop("mask", False) else None
        rows[number] = policy.init_state(SampleSettings(**settings), start, mask)
    found = {}
    while rows:
        for number, (moved, step) in zip(list(rows), policy.step(list(rows.values()))):
            rows[number] = moved
            if moved.is_finished:
                del rows[number]
                found[number] = (step.x0 + 1) / 2
    return found


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype, suffix, tolerance", [(torch.float64, "", 1e-9), (torch.float32, " float32", 1e-4)])
def test_seeds_keep_their_images(images, networks, name, dtype, suffix, tolerance):
    groups = defaultdict(dict)
    for number, run in enumerate(RUNS):
        if run["network"] == name:
            groups[json.dumps([run[key] for key in TRAINED])][number] = run
    seen = 0
    for runs in groups.values():
        policy = policy_of(next(iter(runs.values())), networks).to(dtype)
        found = sampled_together(policy, runs, images)
        assert found.keys() == runs.keys()
        for number, made in found.items():
            assert (made - images[f"{number}{suffix}"]).abs().max() < tolerance, RUNS[number]
        seen += len(found)
    assert seen >= 108


def test_a_finished_run_and_its_training_state_load(tmp_path):
    shutil.copytree(DATA / "runs", tmp_path / "runs")
    run = RunFolder(tmp_path / "runs" / "finished")
    status = run.status()
    assert (status.state, status.step, status.total) == ("finished", 8, 8) and run.name == "Six images"
    assert run.checkpoint_steps() == [8]
    trainer = Trainer.from_run(run.path)
    trainer.load(8)
    assert trainer.step == 8


def test_a_paused_run_resumes_exactly(tmp_path):
    shutil.copytree(DATA / "runs", tmp_path / "runs")
    run = RunFolder(tmp_path / "runs" / "paused")
    assert run.status().state == "paused"
    trainer = Trainer.from_run(run.path)
    trainer.resume()
    assert trainer.step == 4 and trainer.train() == "finished"
    resumed = load_file(run.checkpoint(8) / "model.safetensors")
    expected = load_file(DATA / "runs" / "finished" / "checkpoints" / "000008" / "model.safetensors")
    names = current_names(expected)
    expected = {name: expected[old] for name, old in names.items()}
    assert resumed.keys() == expected.keys() and names.keys() != set(names.values())
    state = load_file(run.checkpoint(8) / "training-state" / "state.safetensors")
    assert current_names(state) == {name: name for name in state}  # saved with the current names
    moments = {name.split("/")[1] for name in state if name.startswith("optimizer/")}
    assert moments == {name.removeprefix("model/") for name in state if name.startswith("model/")} & moments
    assert len(moments) == len(resumed)
    for name, value in expected.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-5)


def test_an_image_and_a_link_carry_the_same_settings(tmp_path):
    shutil.copytree(DATA / "checkpoint-patches", tmp_path / "tiny")
    stored = read_settings((DATA / "image.png").read_bytes())
    query = dict(parse_qsl(urlsplit((DATA / "link.txt").read_text().strip()).query))
    linked, ignored = parse_link(Engine(str(tmp_path), device="cpu"), query)
    assert len(linked) == len(query) and ignored == ""
    assert {key: linked[key] for key in linked} == {key: stored[key] for key in linked}
    assert stored["sampler"] == "ddim" and stored["eta"] == 0.3 and stored["time_difference"] == 0.1
