"""`python -m dp publish-space` with a local fake of the Hub."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import fakehub
import pytest
from fakehub import connected, refuses
from huggingface_hub import constants
from pages import exit_code

from dp.hub import client, space

ROOT = Path(__file__).resolve().parents[2]
WRITER, READER = "hf_alice", "hf_reader"
SPACE = "alice/diffusion"
# How the Hub's client hands a file to the package below it.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with connected(monkeypatch, tmp_path) as hub:
        yield hub


@pytest.fixture
def clone(monkeypatch, tmp_path):
    """Return a small clone of the repository that also contains private files."""
    folder = tmp_path / "clone"
    names = ("app.py", "README.md", "requirements.txt", "requirements-cpu.txt", "dp/serving/cli.py")
    for name in (*names, "checkpoints/faces-32/config.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    private = (
        ".venv/bin/python",
        ".git/config",
        "runs/mine/dataset/images.npy",
        "pictures/me.jpg",
        "token.txt",
        ".env",
    )
    private += ("dp/__pycache__/sample.pyc", "dp/ui/components/player/player.pyi", "checkpoints/.DS_Store", ".cache/x")
    for name in private:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("nobody else's")
    monkeypatch.setattr(space, "ROOT", folder)
    return folder


@pytest.fixture
def command(monkeypatch, capfd):
    """Return a function that runs the command with or without a token, and returns exit code, output and errors."""

    def run(*arguments: str, token: str | None = WRITER) -> tuple[int, str, str]:
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        return exit_code(monkeypatch, space, *arguments), *capfd.readouterr()

    return run


def test_the_whole_repository_is_uploaded_and_nothing_else(hub, command):
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode or not listed.stdout:
        pytest.skip("this is no clone")
    code, said, _ = command(SPACE, "--private", "--hardware", "zero-a10g")
    assert code == 0 and f"{hub.url}/spaces/{SPACE}" in said
    there = hub.repos[SPACE]
    assert there["private"]
    tracked = {name for name in listed.stdout.split() if (ROOT / name).is_file()}
    assert tracked <= there["files"].keys()
    assert all((ROOT / name).read_bytes() == content for name, content in there["files"].items())
    assert {token for kind, _, token in hub.requests if kind != "store"} == {WRITER}
    code, *_ = command(SPACE)  # once more: it is there already
    assert code == 0 and hub.kinds().count("commit") == 2


def test_private_files_in_the_clone_are_not_uploaded(hub, clone, command):
    (clone / "requirements-cpu.txt").unlink()
    assert command(SPACE)[0] == 0
    there = {"app.py", "README.md", "requirements.txt", "dp/serving/cli.py", "checkpoints/faces-32/config.json"}
    assert hub.repos[SPACE]["files"].keys() == there
    code, said, _ = command(SPACE, "--dry-run")
    *lines, total = said.splitlines()
    sizes = {name: int(size.replace(",", "")) for size, name in map(str.split, lines)}
    assert code == 0 and sizes == {name: (clone / name).stat().st_size for name in there}
    assert re.fullmatch(rf" *{sum(sizes.values()):,}  bytes in 5 files would be uploaded to the Space {SPACE}", total)


def says_its_hardware(current, requested):
    hardware = {"current": current, "requested": requested}
    return lambda handler: handler.answer(200, {"stage": "RUNNING", "hardware": hardware})


@pytest.mark.parametrize(
    "options, hardware, is_cpu",
    [
        ([], None, True),  # a new Space
        (["--hardware", "cpu-upgrade"], None, True),
        (["--hardware", "zero-a10g"], None, False),
        ([], ("zero-a10g", "zero-a10g"), False),  # there already
        (["--hardware", "zero-a10g"], ("cpu-basic", "cpu-basic"), True),  # the option is for a new Space only
        ([], ("cpu-basic", "t4-small"), False),
        ([], ("cpu-basic", None), True),
    ],
)
def test_a_space_on_a_cpu_gets_the_requirements_for_it(hub, clone, command, monkeypatch, options, hardware, is_cpu):
    if hardware:
        monkeypatch.setitem(fakehub.KINDS, "runtime", r"GET /api/spaces/(?P<repo>[^/]+/[^/]+)/runtime")
        hub.trouble = {"runtime": says_its_hardware(*hardware)}
    assert command(SPACE, *options)[0] == 0
    own, extra = ((clone / name).read_bytes() for name in ("requirements.txt", "requirements-cpu.txt"))
    assert extra.startswith(b"openvino>=") and own.endswith(b"\n")
    assert hub.repos[SPACE]["files"]["requirements.txt"] == own + extra * is_cpu
    _, said, _ = command(SPACE, "--dry-run", *options)
    if not hardware:  # without the network it cannot know the Space's
        assert f"{len(own + extra * is_cpu):,}  requirements.txt\n" in said


def test_a_dry_run_sends_no_requests(hub, clone, command):
    assert command(SPACE, "--dry-run", token=None)[0] == 0
    assert hub.requests == []


def dislikes_the_card(handler):
    handler.answer(400, {"errors": [{"message": "short_description is too long"}]})


@pytest.mark.parametrize(
    "trouble, words",
    [
        ({}, None),
        ({"create": refuses(402)}, "error 402"),
        ({"create": refuses(403)}, "this token lacks a permission"),
        ({"create": refuses(429)}, "too many requests"),
        ({"create": refuses(500)}, "an internal problem"),
        ({"card": dislikes_the_card}, "short_description is too long"),
        ({"commit": refuses(500)}, "an internal problem"),
    ],
)
def test_an_error_of_the_hub_has_a_readable_message(hub, clone, command, trouble, words):
    hub.trouble = trouble
    code, _, complaint = command(SPACE)
    if words is None:
        assert code == 0
    else:
        assert code == 2 and words in complaint.splitlines()[-1] and "Traceback" not in complaint
        assert WRITER not in complaint


@pytest.mark.parametrize(
    "space, token, words",
    [
        (SPACE, None, "log in with `hf auth login`, or set HF_TOKEN"),
        (SPACE, "hf_expired", "does not accept this token"),
        (SPACE, READER, "this token lacks a permission"),
        ("bob/diffusion", WRITER, "this token lacks a permission"),
        ("diffusion", WRITER, "'diffusion' is not a valid repository name; write it as user/name"),
        ("../x/y", WRITER, "is not a valid repository name"),
    ],
)
def test_a_missing_permission_is_reported_with_advice(hub, clone, command, space, token, words):
    code, _, complaint = command(space, token=token)
    assert code == 2 and words in complaint and "Traceback" not in complaint
    assert not token or token not in complaint
    assert hub.repos == {}


def test_an_unreachable_hub_is_reported(hub, clone, command, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    code, _, complaint = command(SPACE)
    assert code == 2 and "cannot be reached; check the network connection" in complaint and complaint.count("\n") == 1


@pytest.fixture
def page(tmp_path):
    """Return a folder of static files."""
    folder = tmp_path / "page"
    (folder / "runtime").mkdir(parents=True)
    for name in ("index.html", "README.md", "runtime/a.gz"):
        (folder / name).write_text(f"---\nsdk: static\n---\n{name}\n")
    return folder


def publish_page(page, token=WRITER, private=False):
    return space.publish_static(page, SPACE, client.headers_for(SPACE, token), private)


def test_a_folder_of_static_files_becomes_a_static_space(hub, page):
    assert publish_page(page) == f"{hub.url}/spaces/{SPACE}"
    there = hub.repos[SPACE]["files"]
    assert there == {path.relative_to(page).as_posix(): path.read_bytes() for path in page.rglob("*") if path.is_file()}
    assert not hub.repos[SPACE]["private"]
    with pytest.raises(client.HubError, match="already exists and is public"):
        publish_page(page, private=True)
    assert hub.kinds().count("commit") == 1


def test_a_space_that_runs_something_is_not_replaced(hub, page):
    hub.repos[SPACE] = {"files": {}, "private": False}
    hub.trouble = {"info": lambda handler: handler.answer(200, {"id": SPACE, "sdk": "gradio", "private": False})}
    with pytest.raises(client.HubError, match="is a Space of another kind"):
        publish_page(page)
    assert "commit" not in hub.kinds()


@pytest.mark.parametrize(
    "token, words", [("", "publishing needs a token"), ("hf_nobody", "does not accept this token")]
)
def test_a_page_is_not_published_without_a_good_token(hub, page, token, words):
    with pytest.raises(client.HubError, match=words):
        publish_page(page, token)
    assert SPACE not in hub.repos
