"""Models of sequences in the engine, and the places that offer models of images only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from commands import exit_code_of
from models import randomize

from dp.diffusion.policy import DiffusionPolicy
from dp.diffusion.settings import SampleSettings
from dp.networks.rin import SequenceRIN
from dp.serving.engine import Engine
from dp.serving.frames import Frame
from dp.training.trainer import Trainer
from dp.ui.sampling import page_values

OBSERVATION = ((1.0, 0.2, 0.8), (1.0, 0.7, 0.1))


@pytest.fixture
def root(tiny_rin, tmp_path):
    sizes = {"dim": 8, "length": 8, "depth": 1, "latent_self_attn_depth": 1, "num_latents": 4, "heads": 1}
    sizes |= {"dim_head": 8, "conv_widths": (8,), "conv_blocks": 1, "num_observations": 2, "observation_features": 3}
    DiffusionPolicy(randomize(SequenceRIN(**sizes))).save_pretrained(tmp_path / "a-path")  # the first by its name
    DiffusionPolicy(tiny_rin()).save_pretrained(tmp_path / "pictures")
    return tmp_path


@pytest.fixture
def engine(root):
    return Engine(root, device="cpu", row_budget=3)


def test_frames_of_sequences_are_the_librarys_numbers(engine):
    settings = SampleSettings(4, timesteps=6, sampler="ddpm", observation=OBSERVATION, guidance=2.0, seed=5)
    handle = engine.submit(settings, "a-path")
    list(handle)
    assert handle.error is None
    steps = list(engine.policy("a-path").run(engine.policy("a-path").init_state(settings)))
    before = None
    for frame, step in zip(handle.trajectory.frames, steps, strict=True):
        assert frame.x_t.dtype == frame.x0.dtype == np.float32 and frame.x0.shape == (4, 2, 8)
        np.testing.assert_allclose(frame.x_t, (step.x_t + 1) / 2, atol=1e-4)
        np.testing.assert_allclose(frame.x0, (step.x0 + 1) / 2, atol=1e-4)
        expected = Frame.of(step, before)
        np.testing.assert_allclose(frame.moved, expected.moved, atol=1e-4)
        before = step
    assert max(np.abs(frame.x_t).max() for frame in handle.trajectory.frames) > 1  # unbounded
    assert handle.provenance["observation"] == OBSERVATION
    assert handle.trajectory.nbytes == engine._requests[handle.request_id].trajectory_bytes == 6 * 2 * 4 * 16 * 4


def test_the_page_and_its_api_list_models_of_images_only(engine):
    assert [entry.name for entry in engine.checkpoints()] == ["a-path", "pictures"]
    assert page_values.usable_checkpoints(engine) == ["pictures"]
    assert page_values.checkpoint_choices(engine) == [("pictures", "pictures")]
    with pytest.raises(ValueError, match="there is no checkpoint 'a-path'; there are: pictures"):
        page_values.config_of(engine, "a-path")


def test_the_command_and_the_trainer_say_that_they_are_for_images(root, capsys):
    assert exit_code_of("-m", "dp", "sample", str(root / "a-path")) == 2
    assert "a-path is a model of sequences, and this command writes images" in capsys.readouterr().err
    policy = DiffusionPolicy.from_pretrained(root / "a-path")
    with pytest.raises(ValueError, match=r"models of images, got samples \(2, 8\): train one of sequences in a loop"):
        Trainer(policy, root)


def test_an_exact_model_is_not_looked_for(engine):
    with pytest.raises(ValueError, match="a-path is a model of sequences"):
        engine.exact_denoiser("a-path")
    assert torch.is_tensor(engine.policy("a-path").sample(1, timesteps=1, seed=0))
