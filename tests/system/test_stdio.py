"""dp.system.stdio: printing never ends a command or a run."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from commands import exit_code_of
from tiny_runs import make_pictures

from dp.system import stdio
from dp.system.stdio import SafeStream
from dp.training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--image-size", "16", "--width", "16", "--depth", "1", "--batch", "4", "--steps", "3"]


def started(place: Path, *arguments: str, **streams) -> subprocess.Popen:
    """Start a training command whose terminal supports only ASCII."""
    quiet = {"DP_DEVICE": "cpu", "CPU_CORES": "1", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    command = [sys.executable, "-m", "dp", "train", *arguments]
    return subprocess.Popen(command, cwd=place, env=os.environ | quiet, **streams)


@pytest.fixture
def closed():
    """The end of a pipe that nobody reads, as in `... | head -0`."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


def test_unencodable_names_and_a_closed_terminal_do_not_end_a_run(tmp_path, closed, monkeypatch):
    pictures = make_pictures(tmp_path / "cats 😀")
    (pictures / "ü\udcff😀.png").write_text("no image")
    arguments = [pictures.name, "--out", "runs/😀", *TINY]
    with started(tmp_path, *arguments, "--prepare", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        said, complaint = process.communicate(timeout=150)
    assert (process.returncode, complaint) == (0, b"") and rb"\U0001f600.png" in said

    monkeypatch.chdir(tmp_path)
    with as_the_terminal(closed):
        assert exit_code_of("-m", "dp", "train", *arguments) == 0
    status = RunFolder(tmp_path / "runs" / "😀").status()
    assert (status.state, status.step, status.error) == ("finished", 3, None)


@contextmanager
def as_the_terminal(descriptor: int):
    """Let this process's output go there, in ASCII, as if it had been started so."""
    kept = os.dup(1), os.dup(2)
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(descriptor, number)
            stack.callback(os.close, kept[number - 1])
            stack.callback(os.dup2, kept[number - 1], number)
            stream = open(number, "w", encoding="ascii", closefd=False)  # noqa: SIM115 (the command takes it over)
            patch.setattr(sys, name, stream)
            patch.setattr(sys, f"__{name}__", stream)
        yield


def test_a_command_whose_terminal_was_closed_ends_without_an_error(tmp_path, closed):
    with started(tmp_path, "--help", stdout=closed, stderr=closed) as process:
        assert process.wait(150) == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="another way to have a full disk")
def test_a_full_disk_does_not_fail_a_print():
    with open("/dev/full", "wb", buffering=0) as file:
        stream = SafeStream(file, "ascii", "backslashreplace", line_buffering=True)
        for _ in range(3):
            print("x" * 10_000, "😀", file=stream, flush=True)
        stream.detach()


def test_lines_are_flushed_at_once_and_unencodable_characters_are_escaped(tmp_path):
    script = "import os; from dp.system import stdio as streams; streams.protect(); print('ä 😀'); os.write(1, b'end')"
    with open(tmp_path / "out", "wb") as out:
        asked = os.environ | {"PYTHONIOENCODING": "latin-1"}
        subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=asked, stdout=out, check=True)
    assert (tmp_path / "out").read_bytes() == b"\xe4 \\U0001f600\nend"


@pytest.mark.skipif(os.name == "nt", reason="descriptors are closed in a shell")
def test_closed_descriptors_are_tolerated():
    script = (
        "from dp.system import stdio as streams; streams.protect(); import sys; print('x'); print('y', file=sys.stderr)"
    )
    closed = subprocess.run(["sh", "-c", f'exec "{sys.executable}" -c "{script}" >&- 2>&-'], cwd=ROOT)
    assert closed.returncode == 0


def test_a_replaced_stream_is_kept(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    stdio.protect()
    print("ä")
    assert sys.stdout is stream and stream.detach().getvalue() == b"\\xe4\n"
