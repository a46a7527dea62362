"""The README's promises, and the Space's front matter."""

import re
import shutil
import subprocess
from pathlib import Path

import gradio
import numpy as np
import pytest
from commands import exit_code_of
from huggingface_hub import SpaceCard, SpaceHardware
from PIL import Image

from dp.serving.engine import Engine
from dp.ui import streaming
from dp.ui.app import build_app
from dp.ui.sampling import page_values
from dp.ui.server import DEFAULTS

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
    keys = re.findall(r"^(\w+):", README.split("---")[1], re.M)
    assert len(keys) == len(set(keys))  # the platform rejects duplicate keys
    # Signing in identifies the visitor, and lets the page publish and start Jobs in their name, nothing more.
    assert card.hf_oauth is True and card.hf_oauth_scopes == ["contribute-repos", "jobs"]
    assert card.suggested_hardware in {hardware.value for hardware in SpaceHardware}


def test_the_requirements_allow_the_spaces_gradio():
    requirements = (ROOT / "requirements.txt").read_text()
    floor = re.search(r"^gradio>=([\d.]+),<7$", requirements, re.M)[1]
    version = tuple(map(int, SpaceCard(README).data.sdk_version.split(".")))
    assert tuple(map(int, floor.split("."))) <= version < (7,)
    assert gradio.__version__.split(".")[0] == "6"


def test_requirements_are_floors():
    # The platform installs its own gradio, torch and spaces beside ours in one command; a pin would break that build.
    for name in ("requirements.txt", "requirements-cpu.txt", "requirements-web.txt"):
        assert "==" not in (ROOT / name).read_text()


# What the platform installs in one command, by the build logs of Spaces: `requirements.txt`, and these.
SPACE = ["gradio[oauth,mcp]=={sdk_version}", "uvicorn>=0.14.0", "websockets>=10.4"]
ZERO_GPU = ["torch<=2.13.0", "spaces==0.51.3"]


@pytest.mark.soak
@pytest.mark.parametrize("python", ["3.10", "3.12"])
@pytest.mark.parametrize("hardware", [["spaces"], ZERO_GPU], ids=["its own", "ZeroGPU"])
def test_the_platforms_install_line_resolves(python, hardware, tmp_path):
    if not (uv := shutil.which("uv")):
        pytest.skip("uv is not installed: pip install uv")
    line = [*SPACE, *hardware]
    (tmp_path / "platform.txt").write_text("\n".join(line).format(sdk_version=SpaceCard(README).data.sdk_version))
    names = ["requirements.txt"] if hardware is ZERO_GPU else ["requirements.txt", "requirements-cpu.txt"]
    files = [*(str(ROOT / name) for name in names), str(tmp_path / "platform.txt")]
    target = ["--python-version", python, "--python-platform", "x86_64-manylinux_2_28", "--only-binary", ":all:"]
    done = subprocess.run([uv, "pip", "compile", "--no-header", *target, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^([\w-]+)==", done.stdout, re.M)
    assert {"torch", "gradio", "spaces", "huggingface-hub", "authlib", "mcp"} <= set(found)


def test_ci_runs_the_readmes_test_command():
    (command,) = re.findall(r"^python3 -m venv .*pytest$", README, re.M)
    assert command in (ROOT / ".ci" / "run").read_text()


def test_every_file_in_the_readme_exists():
    pictures_and_links = re.findall(r"\]\(([^)]+)\)", README)
    tree = re.findall(r"^([\w/]+(?:\.py|/))  ", README, re.M)
    assert pictures_and_links and tree
    assert [name for name in pictures_and_links + tree if not (ROOT / name.partition("#")[0]).exists()] == []


def test_the_readmes_code_runs(tmp_path, monkeypatch):
    code, _ = re.findall(r"```python\n(.*?)```", README, re.S)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    (tmp_path / "my" / "images").mkdir(parents=True)
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "my" / "images" / "black.png")
    # The same lines with small numbers: the test checks that they work, not how long they take.
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


def test_the_readmes_commands_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"## From the command line\n\n```bash\n(.*?)```", README, re.S)[1]
    commands = [*code.splitlines(), *re.findall(r"^\.venv/bin/python -m dp publish-space .*$", README, re.M)]
    assert len(commands) == 4
    (tmp_path / "my" / "images").mkdir(parents=True)
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "my" / "images" / "black.png")
    # The same lines with small numbers, and without a Hub: the test checks that they work.
    small = {"--steps 5000": "--steps 2 --image-size 16 --width 16 --depth 1 --batch 2"}
    small |= {"sample runs/mine": "sample runs/mine --timesteps 2 --seed 3", "your-space": "your-space --dry-run"}
    for command in commands:
        for long, short in small.items():
            command = command.replace(long, short)
        python, *arguments = command.split()
        assert python == ".venv/bin/python" and exit_code_of(*arguments) == 0, command
    made = {"faces.gif", "images-000002-3.png", "runs"}
    assert made <= {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "runs" / "mine" / "checkpoints" / "000002" / "model.safetensors").is_file()


def test_the_limits_in_the_readme_are_right():
    runs = f"{streaming.MAX_RUNS} runs under way at once"
    limits = f"{page_values.MAX_IMAGES} images and {page_values.MAX_TIMESTEPS:,} timesteps a run, {runs}"
    waiting = build_app(Engine(ROOT / "checkpoints", device="cpu"))._queue.max_size
    assert f"{limits}, {waiting} waiting" in README
    assert f"uploads of {DEFAULTS['max_file_size'].upper().replace('MB', ' MB')}" in README
