"""The bundled models: small, complete, and with latents that do different things; and the scripts that draw their
images.
"""

from __future__ import annotations

import json
import string
import zipfile
from pathlib import Path
from urllib.request import urlopen

import drawing
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from judging import nearest_images
from latents import measure_latents
from PIL import Image

from dp import DiffusionPolicy
from dp.data.codec import make_grid, to_uint8

ROOT = Path(__file__).resolve().parent.parent
MODELS = sorted(path.parent for path in (ROOT / "checkpoints").glob("*/config.json"))
each_model = pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)


@each_model
def test_the_folder_is_small_and_complete(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    wanted = {"config.json", "model.safetensors", "README.md", "images.zip", "nearest.webp"}
    assert wanted <= {path.name for path in files}
    assert sum(path.stat().st_size for path in files) < 10_000_000
    config = json.loads((folder / "config.json").read_text())
    with zipfile.ZipFile(folder / "images.zip") as archive:
        names = archive.namelist()
    assert 100 < len(names) <= 512
    if classes := config.get("classes"):
        assert {Path(name).parent.name for name in names} == set(classes)


def test_the_recordings_are_of_the_models_in_the_folders():
    first = ROOT / "checkpoints" / "creatures-32"  # with which the page begins
    recording = json.loads((first / "recording.json").read_text())
    policy, count = DiffusionPolicy.from_pretrained(first).eval(), recording["images"]
    labels = [i % policy.num_classes + 1 for i in range(count)]
    images = policy.sample(count, timesteps=recording["timesteps"], sampler="dpmpp_2m", seed=0, label=labels)
    with urlopen(recording["frames"][-1]["x0"]) as file, Image.open(file) as image:
        last = np.asarray(image, float)
    assert np.abs(last - make_grid(to_uint8(images))).mean() < 12  # of 255: it is compressed
    comparison = json.loads((first / "comparison.json").read_text())
    assert [variant["label"] for variant in comparison["variants"]][-2:] == ["step 20 of 40", "whole 20-step run"]
    training = json.loads((ROOT / "checkpoints" / "faces-32" / "training.json").read_text())
    assert training["facts"]["step"] == training["records"][-1]["step"] == training["samples"][-1][0] == 2000


def check_latents(folder, timesteps):
    sampling = json.loads((folder / "config.json").read_text())["sampling"] | {"timesteps": timesteps}
    reading = measure_latents(DiffusionPolicy.from_pretrained(folder).eval(), sampling)
    assert reading.variation.shape == (timesteps, 2)
    assert reading.variation.min() >= 0.3
    assert reading.largest_share.mean(dim=0).max() <= 0.6
    assert reading.rise >= 0.05


@each_model
def test_the_latents_read_different_things_and_matter(folder):
    check_latents(folder, timesteps=5)


@pytest.mark.soak
@each_model
def test_the_latents_read_different_things_at_every_step(folder):
    check_latents(folder, timesteps=20)


# ----------------------------------------------------------------------------
# Drawing


def test_the_faces_are_glyphs_on_white():
    if not Path(drawing.EMOJI_FONT).exists():
        pytest.skip("the font is not installed: Debian's package is fonts-noto-color-emoji")
    faces, test = drawing.draw_faces()
    assert len(faces[""]) > 100 and not test
    grinning = np.asarray(faces[""]["1f600"])
    assert grinning.shape == (136, 136, 3)
    assert (grinning[0, 0] == 255).all() and grinning[68, 20, 2] < 100  # white corner, yellow cheek


def test_the_creatures_are_avatars_of_other_seeds_for_training_and_for_tests(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "STYLES", ["planets", "moods"])  # each takes half a second
    monkeypatch.setattr(drawing, "TRAINING_SEEDS", 3)
    monkeypatch.setattr(drawing, "TEST_SEEDS", 2)
    training, test = drawing.draw_creatures()
    assert list(training) == list(test) == ["planets", "moods"]
    images = {image.tobytes() for part in (training, test) for of in part.values() for image in of.values()}
    assert len(images) == 10  # all different
    assert drawing.save(training, tmp_path) == 6
    assert (tmp_path / "planets" / "0002.png").is_file()


def make_font(path, family, license, side, letters=string.ascii_uppercase):
    """Write a font whose letters are squares of `side` units, without space between them."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0)), pen.lineTo((0, side)), pen.lineTo((side, side)), pen.lineTo((side, 0)), pen.closePath()
    square, names = pen.glyph(), [".notdef", *letters]
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): letter for letter in letters})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (side, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular", "licenseDescription": license})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def test_the_letters_are_those_of_free_fonts_and_the_families_of_the_test_are_others(tmp_path):
    ofl = "This font is licensed under the SIL Open Font License, Version 1.1."
    for i in range(12):
        make_font(tmp_path / f"{i:02d}.ttf", f"Family {i:02d}", ofl, 100 + 50 * i)
    make_font(tmp_path / "paid.ttf", "A paid family", "All rights reserved.", 500)
    make_font(tmp_path / "few.ttf", "Few letters", ofl, 500, letters="ABC")
    make_font(tmp_path / "display.ttf", "DSEG7 Classic", ofl, 500)
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    families = drawing.ofl_families(tmp_path)
    assert sorted(families) == [f"Family {i:02d}" for i in range(12)]
    letters = drawing.font_letters(families["Family 05"][0])
    assert len(letters) == 26 and letters[0].size == (32, 32) and letters[0].mode == "L"
    ink = 255 - np.asarray(letters[3], int)
    rows, columns = ink.any(axis=1).nonzero()[0], ink.any(axis=0).nonzero()[0]
    assert rows[-1] - rows[0] + 1 in (27, 28) and abs(rows[0] - (31 - rows[-1])) <= 1  # fills the tile, in the middle
    assert abs(columns[0] - (31 - columns[-1])) <= 1
    # All squares are the same when they fill the tile, so only the first font is new.
    training, test = drawing.draw_letters(str(tmp_path))
    assert list(training) == list(string.ascii_uppercase)
    assert [len(training[letter]) for letter in "AZ"] == [1, 1] and not test["A"]


def test_the_nearest_image_is_found_and_its_distance_is_exact():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (300, 8, 8, 3), dtype=np.uint8)
    samples = images[[7, 200]].copy()
    samples[0, 0, 0, 0] ^= 128
    samples[1] = samples[1][:, ::-1]
    nearest, distances = nearest_images(samples, images, mirrored=True)
    np.testing.assert_array_equal(nearest[0], images[7])
    np.testing.assert_array_equal(nearest[1], samples[1])
    np.testing.assert_allclose(distances, [128 / 255 / np.sqrt(8 * 8 * 3), 0], rtol=1e-5)
    assert nearest_images(samples, images, mirrored=False)[1][1] > 0.1
