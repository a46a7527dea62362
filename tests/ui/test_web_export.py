"""`python -m dp export-web`: the command and what it writes about a model. tests/browser/test_exported_page.py looks at
the page.
"""

from __future__ import annotations

import re
import sys

import pytest
from exported import load_onnx, source_folder
from pages import exit_code

from dp.diffusion.policy import DiffusionPolicy
from dp.hub import client
from dp.networks.rin import SequenceRIN
from dp.ui.components.files import read_file
from dp.ui.sampling import page_values
from dp.ui.web import cli, graph
from dp.ui.web.card import card_blocks

load_onnx()


def test_a_card_becomes_words():
    text = "# x\n\nOne *two* [three](u) `four`.\n\n```bash\nrm\n```\n\nLook:\n\n![a](b.png)\n\n"
    text += "## Empty\n\n## Full\n\n- p\n- q\n\nimages.zip holds some."
    assert card_blocks(text, "x") == [
        {"kind": "paragraph", "text": "One two three four."},
        {"kind": "heading", "text": "Full"},
        {"kind": "item", "text": "p"},
        {"kind": "item", "text": "q"},
    ]
    assert card_blocks("", "x") == []


def test_the_pages_limits_are_the_apps():
    script = read_file("web/settings.js")
    limits = re.search(r"const LIMITS = (\{.*\});", script)[1]
    upper = {name: float(value) for name, value in re.findall(r"(\w+): \[\d+, ([\d.]+)\]", limits)}
    assert upper == {
        "images": page_values.MAX_IMAGES,
        "timesteps": page_values.MAX_TIMESTEPS,
        "guidance": page_values.MAX_GUIDANCE,
        "difference": page_values.MAX_TIME_DIFFERENCE_STEPS,
        "eta": 1,
    }
    titles = re.search(r"SAMPLER_TITLES = \{(.*?)\}", script)[1].replace("[CONSISTENCY]", page_values.CONSISTENCY)
    assert [(title, name) for name, title in re.findall(r'(\w+): "(.*?)"', titles)] == page_values.FAST_SAMPLERS


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Return a function that runs the command and gives its exit code, what it said and its complaint."""
    monkeypatch.setenv("DP_DEVICE", "cpu")

    def run(*arguments):
        return exit_code(monkeypatch, cli, *map(str, arguments)), *capsys.readouterr()

    return run


def test_the_command_replaces_its_own_folder_and_no_other(command, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "export_page", lambda source, target, name: (target / "runtime").mkdir(parents=True) or 5)
    source, target = source_folder(), tmp_path / "out"
    code, said, _ = command(source, target)
    assert code == 0 and said.startswith(f"{target}: 5 bytes") and (target / "runtime").is_dir()
    (target / "model.onnx").write_bytes(b"")
    (target / "old").write_bytes(b"")
    assert command(source, target)[0] == 0 and not (target / "old").exists()
    (target / "mine").write_bytes(b"")
    code, _, complaint = command(source, target)
    assert code == 2 and "files of something else" in complaint and (target / "mine").exists()
    (tmp_path / "file").write_bytes(b"")
    assert "is a file" in command(source, tmp_path / "file")[2]


def test_the_command_says_what_is_wrong_before_it_exports(command, tmp_path, monkeypatch):
    source, target = source_folder(), tmp_path / "out"
    assert "user/name" in command(source, target, "--publish", "name")[2]
    monkeypatch.setattr(client, "get_token", lambda: None)
    assert "publishing needs a token" in command(source, target, "--publish", "a/b")[2]
    assert "--private belongs to --publish" in command(source, target, "--private")[2]
    assert command(tmp_path / "none", target)[0] == 2
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, _, complaint = command(source, target)
    assert code == 2 and complaint == "exporting needs onnxscript, which is not installed: " + graph.INSTALL + "\n"
    assert not target.exists()


def test_a_model_of_sequences_is_refused(command, tmp_path):
    network = SequenceRIN(dim=8, length=8, depth=1, num_latents=4, heads=1, conv_widths=(8,))
    DiffusionPolicy(network).save_pretrained(tmp_path / "paths")
    code, _, complaint = command(tmp_path / "paths", tmp_path / "page")
    assert code == 2 and not (tmp_path / "page").exists()
    assert "paths cannot be exported: it is a model of sequences, and a page draws images" in complaint
