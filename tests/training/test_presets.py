"""Tests of dp.training.presets: settings as networks and as a run's config."""

import re

import pytest
import torch

from dp.checkpoints.schema import check_config
from dp.networks.rin import RIN
from dp.training.presets import PRESETS, SIZES, Settings


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_builds_a_network_and_survives_a_round_trip_through_its_config(name):
    settings = PRESETS[name]
    config = settings.config("images", 5, 0.0)
    network = dict(config["network"])
    with torch.device("meta"):
        assert network.pop("type") == "rin" and RIN(**network).image_size == settings.image_size
    assert Settings.from_config(config) == Settings(**vars(settings) | {"name": "images"})


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("width", [16, 48, 176])
def test_every_size_and_width_gives_a_network_with_8_by_8_tokens(size, width):
    network = dict(Settings(image_size=size, width=width).config("x", 1, 0.0)["network"], type=None)
    del network["type"]
    with torch.device("meta"):
        assert RIN(**network).positions.shape == (64, width)


@pytest.mark.parametrize(
    "bad, words",
    [
        ({"image_size": 24}, "Image size must be one of 16, 32, 64, 128, got 24"),
        ({"image_size": "64"}, "Image size must be one of"),
        ({"width": 17}, "Network width must be a multiple of 16, got 17"),
        ({"depth": 0}, "Network depth must be a whole number from 1 to 16, got 0"),
        ({"batch": None}, "Batch must be a whole number"),
        ({"steps": 2.5}, "Steps must be a whole number"),
        ({"lr": 0}, "Learning rate must be a number from"),
        ({"lr": "<b>"}, "Learning rate must be a number from"),
        ({"seed": -1}, "Seed must be a whole number"),
        ({"name": "x" * 61}, "Name must have at most 60 characters"),
        ({"name": "a\nb"}, "Name must have at most 60 characters, all printable"),
    ],
)
def test_an_invalid_setting_is_rejected_by_name(bad, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        Settings(**bad)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("width, depth", [(16, 1), (1024, 16)])
def test_the_smallest_and_largest_networks_are_valid_checkpoints(size, width, depth):
    config = Settings(image_size=size, width=width, depth=depth).config("x", 1, 0.0)
    check_config({"network": config["network"], "policy": config["policy"]}, "the recipe")
