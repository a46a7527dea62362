"""Tests of dp.training.trainer and dp.training.batches: exact resume, randomness, learning, checkpoints, errors."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import math
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from filelock import FileLock
from PIL import Image
from tiny_runs import make_pictures, make_run

from dp.checkpoints import folder as checkpoint
from dp.checkpoints.schema import CheckpointError
from dp.diffusion.policy import DiffusionPolicy
from dp.networks.rin import RIN
from dp.system.atomic_files import write_json
from dp.training.batches import image_order
from dp.training.run_folder import RunFolderMissing, RunLocked
from dp.training.trainer import Trainer

SETTINGS = dict(
    train_batch_size=4,
    gradient_accumulate_every=2,
    train_lr=3e-3,
    ema_update_every=2,
    lr_warmup_steps=3,
    lr_decay_steps=10,
    weight_decay=0.01,
    save_and_sample_every=1000,
    num_samples=4,
    sample_steps=2,
)


def make_policy(seed: int = 0, **settings) -> DiffusionPolicy:
    torch.manual_seed(seed)
    network = dict(dim=8, image_size=8, patch_size=4, depth=1, latent_self_attn_depth=1, num_latents=4)
    return DiffusionPolicy(RIN(**network, heads=2, dim_head=4), **settings)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("data") / "images", 8)


@pytest.fixture
def make_trainer(images, tmp_path):
    """Return a function that creates a trainer of a new model in the run folder `run`. init: seed of the weights."""

    def make(run: str = "run", *, init: int = 0, folder: Path = images, policy: dict | None = None, **settings):
        model = make_policy(init, **(policy or {}))
        return Trainer(model, folder, **SETTINGS | {"results_folder": tmp_path / run} | settings)

    return make


@pytest.fixture(scope="module")
def straight(images, tmp_path_factory):
    """Return a function that gives the state of a run of so many steps that was trained without any interruption."""

    @cache
    def after(steps: int) -> dict[str, torch.Tensor]:
        folder = tmp_path_factory.mktemp("straight")
        trainer = Trainer(make_policy(), images, **SETTINGS | {"results_folder": folder, "train_num_steps": steps})
        assert trainer.train() == "finished"
        return state(trainer)

    return after


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def metrics(trainer: Trainer) -> list[dict]:
    return [json.loads(line) for line in (trainer.run.path / "metrics.jsonl").read_text().splitlines()]


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return everything that a step changes: the model, the EMA, and the optimizer's moments and counts."""
    parts = {f"model.{name}": value for name, value in trainer.policy.state_dict().items()}
    parts |= {f"ema.{name}": value for name, value in trainer.ema.state_dict().items()}
    for index, moments in trainer.optimizer.state_dict()["state"].items():
        parts |= {f"optimizer.{index}.{key}": value for key, value in moments.items()}
    return {name: value.clone() for name, value in parts.items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ----------------------------------------------------------------------------
# Exact resume


@pytest.mark.parametrize("count", [8, 3], ids=["two batches of images", "fewer images than a batch"])
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(make_trainer, tmp_path, count):
    folder = make_pictures(tmp_path / "few", count)
    half, whole = 3, 6
    straight = make_trainer("straight", folder=folder, train_num_steps=whole)
    straight.train()

    make_trainer("broken", folder=folder, train_num_steps=half).train()
    resumed = make_trainer("broken", folder=folder, train_num_steps=whole, init=99)  # other weights, other global seed
    resumed.load(half)
    assert resumed.step == half
    torch.rand(17)  # as if other code had used the global generator
    resumed.train()

    assert resumed.step == straight.step == whole
    assert same(state(resumed), state(straight))
    # So is everything on disk: weights, config, model card, training state and sample images.
    ours, theirs = content(resumed.run.checkpoint(whole)), content(straight.run.checkpoint(whole))
    assert {"model.safetensors", "config.json", "training-state/state.safetensors"} <= ours.keys()
    assert ours == theirs
    assert resumed.run.sample(whole).read_bytes() == straight.run.sample(whole).read_bytes()


def test_sampling_and_saving_do_not_affect_training(make_trainer):
    quiet = make_trainer("quiet", train_num_steps=4)
    busy = make_trainer("busy", train_num_steps=4, save_and_sample_every=1)
    quiet.train()
    busy.train()
    assert content(busy.run.checkpoint(4)) == content(quiet.run.checkpoint(4))
    assert busy.run.checkpoint_steps() == [1, 2, 3, 4]


def test_the_number_of_steps_does_not_affect_a_step(make_trainer):
    short = make_trainer("short", train_num_steps=4)
    long = make_trainer("long", train_num_steps=8, save_and_sample_every=4)
    short.train()
    long.train()
    assert content(long.run.checkpoint(4)) == content(short.run.checkpoint(4))


def test_training_uses_no_global_random_state(make_trainer):
    runs = []
    for seed in (1, 2):
        trainer = make_trainer(str(seed))
        torch.manual_seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state()
        for _ in range(2):
            trainer.train_step()
        assert torch.equal(torch.get_rng_state(), before)
        runs.append(state(trainer))
    assert same(*runs)


def test_runs_with_different_seeds_differ(make_trainer):
    one, two = make_trainer("one", seed=0), make_trainer("two", seed=1)
    assert not torch.equal(one.batch(0, 0).noise, two.batch(0, 0).noise)
    assert not torch.equal(one.train_step(), two.train_step())


# ----------------------------------------------------------------------------
# Images and random numbers


@pytest.mark.parametrize("n", [1, 3, 8])
def test_each_epoch_contains_each_image_once_in_its_own_order(n):
    order = image_order(5, 0, 6 * n, n).reshape(6, n)
    assert all(sorted(epoch) == list(range(n)) for epoch in order.tolist())
    if n == 8:
        assert len({tuple(epoch) for epoch in order.tolist()}) == 6
        assert order.tolist() != image_order(6, 0, 6 * n, n).reshape(6, n).tolist()


@pytest.mark.parametrize("n, batch", [(8, 4), (8, 3), (3, 4), (1, 5), (5, 5), (7, 20)])
def test_step_k_takes_positions_kB_to_kB_plus_B(n, batch):
    straight = image_order(0, 0, 6 * batch, n)
    steps = [image_order(0, k * batch, batch, n) for k in range(6)]
    assert torch.equal(torch.cat(steps), straight)
    assert torch.equal(image_order(0, 4 * batch, batch, n), steps[4])  # in any order of calls


def test_a_batch_contains_the_images_of_its_step_and_micro_step(make_trainer):
    trainer = make_trainer(augment_horizontal_flip=False)
    order = image_order(0, 0, 24, 8)
    for k, (step, micro) in enumerate(itertools.product(range(3), range(2))):
        expected = torch.stack([trainer.dataset[i] for i in order[4 * k : 4 * k + 4]])
        assert torch.equal(trainer.batch(step, micro).images, expected)


def test_a_batch_depends_on_its_step_alone(make_trainer):
    first, again = make_trainer("a", init=0), make_trainer("b", init=1)
    again.batch(3, 1)
    for step, micro in ((0, 0), (7, 1)):
        one, two = first.batch(step, micro), again.batch(step, micro)
        assert all(torch.equal(x, y) for x, y in zip(one[:3], two[:3], strict=True))
        assert one.self_condition == two.self_condition


def test_no_two_micro_steps_share_their_random_numbers(make_trainer):
    trainer = make_trainer()
    batches = [trainer.batch(step, micro) for step in range(3) for micro in range(2)]
    for one, two in itertools.combinations(batches, 2):
        assert not torch.equal(one.t, two.t) and not torch.equal(one.noise, two.noise)
    rows = torch.cat([batch.t for batch in batches])
    assert len(rows.unique()) == len(rows)


def test_random_numbers_have_the_specified_distributions(make_trainer):
    trainer = make_trainer(train_batch_size=64, policy={"train_prob_self_cond": 0.75})
    batches = [trainer.batch(step, 0) for step in range(40)]
    t, noise = torch.cat([b.t for b in batches]), torch.cat([b.noise for b in batches])
    assert t.dtype == torch.float64 and t.min() >= 0 and t.max() <= 1
    quarters = torch.histc(t, 4, 0, 1) / len(t)
    assert (quarters - 0.25).abs().max() < 4 * math.sqrt(
        0.25 * 0.75 / len(t)
    )  # four standard deviations, here and below
    assert abs(noise.mean().item()) < 4 / math.sqrt(noise.numel())
    assert abs(noise.std().item() - 1) < 4 / math.sqrt(2 * noise.numel())
    assert abs(np.mean([b.self_condition for b in batches]) - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 40)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_self_conditioning_has_the_probability_of_the_policy(make_trainer, probability):
    trainer = make_trainer(policy={"train_prob_self_cond": probability})
    assert {trainer.batch(step, 0).self_condition for step in range(20)} == {probability == 1}


def test_images_are_flipped_independently_with_probability_one_half(make_trainer):
    plain, flipping = make_trainer("plain", augment_horizontal_flip=False), make_trainer("flipping")
    flipped = []
    for step in range(40):
        for image, seen in zip(plain.batch(step, 0).images, flipping.batch(step, 0).images, strict=True):
            flipped.append(torch.equal(seen, image.flip(-1)))
            assert flipped[-1] or torch.equal(seen, image)
    assert abs(np.mean(flipped) - 0.5) < 4 * 0.5 / math.sqrt(len(flipped))
    batches = np.reshape(flipped, (40, 4))
    assert (batches.any(1) & ~batches.all(1)).any()  # some, but not all, images of a batch are flipped


@pytest.mark.parametrize("processes", [2, 4])
def test_the_slices_of_several_processes_form_the_batch_of_one(make_trainer, monkeypatch, processes):
    trainer = make_trainer()
    whole = trainer.batch(5, 1)
    monkeypatch.setattr(trainer.accelerator.state, "num_processes", processes)
    slices = []
    for index in range(processes):
        monkeypatch.setattr(trainer.accelerator.state, "process_index", index)
        slices.append(trainer.batch(5, 1))
    for i, field in enumerate(("images", "t", "noise")):
        assert torch.equal(torch.cat([part[i] for part in slices]), whole[i]), field
    assert {part.self_condition for part in slices} == {whole.self_condition}  # one choice for all


# ----------------------------------------------------------------------------
# Learning


def test_the_loss_falls_in_thirty_steps_on_eight_tiny_images(make_trainer, tmp_path):
    folder = tmp_path / "flat"  # one color each, which a tiny network learns in a second
    folder.mkdir()
    for i in range(8):
        Image.new("RGB", (8, 8), (255 * (i // 4), 255 * (i // 2 % 2), 255 * (i % 2))).save(folder / f"{i}.png")
    trainer = make_trainer(folder=folder, train_batch_size=8, train_lr=1e-2, lr_decay_steps=None)

    def loss() -> float:  # always on the same batches, which are not trained on
        with torch.no_grad():
            batches = [trainer.batch(step, 0) for step in range(1000, 1008)]
            losses = [trainer.policy(b.images, t=b.t, noise=b.noise, self_condition=False) for b in batches]
        return torch.stack(losses).mean().item()

    before = loss()
    for _ in range(30):
        trainer.train_step()
    assert loss() < 0.9 * before


def test_micro_steps_add_up_to_the_gradient_of_one_large_batch(make_trainer):
    # The loss of a step is the mean over its micro-batches, so gradients add up.
    trainer = make_trainer(max_grad_norm=1e9, train_lr=1.0, lr_warmup_steps=0, weight_decay=0.0)
    batches = [trainer.batch(0, micro) for micro in range(2)]
    reference = make_policy(0)
    losses = [reference(b.images, t=b.t, noise=b.noise, self_condition=b.self_condition) for b in batches]
    (sum(losses) / 2).backward()
    expected = [p.grad.clone() for p in reference.parameters()]
    seen = []
    trainer.optimizer.optimizer.register_step_pre_hook(
        lambda *_: seen.extend(p.grad.clone() for p in trainer.policy.parameters())
    )
    assert torch.allclose(trainer.train_step(), sum(losses).detach() / 2, rtol=1e-5)
    for ours, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_gradients_are_clipped_to_the_norm(make_trainer):
    trainer = make_trainer(max_grad_norm=1e-3)
    norms = []
    trainer.optimizer.optimizer.register_step_pre_hook(
        lambda *_: norms.append(torch.cat([p.grad.flatten() for p in trainer.policy.parameters()]).norm().item())
    )
    trainer.train_step()
    assert norms == [pytest.approx(1e-3, rel=1e-2)]


def test_weight_decay_does_not_apply_to_vectors(make_trainer):
    groups = make_trainer(weight_decay=0.1).optimizer.param_groups
    decays = {parameter.ndim >= 2: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert decays == {True: 0.1, False: 0.0}


@pytest.mark.parametrize(
    "warmup, decay, factors",
    [
        (0, None, {0: 1, 5: 1, 10**6: 1}),
        (4, None, {0: 1 / 4, 1: 2 / 4, 3: 1, 4: 1}),
        (0, 8, {0: 1, 4: 1 / 2, 8: 1 / 10, 9: 1 / 10, 10**6: 1 / 10}),  # from the horizon on: the run was extended
        (2, 4, {0: 1 / 2, 2: 1 / 2, 4: 1 / 10}),
        (9, 4, {0: 1 / 9, 4: 1 / 10, 6: 1 / 10}),
    ],
)
def test_the_learning_rate_warms_up_and_decays_on_a_cosine(make_trainer, warmup, decay, factors):
    trainer = make_trainer(train_lr=0.2, lr_warmup_steps=warmup, lr_decay_steps=decay)
    for step, factor in factors.items():
        assert trainer.learning_rate(step) == pytest.approx(0.2 * factor, abs=1e-12), step


def test_each_step_uses_the_learning_rate_of_its_number(make_trainer):
    trainer = make_trainer()
    for step in range(4):
        trainer.train_step()
        assert {group["lr"] for group in trainer.optimizer.param_groups} == {trainer.learning_rate(step)}


# ----------------------------------------------------------------------------
# The EMA


def test_the_ema_warms_up_independently_of_the_update_interval(make_trainer):
    # After k steps the EMA spans about the last tenth of them, until its decay reaches ema_decay.
    for every in (1, 2, 10):
        trainer = make_trainer(f"every{every}", ema_update_every=every, ema_decay=0.9)
        for k in (10, 30, 90):
            trainer.ema.step.fill_(k + 1)
            expected = min((k / every) / (k / every + 9), 0.9)
            assert float(trainer.ema.get_current_decay()) == pytest.approx(expected, rel=1e-5)


def test_the_ema_is_updated_every_few_steps_and_saved_as_the_checkpoint(make_trainer):
    trainer = make_trainer(ema_update_every=2)
    averages = []
    for _ in range(5):
        trainer.train_step()
        averages.append({name: value.clone() for name, value in trainer.ema.ema_model.state_dict().items()})
    changes = [not same(one, two) for one, two in itertools.pairwise(averages)]
    assert changes == [False, True, False, True]
    assert not same(trainer.policy.state_dict(), averages[-1])

    trainer.save(5)
    assert same(DiffusionPolicy.from_pretrained(trainer.run.checkpoint(5)).state_dict(), averages[-1])


# ----------------------------------------------------------------------------
# Checkpoints, samples and metrics


def test_a_checkpoint_comes_with_a_square_grid_of_samples(make_trainer):
    trainer = make_trainer(train_num_steps=5, save_and_sample_every=2, num_samples=9)
    trainer.train()
    assert trainer.run.checkpoint_steps() == [2, 4, 5]  # the last step is always saved
    assert sorted(path.name for path in (trainer.run.path / "samples").iterdir()) == [
        "000002.png",
        "000004.png",
        "000005.png",
    ]
    with Image.open(trainer.run.sample(4)) as grid:
        assert grid.size == (24, 24) and grid.mode == "RGB"
    config = checkpoint.read_config(trainer.run.checkpoint(4))
    assert (config["step"], config["dataset"]) == (4, "images")


@pytest.mark.parametrize("step, total", [(2, 4), (4, 4)])
def test_samples_that_a_killed_process_had_not_drawn_are_drawn_on_resuming(make_trainer, step, total):
    whole = make_trainer(train_num_steps=step, save_and_sample_every=2)
    whole.train()
    expected = whole.run.sample(step).read_bytes()
    whole.run.sample(step).unlink()
    resumed = make_trainer(train_num_steps=total, save_and_sample_every=2)
    resumed.resume()
    assert resumed.train() == "finished"
    assert resumed.run.sample(step).read_bytes() == expected


def test_samples_use_the_same_seeds_with_every_checkpoint(make_trainer):
    trainer = make_trainer()
    trainer.sample(1)
    torch.rand(3)
    trainer.sample(2)
    assert trainer.run.sample(1).read_bytes() == trainer.run.sample(2).read_bytes()  # as no step was taken in between


def test_metrics_contain_loss_learning_rate_and_speed(make_trainer):
    trainer = make_trainer(train_num_steps=20, sample_steps=1, num_samples=1)
    trainer.train()
    records = metrics(trainer)
    assert [record["step"] for record in records] == [10, 20]
    for record in records:
        assert record.keys() >= {"step", "loss", "lr", "images_per_s"}
        assert 0 < record["loss"] < 10 and record["images_per_s"] > 0
        assert record["lr"] == trainer.learning_rate(record["step"] - 1)  # that of the recorded step


def test_the_speed_excludes_saving_and_sampling(make_trainer, monkeypatch):
    trainer = make_trainer(train_num_steps=10, save_and_sample_every=5, sample_steps=1, num_samples=1)
    clock = {"now": 0.0}
    monkeypatch.setattr("dp.training.reporter.time.monotonic", lambda: clock["now"])

    def takes(seconds, method):
        def slower(*args):
            clock["now"] += seconds
            return method(*args)

        return slower

    trainer.train_step = takes(2.0, trainer.train_step)
    trainer.save = takes(70.0, trainer.save)
    trainer.train()
    [record] = metrics(trainer)
    assert record["images_per_s"] == 4 * 2 / 2.0  # batch, micro-steps, seconds


def test_the_speed_in_the_status_is_averaged(make_trainer, monkeypatch):
    reporter, clock, speeds = make_trainer().reporter, {"now": 0.0}, []
    monkeypatch.setattr("dp.training.reporter.time.monotonic", lambda: clock["now"])
    reporter.start_record()
    for step in range(1, 201):
        clock["now"] += 3.0 if (step - 1) // 10 % 2 else 1.0  # the records are alternately fast and slow
        reporter.losses.append(torch.ones(()))
        speeds.append(reporter.mean_images_per_s())
        if step % 10 == 0:
            reporter.record(step, lr=1.0)
    assert max(speeds[-40:]) < 1.4 * min(speeds[-40:])
    assert {record["images_per_s"] for record in reporter.run.metrics()[0]} == {8.0, 2.67}


def test_training_a_finished_run_changes_nothing(make_trainer):
    trainer = make_trainer(train_num_steps=2)
    trainer.train()
    before = content(trainer.run.path)
    trainer.train()
    assert trainer.step == 2 and content(trainer.run.path) == before


def test_saving_an_existing_checkpoint_replaces_it(make_trainer):
    trainer = make_trainer()
    trainer.train_step()
    trainer.save(1)
    first = content(trainer.run.checkpoint(1))
    trainer.train_step()
    trainer.save(1)
    second = content(trainer.run.checkpoint(1))
    assert second.keys() == first.keys() and second != first
    assert [path.name for path in (trainer.run.path / "checkpoints").iterdir()] == ["000001"]
    trainer.load(1)
    assert trainer.step == 2


def test_only_the_last_three_checkpoints_keep_their_training_state(make_trainer):
    trainer = make_trainer()
    for step in (1, 2, 3, 10, 20):
        trainer.train_step()
        trainer.save(step)
    assert trainer.run.checkpoint_steps() == [1, 2, 3, 10, 20]
    kept = [m for m in (1, 2, 3, 10, 20) if (trainer.run.checkpoint(m) / "training-state").exists()]
    assert kept == [3, 10, 20]
    assert isinstance(DiffusionPolicy.from_pretrained(trainer.run.checkpoint(1)), DiffusionPolicy)
    with pytest.raises(CheckpointError, match=r"step 2\b.*last 3.*available: 3, 10, 20") as caught:
        trainer.load(2)
    assert str(trainer.run.path) in str(caught.value)
    trainer.load(3)
    assert trainer.step == 3


def test_a_new_run_in_the_folder_of_a_longer_one_can_be_resumed(make_trainer):
    older = make_trainer()
    for step in (100, 200, 300):
        older.save(step)
    trainer = make_trainer()
    for step in (1, 2):
        trainer.train_step()
        trainer.save(step)
    trainer.load(2)
    assert trainer.step == 2


def test_a_run_started_in_fp16_resumes_without(make_trainer):
    trainer = make_trainer()
    trainer.train_step()
    trainer.save(1)
    path = trainer.run.checkpoint(1) / "training-state" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scaler": {"scale": 65536.0}}))
    trainer.load(1)
    assert trainer.step == 1


def test_loading_without_checkpoints_is_an_error(make_trainer):
    with pytest.raises(CheckpointError, match="none"):
        make_trainer().load(5)


@pytest.mark.parametrize("damage", ["state.json", "state.safetensors", "missing tensors", "another network"])
def test_a_damaged_training_state_is_rejected_by_name(make_trainer, damage):
    trainer = make_trainer()
    trainer.train_step()
    trainer.save(1)
    state = trainer.run.checkpoint(1) / "training-state"
    if damage == "missing tensors":
        (state / "state.safetensors").unlink()
    elif damage == "another network":
        other = make_policy()
        other = DiffusionPolicy(RIN(**other.model.config | {"dim": 16}))
        trainer = Trainer(other, trainer.dataset.folder, **SETTINGS, results_folder=trainer.run.path)
    else:
        (state / damage).write_bytes((state / damage).read_bytes()[:-5])
    with pytest.raises(CheckpointError) as caught:
        trainer.load(1)
    assert str(trainer.run.checkpoint(1)) in str(caught.value)


def test_a_run_folder_contains_no_pickle(make_trainer):
    trainer = make_trainer(train_num_steps=2)
    trainer.train()
    suffixes = {path.suffix for path in trainer.run.path.rglob("*") if path.is_file() and path.name != "lock"}
    assert suffixes <= {".json", ".jsonl", ".safetensors", ".md", ".png"}


# ----------------------------------------------------------------------------
# Settings


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_samples": 5}, "num_samples.*square.*5"),
        ({"num_samples": 0}, "num_samples.*0"),
        ({"num_samples": -4}, "num_samples.*-4"),
        ({"train_batch_size": 0}, "train_batch_size.*0"),
        ({"train_batch_size": -1}, "train_batch_size.*-1"),
        ({"gradient_accumulate_every": 0}, "gradient_accumulate_every.*0"),
        ({"ema_update_every": 0}, "ema_update_every.*0"),
        ({"save_and_sample_every": 0}, "save_and_sample_every.*0"),
        ({"sample_steps": 0}, "sample_steps.*0"),
        ({"seed": -1}, "seed.*-1"),
        ({"seed": 2**31}, "seed"),
        ({"seed": 1.5}, "seed.*1.5"),
        ({"train_num_steps": 1e2}, "train_num_steps.*100.0"),
        ({"train_num_steps": -5}, "train_num_steps.*-5"),
        ({"train_batch_size": 2.0}, "train_batch_size.*2.0"),
        ({"sample_steps": 10**6}, "sample_steps.*1000000"),
        ({"train_lr": "1e-4"}, "train_lr.*'1e-4'"),
        ({"policy": {"min_snr_gamma": math.inf}}, "cannot be saved.*min_snr_gamma.*inf"),
        ({"convert_image_to": "L"}, "3 channels.*'L'"),
        ({"convert_image_to": "RGBA"}, "3 channels.*'RGBA'"),
        ({"convert_image_to": "CMYK"}, "'CMYK'"),
        ({"convert_image_to": "Lab"}, "'Lab'"),  # its length is that of RGB
        ({"lr_warmup_steps": -1}, "lr_warmup_steps.*-1"),
        ({"lr_decay_steps": -1}, "lr_decay_steps.*-1"),
        ({"train_lr": -1e-4}, "train_lr|lr|learning rate"),
        ({"ema_decay": 1.5}, "ema_decay.*1.5"),
        ({"max_grad_norm": -1.0}, "max_grad_norm.*-1"),  # it would reverse every gradient
    ],
)
def test_a_setting_out_of_range_is_rejected_with_its_value(make_trainer, settings, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**settings)


def test_a_run_does_not_train_on_its_own_samples(make_trainer, tmp_path):
    folder = make_pictures(tmp_path / "album", 8)
    make_trainer("album/run", folder=folder, train_num_steps=1).train()
    report = make_trainer("album/run", folder=folder).dataset.report
    assert report.accepted == [f"{i}.png" for i in range(8)]
    assert ("run/samples/000001.png", "a sample image of this run") in report.rejected


def test_a_folder_without_images_is_rejected_before_training(make_trainer, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no usable image"):
        make_trainer(folder=tmp_path / "none")


def test_fp16_on_a_cpu_is_rejected_and_leaves_the_process_usable(make_trainer):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=r"fp16.*GPU"):
        make_trainer(amp=True)  # fp16 is the default
    make_trainer().train_step()


def test_bf16_trains_on_a_cpu_with_weights_in_float32(make_trainer):
    trainer = make_trainer(amp=True, mixed_precision_type="bf16")
    assert trainer.train_step().isfinite()
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in trainer.policy.parameters())


def test_a_network_that_cannot_be_saved_is_rejected_before_training(images, tmp_path):
    class Elsewhere(RIN):
        pass

    policy = DiffusionPolicy(Elsewhere(8, 8, patch_size=4, depth=1, num_latents=4, heads=1, dim_head=8))
    with pytest.raises(CheckpointError, match="Elsewhere"):
        Trainer(policy, images, results_folder=tmp_path)  # rather than at the first checkpoint, an hour later


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_images_are_converted_to_the_channels_of_the_model(images, tmp_path, channels, mode):
    rin = RIN(8, 8, patch_size=4, channels=channels, depth=1, num_latents=4, heads=1, dim_head=8)
    trainer = Trainer(DiffusionPolicy(rin), images, **SETTINGS, results_folder=tmp_path / mode)
    assert trainer.batch(0, 0).images.shape == (4, channels, 8, 8)
    assert trainer.train_step().isfinite()
    trainer.sample(1)
    with Image.open(trainer.run.sample(1)) as grid:
        assert grid.mode == mode


def test_the_dataset_of_a_relative_folder_has_the_name_of_the_folder(make_trainer, images, monkeypatch):
    monkeypatch.chdir(images)
    trainer = make_trainer(folder=Path("."))
    trainer.save(0)
    assert checkpoint.read_config(trainer.run.checkpoint(0))["dataset"] == "images"


def test_a_run_folder_can_be_moved(make_trainer, tmp_path):
    trainer = make_trainer("here")
    trainer.train_step()
    trainer.save(1)
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = make_trainer("there", init=5)
    moved.load(1)
    assert same(state(moved), state(trainer))


# ----------------------------------------------------------------------------
# Trainer.from_run


@pytest.mark.parametrize("name", ["license", "licence"])  # the second in runs of the first version
def test_a_trainer_is_created_from_a_run_folder(tmp_path, name):
    run = make_run(tmp_path, train_num_steps=2, seed=5)
    write_json(run.config_file, run.config() | {"dataset": {"name": "My cats"}, name: "cc0-1.0"})
    trainer, again = Trainer.from_run(run.path), Trainer.from_run(run.path)
    assert same(state(trainer), state(again))  # the initial weights depend on the seed, too
    assert (trainer.seed, trainer.train_num_steps, len(trainer.pixels)) == (5, 2, 6)
    assert trainer.accelerator.mixed_precision == "no"  # as its config says
    trainer.train()
    config = checkpoint.read_config(run.checkpoint(2))
    assert (config["dataset"], config["license"]) == ("My cats", "cc0-1.0")


@pytest.mark.parametrize("has_instructions, precision", [(True, "bf16"), (False, "no")])
def test_a_run_trains_in_bfloat16_on_a_cpu_with_instructions_for_it(tmp_path, monkeypatch, has_instructions, precision):
    monkeypatch.setenv("DP_DEVICE", "cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_instructions}, raising=False)
    run = make_run(tmp_path)
    config = run.config()
    del config["trainer"]["amp"]
    write_json(run.config_file, config)
    trainer = Trainer.from_run(run.path)
    assert trainer.accelerator.mixed_precision == precision
    assert math.isfinite(trainer.train_step())
    trainer.save(1)
    record_file = run.checkpoint(1) / "training-state" / "state.json"
    record = json.loads(record_file.read_text())
    for begun, then in ((precision, precision), ("no", "no"), (None, "no")):  # it stays as it was begun
        write_json(record_file, {key: value for key, value in (record | {"precision": begun}).items() if value})
        AcceleratorState._reset_state(True)
        assert Trainer.from_run(run.path).accelerator.mixed_precision == then


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"trainer": {"train_lrr": 1}}, "'train_lrr' in trainer"),
        ({"trainer": {"results_folder": "/"}}, "'results_folder' in trainer"),
        ({"network": {"type": "unet"}}, "unknown network 'unet'"),
        ({"policy": {"objective": "y"}}, "objective 'y'"),
    ],
)
def test_an_invalid_config_is_rejected_by_name(tmp_path, changes, message):
    run = make_run(tmp_path)
    write_json(run.config_file, run.config() | changes)
    with pytest.raises(ValueError, match=rf"config\.json of the run.*{message}"):
        Trainer.from_run(run.path)


# ----------------------------------------------------------------------------
# Commands and errors


def at_step(trainer: Trainer, actions: dict) -> Trainer:
    """Call each of `actions` once, after the step that is its key; return the trainer."""
    whole = trainer.train_step

    def train_step():
        loss = whole()
        if action := actions.pop(trainer.step, None):
            action()
        return loss

    trainer.train_step = train_step
    return trainer


def poison(trainer: Trainer) -> None:
    with torch.no_grad():
        next(trainer.policy.parameters()).fill_(math.nan)


def is_finite(folder: Path) -> bool:
    return all(value.isfinite().all() for value in DiffusionPolicy.from_pretrained(folder).state_dict().values())


def events(trainer: Trainer) -> list[dict]:
    return [record for record in trainer.run.metrics()[0] if "event" in record]


def test_commands_are_handled_and_do_not_affect_training(make_trainer, straight):
    busy = make_trainer("busy", train_num_steps=12)
    ask = busy.run.request
    at_step(busy, {2: lambda: ask("save"), 3: lambda: ask("sample"), 5: lambda: (ask("sample"), ask("pause"))})
    assert busy.train() == "paused"
    assert busy.step == 5 and busy.run.checkpoint_steps() == [2, 5]
    assert sorted(path.stem for path in busy.run.samples.iterdir()) == ["000003", "000005"]
    status = busy.run.status()
    assert (status.state, status.step, status.total) == ("paused", 5, 12)

    resumed = make_trainer("busy", train_num_steps=12, init=99)
    resumed.resume()
    at_step(resumed, {8: lambda: (ask("save"), ask("stop"))})
    assert resumed.train() == "stopped" and resumed.step == 8
    resumed.train()  # the same Trainer can continue, too
    assert resumed.run.status().state == "finished"
    assert not any(resumed.run.is_requested(verb) for verb in ("stop", "pause", "save", "sample"))
    assert same(state(resumed), straight(12))


def test_a_run_is_alive_only_while_it_trains(make_trainer):
    trainer, seen = make_trainer(train_num_steps=12), []
    at_step(trainer, {6: lambda: seen.append(trainer.run.status())})
    trainer.train()
    assert (seen[0].state, seen[0].total, seen[0].is_responding) == ("running", 12, True)
    assert not trainer.run.is_alive()


def test_old_checkpoints_saved_on_request_are_deleted(make_trainer):
    trainer = make_trainer(train_num_steps=30, save_and_sample_every=10)
    at_step(trainer, {k: lambda: trainer.run.request("save") for k in (3, 5, 12, 14, 24)})
    trainer.train()
    assert trainer.run.checkpoint_steps() == [10, 20, 24, 30]
    assert not list((trainer.run.path / "checkpoints").glob(".*"))


@pytest.mark.parametrize("damaged", ["model.safetensors", "training-state/state.safetensors", "config.json"])
def test_a_damaged_newest_checkpoint_is_skipped_and_reported(make_trainer, straight, damaged):
    trainer = make_trainer(train_num_steps=4, save_and_sample_every=2)
    trainer.train()
    file = trainer.run.checkpoint(4) / damaged
    file.write_bytes(file.read_bytes()[:-20])
    resumed = make_trainer(train_num_steps=6, init=99)
    resumed.resume()
    assert resumed.step == 2
    resumed.train()
    [event] = events(resumed)
    assert event["step"] == 2 and "000004" in event["event"]
    assert same(state(resumed), straight(6))


def test_a_run_with_only_damaged_checkpoints_does_not_start_over(make_trainer):
    trainer = make_trainer()
    trainer.resume()  # there is no checkpoint: start from the beginning
    assert trainer.step == 0
    trainer.save(1)
    (trainer.run.checkpoint(1) / "training-state" / "state.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="000001"):
        make_trainer().resume()


def test_a_loss_of_nan_rolls_back_and_halves_the_learning_rate(make_trainer):
    settings = dict(train_num_steps=40, save_and_sample_every=10, lr_decay_steps=None, num_samples=1, sample_steps=1)
    trainer = make_trainer("run", **settings)
    full = trainer.learning_rate(30)
    assert at_step(trainer, {23: lambda: poison(trainer)}).train() == "finished"
    [event] = events(trainer)
    assert event["step"] == 20 and "learning rate halved" in event["event"]
    rates = {record["step"]: record["lr"] for record in metrics(trainer) if "lr" in record}
    assert rates == {10: full, 20: full, 30: full / 2, 40: full / 2}
    assert all(math.isfinite(record["loss"]) for record in metrics(trainer) if "loss" in record)
    assert trainer.run.checkpoint_steps() == [10, 20, 30, 40]
    assert all(is_finite(trainer.run.checkpoint(step)) for step in (10, 20, 30, 40))
    # A run resumed after the rollback is still bit-identical.
    resumed = make_trainer("run", init=99, **settings)
    resumed.load(30)
    resumed.train()
    assert same(state(resumed), state(trainer))


def test_before_the_first_checkpoint_it_rolls_back_to_the_initial_state(make_trainer):
    trainer = make_trainer(train_num_steps=12)
    assert at_step(trainer, {3: lambda: poison(trainer)}).train() == "finished"
    assert events(trainer)[0]["step"] == 0
    slower = make_trainer("slower", train_num_steps=12, train_lr=SETTINGS["train_lr"] / 2)
    slower.train()
    assert same(state(trainer), state(slower))


def test_a_model_with_nan_weights_is_not_saved_on_request(make_trainer):
    trainer = make_trainer(train_num_steps=12)
    at_step(
        trainer, {3: lambda: trainer.run.request("save"), 5: lambda: (poison(trainer), trainer.run.request("pause"))}
    )
    assert trainer.train() == "paused"
    assert trainer.run.checkpoint_steps() == [3, 4] and trainer.lr_factor == 0.5
    assert is_finite(trainer.run.checkpoint(4))


def test_a_run_that_keeps_diverging_fails_with_advice(make_trainer):
    trainer = make_trainer(train_num_steps=40, train_lr=1e36, lr_warmup_steps=0, lr_decay_steps=None)
    with pytest.raises(ValueError, match=r"halved 3 times.*smaller learning rate"):
        trainer.train()
    status = trainer.run.status()
    assert status.state == "failed" and "smaller learning rate" in status.message and "Trace" in status.error
    assert len(events(trainer)) == 3 and trainer.run.checkpoint_steps() == []


def test_only_one_process_trains_in_a_folder(make_trainer, monkeypatch):
    monkeypatch.setattr("dp.training.run_folder.HANDOVER_TIMEOUT_S", 0.0)
    trainer = make_trainer(train_num_steps=2)
    with FileLock(trainer.run.path.resolve() / "lock"), pytest.raises(RunLocked, match="another process"):
        trainer.train()


def test_a_record_contains_the_loss_by_noise_level_since_the_last_record(make_trainer):
    trainer = make_trainer(train_num_steps=20, train_lr=0.0)  # a constant model, to recompute the losses
    trainer.train()
    for record, steps in zip(metrics(trainer), (range(10), range(10, 20)), strict=True):
        each, t = [], []
        for step, micro in itertools.product(steps, range(2)):
            b = trainer.batch(step, micro)
            with torch.no_grad():
                each.append(
                    trainer.policy(b.images, t=b.t, noise=b.noise, self_condition=b.self_condition, per_image=True)[0]
                )
            t.append(b.t)
        each, t = torch.cat(each), torch.cat(t)
        for low, name in enumerate(("0-0.25", "0.25-0.5", "0.5-0.75", "0.75-1")):
            within = (t >= low / 4) & (t < (low + 1) / 4)
            assert record["buckets"][name] == pytest.approx(each[within].mean().item(), rel=1e-4)
        assert record["loss"] == pytest.approx(each.mean().item(), rel=1e-4)


def test_a_missing_tracker_is_an_error_and_an_installed_one_gets_the_metrics(make_trainer):
    with pytest.raises(ValueError, match=r"log_with='comet_ml'.*not installed"), pytest.warns(UserWarning):
        make_trainer(log_with="comet_ml")
    if not os.environ.get("CI"):  # in CI the extra must be installed
        pytest.importorskip("tensorboard")
    trainer = make_trainer(train_num_steps=10, log_with="tensorboard")
    trainer.train()
    assert list((trainer.run.path / "trackers").rglob("events.out.*"))


@pytest.mark.parametrize("when", ["step", "checkpoint", "save", "sample", "log", "event"])
def test_a_run_whose_folder_is_deleted_ends_without_recreating_it(make_trainer, tmp_path, monkeypatch, when):
    trainer = make_trainer("deep/run", train_num_steps=40, save_and_sample_every=20, num_samples=1, sample_steps=1)
    delete = lambda: shutil.rmtree(trainer.run.path)  # noqa: E731
    step = {"step": 5, "checkpoint": 20, "log": 10}.get(when)
    at_step(trainer, {step: delete} if step else {5: lambda: (delete(), poison(trainer))} if when == "event" else {})
    if when in ("save", "sample"):
        whole = getattr(trainer, when)
        setattr(trainer, when, lambda milestone: (delete(), whole(milestone)))
    with pytest.raises(RunFolderMissing, match=r"'.*deep.run' was deleted or moved, so training ends"):
        trainer.train()
    assert not trainer.run.path.exists() and trainer.step <= 20
    trainer.run.update_status(state="new")  # the lock was released, so the folder may be created again
    assert trainer.run.path.is_dir()


def test_a_run_whose_folder_was_moved_resumes_there(make_trainer, straight, tmp_path):
    trainer = make_trainer("here", train_num_steps=6)
    at_step(
        trainer, {3: lambda: trainer.run.request("save"), 5: lambda: (tmp_path / "here").rename(tmp_path / "there")}
    )
    with pytest.raises(RunFolderMissing):
        trainer.train()
    assert not (tmp_path / "here").exists()
    moved = make_trainer("there", train_num_steps=6, init=9)
    assert moved.run.status().state == "interrupted"
    moved.resume()
    assert moved.step == 3 and moved.train() == "finished"
    assert same(state(moved), straight(6))


@pytest.fixture
def small_disk(tmp_path):
    """Yield a folder on a file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root and Linux")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, but: int = 0) -> None:
    """Fill the disk, leaving `but` bytes free, rounded to a page."""
    with (disk / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(disk / "ballast", max(0, (disk / "ballast").stat().st_size // 4096 * 4096 - but))


@pytest.mark.parametrize(
    "when, room, ends",
    [
        ("save", 32 << 10, "paused"),
        ("save", 0, "interrupted"),  # the status cannot be written either
        ("sample", 0, "interrupted"),
        ("log", 0, "interrupted"),
        ("status", 0, "interrupted"),
    ],
)
def test_a_full_disk_ends_the_run_without_losing_a_checkpoint(
    make_trainer, straight, small_disk, monkeypatch, when, room, ends
):
    if when == "status":
        monkeypatch.setattr("dp.training.reporter.HEARTBEAT_S", 0.0)
    settings = dict(results_folder=small_disk / "run", train_num_steps=12, save_and_sample_every=4)
    settings |= {"num_samples": 1, "sample_steps": 1}
    trainer = make_trainer(**settings)
    save = trainer.save
    if when == "sample":  # the disk is full after the checkpoint was saved
        trainer.save = lambda milestone: (save(milestone), milestone == 8 and fill(small_disk, room))
    else:
        at_step(trainer, {{"save": 7, "log": 9, "status": 5}[when]: lambda: fill(small_disk, room)})
    with pytest.raises(OSError, match="disk is full") as caught:
        trainer.train()
    assert caught.value.errno == errno.ENOSPC
    status, last = trainer.run.status(), {"sample": 8, "log": 8}.get(when, 4)
    assert status.state == ends and trainer.run.checkpoint_steps() == list(range(4, last + 1, 4))
    assert ends == "interrupted" or "Free some space" in status.message
    DiffusionPolicy.from_pretrained(trainer.run.checkpoint(last))
    assert not list(trainer.run.path.rglob(".*.tmp"))

    (small_disk / "ballast").unlink()
    resumed = make_trainer(**settings, init=99)
    resumed.resume()
    assert resumed.step == last
    assert resumed.train() == "finished" and resumed.run.status().state == "finished"
    assert same(state(resumed), straight(12))
