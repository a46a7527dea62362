"""The Train tab: uploads, runs that outlive the page and the app, opening checkpoints, and who may do all this."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import time
import urllib.request
import zipfile
from contextlib import contextmanager, suppress

import gradio as gr
import numpy as np
import pytest
from filelock import FileLock
from forks import forking
from gradio_client import Client
from gradio_client.exceptions import AppError
from launching import launched
from pages import awaited, canvas_pixels, context_for, hearing_late, serve, set_run, unfold, until, window
from PIL import Image
from starlette.requests import Request
from test_dataset import BAD, GOOD, encode
from test_prepare import JUNK, png, write
from tiny_runs import shorten

from dp import DiffusionPolicy
from dp.data.codec import make_grid, to_uint8
from dp.data.prepare import prepare
from dp.data.prepared import IMAGES
from dp.serving.engine import Engine
from dp.training import processes as jobs
from dp.training.presets import Settings
from dp.training.run_folder import list_runs
from dp.training.trainer import Trainer
from dp.ui.auth import permission
from dp.ui.auth.gateway import OWNER
from dp.ui.components.run_board import run_board
from dp.ui.components.upload import upload
from dp.ui.training import uploads
from dp.ui.training.time_estimate import BUSY, MAX_IMAGES, approximate_duration, measure, parse_benchmark, write_resized
from dp.ui.training.uploads import Upload, name_dataset

HIDDEN = {name for name in BAD | JUNK if any(part.startswith((".", "__")) for part in name.split("/"))}
BROKEN = {name: content for name, (content, *_) in BAD.items() if name not in HIDDEN}
BROKEN |= {
    "head.bmp": b"BM" + bytes(60),
    "static.gif": bytes(range(256)),
    "half.webp": GOOD["lossy.webp"][0][:60],
    "damaged.zip": b"PK\3\4" + bytes(40),
    "poster.png": encode(Image.new("L", (4000, 1001)), "PNG"),
    "<img src=x onerror=alert(1)>.jpg": b"<html>",
}
FINE = {name: content for name, (content, *_) in GOOD.items()}
FINE |= {f"more/{number}.png": png(number, 20, 24) for number in range(180 - len(FINE))}
TINY = {"train-width": 16, "train-depth": 1, "train-batch": 8, "train-steps": 1_000_000, "train-save-every": 20}


CANCEL = """() => {
    const root = document.querySelector('#intake .upload');
    new MutationObserver((_, observer) => {
        if (root.dataset.state !== 'checking') return;
        observer.disconnect();
        document.querySelector('#intake .cancel').click();
    }).observe(root, {attributes: true});
}"""


def open_train_tab(page):
    unfold(page.get_by_role("tab", name="Train"))
    page.wait_for_selector("#intake .upload")


def sooner_or_later(condition, seconds=150):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def in_state(page, state, seconds=150):
    page.wait_for_selector(f"#board .run[data-state={state}]", timeout=seconds * 1000)


def shown(page, what):
    """Return a number in the board's data attributes, such as `step` or `samples`."""
    return int(page.get_attribute("#board .run", f"data-{what}") or 0)


@contextmanager
def page_of(browser, url):
    with context_for(browser, {"viewport": {"width": 1280, "height": 900}}) as context:
        page, trouble = context.new_page(), []
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
        page.goto(url)
        page.wait_for_selector("#generate")
        open_train_tab(page)
        yield page
        assert trouble == []


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return DP_HOME. Training processes are forked, and those still alive at the end are killed."""
    folder = tmp_path / "home"
    for name, value in {"DP_HOME": str(folder), "DP_DEVICE": "cpu", "CPU_CORES": "1"}.items():
        monkeypatch.setenv(name, value)
    with forking():
        yield folder
    for run in list_runs(folder):
        if run.is_alive():
            with suppress(ProcessLookupError, TypeError):
                os.kill(run.status().pid, signal.SIGKILL)


@pytest.mark.browser
@pytest.mark.timeout(900)
def test_a_run_outlives_the_page_and_the_app_and_resumes_after_pause_and_stop(browser, home, tmp_path):
    folder = write(tmp_path / "holiday", FINE | BROKEN | JUNK)
    assert len(FINE) + len(BROKEN) == 201 and len(BROKEN) == 21

    limits = {"DP_MAX_FILES": "1000", "DP_MAX_PIXELS": "4000321"}  # set by the platform
    with serve("app.py", DP_HOME=str(home), CPU_CORES="1", **limits) as url, page_of(browser, url) as page:
        begun, _ = call(url, "begin", {"files": 1001, "bytes": 1})
        assert "1001 files: the limit is 1,000." in begun["problem"]
        unfold(page.get_by_role("button", name="Advanced settings"))
        for name, value in TINY.items():
            page.locator(f"#{name} input").fill(str(value))
            page.locator(f"#{name} input").press("Tab")
        page.locator("#train-size input").click()
        page.get_by_role("option", name="16 × 16").click()
        page.locator("#intake .folder").set_input_files(folder)
        page.wait_for_selector("#intake .upload[data-state=checked]", timeout=150_000)
        said = page.inner_text("#intake .summary")
        assert "21 files skipped." in said and re.search(r"\d hidden or system files ignored", said)
        names = page.eval_on_selector_all("#intake .rejected td:first-child", "cells => cells.map(c => c.textContent)")
        assert {f"holiday/{name}" for name in BROKEN} <= set(names)
        assert "more than 4,000,321" in page.text_content("#intake .rejected")
        page.wait_for_function("document.querySelector('#intake .sheet').naturalWidth === 6 * 16")

        page.click("#start-training")
        in_state(page, "running")
        page.wait_for_function("+document.querySelector('#board .chart').dataset.points >= 3", timeout=150_000)
        page.wait_for_function("+document.querySelector('#board .run').dataset.samples >= 1", timeout=150_000)
        assert page.locator("#board .checkpoints canvas:visible").count() >= 1
        (run,) = list_runs(home)
        assert not list((home / ".drafts").iterdir())  # the upload is deleted, and the run has the checked images
        before = shown(page, "step")

    assert run.is_alive() and run.status().state == "running"  # with both page and app closed
    with launched(home) as url, page_of(browser, url) as page:
        in_state(page, "running")
        page.wait_for_function(f"+document.querySelector('#board .run').dataset.step > {before}")
        assert page.inner_text("#board .run .name") == "holiday"
        said = page.evaluate("(b => (b.click(), b.textContent))(document.querySelector('#board [data-verb=save]'))")
        assert said == "Saving…"  # at once
        page.get_by_role("button", name="Save now").wait_for()
        assert run.checkpoint_steps()
        page.click("#board [data-verb=pause]")
        in_state(page, "paused")
        assert not run.is_alive()

        newest = run.checkpoint_steps()[-1]
        page.locator(f"#board li[data-step='{newest}']").get_by_label("Open in Denoise").click()
        page.wait_for_selector("#generate", state="visible")
        page.wait_for_function(f"document.querySelector('#checkpoint input').value === '{newest:06d} · holiday'")
        until(page, "d.state === 'done' && +d.kept > 1")  # it draws at once, at the top of the page
        assert page.evaluate("scrollY") == 0
        set_run(page, timesteps=5, seed=3)
        page.click("#generate")
        until(page, "d.state === 'done' && +d.kept === 5 && step === 5")
        policy = DiffusionPolicy.from_pretrained(run.checkpoint(newest))
        images = to_uint8(policy.sample(4, timesteps=5, sampler="dpmpp_2m", seed=3))
        np.testing.assert_allclose(canvas_pixels(page), make_grid(images), atol=1)

        open_train_tab(page)
        page.click("#board [data-verb=resume]")
        in_state(page, "running")
        page.wait_for_function(f"+document.querySelector('#board .run').dataset.step > {newest}", timeout=150_000)
        page.click("#board [data-verb=stop]")
        in_state(page, "stopped")
        assert not run.is_alive() and run.status().step > newest
        total = run.status().step + 20
        shorten(run, total)
        page.click("#board [data-verb=resume]")
        in_state(page, "finished")
        assert run.status().step == total == run.checkpoint_steps()[-1]
        records, _ = run.metrics()
        assert sum("event" in record for record in records) == 2  # it was resumed twice

        with page.expect_download() as download:
            page.click("#board [data-verb=download]")
        with zipfile.ZipFile(download.value.path()) as archive:
            assert sorted(archive.namelist()) == [
                f"holiday-{total:06d}/{name}" for name in ("README.md", "config.json", "model.safetensors")
            ]
        page.click("#board [data-verb=duplicate]")
        page.get_by_text("The images of holiday. Change any setting, then start.").wait_for()
        unfold(page.get_by_role("button", name="Advanced settings"))
        assert page.input_value("#train-steps input") == str(total) and page.input_value("#train-width input") == "16"
        assert page.locator("#preset input:checked").count() == 0  # no preset has these settings
        page.locator("#train-steps input").fill("20")
        page.locator("#train-steps input").press("Tab")
        page.click("#start-training")
        page.wait_for_function("document.querySelector('#board .run .name').textContent === 'holiday 2'")
        in_state(page, "finished")
        again = list_runs(home)[0]
        assert again.status().step == 20 and again.config()["trainer"]["train_num_steps"] == 20
        assert (again.dataset / IMAGES).samefile(run.dataset / IMAGES)

        page.click("#board [data-verb=delete]")
        page.click("#board .confirmation .no")
        assert again.path.exists()
        page.click("#board [data-verb=delete]")
        page.click("#board .confirmation .yes")
        page.wait_for_function("document.querySelector('#board .run .name').textContent === 'holiday'")
        assert [left.id for left in list_runs(home)] == [run.id]


@pytest.mark.browser
def test_a_check_can_be_cancelled_and_invalid_settings_are_reported_before_training(browser, home, tmp_path):
    with launched(home) as url, page_of(browser, url) as page:
        page.locator("#intake .files").set_input_files([write(tmp_path, {"notes.png": b"no picture"}) / "notes.png"])
        page.wait_for_function("document.querySelector('#intake .problem').textContent.includes('no usable image')")
        assert page.is_disabled("#start-training")

        large = encode(Image.new("RGB", (2000, 2000), "teal"), "PNG")  # few bytes, but slow to decode
        folder = write(tmp_path / "many", {f"{number}.png": large for number in range(200)})
        for is_at_once in (False, True):
            if is_at_once:  # before Gradio has registered the check that this cancels
                page.evaluate(CANCEL)
            page.locator("#intake .folder").set_input_files(folder)
            if not is_at_once:
                page.wait_for_selector("#intake .upload[data-state=checking]")
                page.click("#intake .cancel")
            page.wait_for_selector("#intake .upload[data-state=empty]")
            sooner_or_later(lambda: len(list((home / ".drafts").iterdir())) == 1)  # the upload of notes.png
            page.wait_for_timeout(1500)
            assert page.is_visible("#intake .drop") and page.is_disabled("#start-training")

        pictures = write(tmp_path / "two", {"1.png": png(1), "2.png": png(2)})
        page.locator("#intake .files").set_input_files([pictures / "1.png", pictures / "2.png"])
        page.wait_for_selector("#intake .upload[data-state=checked]")
        unfold(page.get_by_role("button", name="Advanced settings"))
        assert page.is_checked("#preset input[value=quick]")
        page.locator("#train-width input").fill("17")
        page.locator("#train-width input").press("Tab")
        page.wait_for_function("!document.querySelector('#preset input:checked')")
        page.click("#start-training")
        page.get_by_text("Network width must be a multiple of 16, got 17").wait_for()
        assert list_runs(home) == []
        page.click("#measure")
        page.get_by_text("Network width must be a multiple of 16, got 17").nth(1).wait_for()


@pytest.mark.soak
@pytest.mark.browser
def test_a_repeated_error_is_shown_again(browser, home, tmp_path):
    with launched(home) as url, page_of(browser, url) as page, hearing_late(page):
        open_train_tab(page)
        for _ in range(2):
            page.locator("#intake .files").set_input_files([write(tmp_path, {"x.png": b"no picture"}) / "x.png"])
            page.wait_for_selector("#intake .upload[data-state=checking]")
            page.wait_for_selector("#intake .upload[data-state=empty]")
            assert "no usable image" in page.inner_text("#intake .problem")


@pytest.mark.soak
@pytest.mark.browser
def test_a_preset_starts_unchanged_and_sampling_works_during_training(browser, home, tmp_path):
    with launched(home) as url, page_of(browser, url) as page:
        pictures = write(tmp_path / "two", {"1.png": png(1), "2.png": png(2)})
        page.locator("#intake .files").set_input_files([pictures / "1.png", pictures / "2.png"])
        page.wait_for_selector("#intake .upload[data-state=checked]")
        page.click("#start-training")  # without touching another control or opening Advanced settings
        in_state(page, "running")
        (run,) = list_runs(home)
        assert run.config()["name"] == "images" and run.config()["trainer"]["train_num_steps"] == 2000

        page.get_by_role("tab", name="Denoise").click()
        before = run.status().step
        set_run(page, timesteps=300, seed=1, images=1)
        page.click("#generate")
        until(page, "step > 0")
        page.wait_for_function(
            "/[1-9][0-9.]* steps\\/s/.test(document.querySelector('.player .noise-level').innerText)"
        )
        until(page, "d.state === 'done' && step === 300")
        sooner_or_later(lambda: run.status().step > before)
        assert run.status().state == "running" and run.status().images_per_s > 0

        open_train_tab(page)
        page.click("#board button[data-verb=stop]")
        in_state(page, "stopped")


def finished_run(home, tmp_path, **settings):
    """Return a run of two images, trained in this process."""
    list(prepare(write(tmp_path / "pictures", {"1.png": png(1), "2.png": png(2)}), tmp_path / "dataset", 16))
    settings = Settings(name="cats", image_size=16, width=16, depth=1, batch=2, **settings)
    run = jobs.create(home, settings.config("pictures", 2, time.time()), tmp_path / "dataset")
    assert Trainer.from_run(run.path).train() == "finished"
    return run


@pytest.mark.browser
def test_a_finished_run_can_be_extended_next_to_a_damaged_one(browser, home, tmp_path):
    run = finished_run(home, tmp_path, steps=30, save_every=10)
    run.sample(10).write_bytes(b"no picture")
    (home / "broken").mkdir()
    (home / "broken" / "config.json").write_text('{"name": 7}')
    with launched(home) as url, window(browser, url) as page:
        open_train_tab(page)
        page.locator("#board .runs button", has_text="broken").click()
        page.get_by_text("'name' must be text, got 7").wait_for()
        page.locator("#board .runs button", has_text="cats").click()
        in_state(page, "finished")
        page.wait_for_function("+document.querySelector('#board .run').dataset.samples >= 2")
        page.hover("#board .chart", position={"x": 150, "y": 60})  # between the measurements at steps 10 and 20
        assert re.fullmatch(r"step [12]0: [\d.e+-]+, mean [\d.e+-]+", page.inner_text("#board .reading"))
        assert page.get_attribute("#board .chart", "data-ticks").count(",") >= 1  # two ticks or more
        field = page.locator("#board .extend .steps")
        page.click("#board .verbs .main:visible")
        assert (int(field.input_value()), int(field.get_attribute("min"))) == (60, 31)
        field.fill("45")
        page.click("#board .extend .main")
        page.wait_for_function("document.querySelector('#board .step').textContent.includes('of 45')")
        in_state(page, "finished")
        assert not page.is_visible("#board .extend") and run.status().step == 45 == run.checkpoint_steps()[-1]

        page.locator("#board li[data-step='20']").get_by_label("Open in Compare").click()
        page.wait_for_selector("#values", state="visible")
        page.wait_for_function("document.querySelector('#axis input').value === 'Checkpoint'")
        titles = page.locator("#values .token").all_inner_texts()
        assert [title.strip() for title in titles] == [f"{step:06d} · cats" for step in run.checkpoint_steps()]
        page.wait_for_function("scrollY === 0")
        assert page.is_visible("#compare-sampler") and not page.is_visible("#compare-checkpoint")
        open_train_tab(page)

        page.set_viewport_size({"width": 390, "height": 844})  # so that `window` checks its width
        page.emulate_media(color_scheme="dark")
        page.click("#board [data-verb=extend]")
        assert (int(field.input_value()), int(field.get_attribute("min"))) == (90, 46)

        page.click("#board [data-verb=fast]")  # tunes the model in a new run, which is then shown
        page.locator("#board .run .name", has_text="cats fast").wait_for()
        in_state(page, "finished")
        page.wait_for_function("+document.querySelector('#board .run').dataset.samples >= 1")
        assert not page.is_visible("#board [data-verb=fast]") and page.is_visible("#board [data-verb=extend]")
        made = next(one for one in list_runs(home) if one.name == "cats fast")
        assert made.status().step == round(0.15 * 45) and made.config()["original"] == f"{run.id}/000045"
        assert "fast already" in run_board.command({"run": made.id, "verb": "fast"}, asking())["problem"]
    said = run_board.command({"run": run.id, "verb": "extend", "steps": 45}, asking())
    assert said == {"problem": "Steps must be a whole number from 46 to 10000000, got 45"}


@pytest.mark.soak
@pytest.mark.browser
@pytest.mark.timeout(1200)
def test_killing_the_app_leaves_one_training_process_and_after_stop_none(browser, home, tmp_path):
    write(tmp_path / "pictures", {f"{number}.png": png(number) for number in range(8)})
    list(prepare(tmp_path / "pictures", tmp_path / "dataset", 32))
    settings = Settings(name="long", width=16, depth=1, batch=4, steps=1_000_000)
    run = jobs.create(home, settings.config("pictures", 8, time.time()), tmp_path / "dataset")

    def processes():
        listed = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout
        return sum("-m dp train" in line and run.id in line for line in listed.splitlines())

    with forking(False):
        jobs.start(run)
    for _ in range(20):
        with serve("app.py", DP_HOME=str(home), CPU_CORES="1") as url:
            with page_of(browser, url) as page:
                in_state(page, "running")
                with pytest.raises(ValueError, match="already training"):
                    jobs.start(run)
                assert processes() == 1
            port = url.rsplit(":", 1)[1]
            subprocess.run(["pkill", "-KILL", "-f", f"app.py --port {port}"], check=True)
    assert processes() == 1
    step = run.status().step
    sooner_or_later(lambda: run.status().step > step)
    jobs.stop(run)
    sooner_or_later(lambda: run.status().state == "stopped" and processes() == 0)


@pytest.mark.browser
def test_closing_the_page_ends_its_benchmark(browser, home, tmp_path):
    trials = lambda: list((home / ".drafts").glob("trial-*"))  # noqa: E731
    with forking(False), launched(home) as url:  # so that measuring takes a while
        with page_of(browser, url) as page:
            pictures = write(tmp_path, {"1.png": png(1), "2.png": png(2)})
            page.locator("#intake .files").set_input_files([pictures / "1.png", pictures / "2.png"])
            page.get_by_text("Small · 32 × 32, 2,000 steps · measuring…").wait_for()
            page.get_by_text("Medium · 32 × 32, 16,000 steps · waiting").wait_for()
            assert len(trials()) == 1
        sooner_or_later(lambda: trials() == [])


# ----------------------------------------------------------------------------
# Permission


def asking(name=None, expires_at=None, is_local_user=False):
    """Return a request as Gradio passes it to a handler, from a visitor who signed in as `name`. The peer address is
    this machine's, as behind a proxy, so it proves nothing.
    """
    session = {"oauth_info": {"userinfo": {"preferred_username": name}, "expires_at": expires_at}} if name else {}
    scope = {"type": "http", "session": session, "client": ("127.0.0.1", 50000), OWNER: is_local_user}
    return gr.Request(request=Request(scope))


@pytest.mark.parametrize(
    "environment, name, reason",
    [
        ({}, None, None),
        ({"DP_TRAINERS": "ann"}, None, None),  # outside a Space there is no sign-in
        ({"SPACE_ID": "ann/space"}, "ann", permission.OFF),
        ({"SPACE_ID": "ann/space", "DP_ALLOW_TRAINING": "0"}, "ann", permission.OFF),
        ({"SPACE_ID": "ann/space", "DP_ALLOW_TRAINING": "1"}, None, None),
        ({"SPACE_ID": "ann/space", "DP_ALLOW_TRAINING": "1", "DP_TRAINERS": "Ann, bob"}, "ann", None),
        ({"SPACE_ID": "ann/space", "DP_ALLOW_TRAINING": "1", "DP_TRAINERS": "ann,bob"}, None, permission.SIGN_IN),
        (
            {"SPACE_ID": "ann/space", "DP_ALLOW_TRAINING": "1", "DP_TRAINERS": "ann"},
            "eve",
            permission.NOT_YOU.format(name="eve"),
        ),
        ({"SPACES_ZERO_GPU": "true", "SPACE_ID": "a/b", "DP_ALLOW_TRAINING": "1"}, "ann", permission.ON_ZERO_GPU),
    ],
)
def test_who_may_train_and_the_reason_for_others(monkeypatch, environment, name, reason):
    for key in ("SPACE_ID", "DP_ALLOW_TRAINING", "DP_TRAINERS", "SPACES_ZERO_GPU"):
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert permission.denial_reason(asking(name)) == reason
    raw = asking(name).request  # as server functions of a component receive it
    assert permission.denial_reason(raw) == reason


def test_an_expired_sign_in_does_not_count():
    assert permission.user_of(asking("ann", time.time() + 60)) == "ann"
    assert permission.user_of(asking("ann", time.time() - 1)) is None
    assert permission.user_of(None) is None


def make_run(home, network, name="Secret", milestones=(2,), dataset=None):
    """Return a run with checkpoints at `milestones` and a dataset of four images."""
    if dataset is None:
        dataset = home.parent / f"{name} pictures"
        pictures = write(home.parent / f"{name} files", {f"{number}.png": png(number) for number in range(4)})
        *_, _ = prepare(pictures, dataset, 16)
    run = jobs.create(home, Settings(image_size=16, width=16).config("pictures", 4, time.time()), dataset, name)
    for milestone in milestones:
        DiffusionPolicy(network).save_pretrained(run.checkpoint(milestone))
        run.samples.mkdir(exist_ok=True)
        run.sample(milestone).write_bytes(png(milestone, 32, 32))
    run.append_metrics({"step": 1, "loss": 0.5})
    run.update_status(state="paused", step=2, total=10)
    return run


def call(url, name, asked):
    """Call a component's server function over HTTP, and return the result."""
    with urllib.request.urlopen(f"{url}/config") as answer:
        config = json.load(answer)
    component = next(c["id"] for c in config["components"] if name in c["props"].get("server_fns", ()))
    body = {"session_hash": "x", "component_id": component, "fn_name": name, "data": asked}
    request = urllib.request.Request(
        f"{url}/gradio_api/component_server", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer), json.dumps(config)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("allowed", [True, False], ids=["at home", "on a public Space"])
def test_a_stranger_sees_nothing_of_the_runs(home, tiny_rin, monkeypatch, allowed):
    run = make_run(home, tiny_rin())
    run.request("save")
    (home / os.fsdecode(b"caf\xe9")).mkdir()
    (home / os.fsdecode(b"caf\xe9") / "config.json").write_text('{"name": "\\ud800", "created": 1}')
    if not allowed:
        monkeypatch.setenv("SPACE_ID", "ann/space")
    with launched(home) as url:
        looked, config = call(url, "poll", {"run": run.id})
        unfit, _ = call(url, "command", {"run": run.id, "verb": "rename", "name": "Mine\ud800"})
        acted, _ = call(url, "command", {"run": run.id, "verb": "rename", "name": "Mine"})
        begun, _ = call(url, "begin", {"files": 1, "bytes": 1})
        client = Client(url, verbose=False)
        sample = {"checkpoint": "Secret/000002" if not allowed else "Mine/000002", "images": 1, "timesteps": 2}
        if allowed:
            assert looked["facts"]["checkpoints"] == [2] and looked["samples"][0][0] == 2
            assert looked["facts"]["requested"] == ["save"]
            assert looked["records"] == [{"step": 1, "loss": 0.5}]
            assert [line["name"] for line in looked["runs"]] == ["Secret", "\ufffd"]
            assert "must be text that UTF-8 can encode, got 'Mine\\ud800'" in unfit["problem"]
            assert acted == {} and run.config()["name"] == "Mine" and "upload" in begun
            picture, _ = client.predict(**sample, seed=1, api_name="/sample")
            with Image.open(picture) as image:
                assert image.size == (8, 8)
        else:
            assert looked == unfit == acted == begun == {"problem": permission.OFF}
            assert run.config()["name"] == "Secret" and "Secret" not in config
            with pytest.raises(AppError, match="there is no checkpoint 'Secret/000002'; there are: small-32"):
                client.predict(**sample, api_name="/sample")


# ----------------------------------------------------------------------------
# Single functions


def test_checkpoints_of_runs_are_listed_newest_first_under_unique_names(home, tmp_path, tiny_rin):
    dataset = make_run(home, tiny_rin(), "old", (2, 10)).dataset
    first = make_run(home, tiny_rin(), "twin")
    time.sleep(0.01)
    second = make_run(home, tiny_rin(), "twin2")
    jobs.rename(second, "twin")
    engine = Engine(tmp_path / "bundled", device="cpu", runs=home)
    names = [entry.name for entry in engine.checkpoints()]
    twins = [f"{second.id}/000002", f"{second.id}/exact", "twin/000002", "twin/exact"]
    assert names == [*twins, "old/000010", "old/000002", "old/exact"]
    assert engine.policy("twin/000002").image_size == 8
    assert engine.checkpoints()[4].title == "000010 · old"
    assert run_board.free_name("twin") == "twin 2" and run_board.free_name("new") == "new"
    assert run_board.run_of(first.id).id == first.id and dataset.is_dir()
    for other in ("../home", first.id + "/..", "", None, 3, ["x"]):
        with pytest.raises(ValueError, match="no longer exists"):
            run_board.run_of(other)


def piece(file, offset, data, **name):
    return {"file": file, "offset": offset, "data": base64.b64encode(data).decode(), **name}


def test_file_names_arrive_with_the_pieces(home):
    uploaded = Upload(upload.begin({"files": 4, "bytes": 4}, asking())["upload"])
    names = {0: "a/one.png", 1: "é.png", 3: "x" * 5000 + ".png"}
    pieces = [piece(i, 0, b"x", name=name) for i, name in names.items()]
    for _ in range(2):  # again, as after a lost response
        assert upload.receive({"upload": uploaded.id, "pieces": pieces}, asking()) == {}
    assert uploaded.file_names(4) == ["a/one.png", "é.png", "file 3", "x" * 996 + ".png"]
    lone = upload.receive(
        {"upload": uploaded.id, "pieces": [piece(2, 0, b"x", name="lone \ud800 surrogate.png")]}, asking()
    )
    assert "must be text that UTF-8 can encode" in lone["problem"]
    for count in (0, -1, 10**6, True, 1.0, "1", None):
        with pytest.raises(ValueError, match="malformed request"):
            uploaded.file_names(count)


def test_files_arrive_in_pieces_and_become_a_dataset(home, tmp_path):
    pictures = {"a/one.png": png(1), "two.png": png(2), "empty.jpg": b""}
    begun = upload.begin({"files": 3, "bytes": 10}, asking())
    send = lambda *pieces: upload.receive({"upload": begun["upload"], "pieces": list(pieces)}, asking())  # noqa: E731
    assert send(piece(0, 0, pictures["a/one.png"][:100])) == {}
    assert send(piece(0, 100, pictures["a/one.png"][100:]), piece(1, 0, pictures["two.png"]), piece(2, 0, b"")) == {}
    assert send(piece(0, 100, pictures["a/one.png"][100:])) == {}  # again, as after a lost response
    uploaded = Upload(begun["upload"])
    *_, last = prepare(uploaded.file_paths(list(pictures)), uploaded.dataset, 16, names=list(pictures))
    assert last.report.accepted == ["a/one.png", "two.png"]
    assert last.report.rejected == [("empty.jpg", "the file is empty")]
    value = upload.value_of_report(last.report, uploaded.dataset)
    assert value["rejected"] == [("empty.jpg", "the file is empty")] and value["more"] == 0

    for bad, words in (
        ([piece(0, 10**6, b"x")], "missing or too large"),
        ([piece(0, -1, b"x")], "missing or too large"),
        ([piece(10**6, 0, b"x")], "more than 100,000 files"),
        ([piece("../../x", 0, b"x")], "more than 100,000 files"),
        ([{"file": 0, "offset": 0, "data": "%%"}], "malformed request"),
        ([{}], "malformed request"),
        ([7], "malformed request"),
        (7, "malformed request"),
    ):
        assert words in upload.receive({"upload": begun["upload"], "pieces": bad}, asking())["problem"]
    for name in ("..", "", None, 7, "0" * 32, begun["upload"] + "/.."):
        assert "upload them again" in upload.receive({"upload": name, "pieces": []}, asking())["problem"]
    assert "100,000" in upload.begin({"files": 10**6, "bytes": 1}, asking())["problem"]
    assert "bytes in total" in upload.begin({"files": 1, "bytes": 10**15}, asking())["problem"]
    assert "malformed request" in upload.begin([], asking())["problem"]
    for wrong in ([], {}, {"name": 1}, {"name": "../secrets"}):
        assert "malformed request" in upload.borrow_sample({"faces": __file__}, wrong, asking())["problem"]
    assert sorted(path.name for path in uploaded.files_dir.iterdir()) == ["000000", "000001", "000002"]


def test_an_upload_that_has_not_changed_for_a_day_is_deleted(home):
    old, young = Upload.create(), Upload.create()
    os.utime(old.path, (time.time() - uploads.UPLOAD_TTL_S - 60,) * 2)
    Upload.create()
    assert not old.path.exists() and young.path.exists()


@pytest.mark.parametrize("hours", [-30, 30])
def test_setting_the_clock_deletes_no_upload(home, monkeypatch, hours):
    before, clock = Upload.create(), time.time
    monkeypatch.setattr("time.time", lambda: clock() + hours * 3600)
    after = Upload.create()
    os.utime(after.path, (time.time(), time.time()))
    Upload.create()
    assert before.path.exists() and after.path.exists()


def test_the_day_of_an_upload_dated_in_the_future_begins_now(home):
    uploaded, later = Upload.create(), time.time() + 10**7
    os.utime(uploaded.path, (later, later))
    Upload.create()
    assert abs(uploaded.path.stat().st_mtime - time.time()) < 60


@pytest.fixture
def dataset(tmp_path):
    """Return a dataset of 70 images at 16 x 16."""
    pictures = write(tmp_path / "pictures", {f"{number}.png": png(number) for number in range(70)})
    *_, _ = prepare(pictures, tmp_path / "dataset", 16)
    return tmp_path / "dataset"


def test_a_benchmark_trains_on_a_few_images_at_its_own_size(dataset, tmp_path):
    write_resized(dataset, tmp_path / "small", 32)
    assert np.load(tmp_path / "small" / IMAGES).shape == (MAX_IMAGES, 32, 32, 3)


def test_a_benchmark_estimates_the_training_time(home, dataset):
    async def all_of_it():
        return [found async for found in measure(dataset, Settings(image_size=16, width=16, depth=1, steps=1000))]

    *beats, found = awaited(all_of_it())
    assert set(beats) == {None} and 0.5 < found.seconds < 5000 and found.text == approximate_duration(found.seconds)
    assert not list((home / ".drafts").iterdir())
    with FileLock(home / ".cpu.lock"):  # as a run that is training
        assert awaited(all_of_it()) == [(None, BUSY)]


@pytest.mark.parametrize(
    "said, words",
    [
        ('noise\n{"seconds_per_step": 0.01, "seconds_per_save": 2, "device": "cpu"}', "about 8 min"),
        ('{"error": "out of <memory>"}', "not measured: out of <memory>"),
        ("", "not measured: the benchmark gave no result"),
        ("Killed", "not measured: the benchmark gave no result"),
    ],
)
def test_the_output_of_a_benchmark_is_parsed(said, words):
    assert parse_benchmark(said, Settings(steps=30_000, save_every=300)).text == words


@pytest.mark.parametrize(
    "seconds, words", [(0.2, "1 s"), (89, "89 s"), (100, "2 min"), (5000, "83 min"), (9000, "2.5 h")]
)
def test_durations_are_rounded(seconds, words):
    assert approximate_duration(seconds) == f"about {words}"


@pytest.mark.parametrize(
    "names, name",
    [
        (["cats.ZIP"], "cats"),
        (["my.cats.TAR.gz"], "my.cats"),
        (["cats.txz"], "cats"),
        ([".zip"], "images"),
        (["cats/a/1.png", "cats/2.png"], "cats"),
        (["1.png", "2.png"], "images"),
        (["..\\..\\x\\1.png"], ".."),
        ([], "images"),
    ],
)
def test_a_dataset_is_named_after_its_files(names, name):
    assert name_dataset(names) == name
