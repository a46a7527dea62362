"""The pages of docs/: every link is valid, every public name is documented, all code and commands run."""

import os
import re
import socket
import subprocess
import sys

import numpy as np
import pytest
from accelerate.commands.launch import launch_command_parser
from commands import exit_code_of, launch_options_of
from pages import ROOT
from PIL import Image

import dp
from dp.training.run_folder import RunFolder

PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
CODE = {name: re.findall(r"```python\n(.*?)```", text, re.S) for name, text in PAGES.items()}
COMMANDS = {
    name: [line for code in re.findall(r"```bash\n(.*?)```", text, re.S) for line in code.splitlines()]
    for name, text in PAGES.items()
}
# The same commands with small numbers: the test checks that they work, not how long they take.
SMALL = {"--steps 5000": "--steps 2 --image-size 16 --width 16 --depth 1 --batch 2"}
SMALL |= {"sample runs/mine": "sample runs/mine --timesteps 2"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Create the files that the pages mention in a new current folder."""
    place = tmp_path
    (place / "checkpoints").symlink_to(ROOT / "checkpoints")
    (place / "my" / "images").mkdir(parents=True)
    for shade in (0, 90, 180):
        Image.fromarray(np.full((40, 40, 3), shade, np.uint8)).save(place / "my" / "images" / f"{shade}.png")
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize("name", PAGES)
def test_links_are_valid(name):
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", PAGES[name])]
    assert [link for link in links if "://" not in link and not (ROOT / "docs" / link).exists()] == []


def test_the_readme_links_to_every_page():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in PAGES if f"docs/{name}" not in readme] == []


def test_every_public_name_is_documented():
    assert set(re.findall(r"^## (\w+)$", PAGES["library.md"], re.M)) == set(dp.__all__)


@pytest.mark.parametrize("name", [name for name, blocks in CODE.items() if blocks])
def test_the_code_of_a_page_runs_from_top_to_bottom(name, place):
    exec("\n".join(CODE[name]), {})


@pytest.mark.parametrize("name", [name for name, commands in COMMANDS.items() if commands])
def test_the_commands_of_a_page_run_in_order(name, place):
    for command in COMMANDS[name]:
        python, *arguments = small(command).split()
        assert python == ".venv/bin/python"
        if arguments[0] == "app.py":
            options = launch_options_of(*arguments)
            assert not options["allowed_hosts"] or f"--allowed-host {options['allowed_hosts'][0]}" in command
            assert "--port" not in arguments or options["server_port"] == 7860
            assert "--host" not in arguments or options["server_name"] == "0.0.0.0"
        elif "torch.distributed.run" in arguments:
            process = started(place, *arguments)
            said, _ = process.communicate(timeout=250)
            assert process.returncode == 0, said
        else:
            assert exit_code_of(*arguments) == 0, command


def small(command):
    for long, short in SMALL.items():
        command = command.replace(long, short)
    return command


def started(place, *arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DP_DEVICE": "cpu", "CPU_CORES": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *arguments], cwd=place, env=environment, **streams)


@pytest.mark.soak
def test_two_machines_train_one_run(place):
    begin, *_ = re.findall(r"(-m dp train my/\w+ .*--prepare)", PAGES["several-machines.md"])
    nodes = re.findall(r"(-m torch\.distributed\.run --nnodes .*)", PAGES["several-machines.md"])
    assert len(nodes) == 2
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    assert exit_code_of(*small(begin).split()) == 0
    running = [started(place, *node.replace("10.0.0.1", "127.0.0.1").replace("29500", port).split()) for node in nodes]
    try:
        ends = [process.communicate(timeout=250)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n".join(ends)
    status = RunFolder(place / "runs" / "shared").status()
    assert (status.state, status.processes) == ("finished", 2)


def test_accelerate_takes_these_arguments():
    lines = re.findall(r"accelerate launch (--.*)", PAGES["several-machines.md"])
    assert len(lines) == 2
    for line in lines:
        asked = launch_command_parser().parse_args(line.split())
        assert asked.module and (asked.training_script, asked.training_script_args) == ("dp", ["train", "runs/shared"])
