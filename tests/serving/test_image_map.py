"""The map of a model's images, and the paths of a run's predictions on it."""

import numpy as np
import pytest
import torch
from exact_bundle import IMAGES, bundle, finished
from tiny_runs import make_run

from dp.serving.engine import Engine
from dp.serving.image_map import main_axes, map_of, paths_of, spread_out, to_vectors
from dp.training.trainer import Trainer


def test_the_axes_are_those_of_the_largest_variance():
    generator = torch.Generator().manual_seed(0)
    directions, _ = torch.linalg.qr(torch.randn(30, 30, generator=generator))
    x = torch.randn(25, 2, generator=generator) * torch.tensor([5.0, 2.0])
    small = 0.1 * torch.randn(25, 28, generator=generator)
    vectors = torch.cat([x, small], dim=1) @ directions.T
    centered = vectors - vectors.mean(dim=0)
    axes, shares = main_axes(centered)
    _, sizes, expected = torch.linalg.svd(centered, full_matrices=False)
    torch.testing.assert_close((axes @ expected[:2].T).abs(), torch.eye(2), atol=1e-3, rtol=0)
    assert shares == pytest.approx((sizes.square() / sizes.square().sum())[:2].tolist(), abs=1e-4)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_images_that_hardly_differ_have_a_map_too(count):
    axes, shares = main_axes(torch.zeros(count, 12))
    assert axes.shape == (2, 12) and shares == [0, 0] and not axes.any()


def test_landmarks_are_far_from_each_other_and_start_in_the_middle():
    places = torch.tensor([[0.0, 0.0], [1, 0], [0.9, 0], [-1, 0], [0, 3]])
    assert spread_out(places, 3) == [0, 4, 1] and sorted(spread_out(places, 9)) == [0, 1, 2, 3, 4]


def test_a_run_ends_on_the_map_where_its_image_is(tmp_path):
    engine = Engine(bundle(tmp_path, training_set={}))
    entry = engine.checkpoints()[1]
    found = map_of(entry)
    assert map_of(entry) is found and found.places.shape == (9, 2) and sorted(found.landmarks) == list(range(9))
    torch.testing.assert_close(found.locate(IMAGES), found.places)
    torch.testing.assert_close(found.places.mean(dim=0), torch.zeros(2), atol=1e-6, rtol=0)
    handle = finished(engine, "tiny, exact", batch_size=3, timesteps=40, seed=5)
    paths = paths_of(found, handle.trajectory.frames)
    assert paths.shape == (40, 3, 2) and paths[0].norm(dim=1).max() < 0.1 * found.places.norm(dim=1).max()
    assert torch.cdist(paths[-1], found.places).amin(dim=1).max() < 1e-3


def test_large_images_are_averaged_first():
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 1), np.uint8)
    expected = images.reshape(2, 32, 3, 32, 3).mean(axis=(2, 4)).reshape(2, -1) / 255
    np.testing.assert_allclose(to_vectors(images).numpy(), expected, atol=1e-6)


def test_the_map_of_a_run_is_that_of_its_dataset_and_without_images_there_is_none(tmp_path):
    run = make_run(tmp_path)
    Trainer.from_run(run.path).train()
    entry = Engine(runs=tmp_path / "home").checkpoints()[0]
    assert len(map_of(entry).places) == 6
    (run.dataset / "images.npy").unlink()
    with pytest.raises(ValueError, match="prepare it again"):
        map_of(entry)
    bundled = Engine(bundle(tmp_path / "bundled"))
    assert len(map_of(bundled.checkpoints()[0]).places) == 9  # a sample is enough
    (tmp_path / "bundled" / "tiny" / "images.zip").unlink()
    with pytest.raises(ValueError, match="tiny comes without any images"):
        map_of(bundled.checkpoints()[0])
