"""dp.jobs: runs as processes, that nothing but their folder ties to whoever started them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from dp import jobs
from dp.intake import prepare
from dp.runs import RunFolder

NETWORK = dict(
    type="rin", dim=8, image_size=8, patch_size=4, channels=3, depth=1, latent_self_attn_depth=1, dim_latent=8
)
NETWORK |= dict(num_latents=4, heads=2, dim_head=4, conv_widths=[], conv_blocks=1)
TRAINER = dict(train_batch_size=4, train_num_steps=8, save_and_sample_every=4, num_samples=1, sample_steps=1)
CONFIG = {"image_size": 8, "network": NETWORK, "policy": {}, "trainer": TRAINER, "processes": 1, "licence": None}


@pytest.fixture
def dataset(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    generator = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)).save(pictures / f"{i}.png")
    for _ in prepare(pictures, tmp_path / "prepared", 8):
        pass
    return tmp_path / "prepared"


@pytest.fixture
def run(tmp_path, dataset):
    return jobs.create(tmp_path / "home", CONFIG, dataset, name="My  cats!")


def test_a_new_run_takes_its_pictures_along(run, dataset, tmp_path):
    assert run.path.parent == tmp_path / "home" and run.id.startswith("my-cats-")
    config = run.config()
    assert config["name"] == "My cats!" and config["network"] == NETWORK and config["created"] > 0
    assert (run.dataset / "images.npy").is_file() and not dataset.exists()
    assert run.status()["state"] == "new"
    with pytest.raises(ValueError, match="prepared"):
        jobs.create(tmp_path / "home", CONFIG, dataset)


def test_a_duplicate_has_the_same_pictures_and_the_changes(run, tmp_path):
    other = jobs.duplicate(run, tmp_path / "home", name="Slower", trainer={"train_lr": 1e-5})
    assert other.id != run.id
    assert other.config()["trainer"] == TRAINER | {"train_lr": 1e-5} and other.config()["name"] == "Slower"
    assert run.config()["trainer"] == TRAINER
    jobs.delete(run)
    assert not run.path.exists() and [path.name for path in (tmp_path / "home").iterdir()] == [other.id]
    assert np.load(other.dataset / "images.npy").shape == (6, 8, 8, 3)  # a link is as good as a copy


@pytest.mark.parametrize("name", ["", "   ", "x" * 81])
def test_a_name_is_short_and_there(run, name):
    with pytest.raises(ValueError, match="80"):
        jobs.rename(run, name)
    jobs.rename(run, "Dogs / ../ 犬")
    assert run.config()["name"] == "Dogs / ../ 犬" and run.path.exists()


def test_nothing_can_be_asked_of_a_run_that_does_not_go_on(run):
    for ask in (jobs.pause, jobs.save_now, jobs.sample_now, jobs.stop):
        with pytest.raises(ValueError, match=r"My cats!.*new"):
            ask(run)
    run.report(state="running")
    assert run.status()["state"] == "lost"
    jobs.stop(run)
    assert run.status()["state"] == "stopped"


def test_a_run_that_is_going_on_is_neither_started_again_nor_deleted(run):
    with run.held():
        with pytest.raises(ValueError, match="going on"):
            jobs.start(run)
        jobs.stop(run)
        assert RunFolder(run.path).asked("stop")
    assert json.loads(run.config_file.read_text())["name"] == "My cats!"
