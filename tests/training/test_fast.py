"""Make a finished model fast: the run that tunes it, its start, exact resume, samples and checkpoints."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_runs import CONFIG, TRAINER, contents, make_run, undisturbed

from dp import DiffusionPolicy
from dp.checkpoints import folder as checkpoint
from dp.checkpoints.schema import CheckpointError
from dp.data.codec import make_grid, to_uint8
from dp.system.atomic_files import write_json
from dp.training import processes
from dp.training.presets import Settings, fast_config
from dp.training.remote import sync
from dp.training.run_folder import RunFolder
from dp.training.samples import sample_grid
from dp.training.trainer import Trainer

STEPS = TRAINER["train_num_steps"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> RunFolder:
    torch.set_num_threads(1)
    run = make_run(tmp_path_factory.mktemp("finished"), num_samples=4)
    assert Trainer.from_run(run.path).train() == "finished"
    return run


def make_fast(finished: RunFolder, home, **trainer) -> RunFolder:
    """The run of 10 steps that makes the model of the finished run fast."""
    run = processes.make_fast(finished, home)
    config = run.config()
    steps = {"train_num_steps": 10, "lr_decay_steps": 10, "save_and_sample_every": 5, "num_samples": 4}
    write_json(run.config_file, config | {"trainer": config["trainer"] | steps | trainer})
    return run


def test_it_starts_from_the_averaged_weights_of_the_finished_run(finished, tmp_path):
    run = make_fast(finished, tmp_path)
    newest = load_file(finished.checkpoint(STEPS) / "model.safetensors")
    trainer = Trainer.from_run(run.path)
    for weights in (trainer.policy.model.state_dict(), trainer.ema.ema_model.model.state_dict()):
        assert weights.keys() == newest.keys()
        assert all(torch.equal(weights[name], value) for name, value in newest.items())
    assert trainer.policy.consistency and run.name == "My cats! fast"
    assert contents(run.dataset) == contents(finished.dataset)
    assert {name.name for name in run.start.iterdir()} == {"config.json", "model.safetensors"}


def test_a_resumed_run_is_bit_identical_and_its_checkpoint_says_how_to_sample(finished, tmp_path):
    run = make_fast(finished, tmp_path)
    expected = undisturbed(run, tmp_path)
    short = Trainer.from_run(run.path)
    short.train_num_steps = 5
    short.train()
    resumed = Trainer.from_run(run.path)
    resumed.resume()
    assert resumed.step == 5 and resumed.train() == "finished"
    assert contents(run.checkpoint(10)) == contents(expected)

    config = checkpoint.read_config(run.checkpoint(10))
    assert config["sampling"] == {"timesteps": 4, "sampler": "consistency"}
    policy = DiffusionPolicy.from_pretrained(run.checkpoint(10))
    assert policy.consistency
    assert torch.equal(policy.sample(2, seed=1), policy.sample(2, seed=1, **config["sampling"]))
    weights, start = (load_file(path / "model.safetensors") for path in (run.checkpoint(10), run.start))
    assert not all(torch.equal(value, start[name]) for name, value in weights.items())

    # The samples: a row each of 1, 2 and 4 calls, from the same seeds.
    with Image.open(run.sample(10)) as image:
        rows = np.split(np.asarray(image), 3)
    for row, steps in zip(rows, (1, 2, 4), strict=True):
        images = policy.sample(4, seed=resumed.seed, timesteps=steps)
        expected_row = torch.cat(list(images), dim=2).permute(1, 2, 0).mul(255)
        assert np.abs(row - expected_row.numpy()).max() <= 1


def test_with_classes_the_samples_of_1_2_and_4_calls_have_a_column_for_each_class(tiny_rin):
    policy, calls = DiffusionPolicy(tiny_rin(num_classes=2), consistency=True), []
    grid = sample_grid(policy, 4, timesteps=9, seed=3, heartbeat=lambda: calls.append(1))
    assert grid.shape == (3 * 2 * 8, 2 * 8, 3) and len(calls) == 1 + 2 + 4
    for i, steps in enumerate((1, 2, 4)):
        images = to_uint8(policy.sample(4, seed=3, timesteps=steps, label=(1, 2, 1, 2)))
        assert np.array_equal(grid[16 * i : 16 * (i + 1)], make_grid(images, 2))


def test_a_rented_machine_gets_the_start(finished, tmp_path):
    run = make_fast(finished, tmp_path)
    names = [path.relative_to(run.path).as_posix() for path in run.start.iterdir()]
    assert names and all(any(re.fullmatch(rule, name) for rule in sync.UPLOADABLE) for name in names)


def test_tuning_moves_r_towards_t_with_the_steps_and_not_with_their_number(finished, tmp_path):
    trainer = Trainer.from_run(make_fast(finished, tmp_path, train_num_steps=40).path)
    assert [trainer.batch(step, 0).progress for step in (0, 5, 10, 30)] == [0.0, 0.5, 1.0, 1.0]


def test_a_duplicate_from_the_form_is_a_run_of_its_own(finished, tmp_path):
    run = make_fast(finished, tmp_path)
    again = processes.duplicate(run, tmp_path, **Settings(image_size=16).config("cats", 6, 0.0))
    assert not again.config()["policy"]["consistency"] and not again.start.exists()


def test_what_cannot_be_made_fast_is_refused_with_the_reason(finished, tmp_path):
    run = make_fast(finished, tmp_path)
    with pytest.raises(ValueError, match="is new: only the model of a finished run"):
        processes.make_fast(run, tmp_path)
    for policy, words in (({"objective": "eps"}, "predicts the noise"), ({"consistency": True}, "fast already")):
        with pytest.raises(ValueError, match=words):
            fast_config(CONFIG | {"policy": policy})
    (run.start / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        Trainer.from_run(run.path)


def test_a_start_of_another_network_is_refused(finished, tmp_path):
    run = make_fast(finished, tmp_path)
    config = run.config()
    write_json(run.config_file, config | {"network": config["network"] | {"num_latents": 5}})
    with pytest.raises(CheckpointError, match="is not the one"):
        Trainer.from_run(run.path)
