"""The commands of the README and of docs/, run as `python` runs them but in the test's own process."""

from __future__ import annotations

import os
import runpy
import signal
import sys
from contextlib import contextmanager

import pytest
from pages import ROOT

from dp.serving.engine import Engine
from dp.system import startup
from dp.ui.server import Page


@contextmanager
def as_a_process():
    """Keep what a command changes for its whole process from outliving it in this one."""
    environment, handler = dict(os.environ), signal.getsignal(signal.SIGINT)
    os.environ.update(DP_DEVICE="cpu", CPU_CORES="1", DP_HOME=os.devnull, PYTHONPATH=str(ROOT))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.delattr(os, "nice", raising=False)  # a priority, once lowered, cannot be raised again
            yield patch
    finally:
        signal.signal(signal.SIGINT, handler)
        os.environ.clear()
        os.environ.update(environment)


def exit_code_of(*arguments: str) -> int:
    """Run `python` with these arguments, either `-m MODULE ...` or `SCRIPT ...`, and return its exit code."""
    with as_a_process() as patch:
        try:
            if arguments[0] == "-m":
                _, module, *rest = arguments
                patch.setattr(sys, "argv", [module, *rest])
                main = f"{module}.__main__" if module == "dp" else module
                patch.delitem(sys.modules, main, raising=False)  # as in a new process, where runpy finds it unused
                runpy.run_module(module, run_name="__main__")
            else:
                patch.setattr(sys, "argv", [*arguments])
                runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
        except SystemExit as end:
            return end.code or 0
    return 0


def launch_options_of(*arguments: str) -> dict:
    """Run `python app.py` with these arguments up to where it would listen, and return what it would launch with."""
    launched = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(startup, "try_port", lambda family, place: None)  # another program may have the port
        patch.setattr(Engine, "warm_up", lambda engine: None)  # its threads would outlive this call
        patch.setattr(Page, "launch", lambda page, **options: launched.append(options))
        assert exit_code_of(*arguments) == 0
    [options] = launched
    return options
