"""A page served by a process of its own, as a person would start it, and the browser that looks at it."""

import asyncio
import base64
import http.client
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]

LATE_S = 0.5  # seven times as long as the server waits between two values of a run

WHOLE_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSERS = ("chromium-headless-shell", *WHOLE_BROWSERS)  # a page takes half as much processor time in the shell
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
    # Names of their own for servers on loopback; and as many people have it, no storage for a cross-site frame.
    "--host-resolver-rules=MAP *.test 127.0.0.1",
    "--test-third-party-cookie-phaseout",
]
PATIENCE_S = 150  # with the page: a busy machine may take several times the 30 that are usual


@contextmanager
def open_browser(playwright, names=BROWSERS):
    """The first installed Chromium of these, headless; without one the tests that need it are skipped, but in CI they
    fail.
    """
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"none of {', '.join(names)} is on this machine, and CI must have one")
        pytest.skip(f"install one of {', '.join(names)} from the system's packages to run the browser tests")
    browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
    yield browser
    browser.close()


@contextmanager
def context_for(browser, options):
    """A browser context without cookies or open pages. It is kept for the next test with the same options, whose page
    then finds the app's scripts in the cache.
    """
    wanted = (browser, repr(options))
    idle = [context for context, made_with in KEPT_CONTEXTS.items() if made_with == wanted and not context.pages]
    context = idle[0] if idle else browser.new_context(**options)
    KEPT_CONTEXTS[context] = wanted
    context.set_default_timeout(PATIENCE_S * 1000)
    try:
        yield context
    finally:
        for page in context.pages:
            page.close()
        context.clear_cookies()


KEPT_CONTEXTS = {}  # -> the browser and the options


def watched(page):
    """The page. From now on it notes the errors in its console, and the addresses of its requests."""
    page.trouble, page.asked = [], []
    page.on("pageerror", lambda error: page.trouble.append(str(error)))
    page.on("console", lambda message: message.type == "error" and page.trouble.append(message.text))
    page.on("request", lambda request: page.asked.append(request.url))
    return page


def expect_no_trouble(page, forgiven=()):
    """Fail on any error in the page's console but those `forgiven`."""
    unforgiven = [text for text in page.trouble if not any(words in text for words in forgiven)]
    page.trouble.clear()
    assert not unforgiven, unforgiven


@contextmanager
def window(browser, url, forgiven=(), **options):
    """A fresh page; fails on any error in its console but those `forgiven`, and where it is wider than its window."""
    with context_for(browser, options) as context:
        page = watched(context.new_page())
        page.goto(url)
        page.wait_for_selector("#generate")
        page.wait_for_selector(".player .prediction canvas")
        yield page
        expect_no_trouble(page, forgiven)
        assert page.is_closed() or page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def is_reusable(page, url):
    """Whether another test can use the page: it still shows the app, and no run."""
    return not page.is_closed() and page.url.strip("/") == url.strip("/") and not page.is_visible("#stop")


def forget_runs(page):
    """Show the Denoise tab of a page that another test has used, with nothing left of its runs that could be mistaken
    for the next.
    """
    close_toasts(page)
    page.get_by_role("tab", name="Denoise").click()
    page.wait_for_selector("#generate", state="visible")
    # A run that has just ended is shown once more, with all its frames.
    page.wait_for_function(
        """() => [...document.querySelectorAll('.player[data-run]')].every(({dataset: d}) =>
            !+d.step || d.state === 'idle' || d.kept || d.run === d.forgotten)"""
    )
    page.evaluate(
        """() => document.querySelectorAll('.player').forEach(({dataset: d}) =>
            Object.assign(d, {step: '', state: 'idle', kept: '', forgotten: d.run || ''}))"""
    )


def owners(url, home):
    """The address that makes a browser the owner's, as the app prints it."""
    return f"{url}/?key={(home / '.owner-key').read_text().strip()}"


def owners_cookie(url, home):
    """The cookie of a browser that has opened that address."""
    with closing(http.client.HTTPConnection("127.0.0.1", urlsplit(url).port, timeout=30)) as connection:
        connection.request("GET", "/?" + urlsplit(owners(url, home)).query)
        answer = connection.getresponse()
        assert answer.status == 303
        return answer.headers["Set-Cookie"].partition(";")[0]


def copied_link(page):
    """Press *Copy link* without a clipboard and return the link, which the page then shows in a text field."""
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.click("#link")
    return page.locator("#link-field input:visible").input_value()


def awaited(coroutine):
    """Its result. In a thread of its own: in the tests' one the browser's loop may be running."""
    with ThreadPoolExecutor() as thread:
        return thread.submit(asyncio.run, coroutine).result()


def exit_code(monkeypatch, module, *arguments):
    """Run `main` of a module in this process with these command-line arguments, and return its exit code."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
    try:
        module.main()
    except SystemExit as end:
        return end.code
    return 0


def type_numbers(page, prefix="", **values):
    """Type these values into the page's controls of those names."""
    for control, value in values.items():
        box = page.locator(f"#{prefix}{control} input[type=number]")
        box.fill(str(value))
        box.press("Tab")


def set_run(page, *, timesteps, seed, images=4):
    """Type a run into the page's controls."""
    page.locator("#random input").uncheck()
    type_numbers(page, images=images, timesteps=timesteps, seed=seed)


@contextmanager
def hearing_late(page, beside="Compare"):
    """Start a long run on the tab `beside`, and delay the response to each further start, so that the first values of a
    run reach the page before that response. Gradio's client then merges newer values into those that wait to be shown.
    """
    unfold(page.get_by_role("tab", name=beside))
    name, player = ("compare-", ".player.variant") if beside == "Compare" else ("", "#player .player")
    type_numbers(page, name, timesteps=1000, images=1)
    page.click("#compare" if name else "#generate")
    page.wait_for_function(f"document.querySelector('{player}').dataset.step > 0")

    def answer(route):
        answered = route.fetch()
        time.sleep(LATE_S)
        route.fulfill(response=answered)

    page.route("**/queue/join*", answer)
    yield
    page.unroute_all(behavior="ignoreErrors")


def close_toasts(page):
    """They would lie over the buttons for ten seconds."""
    page.evaluate("document.querySelectorAll('.toast-close').forEach((cross) => cross.click())")


def until(page, condition, seconds=150):
    look = "const p = document.querySelector('.player'), d = p.dataset, step = +(d.step || 0)"
    page.wait_for_function(f"(() => {{ {look}; return {condition}; }})()", timeout=seconds * 1000)


def settle(page):
    """Wait until Gradio has no more to set of what it has just begun to show: it takes a frame or two."""
    page.evaluate(
        """() => new Promise((done) => {
            const after = (frames) => (frames ? requestAnimationFrame(() => after(frames - 1)) : setTimeout(done, 100));
            after(5);
        })"""
    )


def unfold(control):
    """Click on a tab or a fold. Gradio fills it, and two frames later sets its controls once more: what a test has
    typed meanwhile, as no hand could, would be lost.
    """
    control.click()
    settle(control.page)


def show_more(page):
    """Open the section with more settings, if it is closed."""
    if not page.is_visible("#schedule"):
        unfold(page.locator("#more .label-wrap"))


def click(page, selector, across, down):
    """At a place inside, as shares of its width and height."""
    target = page.locator(selector)
    target.scroll_into_view_if_needed()
    box = target.bounding_box()
    target.click(position={"x": across * box["width"], "y": down * box["height"]})


def decode(src):
    """A data URI as pixels [H,W,3]."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(src.split(",")[1]))).convert("RGB"))


def canvas_pixels(page, pane=".prediction"):
    """Return the pixels that the player shows."""
    return decode(page.evaluate(f"document.querySelector('.player {pane} canvas').toDataURL('image/png')"))


class Proxy(ThreadingTCPServer):
    """A reverse proxy that rejects bodies larger than `limit` bytes, as nginx does, and notes the others' sizes."""

    daemon_threads = True

    def __init__(self, port):
        self.port, self.limit, self.sizes, self.connections = port, 1_000_000, [], []
        super().__init__(("127.0.0.1", 0), Forward)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def cut(self):
        """Break all connections, and accept nothing any more."""
        self.limit = -1
        for connection in self.connections:
            with suppress(OSError):  # closed
                connection.shutdown(socket.SHUT_RDWR)


class Forward(StreamRequestHandler):
    def handle(self):
        head = b"".join(iter(self.rfile.readline, b"\r\n"))
        body = self.rfile.read(int((re.search(rb"(?i)content-length: (\d+)", head) or [0, 0])[1]))
        if len(body) > self.server.limit:
            page = b"<html><h1>413 Request Entity Too Large</h1></html>"
            self.wfile.write(b"HTTP/1.1 413 Request Entity Too Large\r\nConnection: close\r\n\r\n" + page)
            return
        self.server.sizes.append(len(body))
        head = re.sub(rb"(?i)connection: .+\r\n", b"", head) + b"Connection: close\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self.server.port)) as app:
            self.server.connections.append(app)
            app.sendall(head + body)
            while answer := app.recv(1 << 16):
                try:
                    self.wfile.write(answer)
                except OSError:  # the page has gone
                    return


@contextmanager
def behind_proxy(port):
    """Yield a `Proxy` in front of the server on that port."""
    with Proxy(port) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield proxy
        finally:
            proxy.shutdown()


@contextmanager
def serve(*arguments: str, log: list[str] | None = None, **environment: str):
    """Run python with `arguments` and `--port`, wait until it serves, and give its address; ends the process after. It
    sees no runs unless DP_HOME is given. log: gets the lines that it writes.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet = {"GRADIO_ANALYTICS_ENABLED": "False", "PYTHONUNBUFFERED": "1"}
    env = os.environ | quiet | {"DP_DEVICE": "cpu", "DP_HOME": os.devnull} | environment
    command = [sys.executable, *arguments, "--port", str(port)]
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            said = [] if log is None else log
            for line in process.stdout:
                said.append(line)
                if "Running on local URL" in line:
                    break
            else:
                raise RuntimeError("it did not start:\n" + "".join(said))
            threading.Thread(
                target=said.extend, args=(process.stdout,), daemon=True
            ).start()  # a full pipe would stop the server
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)
            if hasattr(os, "killpg"):  # the workers that it forked, which would keep the pipe open
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
