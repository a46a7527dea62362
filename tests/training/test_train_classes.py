"""Training with classes: labels, exact resume, several processes, the loss and the samples of each class."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import exit_code_of
from forks import forking
from PIL import Image
from tiny_runs import CONFIG, NETWORK, contents, ended, undisturbed, until

from dp import DiffusionPolicy
from dp.data.prepare import prepare
from dp.data.report import DatasetReport
from dp.networks.rin import RIN
from dp.training import processes
from dp.training.presets import Settings
from dp.training.run_folder import RunFolder
from dp.training.trainer import Trainer

CLASSES = ("cats", "dogs", "birds")
SIZES = {key: value for key, value in NETWORK.items() if key != "type"} | {"num_classes": len(CLASSES)}
SETTINGS = {"train_batch_size": 4, "train_lr": 3e-3, "ema_update_every": 2, "num_samples": 9, "sample_steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pets") / "pets"
    for number, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for i in range(2 + number):
            pixels = np.random.default_rng(10 * number + i).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    Image.fromarray(np.full((8, 8, 3), 128, np.uint8)).save(root / "unknown.png")
    return root


def make_trainer(folder, out, *, seed=0, **settings) -> Trainer:
    torch.manual_seed(seed)
    policy = DiffusionPolicy(RIN(**SIZES), condition_drop_prob=settings.pop("condition_drop_prob", 0.5))
    return Trainer(policy, folder, results_folder=out, **SETTINGS | settings)


def make_run(tmp_path, folder, **trainer) -> RunFolder:
    for _ in prepare(folder, tmp_path / "prepared", 8):
        pass
    network = NETWORK | {"num_classes": len(CLASSES)}
    config = CONFIG | {"network": network, "trainer": CONFIG["trainer"] | trainer}
    return processes.create(tmp_path / "home", config, tmp_path / "prepared", name="pets")


def test_a_batch_has_the_labels_of_its_images_and_drops_its_share(folder, tmp_path):
    trainer = make_trainer(folder, tmp_path, augment_horizontal_flip=False)
    assert trainer.dataset.classes == sorted(CLASSES) and trainer.labels.tolist().count(0) == 1
    label_of = {image.tobytes(): label for image, label in zip(trainer.dataset.images, trainer.dataset.labels)}
    drops = []
    for step in range(100):
        batch = trainer.batch(step, 0)
        pixels = (batch.images * 255).round().byte().permute(0, 2, 3, 1).numpy()
        assert [label_of[image.tobytes()] for image in pixels] == batch.condition.tolist()
        drops += batch.drop.tolist()
    assert 0.4 < np.mean(drops) < 0.6


def test_a_run_without_classes_keeps_its_numbers(folder, tmp_path):
    """The coins come last: t, noise and flips are those of a run without classes."""
    torch.manual_seed(0)
    plain = Trainer(
        DiffusionPolicy(RIN(**SIZES | {"num_classes": 0})), folder, results_folder=tmp_path / "a", **SETTINGS
    )
    classed = make_trainer(folder, tmp_path / "b")
    one, other = plain.batch(3, 0), classed.batch(3, 0)
    assert one.condition is None and one.drop is None
    for field in ("images", "t", "noise"):
        assert torch.equal(getattr(one, field), getattr(other, field)), field
    assert one.self_condition == other.self_condition


def test_a_resumed_run_is_bit_identical(folder, tmp_path):
    whole = make_trainer(folder, tmp_path / "whole", train_num_steps=6)
    assert whole.train() == "finished"
    make_trainer(folder, tmp_path / "parts", train_num_steps=3).train()
    resumed = make_trainer(folder, tmp_path / "parts", seed=9, train_num_steps=6)
    resumed.resume()
    assert resumed.step == 3 and resumed.train() == "finished"
    assert contents(whole.run.checkpoint(6)) == contents(resumed.run.checkpoint(6))


@pytest.mark.parametrize("count", [2, 4])
def test_the_slices_of_several_processes_have_the_labels_of_one(folder, tmp_path, monkeypatch, count):
    trainer = make_trainer(folder, tmp_path)
    whole = trainer.batch(5, 0)
    monkeypatch.setattr(trainer.accelerator.state, "num_processes", count)
    slices = []
    for index in range(count):
        monkeypatch.setattr(trainer.accelerator.state, "process_index", index)
        slices.append(trainer.batch(5, 0))
    for field in ("condition", "drop"):
        assert torch.equal(torch.cat([getattr(part, field) for part in slices]), getattr(whole, field))


def kill_process(run):
    if run.is_alive():
        os.kill(run.status().pid, signal.SIGKILL)
        until(lambda: not run.is_alive())


@pytest.mark.soak
def test_a_run_with_labels_killed_25_times_equals_an_uninterrupted_one(folder, tmp_path):
    run = make_run(tmp_path, folder, train_num_steps=400, save_and_sample_every=5)
    with forking():
        for kill in range(25):
            processes.start(run)
            until(lambda kill=kill: len(run.checkpoint_steps()) > kill or not run.is_alive())
            kill_process(run)
        processes.start(run)
        assert ended(run) == "finished"
    assert contents(run.checkpoint(400)) == contents(undisturbed(run, tmp_path / "other"))


def test_a_killed_run_with_labels_equals_an_uninterrupted_one(folder, tmp_path):
    run = make_run(tmp_path, folder, train_num_steps=60, save_and_sample_every=5)
    with forking():
        processes.start(run)
        until(lambda: run.checkpoint_steps() or not run.is_alive())
        kill_process(run)
        processes.start(run)
        assert ended(run) == "finished"
    assert contents(run.checkpoint(60)) == contents(undisturbed(run, tmp_path / "other"))


@pytest.mark.parametrize("num_classes, num_samples, columns, rows", [(3, 9, 3, 3), (3, 1, 3, 1), (40, 16, 16, 1)])
def test_the_samples_show_one_class_per_column(tmp_path, num_classes, num_samples, columns, rows):
    for number in range(num_classes):
        (tmp_path / "images" / f"{number:02d}").mkdir(parents=True)
        gray = np.full((8, 8, 3), number, np.uint8)
        Image.fromarray(gray).save(tmp_path / "images" / f"{number:02d}" / "1.png")
    torch.manual_seed(0)
    policy = DiffusionPolicy(RIN(**SIZES | {"num_classes": num_classes}))
    trainer = Trainer(policy, tmp_path / "images", results_folder=tmp_path / "run", num_samples=num_samples)
    labels = []
    trainer.ema.ema_model.stream = lambda count, **given: labels.extend(given["label"]) or policy.stream(count, **given)
    trainer.sample(0)
    with Image.open(trainer.run.sample(0)) as grid:
        assert grid.size == (columns * 8, rows * 8)
    shown = labels[:columns]
    assert labels == shown * rows and shown == sorted(set(shown)) and (shown[0], shown[-1]) == (1, num_classes)


def test_the_loss_of_each_class_is_recorded(folder, tmp_path):
    trainer = make_trainer(folder, tmp_path, train_num_steps=10)
    losses, labels = [], []
    add = trainer.reporter.add

    def noted(t, condition, each):
        losses.append(each)
        labels.append(condition)
        add(t, condition, each)

    trainer.reporter.add = noted
    trainer.train()
    losses, labels = torch.cat(losses), torch.cat(labels)
    [record] = [record for record in trainer.run.metrics()[0] if "loss" in record]
    expected = {name: losses[labels == i].mean().item() for i, name in enumerate(sorted(CLASSES), 1)}
    assert record["classes"] == pytest.approx(expected, rel=1e-5)


def test_a_checkpoint_knows_its_classes_by_name(folder, tmp_path):
    trainer = make_trainer(folder, tmp_path, train_num_steps=1)
    trainer.train()
    config = json.loads((trainer.run.checkpoint(1) / "config.json").read_text())
    assert config["classes"] == sorted(CLASSES) and config["network"]["num_classes"] == 3
    assert DiffusionPolicy.from_pretrained(trainer.run.checkpoint(1)).num_classes == 3


@pytest.mark.parametrize("num_classes, words", [(2, "the images have 3 classes, but the network has 2"), (5, "has 5")])
def test_another_number_of_classes_is_refused(folder, tmp_path, num_classes, words):
    with pytest.raises(ValueError, match=words):
        Trainer(DiffusionPolicy(RIN(**SIZES | {"num_classes": num_classes})), folder, results_folder=tmp_path)


def test_a_network_with_classes_needs_class_folders(folder, tmp_path):
    with pytest.raises(ValueError, match="classes need 2 to 1,000 folders of images directly below it"):
        make_trainer(folder / "cats", tmp_path)


# ----------------------------------------------------------------------------
# The commands


def test_class_folders_become_a_run_whose_classes_are_sampled_by_name(folder, tmp_path, capfd):
    out = tmp_path / "run"
    small = ["--image-size", "16", "--width", "16", "--depth", "1", "--batch", "4", "--steps", "2"]
    assert exit_code_of("-m", "dp", "train", str(folder), "--out", str(out), "--classes", "--prepare", *small) == 0
    said = capfd.readouterr().out
    assert "3 classes, from the folders: birds 4, cats 2 (fewest), dogs 3." in said and "1 without a class" in said
    assert DatasetReport.load(out / "dataset").class_counts() == {"birds": 4, "cats": 2, "dogs": 3}
    Trainer.from_run(out).train()
    sample = [
        "-m",
        "dp",
        "sample",
        str(out),
        "--images",
        "2",
        "--timesteps",
        "2",
        "--seed",
        "1",
        "--out",
        str(tmp_path),
    ]
    assert exit_code_of(*sample, "--label", "dogs", "--guidance", "2", "--kind", "images") == 0
    assert exit_code_of(*sample, "--label", "fish") == 2
    said = capfd.readouterr()
    assert "there is no class 'fish'; choose one of: birds, cats, dogs" in said.err


def test_settings_know_whether_classes_are_learned():
    settings = Settings(classes=True)
    config = settings.config("pets", 9, 0.0, list(CLASSES))
    assert config["network"]["num_classes"] == 3 and Settings.from_config(config).classes
    assert "num_classes" not in Settings().config("pets", 9, 0.0, list(CLASSES))["network"]
    with pytest.raises(ValueError, match="no classes in 'pets'"):
        settings.config("pets", 9, 0.0)
    with pytest.raises(ValueError, match="Classes must be true or false, got 1"):
        Settings(classes=1)
