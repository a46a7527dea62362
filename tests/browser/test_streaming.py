"""Many readers of one engine: pages that disconnect and return, clients that are killed, and the resources that they
leave behind. The app runs in this process, so that the tests can inspect its engine.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from urllib.parse import urlsplit

import numpy as np
import pytest
from gradio_client import Client
from models import MODEL, PacedEngine, model, models_dir
from pages import behind_proxy, canvas_pixels, expect_no_trouble, set_run, watched

from dp.data.codec import make_grid, to_uint8
from dp.ui import streaming
from dp.ui.app import build_app
from dp.ui.streaming import REPLAYED, evenly_chosen

# The server runs in this process: a warning turned into an error would be raised in Gradio's threads.
pytestmark = pytest.mark.filterwarnings("ignore")

SOON = 60.0  # rows of a lost reader should be freed within 2 s; the rest is for a busy machine


class App:
    """The real app, served in this process, with access to its engine."""

    def __init__(self):
        self.engine = PacedEngine(models_dir(), device="cpu")
        self.demo = build_app(self.engine)
        _, self.url, _ = self.demo.launch(prevent_thread_lock=True, quiet=True)
        (self.generate,) = [i for i, fn in self.demo.fns.items() if fn.name == "generate"]

    @property
    def handles(self):
        return [request.handle for request in list(self.engine._requests.values())]

    def at_work(self):
        return [handle for handle in self.handles if handle.state in ("waiting", "running")]

    def wait_until_idle(self):
        start = time.monotonic()
        while self.at_work():
            assert time.monotonic() - start < SOON, f"{self.at_work()} still hold rows"
            time.sleep(0.005)
        return time.monotonic() - start


@pytest.fixture(scope="module")
def app():
    app = App()
    yield app
    app.demo.close()


@pytest.fixture(autouse=True)
def nobody_is_left(app):
    yield
    for handle in app.handles:
        handle.cancel()
    app.wait_until_idle()


@pytest.fixture(scope="module")
def proxy(app):
    with behind_proxy(urlsplit(app.url).port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def url(proxy):
    """The address of the page that the tests share; test_a_page_that_lost_its_connection cuts it off."""
    return proxy.url


def alone(images, timesteps, seed):
    policy = model()
    return make_grid(to_uint8(policy.sample(images, timesteps=timesteps, sampler="dpmpp_2m", seed=seed)))


def begin(page, app, timesteps, images=2, seed=5):
    set_run(page, timesteps=timesteps, seed=seed, images=images)
    page.click("#generate")
    page.wait_for_function("+(document.querySelector('.player').dataset.step || 0) > 2", timeout=150_000)
    return app.handles[-1]


class Reader:
    """Sends the requests of a page that starts a run, without a browser."""

    def __init__(self, app, images=2, timesteps=1000):
        self.session = uuid.uuid4().hex
        values = [MODEL, "", 1, images, timesteps, "ddim", 1, False, "trained", 0, 0]
        values += [None, None, "server"]  # no start image, no walk, and who computes
        body = {"data": values, "fn_index": app.generate, "session_hash": self.session}
        request = urllib.request.Request(
            f"{app.url}gradio_api/queue/join", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=30).close()
        self.stream = urllib.request.urlopen(f"{app.url}gradio_api/queue/data?session_hash={self.session}", timeout=30)

    def messages(self):
        for line in self.stream:
            if line.startswith(b"data: "):
                yield json.loads(line[6:])

    def frames(self):
        """Yield the steps shown as they arrive."""
        for message in self.messages():
            for part in message.get("output", {}).get("data", [])[:1]:
                if "index" in json.dumps(part):
                    yield message

    def vanish(self):
        self.stream.close()


# ----------------------------------------------------------------------------
# A page that disconnects and returns


@pytest.mark.browser
def test_a_reloaded_page_replays_its_run_which_ends_with_the_same_images(app, shared_page):
    page = shared_page
    handle = begin(page, app, 200)
    page.wait_for_function("+document.querySelector('.player').dataset.step > 30", timeout=150_000)
    page.add_init_script(
        """window.seen = [];
        setInterval(() => {
            const player = document.querySelector('.player');
            if (player && player.dataset.step) window.seen.push(+player.dataset.step);
        }, 10);"""
    )
    page.reload()
    page.wait_for_function("document.querySelector('.player')?.dataset.state === 'done'", timeout=150_000)
    assert handle.state == "done" and len(app.handles) == len({t.request_id for t in app.handles})
    page.wait_for_function("window.seen.at(-1) === 200")  # polled every 10 ms
    seen = [step for step in page.evaluate("window.seen") if step]
    assert seen[0] < 30 and seen == sorted(seen) and seen[-1] == 200
    np.testing.assert_array_equal(canvas_pixels(page), alone(2, 200, 5))
    assert page.is_visible("#generate") and not page.is_visible("#stop")
    # The controls are those of the run, and its settings are below its images.
    for control, value in (("timesteps", "200"), ("images", "2"), ("seed", "5")):
        assert page.input_value(f"#{control} input[type=number]") == value
    assert not page.locator("#random input").is_checked()
    shown = page.inner_text(".run-settings")
    assert shown == f"{MODEL} · 200 steps · DPM-Solver++(2M) · sigmoid schedule · seeds 5 to 6"


@pytest.mark.browser
def test_a_run_can_be_stopped_after_a_reload_and_a_new_tab_has_its_own_which_is_parked_when_it_closes(app, shared_page):
    page = shared_page
    handle = begin(page, app, 1000, images=1)
    page.reload()
    page.wait_for_selector("#stop", state="visible")
    other = watched(page.context.new_page())
    other.goto(page.url)
    other.wait_for_selector(".player canvas")
    time.sleep(0.5)
    assert other.get_attribute(".player", "data-state") == "idle"
    page.click("#stop")
    page.wait_for_function("document.querySelector('.player').dataset.state === 'stopped'", timeout=150_000)
    assert handle.state == "stopped"

    # A page that is closed frees its rows.
    handle = begin(other, app, 1000)
    expect_no_trouble(other)
    other.close()
    print(f"rows free after {app.wait_until_idle():.2f} s")
    assert handle.state == "parked"


@pytest.mark.browser
def test_stop_before_the_first_frame_does_not_show_the_previous_run(app, shared_page, monkeypatch):
    page = shared_page
    set_run(page, timesteps=5, seed=5)
    page.click("#generate")
    page.wait_for_function("document.querySelector('.player').dataset.state === 'done'", timeout=150_000)
    page.wait_for_selector("#generate", state="visible")
    gate, get = threading.Event(), app.engine._models.get
    monkeypatch.setattr(app.engine._models, "get", lambda name: gate.wait(60) and get(name))  # slow, as a first load
    page.click("#generate")
    page.click("#stop")
    page.wait_for_function("document.querySelector('.player').dataset.state === 'stopped'", timeout=150_000)
    gate.set()
    assert page.inner_text(".player .step") == "stopped before the first step"
    assert (
        page.inner_text(".player .noise-level") == "" and page.get_attribute(".player .bar", "aria-valuenow") == "0.000"
    )


@pytest.mark.browser
def test_two_presses_of_generate_start_one_run(app, shared_page):
    page = shared_page
    set_run(page, timesteps=100, seed=5)
    before = len(app.handles)
    page.evaluate("[1, 2].forEach(() => document.querySelector('#generate').click())")
    page.wait_for_function("document.querySelector('.player').dataset.state === 'done'", timeout=150_000)
    assert len(app.handles) == before + 1


@pytest.mark.browser
def test_a_page_that_lost_its_connection_reattaches_to_its_run(app, proxy, shared_page):
    page = shared_page
    handle = begin(page, app, 150)
    proxy.cut()
    app.wait_until_idle()
    assert handle.state == "parked"
    page.evaluate("let ahead = 0; performance.now = () => (ahead += 10_000)")  # every pause seems long
    page.wait_for_function("document.querySelector('.player .step').innerText.startsWith('No answer from the server')")
    assert "steps/s" not in page.inner_text(".player .noise-level")
    with page.expect_request(lambda request: handle.request_id in (request.post_data or ""), timeout=150_000):
        proxy.limit = 1_000_000
    page.evaluate("delete performance.now")
    page.wait_for_function("document.querySelector('.player').dataset.state === 'done'", timeout=150_000)
    assert handle.state == "done"
    np.testing.assert_array_equal(canvas_pixels(page), alone(2, 150, 5))
    page.trouble[:] = [text for text in page.trouble if "network error" not in text and "net::ERR" not in text]


def test_twelve_streams_of_one_client_all_finish(app):
    program = Client(app.url, verbose=False)
    jobs = [program.submit(images=1, timesteps=10, seed=i, api_name="/stream") for i in range(12)]
    assert [job.result(timeout=120)["state"] for job in jobs] == ["done"] * 12


def test_a_run_above_the_limit_is_rejected_with_a_request_to_wait(app, monkeypatch):
    monkeypatch.setattr(streaming, "MAX_RUNS", 2)
    readers = [Reader(app, timesteps=1000) for _ in range(2)]
    for reader in readers:
        next(reader.frames())
    late = Reader(app, timesteps=1000)
    last = next(message for message in late.messages() if message["msg"] == "process_completed")
    assert "the server is at its limit of 2 simultaneous runs: try again in a moment" in last["output"]["error"]
    for reader in [*readers, late]:
        reader.vanish()
    app.wait_until_idle()


def test_replayed_frames_are_evenly_spaced():
    assert evenly_chosen([]) == []
    assert evenly_chosen(list(range(5))) == list(range(5))
    assert len(evenly_chosen(list(range(128)))) <= REPLAYED


# ----------------------------------------------------------------------------
# Readers that disconnect, and what they leave behind


def test_a_reader_whose_connection_breaks_frees_its_rows(app):
    reader = Reader(app)
    next(reader.frames())
    reader.vanish()
    app.wait_until_idle()
    assert app.handles[-1].state == "parked"


PROGRAM = """
import sys
from gradio_client import Client
job = Client(sys.argv[1], verbose=False).submit(images=2, timesteps=1000, api_name=sys.argv[2])
for value in job:
    print(value, flush=True)
"""


@pytest.mark.parametrize("endpoint", ["/stream", "/sample"])
def test_a_client_that_is_killed_frees_its_rows(app, endpoint):
    with subprocess.Popen([sys.executable, "-c", PROGRAM, app.url, endpoint], stdout=subprocess.PIPE) as program:
        program.stdout.readline()
        assert len(app.at_work()) == 1
        program.send_signal(signal.SIGKILL)
    print(f"rows free after {app.wait_until_idle():.2f} s")
    assert app.handles[-1].state == "stopped"  # no client can reattach to it


def test_a_client_that_cancels_frees_its_rows(app):
    job = Client(app.url, verbose=False).submit(images=2, timesteps=1000, api_name="/stream")
    while not job.outputs():
        time.sleep(0.01)
    job.cancel()
    app.wait_until_idle()
    assert app.handles[-1].state == "stopped"


def resources():
    """Return this process's resident megabytes, threads and open files."""
    gc.collect()
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return resident, threading.active_count(), len(os.listdir("/proc/self/fd"))


def abort(app, i):
    """Start a run and disconnect during it, in one of three ways."""
    reader = Reader(app, images=4, timesteps=200)
    frames = reader.frames()
    next(frames)
    if i % 3 == 1:
        app.at_work()[0].cancel()
        for _ in frames:
            pass
    reader.vanish()
    app.wait_until_idle()


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads its own memory where Linux shows it")
@pytest.mark.soak
def test_pages_that_close_during_a_run_leak_nothing():
    app, viewers, settled = App(), 200, 20
    app.engine.ttl_s = 0.2  # runs are kept for pages that return; here only briefly
    for i in range(viewers):
        abort(app, i)
        if i == settled - 1:
            time.sleep(1)
            before = resources()
    time.sleep(1)
    after = resources()
    app.demo.close()
    print(f"MB, threads, files: {before} after {settled}, {after} after {viewers}")
    assert not app.engine._requests
    assert after[0] < before[0] + 30 and after[1] <= before[1] + 3 and after[2] <= before[2] + 3


def test_a_page_that_reads_one_frame_a_second_neither_slows_others_nor_queues_messages(app):
    slow, quick = Reader(app, images=1, timesteps=80), Reader(app, images=1, timesteps=80)
    taken = []

    def read_slowly():
        for message in slow.messages():
            taken.append(message)
            time.sleep(1)

    threading.Thread(target=read_slowly, daemon=True).start()
    for message in quick.messages():
        if message["msg"] == "process_completed":
            break
    app.wait_until_idle()  # the slow reader's run has ended, too
    waiting = app.demo._queue.pending_messages_per_session.get(slow.session)
    assert waiting is None or waiting.qsize() <= 4
    slow.vanish()
    quick.vanish()


def test_an_evicted_session_still_sees_its_run_to_the_end(app):
    readers = [Reader(app, timesteps=30) for _ in range(2)]
    app.demo.state_holder.session_data.clear()  # as Gradio evicts the least recently used sessions
    for reader in readers:
        last = next(message for message in reader.messages() if message["msg"] == "process_completed")
        assert last["success"]
        reader.vanish()
    assert [handle.state for handle in app.handles[-2:]] == ["done", "done"]
