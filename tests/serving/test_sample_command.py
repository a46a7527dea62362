"""`python -m dp sample`: the app's files from the command line."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from hashlib import sha256
from pathlib import Path

import av
import numpy as np
import pytest
from fakehub import connected
from pages import exit_code
from PIL import Image

from dp.data.codec import make_grid, read_png_text, to_uint8
from dp.diffusion.policy import DiffusionPolicy
from dp.diffusion.settings import SampleSettings
from dp.serving import cli
from dp.serving.engine import Engine
from dp.serving.files import export, read_settings, readable

ROOT = Path(__file__).resolve().parents[2]
FACES = ROOT / "checkpoints" / "faces-32"
FEW = ("--images", "2", "--timesteps", "3", "--seed", "5")


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """A function that runs the command in an empty folder and gives its exit code, what it said and its complaint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DP_DEVICE", "cpu")

    def run(*arguments: str) -> tuple[int, str, str]:
        return exit_code(monkeypatch, cli, *arguments), *capsys.readouterr()

    return run


def test_a_png_holds_the_librarys_pictures_and_their_settings(command, tmp_path):
    more = ("--sampler", "ddim", "--eta", "0.4", "--schedule", "cosine", "--time-difference", "1.5")
    assert command("faces-32", *FEW, *more) == (0, "faces-32-5.png (seed 5)\n", "")
    data = (tmp_path / "faces-32-5.png").read_bytes()
    settings = dict(timesteps=3, sampler="ddim", eta=0.4, noise_schedule="cosine", time_difference=0.5, seed=5)
    images = DiffusionPolicy.from_pretrained(FACES).sample(2, **settings)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), make_grid(to_uint8(images)))

    made_with = read_settings(data)
    assert {key: made_with[key] for key in settings} == settings
    assert made_with["sha256"] == sha256((FACES / "model.safetensors").read_bytes()).hexdigest()
    assert read_png_text(data)["parameters"] == readable(made_with)


@pytest.mark.parametrize("kind", ["png", "png8", "images", "strip", "gif", "mp4", "zip"])
def test_every_kind_is_byte_for_byte_what_the_app_saves(command, tmp_path, kind):
    assert command("faces-32", *FEW, "--kind", kind, "--out", "new/folder")[0] == 0
    handle = Engine(ROOT / "checkpoints", device="cpu").submit(
        SampleSettings(2, timesteps=3, sampler="dpmpp_2m", time_difference=0.0, seed=5), "faces-32"
    )
    list(handle)
    name, content = export(handle.trajectory.frames, handle.provenance, kind)
    written = (tmp_path / "new" / "folder" / name).read_bytes()
    if kind == "mp4":  # the muxer writes the time of day
        assert frames_of(written) == frames_of(content)
    elif name.endswith(".zip"):  # so does this
        assert members_of(written) == members_of(content)
    else:
        assert written == content


def members_of(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        return {name: file.read(name) for name in file.namelist()}


def frames_of(film: bytes) -> list[bytes]:
    with av.open(io.BytesIO(film)) as container:
        return [frame.to_ndarray(format="rgb24").tobytes() for frame in container.decode(video=0)]


def test_the_name_of_the_file_says_its_kind(command, tmp_path):
    assert command("faces-32", *FEW, "--out", "steps.zip")[0] == 0
    with zipfile.ZipFile(tmp_path / "steps.zip") as archive:
        assert len(archive.namelist()) == 7 and json.loads(archive.read("settings.json"))["steps_taken"] == 3
    assert command("faces-32", *FEW, "--out", "film.gif", "--walk-to", "9")[0] == 0
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 3
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_model_on_the_hub_is_as_good_too(command, tmp_path, monkeypatch):
    files = {name: (FACES / name).read_bytes() for name in ("config.json", "model.safetensors", "README.md")}
    with connected(monkeypatch, tmp_path) as fake:
        fake.repos["alice/faces"] = {"files": files, "private": False}
        assert command("alice/faces", *FEW) == (0, "alice-faces-5.png (seed 5)\n", "")
        assert read_settings((tmp_path / "alice-faces-5.png").read_bytes())["checkpoint"] == "alice/faces"
        code, _, complaint = command("alice/cats", *FEW)
        assert code == 2 and "no local folder 'alice/cats', and on the Hub: there is no model" in complaint


def test_a_path_and_a_training_run_are_as_good_as_a_name(command, tmp_path):
    for milestone in ("000500", "001000"):
        shutil.copytree(FACES, tmp_path / "runs" / "mine" / "checkpoints" / milestone)
    for path, name in (("runs/mine", "mine-001000-5.png"), ("runs/mine/checkpoints/000500", "000500-5.png")):
        assert command(path, *FEW) == (0, f"{name} (seed 5)\n", "")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nope"], "there is no checkpoint 'nope'; there are: creatures-32, creatures-32-fast"),
        (["../../etc"], "there is no checkpoint 'etc'; there are: creatures-32, creatures-32-fast"),
        (["."], "config.json is missing"),
        (["faces-32", "--images", "0"], "at least 1, got 0"),
        (["faces-32", "--timesteps", "0"], "from 1 to 100000, got 0"),
        (["faces-32", "--eta", "0.5"], "only ddim takes it"),
        (["faces-32", "--time-difference", "21"], "--time-difference must be a number from 0 to 20, got 21.0"),
        (["faces-32", "--seed", "-1"], "got -1"),
        (["faces-32", "--out", "a.txt"], "ends with .png, which 'a.txt' does not"),
        (["faces-32", "--out", "a.png", "--kind", "gif"], "ends with .gif, which 'a.png' does not"),
    ],
)
def test_bad_input_is_one_sentence(command, tmp_path, arguments, words):
    code, said, complaint = command(*arguments)
    assert (code, said, complaint.count("\n")) == (2, "", 1)
    assert words in complaint and list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_told_by_name(command, tmp_path):
    shutil.copytree(FACES, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"not weights")
    code, _, complaint = command("broken")
    assert code == 2 and "model.safetensors cannot be read" in complaint and complaint.count("\n") == 1


def test_what_cannot_be_written_is_told(command, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, complaint = command("faces-32", *FEW, "--out", "file/a.png")
    assert code == 2 and "file" in complaint and complaint.count("\n") == 1


def test_the_help_names_every_setting(command):
    code, said, complaint = command("--help")
    assert (code, complaint) == (0, "")
    assert "usage: python -m dp sample CHECKPOINT [options]" in said
    options = ("images", "timesteps", "sampler", "schedule", "time-difference", "eta", "seed", "walk-to", "out", "kind")
    assert all(f"--{name} " in said for name in options)
    assert max(map(len, said.splitlines())) <= 120
