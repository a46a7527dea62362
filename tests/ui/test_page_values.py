"""The values of the player and of the page's controls, parsed into settings and restored from links and PNGs."""

import base64
import io
import json
import re

import gradio as gr
import numpy as np
import pytest
from models import save_fast
from PIL import Image
from saving import save_policy

from dp.data.codec import encode_png, make_grid
from dp.diffusion.policy import DiffusionPolicy
from dp.serving.engine import Engine
from dp.serving.files import read_settings
from dp.serving.frames import Frame
from dp.ui.app import build_app
from dp.ui.components.player.player import show
from dp.ui.sampling import page_values
from dp.ui.sampling.links import NAMES
from dp.ui.sampling.panel import build_panel


@pytest.fixture
def engine(tiny_rin, tmp_path):
    DiffusionPolicy(tiny_rin(), noise_schedule="cosine", schedule_kwargs={"tau": 0.8}).save_pretrained(
        tmp_path / "tiny"
    )
    return Engine(tmp_path, device="cpu")


def decode(src):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(src.split(",")[1]))))


def test_live_frames_are_jpeg_and_the_last_is_lossless():
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    frame = Frame(index=3, timesteps=9, time=0.7, log_snr=-1.0, x_t=images[::-1], x0=images, moved=np.zeros(4))
    running, stopped = show(frame, "running"), show(frame, "stopped")
    assert running["src"].startswith("data:image/jpeg;base64,") and stopped["src"].startswith("data:image/png;base64,")
    np.testing.assert_array_equal(decode(stopped["src"]), make_grid(images))
    assert (stopped["index"], stopped["timesteps"], stopped["time"], stopped["log_snr"]) == (3, 9, 0.7, -1.0)
    assert show(None, "failed", "no luck") == {"state": "failed", "message": "no luck"}


def test_the_trained_schedule_comes_first_with_a_label(engine):
    choices = page_values.schedule_choices(engine, "tiny")
    assert choices[0] == ("As trained (cosine, tau 0.8)", page_values.TRAINED)
    # It was trained with its own tau, so the default cosine is a different schedule that can be chosen, too.
    assert [value for _, value in choices[1:]] == ["linear", "cosine", "sigmoid"]


LINK = {
    "checkpoint": "tiny",
    "images": "3",
    "timesteps": "10",
    "sampler": "ddim",
    "schedule": "linear",
    "difference": "2",
    "eta": "0.5",
    "seed": "7",
    "walk": "8",
}
USED = {
    "checkpoint": "tiny",
    "batch_size": 3,
    "timesteps": 10,
    "sampler": "ddim",
    "noise_schedule": "linear",
    "time_difference": 0.2,
    "eta": 0.5,
    "seed": 7,
    "walk_to": 8,
}


def test_a_link_holds_every_setting(engine):
    assert page_values.parse_link(engine, LINK | {"__theme": "dark"}) == (USED, "")
    assert page_values.parse_link(engine, {}) == ({}, "")


@pytest.mark.parametrize(
    "bad", ["9" * 400, "-" + "9" * 400, "9" * 5000, "1e999", "nan", "-inf", "", "<b>x", "\ud800\0"]
)
@pytest.mark.parametrize("key", LINK)
def test_an_invalid_setting_in_a_link_is_reported_and_the_others_apply(engine, key, bad):
    if (key, bad) == ("walk", ""):
        return  # an empty field means no walk
    usable, sentence = page_values.parse_link(engine, LINK | {key: bad})
    lost = {NAMES[key]} | ({"eta"} if key == "sampler" else set())  # the page's default sampler has no eta
    if key == "timesteps":  # 2 steps are a different fraction of the page's default number of steps
        lost.add("time_difference")
        assert usable.pop("time_difference") == 2 / page_values.TIMESTEPS
    assert usable == {name: value for name, value in USED.items() if name not in lost}
    assert sentence.startswith("Ignored from the link: ") and f"{key} (" in sentence
    assert len(sentence) < 700 and "<b>" not in sentence and sentence.isprintable()
    page_values.to_page_values(engine, usable)


NUMBERS_OF_A_PNG = ["batch_size", "timesteps", "time_difference", "eta", "seed", "walk_to", "strength"]


@pytest.mark.parametrize("bad", ["9" * 400, "9" * 5000, "1e999", "NaN", "-Infinity", '"x"', "[]", "{}", "true"])
@pytest.mark.parametrize("key", [*NUMBERS_OF_A_PNG, "noise_schedule", "schedule_kwargs", "sampler", "checkpoint"])
def test_an_invalid_setting_in_a_png_is_a_clear_error(engine, key, bad):
    if bad in ("[]", "{}") and key == "schedule_kwargs":
        return  # none
    text = f'{{"checkpoint": "tiny", "noise_schedule": "linear", "{key}": {bad}}}'
    with pytest.raises((ValueError, gr.Error)) as error:
        page_values.to_page_values(engine, read_settings(encode_png(np.zeros((8, 8, 3), np.uint8), {"dp": text})))
    assert len(str(error.value)) < 700


def test_only_a_fast_model_has_the_consistency_sampler_and_its_own_settings_come_with_it(engine, tiny_rin, tmp_path):
    save_fast(DiffusionPolicy(tiny_rin()), tmp_path / "tiny-fast", "tiny")
    assert page_values.fast_pairs(engine) == [("tiny-fast", "tiny")]
    path = tmp_path / "tiny-fast" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 2400}))
    assert "made fast in 2,400 steps</abbr>" in page_values.describe(engine, "tiny-fast")
    values = {"images": 1, "timesteps": 2, "sampler": "consistency", "noise_schedule": "trained"}
    values |= {"time_difference_steps": 0, "eta": 0, "seed": 3, "random_seed": False}
    assert page_values.parse_settings(engine, "tiny-fast", **values)[1].sampler == "consistency"
    with pytest.raises(gr.Error, match="tiny was not tuned for the sampler 'consistency'"):
        page_values.parse_settings(engine, "tiny", **values)
    with gr.Blocks():
        panel = build_panel(engine)
    sampler, steps = panel.controls.sampler, panel.controls.timesteps
    updates = panel.select("tiny-fast", sampler="ddim")
    assert (updates[sampler]["value"], updates[steps]["value"]) == ("consistency", 2)
    assert ("Consistency", "consistency") in updates[sampler]["choices"]
    back = panel.select("tiny", sampler="consistency")  # whose config says nothing of its own
    assert (back[sampler]["value"], back[steps]["value"]) == ("dpmpp_2m", 20)
    assert ("Consistency", "consistency") not in back[sampler]["choices"]
    assert "value" not in panel.select("tiny", sampler="ddim")[sampler]  # a visitor's choice stays
    link = panel.apply_settings({"checkpoint": "tiny-fast", "sampler": "consistency", "timesteps": 1})
    assert link[sampler]["value"] == "consistency" and len(link[sampler]["choices"]) == 5


def test_time_difference_is_counted_in_steps(engine):
    _, settings = page_values.parse_settings(engine, "tiny", 2, 40, "ddim", "linear", 1.5, 0.5, 9, False)
    assert settings.time_difference == 1.5 / 40 and settings.noise_schedule == "linear"
    assert settings.eta == 0.5 and settings.seed == 9
    _, settings = page_values.parse_settings(engine, "tiny", 2, 1, "ddim", page_values.TRAINED, 3, 0, 9, False)
    assert settings.time_difference == 1 and settings.noise_schedule is None


def test_visitors_input_never_becomes_markup(engine, tmp_path):
    with pytest.raises(gr.Error) as error:
        page_values.parse_settings(engine, "tiny", 2, 40, "<img src=x onerror=alert(1)>", "linear", 0, 0, 9, False)
    assert "<img" not in error.value.message and "&lt;img" in error.value.message
    (tmp_path / "<b>bad").mkdir()
    (tmp_path / "<b>bad" / "config.json").write_text("{}")
    problems = page_values.describe_problems(engine)
    assert "<b>" not in problems and str(tmp_path) not in problems


def test_text_in_a_checkpoint_never_becomes_markdown(tiny_rin, tmp_path):
    save_policy(DiffusionPolicy(tiny_rin()), tmp_path / "tiny", dataset="![](http://host/x) <b> [a](http://b)")
    shown = page_values.describe(Engine(tmp_path, device="cpu"), "tiny")
    assert not re.search(r"(?<!\\)[\[<]", shown) and "8 × 8 pixels" in shown
    save_policy(DiffusionPolicy(tiny_rin()), tmp_path / "tiny", step=1234)
    shown = page_values.describe(Engine(tmp_path, device="cpu"), "tiny")
    assert re.match('<abbr title="Trained to predict v, a mixture of [^"]+">1,234 training steps</abbr> · 8 × 8', shown)


def test_a_page_without_checkpoints_says_what_to_do(tmp_path):
    build_app(Engine(tmp_path))
    assert page_values.describe(Engine(tmp_path), None).startswith("No checkpoints found: put a checkpoint folder into")


@pytest.mark.parametrize("typed, walk", [(None, None), ("", None), (" ", None), ("0", 0), (" 12 ", 12), (7, 7)])
def test_a_typed_seed_starts_a_walk_and_an_empty_field_none(engine, typed, walk):
    assert page_values.parse_settings(engine, "tiny", 2, 40, "ddim", "linear", 0, 0, 1, False, typed)[1].walk_to == walk


@pytest.mark.parametrize("typed", ["far", "1.5", "-1", "1e99", True, [3]])
def test_a_walk_to_an_invalid_seed_is_an_error(engine, typed):
    with pytest.raises(gr.Error, match="Walk to seed must be a whole number from 0 to"):
        page_values.parse_settings(engine, "tiny", 2, 40, "ddim", "linear", 0, 0, 1, False, typed)


def test_an_empty_seed_without_random_seed_is_an_error(engine):
    with pytest.raises(gr.Error, match="Seed is empty: enter a whole number or select Random seed"):
        page_values.parse_settings(engine, "tiny", 2, 40, "ddim", "linear", 0, 0, None, False)


def test_the_api_describes_every_parameter_with_its_range_or_choices(engine):
    page = build_app(engine)
    bounds = {
        "images": f"1 to {page_values.MAX_IMAGES}",
        "timesteps": f"1 to {page_values.MAX_TIMESTEPS}",
        "time_difference": f"0 to {page_values.MAX_TIME_DIFFERENCE_STEPS}",
        "seed": "0 to 2147483647",
        "eta": "0 to 1",
        "guidance": f"0 to {page_values.MAX_GUIDANCE}",
        "checkpoint": "'tiny'",
        "sampler": "'dpmpp_2m', 'ddim', 'ddpm', 'dpmpp_2m_sde'",
        "noise_schedule": "'trained'",
        "label": "'one of each'",
    }
    for name, endpoint in page.get_api_info()["named_endpoints"].items():
        described = {one["parameter_name"]: one["python_type"]["description"] for one in endpoint["parameters"]}
        assert described.keys() == bounds.keys()
        assert [name for name, words in bounds.items() if words not in described[name]] == []
        assert "1st" not in str(endpoint["parameters"])
        [function] = [one.fn for one in page.fns.values() if one.api_name == name[1:]]
        _, tool, _ = gr.utils.get_function_description(function)  # which language models read
        assert {name: f"{words}." for name, words in tool.items() if name != "request"} == described
