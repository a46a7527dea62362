"""The pages of docs/: every link leads somewhere, every public name is told of, every line of code and command runs."""

import os
import re
import socket
import subprocess
import sys

import numpy as np
import pytest
from accelerate.commands.launch import launch_command_parser
from PIL import Image
from serving import ROOT

import dp
from dp.runs import RunFolder

PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
CODE = {name: re.findall(r"```python\n(.*?)```", text, re.S) for name, text in PAGES.items()}
COMMANDS = [
    (name, line) for name, text in PAGES.items() for code in re.findall(r"```bash\n(.*?)```", text, re.S)
    for line in code.splitlines()
]  # fmt: skip
# The same commands with small numbers: what is tested is that they are true, not how long they take.
SMALL = {"--steps 5000": "--steps 2 --image-size 16 --width 16 --depth 1 --batch 2"}
SMALL |= {"sample runs/mine": "sample runs/mine --timesteps 2"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the pages speak of."""
    place = tmp_path_factory.mktemp("docs")
    (place / "checkpoints").symlink_to(ROOT / "checkpoints")
    (place / "my" / "pictures").mkdir(parents=True)
    for shade in (0, 90, 180):
        Image.fromarray(np.full((40, 40, 3), shade, np.uint8)).save(place / "my" / "pictures" / f"{shade}.png")
    return place


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", PAGES[name])]
    assert [link for link in links if "://" not in link and not (ROOT / "docs" / link).exists()] == []


def test_the_readme_leads_to_every_page():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in PAGES if f"docs/{name}" not in readme] == []


def test_every_public_name_has_its_place():
    assert set(re.findall(r"^## (\w+)$", PAGES["library.md"], re.M)) == set(dp.__all__)


@pytest.mark.parametrize("name", [name for name, blocks in CODE.items() if blocks])
def test_the_code_of_a_page_runs_from_top_to_bottom(name, place, monkeypatch):
    monkeypatch.chdir(place)
    exec("\n".join(CODE[name]), {})


@pytest.mark.parametrize(("name", "command"), COMMANDS)
def test_the_commands_run(name, command, place):
    for long, short in SMALL.items():
        command = command.replace(long, short)
    python, *arguments = command.split()
    assert python == ".venv/bin/python"
    if arguments[0] == "app.py":  # started by other tests; here, that it takes these arguments
        arguments[0] = str(ROOT / "app.py")
        arguments.append("--help")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DP_DEVICE": "cpu", "CPU_CORES": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=place, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_two_machines_train_one_run(place):
    begin, *_ = re.findall(r"-m (dp\.train my/pictures .*--prepare)", PAGES["several-machines.md"])
    nodes = re.findall(r"-m (torch\.distributed\.run --nnodes .*)", PAGES["several-machines.md"])
    assert len(nodes) == 2
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DP_DEVICE": "cpu", "CPU_CORES": "1"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    changes = {"--steps 5000": SMALL["--steps 5000"], "runs/shared": "runs/two", "10.0.0.1": "127.0.0.1", "29500": port}
    running = []
    for command in (begin, *nodes):
        for said, small in changes.items():
            command = command.replace(said, small)
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started = subprocess.Popen([sys.executable, "-m", *command.split()], cwd=place, env=environment, **streams)
        if command.startswith("dp.train"):
            assert started.wait() == 0
            started.stdout.close()
        else:
            running.append(started)
    try:
        ends = [process.communicate(timeout=120)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n".join(ends)
    status = RunFolder(place / "runs" / "two").status()
    assert (status["state"], status["processes"]) == ("finished", 2)


def test_accelerate_takes_these_arguments():
    lines = re.findall(r"accelerate launch (--.*)", PAGES["several-machines.md"])
    assert len(lines) == 2
    for line in lines:
        asked = launch_command_parser().parse_args(line.split())
        assert asked.module and asked.training_script == "dp.train" and asked.training_script_args == ["runs/shared"]
