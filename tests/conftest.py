"""Shared by several test files: one thread, so that sums are always added in the same order; tiny networks; the
app, and the browser that looks at it.
"""

import os
import sys
import warnings
from contextlib import ExitStack

import pytest
from pages import expect_no_trouble, forget_runs, is_reusable, open_browser, window


def pytest_collection():
    """Not called in the process that only hands out the files, which need not load torch and Gradio for that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a library says when it is loaded is not about a test
        import torch
        from gradio import http_server

    torch.set_num_threads(1)
    # Each process of the suite has its own range of ports. Between Gradio's search for a free port and its use, another
    # process could take it, and Gradio would wait forever for a server that never starts.
    http_server.INITIAL_PORT_VALUE += 100 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def pytest_configure(config):
    if os.environ.get("CI"):
        config.addinivalue_line("filterwarnings", "error")
        # What a library forgot to close is told whenever its garbage is collected, in whichever test that happens, and
        # as an error even in the middle of the interpreter's own work.
        config.addinivalue_line("filterwarnings", "default::ResourceWarning")
        config.addinivalue_line("filterwarnings", "default::pytest.PytestUnraisableExceptionWarning")


# Files and folders, the slowest first.
SLOW = ("test_train_tab", "test_remote", "test_zero_gpu", "test_models", "test_processes", "test_streaming")
SLOW += (
    "test_player",
    "test_damage",
    "test_bundled",
    "browser",
    "training",
    "test_docs",
    "test_startup",
    "test_gateway",
)
SLOW += ("test_backends", "test_engine", "test_policy")


def pytest_collection_modifyitems(items):
    # Files are handed out in this order, so that the processes end at about the same time.
    def rank(item):
        file = item.nodeid.split("::")[0]
        return next((i for i, word in enumerate(SLOW) if word in file), len(SLOW))

    items.sort(key=rank)
    # Their server may run in this process, where a warning made an error would be raised inside Gradio's threads.
    for item in items:
        if {"url", "app", "page", "browser", "playwright"} & set(item.fixturenames):
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(autouse=True)
def reset_accelerate():
    """Reset accelerate's process-wide settings, since the next trainer may have another precision."""
    yield
    if accelerate := sys.modules.get("accelerate.state"):
        accelerate.AcceleratorState._reset_state(True)


@pytest.fixture
def tiny_rin():
    """A function that makes a tiny RIN with random parameters; keywords as RIN's. Every width differs from the others,
    so that no two can be swapped unseen.
    """
    from models import randomize

    from dp.networks.rin import RIN

    def make(**keywords):
        sizes = {"dim": 8, "image_size": 8, "patch_size": 4, "channels": 3, "depth": 2, "latent_self_attn_depth": 1}
        latents = {"dim_latent": 12, "num_latents": 5, "heads": 2, "dim_head": 3, "conv_blocks": 1}
        return randomize(RIN(**(sizes | latents | keywords)))

    return make


@pytest.fixture(params=[(), (4,)], ids=["patches", "convolutions"])
def conv_widths(request):
    """The two interfaces of a RIN."""
    return request.param


# What Gradio logs when a page is left while it listens. Its client handles the messages of a page that is being hidden
# at once, before earlier ones that still wait for their turn, so a difference may meet a value that has not arrived.
LEFT_EARLY = ("AbortError", "Connection errored out", "client exception TypeError: Cannot set properties of undefined")
WINDOWS = [
    pytest.param({"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"}, id="desktop"),
    pytest.param({"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}, id="phone, dark"),
]


@pytest.fixture(scope="module")
def url():
    """The app with the bundled checkpoint and no runs, served from this process."""
    from launching import launched

    with launched() as address:
        yield address


@pytest.fixture(scope="session")
def playwright():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="session")
def browser(playwright):
    with open_browser(playwright) as browser:
        yield browser


@pytest.fixture
def page(browser, url):
    """A fresh page in a desktop window; test_layout looks at the other one."""
    with window(browser, url, forgiven=LEFT_EARLY, **WINDOWS[0].values[0]) as page:
        yield page


@pytest.fixture(scope="module")
def lent_page(browser, url):
    """A function that returns a page in a desktop window: the same again, unless a test has left it."""
    with ExitStack() as stack:
        opened = []

        def lend():
            if not (opened and is_reusable(opened[-1], url)):
                stack.close()
                opened.append(stack.enter_context(window(browser, url, forgiven=LEFT_EARLY, **WINDOWS[0].values[0])))
            return opened[-1]

        yield lend


@pytest.fixture
def shared_page(lent_page):
    """A page that a file's tests share, since loading one takes longer than most of them. It shows the Denoise tab and
    has forgotten the runs of the previous test, but its controls are as that test left them.
    """
    page = lent_page()
    forget_runs(page)
    yield page
    expect_no_trouble(page, LEFT_EARLY)
