"""Exact models beside the checkpoints whose training images are here, and what they say about a run."""

import json
import zipfile

import numpy as np
import pytest
import torch
from exact_bundle import IMAGES, bundle, finished
from PIL import Image
from tiny_runs import make_run

from dp.serving.candidates import best_prediction, decided_at, run_candidates, settled_at
from dp.serving.engine import Engine
from dp.serving.frames import Frame
from dp.training.trainer import Trainer


def test_a_bundled_model_with_its_training_set_has_an_exact_one(tmp_path):
    engine = Engine(bundle(tmp_path, training_set={"mirrored": False}))
    assert [entry.name for entry in engine.checkpoints()] == ["tiny", "tiny, exact"]
    results = finished(engine, "tiny, exact", batch_size=6, timesteps=60, seed=0).frame.x0
    far = np.abs(results[:, None].astype(int) - IMAGES).max(axis=(2, 3, 4))
    assert far.min(axis=1).max() <= 1  # every result is a training image
    assert engine.policy("tiny, exact").defaults.noise_schedule == "cosine"


def test_the_exact_model_of_a_fast_one_is_no_fast_one(tmp_path):
    bundle(tmp_path, training_set={}, sampling={"timesteps": 2, "sampler": "consistency"}, original="other")
    path = tmp_path / "tiny" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"policy": config["policy"] | {"consistency": True}}))
    engine = Engine(tmp_path)
    fast, exact = engine.checkpoints()
    assert fast.config["original"] == "other" and "sampling" not in exact.config
    assert finished(engine, "tiny", batch_size=1, timesteps=1, seed=0).provenance["sampler"] == "consistency"
    assert finished(engine, "tiny, exact", batch_size=1, timesteps=1, seed=0).provenance["sampler"] == "ddim"


def test_its_classes_are_those_of_the_model(tmp_path):
    engine = Engine(bundle(tmp_path, classes=("b", "a"), training_set={}))
    results = finished(engine, "tiny, exact", batch_size=4, timesteps=60, seed=0, label=(1, 1, 2, 2)).frame.x0
    far = np.abs(results[:, None].astype(int) - IMAGES).max(axis=(2, 3, 4)).argmin(axis=1)
    assert [i % 2 for i in far] == [0, 0, 1, 1]


def test_a_model_whose_training_set_is_not_here_has_none_and_the_reason_is_said(tmp_path):
    engine = Engine(bundle(bundle(tmp_path, "sample"), "whole", training_set={}))
    assert [entry.name for entry in engine.checkpoints()] == ["sample", "whole", "whole, exact"]
    handle = finished(engine, "sample", batch_size=2, timesteps=2, seed=0)
    reason = "this needs all training images of sample, which do not come with it; choose whole"
    for find in (lambda: run_candidates(engine, handle.request_id), lambda: engine.exact_denoiser("sample")):
        with pytest.raises(ValueError, match=reason):
            find()
    with pytest.raises(ValueError, match="no longer has this run"):
        run_candidates(engine, "nothing")


@pytest.mark.parametrize("field", [{"mirror": True}, {"mirrored": 1}, [1]])
def test_a_wrong_training_set_in_the_config_is_refused(tmp_path, field):
    [entry] = Engine(bundle(tmp_path, training_set=field)).checkpoints()
    assert "training_set" in entry.problem


def test_a_training_run_has_one_as_long_as_it_has_its_dataset(tmp_path):
    run = make_run(tmp_path)
    Trainer.from_run(run.path).train()
    engine = Engine(runs=tmp_path / "home")
    names = [entry.name for entry in engine.checkpoints()]
    assert names == ["My cats!/000008", "My cats!/000004", "My cats!/exact"]
    entry = engine.checkpoints()[-1]
    assert entry.run == "My cats!" and entry.title == "exact · My cats!" and entry.is_exact
    results = finished(engine, "My cats!/exact", batch_size=4, timesteps=60, seed=0).frame.x0
    images = np.load(run.dataset / "images.npy")
    both = np.concatenate([images, images[:, :, ::-1]])  # the run mirrors its images
    assert np.abs(results[:, None].astype(int) - both).max(axis=(2, 3, 4)).min(axis=1).max() <= 1
    found = run_candidates(engine, finished(engine, names[0], batch_size=2, timesteps=3, seed=0).request_id)
    assert found.total == len(images) == 6
    (run.dataset / "images.npy").unlink()
    assert [entry.name for entry in engine.checkpoints()] == names[:2]
    with pytest.raises(ValueError, match="the dataset of the training run My cats!, which is not here"):
        engine.exact_denoiser(names[0])


def test_the_candidates_of_a_run_and_its_best_prediction(tmp_path):
    engine = Engine(bundle(tmp_path, training_set={}))
    handle = finished(engine, "tiny, exact", batch_size=3, timesteps=40, seed=5)
    found = run_candidates(engine, handle.request_id)
    assert found.steps == list(range(1, 41)) and found.counts.shape == (40, 3) and found.total == 9
    assert found.counts[0] == pytest.approx([9, 9, 9], abs=0.5) and found.counts[-1] == pytest.approx([1, 1, 1])
    for i in range(3):
        assert found.counts[found.decided[i] - 1, i] < 2 <= found.counts[found.decided[i] - 2, i]
        assert np.abs(found.images[found.nearest[i]].astype(int) - handle.frame.x0[i]).max() <= 1
        alone = run_candidates(engine, handle.request_id, i)
        assert alone.counts[:, 0] == pytest.approx(found.counts[:, i], rel=1e-3)
        assert (alone.decided, alone.settled) == ([found.decided[i]], [found.settled[i]])
    both, far, count, total = best_prediction(engine, handle.request_id, 1, 9)
    assert far < 1e-6 and both.shape == (2, 3, 8, 8)  # nothing is better than the exact denoiser
    assert total == 9 and count == pytest.approx(found.counts[8, 1], rel=1e-3)
    other = finished(engine, "tiny", batch_size=1, timesteps=4, seed=5)
    both, far, *_ = best_prediction(engine, other.request_id, 0, 2)
    assert far == pytest.approx(((both[0] - both[1]) / 2).square().mean().sqrt().item()) and far > 0.05


def test_large_runs_are_looked_at_one_image_at_a_time(tmp_path):
    engine = Engine(bundle(tmp_path, training_set={}))
    handle = finished(engine, "tiny, exact", batch_size=17, timesteps=100, seed=5)
    with pytest.raises(ValueError, match="too large for all of its images at once: click one of them"):
        run_candidates(engine, handle.request_id)
    assert run_candidates(engine, handle.request_id, 16).counts.shape == (100, 1)
    with pytest.raises(ValueError, match="image must lie in 0 to 16"):
        run_candidates(engine, handle.request_id, 17)


def test_decided_and_settled():
    counts = np.array([[9, 9, 9], [1.5, 3, 2], [3, 1.9, 2], [1, 1, 2]])
    assert decided_at([1, 5, 9, 13], counts) == [13, 9, None]
    flat, detail = np.zeros((1, 8, 8, 1), np.uint8), np.zeros((1, 8, 8, 1), np.uint8)
    flat[:], detail[:] = 200, 200
    detail[:, ::2] = 100
    blank = np.full((1, 8, 8, 1), 20, np.uint8)
    frames = [Frame(k, 4, 0, 0, blank, x0, np.zeros(1)) for k, x0 in enumerate((blank, flat - 50, detail, detail), 1)]
    assert settled_at(frames, 0) == (2, 3)
    assert settled_at(frames[-1:], 0) == (4, 4)


def test_an_exact_model_is_reloaded_when_its_images_change(tmp_path):
    engine = Engine(bundle(tmp_path, training_set={}))
    before = engine.policy("tiny, exact")
    assert engine.policy("tiny, exact") is before and torch.equal(before.model.images, before.model.images)
    with zipfile.ZipFile(tmp_path / "tiny" / "images.zip", "a") as archive, archive.open("new.png", "w") as file:
        Image.fromarray(IMAGES[0][::-1]).save(file, "PNG")
    assert len(engine.policy("tiny, exact").model.images) == 10
