"""The frame of the project: the README's promises, the Space's front matter, and the script that draws the pictures."""

import importlib.util
import re
from pathlib import Path

import gradio
import numpy as np
import pytest
from huggingface_hub import SpaceCard
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


def test_front_matter_makes_a_space():
    card = SpaceCard(README).data
    assert (card.sdk, card.app_file, card.license) == ("gradio", "app.py", "mit")
    # Unquoted, YAML would read 3.10 as the number 3.1.
    assert isinstance(card.sdk_version, str) and isinstance(card.python_version, str)
    assert {card.colorFrom, card.colorTo} <= COLOURS
    assert len(card.short_description) <= 60


def test_the_spaces_gradio_is_one_that_requirements_allow():
    requirements = (ROOT / "requirements.txt").read_text()
    floor = re.search(r"^gradio>=([\d.]+),<7$", requirements, re.M)[1]
    version = tuple(map(int, SpaceCard(README).data.sdk_version.split(".")))
    assert tuple(map(int, floor.split("."))) <= version < (7,)
    assert gradio.__version__.split(".")[0] == "6"


def test_requirements_are_floors():
    # The platform installs its own gradio, torch and spaces beside ours in one command; a pin would break that build.
    assert "==" not in (ROOT / "requirements.txt").read_text()


def test_ci_runs_the_readmes_test_command():
    (command,) = re.findall(r"^python3 -m venv .*pytest$", README, re.M)
    assert command in (ROOT / ".ci" / "run").read_text()


def test_every_file_that_the_readme_shows_or_names_is_there():
    pictures_and_links = re.findall(r"\]\(([^)]+)\)", README)
    tree = re.findall(r"^([\w/]+(?:\.py|/))  ", README, re.M)
    assert pictures_and_links and tree
    assert [name for name in pictures_and_links + tree if not (ROOT / name).exists()] == []


def test_the_readmes_code_runs(tmp_path, monkeypatch):
    code, _ = re.findall(r"```python\n(.*?)```", README, re.S)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    (tmp_path / "my" / "pictures").mkdir(parents=True)
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "my" / "pictures" / "black.png")
    # The same lines with small numbers: what is tested is that they are true, not how long they take.
    small = {
        "policy.sample(16, timesteps=50": "policy.sample(16, timesteps=2",
        "stream(16, timesteps=50": "stream(2, timesteps=3",
    }
    small |= {"train_num_steps=5000": "train_num_steps=2, num_samples=1, sample_steps=1"}
    for long, short in small.items():
        assert long in code
        code = code.replace(long, short)
    names = {}
    exec(code, names)
    assert tuple(names["images"].shape) == (16, 3, 32, 32)
    assert (tmp_path / "runs/mine/checkpoints/000002/model.safetensors").is_file()


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("make", ROOT / "checkpoints" / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_make_draws_the_faces(make, tmp_path):
    if not Path(make.FONT).exists():
        pytest.skip("the font is not installed: Debian's package is fonts-noto-color-emoji")
    assert make.draw(make.MODELS["faces-32"]["pictures"], tmp_path) == len(list(tmp_path.glob("*.png"))) > 100
    grinning = np.asarray(Image.open(tmp_path / "1f600.png"))
    assert grinning.shape == (136, 136, 3)
    assert (grinning[0, 0] == 255).all() and grinning[68, 20, 2] < 100  # white corner, yellow cheek


@pytest.mark.parametrize("folder", sorted(p.parent.name for p in (ROOT / "checkpoints").glob("*/config.json")))
def test_bundled_folders_are_small_and_whole(folder):
    files = [path for path in (ROOT / "checkpoints" / folder).rglob("*") if path.is_file()]
    assert {"config.json", "model.safetensors", "README.md"} <= {path.name for path in files}
    assert sum(path.stat().st_size for path in files) < 10_000_000
