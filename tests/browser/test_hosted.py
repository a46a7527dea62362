"""The hosted page: in a cross-site frame with storage blocked, as Hugging Face shows a Space, and behind a proxy that
limits the size of a message.
"""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from launching import launched
from models import MODEL
from pages import (
    WHOLE_BROWSERS,
    behind_proxy,
    click,
    context_for,
    expect_no_trouble,
    open_browser,
    show_more,
    unfold,
    watched,
)

from dp.data.codec import encode_png

# The attributes of the frame on a Space's page on huggingface.co.
SANDBOX = (
    "allow-downloads allow-forms allow-modals allow-pointer-lock allow-popups allow-popups-to-escape-sandbox "
    "allow-same-origin allow-scripts allow-storage-access-by-user-activation"
)
ALLOW = (
    "accelerometer; ambient-light-sensor; autoplay; battery; camera; clipboard-read; clipboard-write; "
    "display-capture; document-domain; encrypted-media; fullscreen; geolocation; gyroscope; layout-animations; "
    "legacy-image-formats; magnetometer; microphone; midi; oversized-images; payment; picture-in-picture; "
    "publickey-credentials-get; serial; sync-xhr; usb; vr; wake-lock; xr-spatial-tracking"
)


@contextmanager
def framed(page, app, allow):
    """Show the app at the address `app` in a page of another site, and yield its frame."""
    markup = f'<iframe sandbox="{SANDBOX}" allow="{allow}" src="{app}" width="1200" height="1400"></iframe>'

    class Site(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(markup.encode())

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            site = app.split("app.")[1].split(":")[0]  # hub.test shows app.test
            page.goto(f"http://hub.{site}:{server.server_port}/")
            yield opened(page)
        finally:
            server.shutdown()


def opened(page):
    frame = page.frames[1]
    frame.wait_for_selector("#generate")
    frame.wait_for_selector(".player .prediction canvas")
    return frame


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("SPACE_ID", "you/space"), ("SPACE_HOST", "app.test"), ("DP_ALLOW_TRAINING", "1")):
            patch.setenv(name, value)
        with launched(tmp_path_factory.mktemp("home")) as address:
            yield address.rsplit(":", 1)[1]


@pytest.fixture(scope="module")
def browser(playwright):
    """The whole browser: the headless shell neither blocks storage nor asks for permissions."""
    with open_browser(playwright, WHOLE_BROWSERS) as browser:
        yield browser


@pytest.fixture
def page(browser):
    """Yield an empty page; any console error in its frames fails the test."""
    with context_for(browser, {"viewport": {"width": 1280, "height": 1500}}) as context:
        page = watched(context.new_page())
        yield page
        expect_no_trouble(page, forgiven=["favicon"])


def has_storage(frame, which):
    return frame.evaluate(f"() => {{ try {{ window.{which}; return true; }} catch {{ return false; }} }}")


def generate(frame, timesteps):
    frame.locator("#timesteps input[type=number]").fill(str(timesteps))
    frame.locator("#timesteps input[type=number]").press("Tab")
    frame.click("#generate")


def shown_step(frame, at_least, state):
    found = "const d = document.querySelector('#player .player').dataset"
    frame.wait_for_function(f"(() => {{ {found}; return +d.step >= {at_least} && d.state === '{state}'; }})()")


@pytest.mark.browser
def test_the_page_works_in_a_frame_without_storage_and_copies_its_link(page, port):
    with framed(page, f"http://app.localhost:{port}/", ALLOW) as frame:
        assert not any(has_storage(frame, which) for which in ("sessionStorage", "localStorage"))

        # Copy link writes to the clipboard; below are the frames in which it cannot.
        assert frame.evaluate("Boolean(navigator.clipboard)")
        frame.click("#link")
        frame.wait_for_function("document.querySelector('#link').textContent === 'Copied'")
        assert not frame.locator("#link-field input").is_visible()

        generate(frame, 5)
        shown_step(frame, 5, "done")
        assert frame.locator("#player .storage-warning").is_visible()
        with page.expect_download() as saved:
            frame.click("#player .save")
            frame.click("#player [data-kind=png]")
        assert saved.value.suggested_filename.endswith(".png")

        # A page that lost its connection reattaches to its run, without any storage.
        generate(frame, 1000)
        shown_step(frame, 5, "running")
        run = frame.get_attribute("#player .player", "data-run")
        with page.expect_request("**/queue/join*") as asked:
            frame.evaluate("let ahead = 0; performance.now = () => (ahead += 10_000)")  # every pause seems long
        frame.evaluate("delete performance.now")
        assert run in asked.value.post_data
        frame.click("#stop")
        shown_step(frame, 1, "stopped")

        unfold(frame.get_by_role("tab", name="Compare"))
        frame.locator("#compare-timesteps input[type=number]").fill("3")
        frame.locator("#compare-timesteps input[type=number]").press("Tab")
        frame.click("#compare")
        frame.wait_for_function(
            "document.querySelectorAll('.player.variant:not([hidden])[data-state=done]').length === 3"
        )
        unfold(frame.get_by_role("tab", name="Train"))
        frame.wait_for_selector(".upload")

        page.reload()
        frame = opened(page)
        assert frame.get_attribute("#player .player", "data-state") == "idle"
        generate(frame, 3)
        shown_step(frame, 3, "done")


CLIPBOARDS = {  # site, the frame's allow attribute, whether there is a clipboard
    "missing": ("test", ALLOW, False),  # http is no secure context
    "rejects": ("localhost", "autoplay", True),
}


@pytest.mark.browser
@pytest.mark.parametrize("site, allow, is_there", CLIPBOARDS.values(), ids=CLIPBOARDS)
def test_copy_link_without_a_clipboard_shows_the_link_in_a_field(page, port, site, allow, is_there):
    with framed(page, f"http://app.{site}:{port}/", allow) as frame:
        assert frame.evaluate("Boolean(navigator.clipboard)") == is_there
        frame.click("#link")
        field = frame.locator("#link-field input")
        field.wait_for()
        link = field.input_value()
        assert link.startswith(f"http://app.{site}:{port}/?checkpoint={MODEL}&") and "timesteps=20" in link
        # It is selected, so that the copy shortcut is enough.
        assert frame.evaluate("document.activeElement.value.slice(0, document.activeElement.selectionEnd)") == link
        assert frame.inner_text("#link").strip() == "Copy link"


@pytest.fixture
def proxy(port):
    with behind_proxy(int(port)) as proxy:
        yield proxy


def noise(side, number=0):
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)


@pytest.mark.browser
def test_messages_stay_below_the_1_mb_limit_of_proxies_and_a_rejected_one_is_reported(page, proxy, tmp_path):
    page.goto(f"http://127.0.0.1:{proxy.server_address[1]}/")
    page.wait_for_selector(".player .prediction canvas")

    large = encode_png(noise(900), {"dp": json.dumps({"timesteps": 7, "seed": 5})})
    assert len(large) > 2_000_000
    with page.expect_file_chooser() as chooser:
        page.click("#load")
    chooser.value.set_files({"name": "large.png", "mimeType": "image/png", "buffer": large})
    page.wait_for_function("document.querySelector('#timesteps input[type=number]').value === '7'")

    show_more(page)
    page.set_input_files(".choose input", {"name": "large.png", "mimeType": "image/png", "buffer": large})
    click(page, ".mask", 0.4, 0.6)
    generate(page.main_frame, 2)
    shown_step(page.main_frame, 2, "done")
    assert max(proxy.sizes) > 200_000  # the image was sent

    unfold(page.get_by_role("tab", name="Train"))
    folder = tmp_path / "album" / ("holiday" * 30) / ("holiday" * 30) / ("holiday" * 30)
    folder.mkdir(parents=True)
    (folder / "large.png").write_bytes(large)
    for i in range(1400):  # their names alone exceed one message
        (folder / f"{i:04}-{'ä' * 100}.png").write_bytes(b"")
    (folder / "small.png").write_bytes(encode_png(noise(40, 1)))
    page.set_input_files("#intake .folder", tmp_path / "album")
    page.wait_for_selector("#intake .upload[data-state=checked]")
    assert page.locator("#intake .rejected td").first.text_content().startswith("album/holiday")
    assert "(300, and 1,100 more)" in page.inner_text("#intake .rejected summary")
    assert page.inner_text("#intake .summary").startswith("2 ")
    assert 900_000 < max(proxy.sizes) < 1_000_000

    page.click("#intake .other")
    proxy.limit, path = 100_000, folder / "large.png"
    page.set_input_files("#intake .files", path)
    page.wait_for_selector("#intake .problem:not(:empty)")
    words = "a proxy in front of this server rejected the upload (413: too large). Its limit must be at least 1 MB."
    assert page.inner_text("#intake .problem") == f"The upload failed: {words}"
    page.trouble[:] = [text for text in page.trouble if "413" not in text]  # logged by the browser itself
