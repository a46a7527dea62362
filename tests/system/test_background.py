"""Tests of dp.system.background: how a process of its own ends is told, and none is left behind."""

import os
import sys

import pytest

from dp.system.background import run_in_background


def run(tmp_path, script, timeout_s=60):
    return run_in_background([sys.executable, "-c", script], tmp_path, timeout_s)


def test_the_exit_code_and_the_last_line_are_returned(tmp_path):
    assert run(tmp_path, "print('a'); print(); raise SystemExit('b')") == (1, "b")
    assert run(tmp_path, "pass") == (0, "")


def test_a_process_that_takes_too_long_is_killed(tmp_path):
    script = "import os, time; open('pid', 'w').write(str(os.getpid())); os.rename('pid', 'started'); time.sleep(60)"
    with pytest.raises(TimeoutError, match="minutes"):
        run(tmp_path, script, timeout_s=2)
    if (tmp_path / "started").exists():  # on a busy machine it may not have come that far
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "started").read_text()), 0)
