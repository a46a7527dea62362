"""The classes of a model as choices of the page, and those of saved settings in a model that may be another."""

from __future__ import annotations

import gradio as gr
import pytest

from dp import DiffusionPolicy, Engine
from dp.checkpoints import folder as checkpoint
from dp.ui.sampling.page_values import ANY, EACH, class_choices, config_of, parse_settings, to_page_values

CLASSES = ["cats", "dogs", "2"]
VALUES = {"checkpoint": "pets", "images": 4, "timesteps": 3, "sampler": "ddim", "noise_schedule": "trained"}
VALUES |= {"time_difference_steps": 0, "eta": 0, "seed": 1, "random_seed": False}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    from models import SIZES

    from dp.networks.rin import RIN

    root = tmp_path_factory.mktemp("models")
    sampling = {"guidance": 3, "guidance_interval": [0.2, 0.8]}
    for name, classes, own in (("pets", CLASSES, sampling), ("odd", [EACH, "x"], {}), ("plain", [], {})):
        network = RIN(**SIZES, num_classes=len(classes))
        config = {"policy": DiffusionPolicy(network).config, "sampling": own}
        checkpoint.save(root / name, network, config | ({"classes": classes} if classes else {}))
    return Engine(root, device="cpu")


def test_the_choices_are_any_the_classes_and_one_of_each(engine):
    assert class_choices(config_of(engine, "pets")) == [
        ("any", ANY),
        ("cats", "cats"),
        ("dogs", "dogs"),
        ("2", "2"),
        (EACH, EACH),
    ]
    assert class_choices(config_of(engine, "odd")) == [("any", ANY), (EACH, EACH), ("x", "x")]  # a class of that name
    assert class_choices(config_of(engine, "plain")) == []


@pytest.mark.parametrize(
    "name, guidance, label, used",
    [
        (ANY, None, None, 1),
        (ANY, 1, None, 1),
        ("cats", None, 1, 3),  # the model's own guidance
        ("dogs", 1.5, 2, 1.5),
        ("2", 2, 3, 2),  # a name comes before a number
        ("1", 2, 1, 2),
        ("0", 2, None, 1),
        (EACH, None, (1, 2, 3, 1), 3),
        (None, None, None, 1),
    ],
)
def test_a_choice_becomes_labels(engine, name, guidance, label, used):
    _, settings = parse_settings(engine, **VALUES, label=name, guidance=guidance)
    assert (settings.label, settings.guidance) == (label, used)
    assert settings.guidance_interval == ((0.2, 0.8) if name else (0, 1))


@pytest.mark.parametrize(
    "given, words",
    [
        ({"label": "fish"}, "there is no class 'fish'; choose one of: cats, dogs, 2"),
        ({"label": "dog"}, "did you mean 'dogs'"),
        ({"label": "9"}, "there is no class '9'"),
        ({"label": "cats", "guidance": 10.5}, "Guidance must be a number from 0 to 10, got 10.5"),
        ({"guidance": 2}, "Guidance needs a class"),
        ({"label": "cats", "checkpoint": "plain"}, "there is no class 'cats': this model has no classes"),
    ],
)
def test_a_bad_choice_is_refused(engine, given, words):
    with pytest.raises(gr.Error, match=words):
        parse_settings(engine, **VALUES | given)


SAVED = {"checkpoint": "pets", "batch_size": 4, "timesteps": 3, "sampler": "ddim", "seed": 1}
INTERVAL = {"guidance_interval": [0.2, 0.8]}


@pytest.mark.parametrize(
    "saved, label, guidance",
    [
        ({}, ANY, 3),
        ({"label": None, "guidance": 1.0}, ANY, 3),
        ({"label": 2, "guidance": 2, "classes": {"2": "dogs"}} | INTERVAL, "dogs", 2),
        ({"label": 2, "guidance": 1, "guidance_interval": [0, 1]}, "dogs", 1),
        ({"label": [1, 1, 1, 1], "guidance": 2} | INTERVAL, "cats", 2),
        ({"label": [1, 2, 3, 1], "guidance": 2} | INTERVAL, EACH, 2),
        ({"label": "dogs"}, "dogs", 3),
        ({"label": "dogs", "guidance": 2}, "dogs", 2),  # as from a link
        ({"label": "1"}, "cats", 3),
        ({"label": "0"}, ANY, 3),
        ({"label": EACH}, EACH, 3),
    ],
)
def test_saved_settings_become_a_choice_and_back(engine, saved, label, guidance):
    values = to_page_values(engine, SAVED | saved)
    assert (values["label"], values["guidance"]) == (label, guidance)
    _, settings = parse_settings(engine, **values | ({} if label else {"guidance": None}))
    if isinstance(saved.get("label"), (int, list)):
        assert settings.labels == tuple(saved["label"] if isinstance(saved["label"], list) else [saved["label"]] * 4)


@pytest.mark.parametrize(
    "saved, words",
    [
        ({"label": 2, "classes": {"2": "wolves"}}, "class 2 was 'wolves', and is 'dogs' in this model"),
        ({"label": 4}, "there is no class 4: this model has 3 classes"),
        ({"label": 1, "checkpoint": "plain"}, "there is no class 1: this model has no classes"),
        ({"label": [1, 3, 3, 1]}, "no control for these classes of single images"),
        ({"label": {"a": 1}}, "there is no class"),
        ({"label": 1, "guidance": 2, "guidance_interval": [0, 1]}, "no control for the interval of the guidance"),
        ({"label": 1, "guidance": 15} | INTERVAL, "Guidance must be a number from 0 to 10, got 15"),
    ],
)
def test_saved_settings_that_the_page_cannot_show_are_refused(engine, saved, words):
    with pytest.raises(gr.Error, match=words):
        to_page_values(engine, SAVED | saved)
