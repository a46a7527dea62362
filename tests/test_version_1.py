"""Files of the first version load, and give the same images: see tests/data/version-1/README.md."""

from __future__ import annotations

import json
import shutil
from urllib.parse import parse_qsl, urlsplit

import pytest
import torch
from gaussian import GaussianDenoiser
from safetensors.torch import load_file
from serving import ROOT

from dp import DiffusionPolicy, Trainer
from dp.engine import Engine
from dp.export import settings_in
from dp.runs import RunFolder
from dp.ui.controls import of_link

DATA = ROOT / "tests" / "data" / "version-1"
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


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype, suffix, tolerance", [(torch.float64, "", 1e-9), (torch.float32, " float32", 1e-4)])
def test_seeds_keep_their_images(images, networks, name, dtype, suffix, tolerance):
    seen, worst = 0, 0.0
    for number, run in enumerate(RUNS):
        if run["network"] != name:
            continue
        settings = {key: value for key, value in run.items() if key not in ("network", "objective", "trained", "scale")}
        for key in "start", "mask":
            if settings.pop(key, False):
                settings[key] = images[key].to(dtype) if key == "start" else images[key].bool()
        found = policy_of(run, networks).to(dtype).sample(**settings)
        worst = max(worst, (found - images[f"{number}{suffix}"]).abs().max().item())
        seen += 1
    assert seen >= 108 and worst < tolerance


def test_a_finished_run_and_its_training_state_load(tmp_path):
    shutil.copytree(DATA / "runs", tmp_path / "runs")
    run = RunFolder(tmp_path / "runs" / "finished")
    status = run.status()
    assert (status["state"], status["step"], status["total"]) == ("finished", 8, 8) and run.name == "Six images"
    assert run.milestones() == [8]
    trainer = Trainer.of(run.path)
    trainer.load(8)
    assert trainer.step == 8


def test_a_paused_run_resumes_exactly(tmp_path):
    shutil.copytree(DATA / "runs", tmp_path / "runs")
    run = RunFolder(tmp_path / "runs" / "paused")
    assert run.status()["state"] == "paused"
    trainer = Trainer.of(run.path)
    trainer.resume()
    assert trainer.step == 4 and trainer.train() == "finished"
    resumed = load_file(run.checkpoint(8) / "model.safetensors")
    expected = load_file(DATA / "runs" / "finished" / "checkpoints" / "000008" / "model.safetensors")
    assert resumed.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-5)


def test_an_image_and_a_link_carry_the_same_settings(tmp_path):
    shutil.copytree(DATA / "checkpoint-patches", tmp_path / "tiny")
    stored = settings_in((DATA / "image.png").read_bytes())
    query = dict(parse_qsl(urlsplit((DATA / "link.txt").read_text().strip()).query))
    linked, ignored = of_link(Engine(str(tmp_path), device="cpu"), query)
    assert len(linked) == len(query) and ignored == ""
    assert {key: linked[key] for key in linked} == {key: stored[key] for key in linked}
    assert stored["sampler"] == "ddim" and stored["eta"] == 0.3 and stored["time_difference"] == 0.1
