"""The real app, served from the test's own process: no second Python, and no second import of torch and Gradio."""

import os
from contextlib import contextmanager

import pytest
from models import PacedEngine, models_dir

from dp.ui.app import build_app


@contextmanager
def launched(home=os.devnull, on_zero_gpu=False, models=None, **options):
    """Serve the app with its runs in `home`, which is DP_HOME meanwhile, and the checkpoints in `models`, by default
    that of the tests, and yield its address; options as in gr.Blocks.launch. Warnings inside Gradio's threads must not
    be errors: see `filterwarnings` in conftest.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DP_HOME", str(home))
        demo = build_app(PacedEngine(models or models_dir(), device="cpu", runs=home), on_zero_gpu=on_zero_gpu)
        demo.launch(quiet=True, prevent_thread_lock=True, **options)
        try:
            yield demo.local_url.rstrip("/")
        finally:
            demo.close()
