"""Messages that quote input stay short, even if the input is huge, for every public entry point."""

from __future__ import annotations

import json

import gradio as gr
import numpy as np
import pytest

from dp import RIN, DiffusionPolicy, ImageDataset, SampleSettings
from dp.checkpoints import folder as checkpoint
from dp.checkpoints import schema
from dp.data import prepare
from dp.data.codec import encode_png
from dp.data.sources import Limits
from dp.diffusion.schedules import make_schedule
from dp.hub import models
from dp.serving import files
from dp.serving.engine import Engine
from dp.system.validation import MAX_QUOTED
from dp.training import processes
from dp.training.presets import Settings
from dp.training.remote import hardware
from dp.training.run_folder import RunFolder
from dp.ui.components.player.player import server_functions
from dp.ui.components.start_image.start_image import read_start_image
from dp.ui.components.upload import upload as image_upload
from dp.ui.sampling import page_values
from dp.ui.sampling.variants import make_variants
from dp.ui.training.uploads import Upload

LONG = "x\n\ud800" * 10_000
HUGE = 10**6000 + 1  # Python refuses to convert it to text
MANY = {
    "text": LONG,
    "number": HUGE,
    "list": [LONG],
    "dict": {LONG: LONG},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def engine(tiny_rin, home):
    DiffusionPolicy(tiny_rin()).save_pretrained(home / "models" / "tiny")
    return Engine(home / "models", device="cpu")


def settings(**changed):
    """Return arguments of `page_values.parse_settings`, with some changed."""
    usual = {"checkpoint": "tiny", "images": 1, "timesteps": 4, "sampler": "ddim", "noise_schedule": "trained"}
    usual |= {"time_difference_steps": 0, "eta": 0, "seed": 1, "random_seed": False, "walk_to": None, "strength": 1}
    return usual | changed


def config_with(**changed):
    network = {"type": "rin", **RIN(dim=8, image_size=8, patch_size=4).config}
    config = {"network": network, "policy": {}}
    for path, value in changed.items():
        *parents, last = path.split("__")
        at = config
        for name in parents:
            at = at[name]
        at[last] = value
    return config


def built(config):
    schema.check_config(config, "here")
    checkpoint.build(config, "here", device="meta")


def sampled_from(engine, name):
    handle = engine.submit(SampleSettings(1), name)
    list(handle)
    raise ValueError(handle.error)


POLICY = ("timesteps", "noise_schedule", "objective", "time_difference", "min_snr_gamma", "scale")
SAMPLING = ("timesteps", "sampler", "noise_schedule", "time_difference", "eta", "seed", "walk_to", "strength")
TRAIN = ("name", "image_size", "width", "depth", "batch", "lr", "steps", "save_every", "seed")
CONTROLS = ("checkpoint", "images", "timesteps", "sampler", "noise_schedule", "time_difference_steps", "eta", "seed")
CONTROLS += ("walk_to", "strength")
CONFIG = (
    "network__type",
    "network__dim",
    "network__conv_widths",
    "policy__objective",
    "policy__scale",
    "policy__noise_schedule",
    "step",
)

ENTRIES = {  # each is called with the engine, DP_HOME and a value that is too long
    "a schedule's name": lambda engine, home, bad: make_schedule(bad),
    "its keywords": lambda engine, home, bad: make_schedule("sigmoid", bad),
    "a keyword": lambda engine, home, bad: make_schedule("sigmoid", {"tau": bad}),
    "a network": lambda engine, home, bad: RIN(dim=8, image_size=bad if bad == HUGE else 9, patch_size=4),
    "from_pretrained": lambda engine, home, bad: DiffusionPolicy.from_pretrained(str(bad)),
    "a dataset's folder": lambda engine, home, bad: ImageDataset(str(bad), 8),
    "a dataset's mode": lambda engine, home, bad: ImageDataset(home, 8, convert_image_to=bad),
    "prepare's mode": lambda engine, home, bad: list(prepare.prepare(home, home / "dataset", 8, mode=bad)),
    "a repository": lambda engine, home, bad: models.download(str(bad), token=""),
    "a repository with an owner": lambda engine, home, bad: DiffusionPolicy.from_pretrained("x/" + "y" * 9999),
    "a revision": lambda engine, home, bad: models.download("a/b", token="", revision=str(bad)),
    "a time limit": lambda engine, home, bad: hardware.parse_duration(bad),
    "a kind of file": lambda engine, home, bad: files.export([], {}, bad),
    "a limit": lambda engine, home, bad: Limits(files=-bad if bad == HUGE else bad),
    "a verb": lambda engine, home, bad: RunFolder(home / "run").request(bad),
    "a run's name": lambda engine, home, bad: processes.rename(RunFolder(home / "run"), str(bad)),
    "a checkpoint": lambda engine, home, bad: sampled_from(engine, str(bad)),
    "an axis": lambda engine, home, bad: make_variants(engine, bad, ["1"], settings()),
    "a value to compare": lambda engine, home, bad: make_variants(engine, "timesteps", [bad], settings()),
    "a start image": lambda engine, home, bad: read_start_image({"image": bad}, 8, 3),
    "an upload": lambda engine, home, bad: Upload(bad),
    "an unknown field": lambda engine, home, bad: schema.check_config(config_with() | {str(bad): 1}, "here"),
    "settings in a PNG": lambda engine, home, bad: page_values.to_page_values(
        engine, files.read_settings(encode_png(np.zeros((4, 4, 3), np.uint8), {"dp": json.dumps({"sampler": bad})}))
    ),
}
ENTRIES |= {
    f"policy: {key}": lambda engine, home, bad, key=key: DiffusionPolicy(RIN(8, 8, 4), **{key: bad}) for key in POLICY
}
ENTRIES |= {f"sampling: {key}": lambda engine, home, bad, key=key: SampleSettings(**{key: bad}) for key in SAMPLING}
ENTRIES |= {f"training: {key}": lambda engine, home, bad, key=key: Settings(**{key: bad}) for key in TRAIN}
ENTRIES |= {
    f"page: {key}": lambda engine, home, bad, key=key: page_values.parse_settings(engine, **settings(**{key: bad}))
    for key in CONTROLS
}
ENTRIES |= {f"config: {key}": lambda engine, home, bad, key=key: built(config_with(**{key: bad})) for key in CONFIG}


@pytest.mark.parametrize("bad", MANY.values(), ids=MANY)
@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_a_message_about_long_input_is_short_and_printable(engine, home, entry, bad):
    with pytest.raises((ValueError, gr.Error)) as error:
        entry(engine, home, bad)
    assert len(str(error.value)) < 3 * MAX_QUOTED + 200
    str(error.value).encode()


@pytest.mark.parametrize("bad", MANY.values(), ids=MANY)
def test_a_response_to_the_page_is_short_too(engine, home, monkeypatch, bad):
    monkeypatch.setenv("DP_HOME", str(home))
    *_, save = server_functions(engine)
    answers = [save({"run": bad, "kind": bad})]
    answers += [image_upload.begin({"files": bad, "bytes": bad}, None)]
    answers += [image_upload.receive({"upload": bad, "pieces": bad}, None)]
    assert all(len(answer["problem"]) < 3 * MAX_QUOTED for answer in answers)
