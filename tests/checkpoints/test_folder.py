"""dp.checkpoints.folder: round trips, and the error messages for damaged folders."""

from __future__ import annotations

import inspect
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from saving import save_policy
from torch import nn

from dp.checkpoints import catalog, schema
from dp.checkpoints import folder as checkpoint
from dp.checkpoints.schema import CheckpointError
from dp.checkpoints.tensor_names import RENAMED
from dp.diffusion.policy import DiffusionPolicy
from dp.networks.rin import NETWORKS, RIN, SequenceRIN

TINY = dict(dim=8, image_size=8, patch_size=4, depth=1, latent_self_attn_depth=1)
TINY |= dict(num_latents=4, heads=1, dim_head=8, conv_blocks=1)
TINY_SEQUENCES = {key: TINY[key] for key in TINY if key not in ("image_size", "patch_size")}
TINY_SEQUENCES |= dict(length=8, conv_widths=(8,), num_observations=2, observation_features=3)


def make_policy(network: dict | None = None, **settings) -> DiffusionPolicy:
    torch.manual_seed(0)
    policy = DiffusionPolicy(RIN(**TINY | (network or {})), **settings)
    for parameter in policy.parameters():  # some start at zero, where a mix-up would not be seen
        nn.init.normal_(parameter, std=0.1)
    return policy


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return the folder of a valid checkpoint."""
    save_policy(make_policy(), tmp_path / "mine", step=7)
    return tmp_path / "mine"


def change(folder: Path, edit: Callable[[dict], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


# ----------------------------------------------------------------------------
# There and back


@pytest.mark.parametrize(
    "network, settings",
    [
        ({}, {}),
        ({"conv_widths": (8,), "channels": 1, "dim_latent": 16}, {"objective": "x0", "use_ddim": False}),
        (
            {"channels": 4},
            {
                "timesteps": 7,
                "noise_schedule": "cosine",
                "schedule_kwargs": {"start": 0.2, "tau": 2},
                "objective": "eps",
                "time_difference": 0.1,
                "min_snr_loss_weight": False,
                "min_snr_gamma": 2.5,
                "train_prob_self_cond": 0.0,
                "scale": 0.5,
            },
        ),
    ],
    ids=["defaults", "convolutional", "every option"],
)
def test_a_saved_model_round_trip(tmp_path, network, settings):
    policy = make_policy(network, **settings)
    policy.save_pretrained(tmp_path / "it")
    back = DiffusionPolicy.from_pretrained(str(tmp_path / "it"))
    assert back.config == policy.config and back.model.config == policy.model.config
    ours, theirs = policy.state_dict(), back.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(policy.sample(2, timesteps=3, seed=5), back.sample(2, timesteps=3, seed=5))


def with_old_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights under the tensor names of the first version."""
    old = {new: old for old, new in RENAMED.items()}
    return {".".join(old.get(part, part) for part in name.split(".")): value for name, value in weights.items()}


@pytest.mark.parametrize("network", [{}, {"conv_widths": [8, 8]}])
def test_a_model_with_the_tensor_names_of_the_first_version_loads_and_is_saved_with_the_current_ones(tmp_path, network):
    policy = make_policy(network)
    save_policy(policy, tmp_path / "mine")
    weights = load_file(tmp_path / "mine" / "model.safetensors")
    assert weights.keys() == policy.model.state_dict().keys()
    old = with_old_names(weights)
    assert old.keys() - weights.keys() and any("think" in name for name in old)
    save_file(old, tmp_path / "mine" / "model.safetensors")
    loaded = DiffusionPolicy.from_pretrained(tmp_path / "mine")
    assert all(torch.equal(value, weights[name]) for name, value in loaded.model.state_dict().items())
    save_policy(loaded, tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == weights.keys()


def test_a_model_with_tensor_names_of_two_versions_is_rejected(folder):
    weights = load_file(folder / "model.safetensors")
    some = {name: value for name, value in weights.items() if ".read_mlp." in name}
    kept = {name: value for name, value in weights.items() if name not in some}
    for mixed in (kept | with_old_names(some), weights | with_old_names(some)):
        save_file({name: value.clone() for name, value in mixed.items()}, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"mixes tensor names of two versions, such as .*read_feed.* and "):
            checkpoint.load(folder)


def test_a_model_with_an_unknown_tensor_is_rejected_with_its_name(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"blocks.0.grown.weight": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"first blocks\.0\.grown\.weight: .*the config has no such tensor"):
        checkpoint.load(folder)


def test_a_loaded_model_can_be_trained(folder):
    policy = DiffusionPolicy.from_pretrained(folder)
    policy(torch.rand(2, 3, 8, 8), self_condition=True).backward()
    assert all(p.requires_grad and p.device.type == "cpu" and p.grad is not None for p in policy.parameters())


def test_a_loaded_model_no_longer_depends_on_its_file(folder):
    policy = DiffusionPolicy.from_pretrained(folder)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    with (folder / "model.safetensors").open("r+b") as file:  # written over in place, as a careless tool would
        file.write(b"\x7f" * (folder / "model.safetensors").stat().st_size)
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())


def test_numpy_scalars_are_saved_as_plain_numbers(tmp_path):
    make_policy(
        timesteps=np.int64(50), scale=np.float32(0.5), schedule_kwargs={"tau": np.float32(0.75)}
    ).save_pretrained(tmp_path)
    back = DiffusionPolicy.from_pretrained(tmp_path).config
    assert (back["timesteps"], back["scale"], back["schedule_kwargs"]) == (50, 0.5, {"tau": 0.75})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_disk_is_float32_in_memory(tmp_path, dtype):
    policy = make_policy()
    save_policy(policy, tmp_path / "half", dtype=dtype)
    assert {value.dtype for value in load_file(tmp_path / "half" / "model.safetensors").values()} == {dtype}
    loaded = DiffusionPolicy.from_pretrained(tmp_path / "half").state_dict()
    for name, value in policy.state_dict().items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], value.to(dtype).float())


def test_saving_over_a_checkpoint_replaces_the_model_and_keeps_its_card(folder):
    (folder / "README.md").write_text("# My own words")
    other = make_policy({"depth": 2})
    other.save_pretrained(folder)
    assert DiffusionPolicy.from_pretrained(folder).model.config["depth"] == 2
    assert (folder / "README.md").read_text() == "# My own words"


def test_a_folder_without_a_card_gets_one(tmp_path):
    policy = make_policy()
    save_policy(policy, tmp_path / "it", step=1234, dataset="cats", license="cc0-1.0")
    card = (tmp_path / "it" / "README.md").read_text()
    count = sum(p.numel() for p in policy.parameters())
    for words in ("8x8", f"{count:,} parameters", "objective v", "sigmoid", "1,234 training steps", "license: cc0-1.0"):
        assert words in card
    config = checkpoint.read_config(tmp_path / "it")
    assert (config["step"], config["dataset"], config["license"]) == (1234, "cats", "cc0-1.0")


# ----------------------------------------------------------------------------
# What cannot be saved


class Elsewhere(RIN):
    """A custom network. It cannot be rebuilt from a name, even if it resembles RIN."""


def test_an_unsupported_network_is_not_saved(tmp_path):
    policy = DiffusionPolicy(Elsewhere(**TINY))
    with pytest.raises(CheckpointError, match=r"Elsewhere.*rin"):
        policy.save_pretrained(tmp_path / "it")
    assert not (tmp_path / "it").exists()


@pytest.mark.parametrize("card", [{"step": -1}, {"step": 1.5}, {"dataset": 3}, {"colour": "red"}])
def test_card_fields_that_could_not_be_loaded_are_not_saved(folder, card):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CheckpointError, match=next(iter(card))):
        save_policy(make_policy({"depth": 2}), folder, **card)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(CheckpointError):
        save_policy(make_policy(), folder.parent / "new", **card)
    assert not (folder.parent / "new").exists()


# ----------------------------------------------------------------------------
# What cannot be loaded: an edit of a whole checkpoint, and what the message must say


def _set(part: str, **values) -> Callable[[dict], object]:
    return lambda config: config[part].update(values)


def _classes(names: list) -> Callable[[dict], object]:
    return lambda config: (config["network"].update(num_classes=len(names)), config.update(classes=names))


CONFIGS: dict[str, tuple[Callable[[dict], object], str]] = {
    "unknown field": (lambda c: c.update(pickle="x"), "unknown field 'pickle'"),
    "unknown network option": (_set("network", flavour=1), "unknown field 'flavour' in network"),
    "unknown policy option": (_set("policy", flavour=1), "unknown field 'flavour' in policy"),
    "no network": (lambda c: c.pop("network"), "has no field 'network'"),
    "no policy": (lambda c: c.pop("policy"), "has no field 'policy'"),
    "no type": (lambda c: c["network"].pop("type"), "unknown network None"),
    "a network option missing": (lambda c: c["network"].pop("depth"), "has no field 'depth'"),
    "unknown type": (_set("network", type="unet"), "unknown network 'unet'.*rin"),
    "type is no text": (_set("network", type=["rin"]), "unknown network"),
    "network is no object": (lambda c: c.update(network=[1]), "'network'.*an object"),
    "policy is no object": (lambda c: c.update(policy="x"), "'policy'.*an object"),
    "a truth for a number": (_set("network", depth=True), "'depth'.*whole number.*True"),
    "text for a number": (_set("network", dim="8"), "'dim'.*whole number.*'8'"),
    "a fraction for a whole number": (_set("network", dim=8.0), "'dim'.*whole number.*8.0"),
    "null for a number": (_set("network", dim_latent=None), "'dim_latent'.*None"),
    "a number for a truth": (_set("policy", use_ddim=1), "'use_ddim'.*true or false.*1"),
    "a number for text": (_set("policy", objective=1), "'objective'.*text"),
    "a list for keywords": (_set("policy", schedule_kwargs=[1]), "'schedule_kwargs'.*an object"),
    "too small": (_set("network", dim=4), "'dim'.*8 to 4096.*4"),
    "too large": (_set("network", depth=65), "'depth'.*1 to 64.*65"),
    "negative": (_set("network", patch_size=-4), "'patch_size'.*-4"),
    "a huge number": (_set("network", num_latents=10**400), "'num_latents'"),
    "not a number": (_set("policy", scale=float("nan")), "'scale'.*nan"),
    "infinite": (_set("policy", min_snr_gamma=float("inf")), "'min_snr_gamma'.*inf"),
    "scale above 1": (_set("policy", scale=1.5), "'scale'.*1.5"),
    "scale 0": (_set("policy", scale=0), "scale.*0"),
    "no timesteps": (_set("policy", timesteps=0), "'timesteps'.*0"),
    "a truth for timesteps": (_set("policy", timesteps=True), "'timesteps'.*True"),
    "step is text": (lambda c: c.update(step="7"), "'step'.*'7'"),
    "too many widths": (_set("network", conv_widths=[8] * 7), "'conv_widths'.*at most 6"),
    "a truth for a width": (_set("network", conv_widths=[True]), "'conv_widths'.*True"),
    "widths are no list": (_set("network", conv_widths=8), "'conv_widths'.*list"),
    "unknown objective": (_set("policy", objective="score"), "objective 'score'"),
    "unknown schedule": (_set("policy", noise_schedule="quadratic"), "quadratic.*sigmoid"),
    "unknown schedule keyword": (_set("policy", schedule_kwargs={"slope": 1}), "slope"),
    "a schedule keyword out of bounds": (_set("policy", schedule_kwargs={"tau": -1}), "tau.*-1"),
    "a schedule keyword of text": (_set("policy", schedule_kwargs={"tau": "1"}), "tau"),
    "a schedule keyword without end": (_set("policy", schedule_kwargs={"tau": 10**400}), "tau|too (big|large)"),
    "patches that do not fill the image": (_set("network", image_size=10), "multiple of patch_size.*10"),
    "patches that cannot be halved": (_set("network", conv_widths=[8, 8, 8]), "multiple of 8"),
    "another shape": (_set("network", dim=16), "do not match.*the file holds.*the config requires"),
    "too many classes": (_set("network", num_classes=1001), "'num_classes'.*0 to 1000.*1001"),
    "classes without a network for them": (lambda c: c.update(classes=["a"]), "classes has 1 names.*0 classes"),
    "classes are no list": (lambda c: c.update(classes={"a": 1}), "'classes'.*list"),
    "a class that is no text": (_classes(["a", 2]), "'classes'.*text.*2"),
    "a class without a name": (_classes(["a", " "]), "name of a class.*printable.*' '"),
    "a class with a control character": (_classes(["a", "b\u202e"]), "name of a class.*printable"),
    "a class with a long name": (_classes(["a", "b" * 61]), "name of a class.*at most 60"),
    "two classes of one name": (_classes(["a", "a"]), "two classes have the name 'a'"),
    "sampling is no object": (lambda c: c.update(sampling=[1]), "'sampling'.*an object"),
    "an unknown sampling default": (lambda c: c.update(sampling={"steps": 3}), "unknown field 'steps' in sampling"),
    "an unknown sampler": (lambda c: c.update(sampling={"sampler": "euler"}), "unknown sampler 'euler'.*ddim"),
    "a sampler for tuned models": (lambda c: c.update(sampling={"sampler": "consistency"}), "'consistency'.*policy"),
    "a tuned model that predicts noise": (lambda c: c["policy"].update(consistency=True, objective="eps"), "eps"),
    "a guidance out of bounds": (lambda c: c.update(sampling={"guidance": 21}), "'guidance'.*0 to 20.*21"),
    "a reversed interval": (lambda c: c.update(sampling={"guidance_interval": [0.9, 0.1]}), "guidance_interval"),
    "half an interval": (lambda c: c.update(sampling={"guidance_interval": [0.9]}), "guidance_interval"),
    "more blocks": (_set("network", depth=2), "do not match the config; first blocks.1.*the file holds none"),
}

# config.json as text that is not even that.
TEXTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "config.json is not valid JSON"),
    "cut short": (b'{"network": {"ty', "config.json is not valid JSON"),
    "not text": (b"\xff\xfe\0", "config.json is not valid JSON"),
    "a list": (b"[]", "config.json must be an object, got list"),
    "nested without end": (b"[" * 100_000, "config.json"),
    "a number without end": (b"9" * 10_000, "config.json"),
}


def _edit_weights(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        weights = load_file(path)
        edit(weights)
        save_file(weights, path)

    return change


def _header_only(path: Path) -> None:
    size = int.from_bytes(path.read_bytes()[:8], "little")
    path.write_bytes(path.read_bytes()[: 8 + size])


WEIGHTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "model.safetensors is missing"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "cannot be read"),
    "a header that promises more than there is": (_header_only, "cannot be read"),
    "a pickle": (lambda path: torch.save({"latents": torch.zeros(4, 8)}, path), "cannot be read"),
    "another shape": (_edit_weights(lambda w: w.update(latents=torch.zeros(4, 9))), r"latents.*\(4, 9\).*\(4, 8\)"),
    "another rank": (_edit_weights(lambda w: w.update(latents=torch.zeros(32))), r"latents.*\(32,\).*\(4, 8\)"),
    "one too many": (_edit_weights(lambda w: w.update(extra=torch.zeros(1))), "extra.*the config has no such tensor"),
    "one too few": (_edit_weights(lambda w: w.pop("latents")), "latents.*the file holds none"),
}


def break_folder(folder: Path, kind: str, name: str) -> str:
    """Damage the folder in the way of that name, and return the pattern of the expected message."""
    if kind == "config":
        edit, says = CONFIGS[name]
        change(folder, edit)
    elif kind == "text":
        content, says = TEXTS[name]
        (folder / "config.json").write_bytes(content)
    else:
        damage, says = WEIGHTS[name]
        damage(folder / "model.safetensors")
    return says


BROKEN = pytest.mark.parametrize(
    "kind, name",
    [(kind, name) for kind, cases in (("config", CONFIGS), ("text", TEXTS), ("weights", WEIGHTS)) for name in cases],
)


@BROKEN
def test_a_broken_folder_is_rejected_with_its_name_and_problem(folder, kind, name):
    says = break_folder(folder, kind, name)
    with pytest.raises(CheckpointError, match=says) as caught:
        DiffusionPolicy.from_pretrained(folder)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value)) < 600  # whatever the file said


@BROKEN
def test_a_broken_folder_is_listed_with_its_problem(folder, kind, name):
    says = break_folder(folder, kind, name)
    [entry] = catalog.list_checkpoints(folder.parent)
    assert entry.name == "mine" and entry.config is None
    assert re.search(says, entry.problem)


@pytest.mark.parametrize("make", ["nothing", "file", "empty folder"])
def test_a_path_that_is_not_a_checkpoint_folder_is_rejected_by_name(tmp_path, make):
    path = tmp_path / "gone"
    if make == "file":
        path.write_text("")
    elif make == "empty folder":
        path.mkdir()
    with pytest.raises(CheckpointError, match="gone"):
        DiffusionPolicy.from_pretrained(path)


@pytest.mark.parametrize(
    "network, says",
    [
        ({"dim": 4096, "dim_latent": 4096}, "do not match"),  # about a billion parameters, which the bound allows
        ({"dim": 4096, "depth": 64}, "more than 2,000,000,000 parameters"),
        ({"dim": 4096, "image_size": 2048, "patch_size": 1}, "more than 2,000,000,000 parameters"),
    ],
)
def test_a_config_of_a_huge_network_is_rejected_before_allocation(folder, network, says):
    resource = pytest.importorskip("resource")
    change(folder, _set("network", **network))
    peak, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(CheckpointError, match=says):
        DiffusionPolicy.from_pretrained(folder)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    assert grown * (1 if sys.platform == "darwin" else 1024) < 250e6  # the giants would be gigabytes
    assert time.monotonic() - start < 20


# ----------------------------------------------------------------------------
# Lists


def test_the_list_has_every_folder_with_a_model_sorted_by_name(tmp_path):
    for root, name in (("bundled", "b"), ("bundled", "a"), ("runs", "c")):
        save_policy(make_policy(), tmp_path / root / name, step=3)
    (tmp_path / "bundled" / "notes").mkdir()
    (tmp_path / "bundled" / "make.py").write_text("")
    (tmp_path / "bundled" / "b" / "config.json").write_text("{}")
    entries = catalog.list_checkpoints(tmp_path / "bundled", str(tmp_path / "runs"), tmp_path / "nowhere")
    assert [entry.name for entry in entries] == ["a", "b", "c"]
    assert [entry.problem is None for entry in entries] == [True, False, True]
    assert [entry.config and entry.config["step"] for entry in entries] == [3, None, 3]


def test_a_folder_without_weights_is_listed_as_damaged(folder):
    (folder / "model.safetensors").unlink()
    [entry] = catalog.list_checkpoints(folder.parent)
    assert "model.safetensors is missing" in entry.problem


def test_one_odd_folder_does_not_hide_the_others(folder):
    odd = folder.parent / "odd"
    odd.mkdir()
    try:
        (odd / "config.json").symlink_to(odd / "nowhere")
    except OSError:
        pytest.skip("this system makes no links for plain users")
    entries = catalog.list_checkpoints(folder.parent)
    assert [(entry.name, entry.problem is None) for entry in entries] == [("mine", True), ("odd", False)]
    assert "config.json is missing" in entries[1].problem


def test_a_half_written_folder_is_not_listed(folder):
    # What a killed training process leaves beside the whole ones (see dp.system.atomic_files.replacing).
    folder.rename(folder.with_name(".000004.123.tmp"))
    assert catalog.list_checkpoints(folder.parent) == []


# ----------------------------------------------------------------------------
# A new option cannot be forgotten


def test_every_network_has_a_schema():
    assert NETWORKS.keys() == schema.NETWORK_FIELDS.keys()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_schema_of_a_network_has_exactly_its_arguments(name):
    network = NETWORKS[name](**(TINY if NETWORKS[name].kind == "image" else TINY_SEQUENCES))
    options = inspect.signature(NETWORKS[name]).parameters.keys()
    assert set(network.config) == set(options) == set(schema.NETWORK_FIELDS[name])


def test_the_schema_of_a_policy_has_exactly_its_arguments():
    options = inspect.signature(DiffusionPolicy).parameters.keys() - {"model"}
    assert set(make_policy().config) == options == set(schema.POLICY_FIELDS)
    defaults = inspect.signature(DiffusionPolicy).parameters
    for name, checked in inspect.signature(schema._check_policy).parameters.items():
        assert name == "_" or checked.default == defaults[name].default


# ----------------------------------------------------------------------------
# Sequences


def test_a_model_of_sequences_comes_back_whole_and_is_listed_as_one(tmp_path):
    torch.manual_seed(0)
    policy = DiffusionPolicy(SequenceRIN(**TINY_SEQUENCES), timesteps=3)
    policy.save_pretrained(tmp_path / "paths")
    save_policy(make_policy(), tmp_path / "pictures", step=7)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text("{}")
    loaded = DiffusionPolicy.from_pretrained(tmp_path / "paths")
    assert loaded.config == policy.config and loaded.model.config == policy.model.config
    run = {"observation": [[1, 0.5, 0.2], [0, 0, 0]], "guidance": 2.0, "seed": 0}
    assert torch.equal(loaded.sample(2, **run), policy.sample(2, **run))
    kinds = {entry.name: entry.kind for entry in catalog.list_checkpoints(tmp_path)}
    assert kinds == {"damaged": "image", "paths": "sequence", "pictures": "image"}
    card = (tmp_path / "paths" / "README.md").read_text()
    assert "A diffusion model of sequences of length 8: sequence_rin" in card and "(16, 2, 8) in [0, 1]" in card
    assert "unconditional-image-generation" not in card  # the page finds models of images on the Hub by it


@pytest.mark.parametrize("name, value", [("image_size", 8), ("length", 0), ("num_observations", 257)])
def test_a_field_that_a_model_of_sequences_does_not_have_is_rejected(tmp_path, name, value):
    DiffusionPolicy(SequenceRIN(**TINY_SEQUENCES)).save_pretrained(tmp_path)
    change(tmp_path, lambda config: config["network"].update({name: value}))
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(tmp_path)
