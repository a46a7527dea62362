"""Runs of the Denoise tab that the visitor's browser computes: its images are the library's, and the engine computes
nothing.
"""

from __future__ import annotations

import pkgutil
import shutil
import time

import gradio as gr
import numpy as np
import pytest
from exported import CLASSES, NAME, load_onnx, source_folder
from launching import launched
from pages import canvas_pixels, click, set_run, show_more, type_numbers, until, window
from starlette.applications import Starlette
from starlette.testclient import TestClient

from dp.data.codec import make_grid, to_uint8
from dp.diffusion.policy import DiffusionPolicy
from dp.serving.engine import Engine
from dp.ui.browser_models import BrowserModels, find_entry, read_kept
from dp.ui.tabs import denoise
from dp.ui.web import graph

load_onnx()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def url(home):
    with launched(home, models=source_folder().parent) as address:
        yield address


@pytest.fixture
def calls(monkeypatch):
    """The batches that engines step."""
    calls = []
    step = Engine._step
    monkeypatch.setattr(Engine, "_step", lambda self, batch: calls.append(batch) or step(self, batch))
    return calls


def choose(page, where):
    show_more(page)
    page.locator("#compute-on").get_by_label(where).check()


def drawn(page):
    run = page.get_attribute("#player .player", "data-run") or ""
    page.click("#generate")
    page.wait_for_selector(f'#player .player[data-state=done][data-kept]:not([data-run="{run}"])')
    return canvas_pixels(page).astype(int)


def test_a_run_in_the_browser_is_the_librarys_and_costs_the_engine_nothing(browser, url, calls, home):
    policy = DiffusionPolicy.from_pretrained(source_folder()).eval()
    with window(browser, url) as page:
        assert not any("browser-models" in address for address in page.asked)
        choose(page, "Your browser")
        set_run(page, timesteps=6, seed=3, images=5)
        page.locator("#class input").click()
        page.get_by_role("option", name=CLASSES[0], exact=True).click()
        type_numbers(page, guidance=3)
        own = drawn(page)
        given = {"timesteps": 6, "seed": 3, "sampler": "ddim", "label": 1, "guidance": 3.0}
        expected = policy.sample(5, guidance_interval=(0.1, 0.9), **given)
        assert np.abs(own - make_grid(to_uint8(expected))).max() <= 1
        assert calls == []
        assert page.inner_text("#player .run-settings").endswith("seeds 3 to 7 · in your browser")
        weights = [address for address in page.asked if graph.WEIGHTS in address]
        click(page, "#player .prediction canvas", 0.2, 0.5)
        page.wait_for_selector("#player .strip-steps button")
        assert page.is_visible("#player .show-all")
        assert not any(button.is_visible() for button in page.locator("#player [class$=-toggle]").all())
        page.click("#player .show-all")
        page.click("#player .again")
        until(page, "d.state === 'done' && d.kept")
        page.wait_for_function("document.querySelector('#player .difference').textContent.includes('0.000')")
        assert [address for address in page.asked if graph.WEIGHTS in address] == weights and len(weights) == 1
        assert calls == []
        choose(page, "This server")
        assert np.abs(drawn(page) - own).max() <= 1
        assert calls
    assert len(list((home / ".browser-models").iterdir())) == 1


def test_a_run_in_the_browser_can_be_stopped_and_a_failure_gets_a_sentence(browser, url, calls):
    with window(browser, url, forgiven=["Failed to load resource"]) as page:
        choose(page, "Your browser")
        set_run(page, timesteps=1000, seed=0, images=64)
        page.route(f"**/{graph.WEIGHTS}*", lambda route: route.abort())
        page.click("#generate")
        page.wait_for_selector("#player .player[data-state=failed]")
        words = page.inner_text("#player .step")
        assert words.startswith(f"{graph.WEIGHTS} cannot be reached".capitalize()) and "choose This server" in words
        assert page.is_visible("#generate")
        page.unroute_all()
        page.click("#generate")
        until(page, "step > 0")
        page.click("#stop")
        page.wait_for_selector("#generate", state="visible")
        until(page, "d.state === 'stopped' && d.kept")
        assert canvas_pixels(page).any()
    assert calls == []


def found(models, name):
    return found_entry(models, find_entry(models.engine, name))


def found_entry(models, entry):
    while (about := models.find(entry)) is None:
        time.sleep(0.05)
    return about


def test_the_files_of_a_private_run_are_for_those_who_may_see_it(tmp_path, home, monkeypatch):
    run = tmp_path / "runs" / "1-mine"
    shutil.copytree(source_folder(), run / "checkpoints" / "000001")
    (run / "config.json").write_text('{"name": "mine"}')
    models = BrowserModels(Engine(runs=tmp_path / "runs", device="cpu"), home)
    key = found(models, "mine/000001")["key"]
    client = TestClient(Starlette(routes=models.routes()))
    address = f"/browser-models/{key}/{graph.WEIGHTS}"
    assert client.get(address).content == (source_folder() / graph.WEIGHTS).read_bytes()
    for name in ("about.json", "..%2f..%2f.owner-key", "config.json"):
        assert client.get(f"/browser-models/{key}/{name}").status_code == 404
    monkeypatch.setenv("SPACE_ID", "you/space")  # where nobody may train
    for name in ("model.onnx", graph.WEIGHTS, "expected.bin"):
        answer = client.get(f"/browser-models/{key}/{name}")
        assert answer.status_code == 404 and "may not see it" in answer.text
    with pytest.raises(ValueError, match="there is no checkpoint"):
        find_entry(models.engine, "mine/000001")
    public = BrowserModels(Engine(source_folder().parent, device="cpu"), home)
    assert found(public, NAME)["key"] == key
    assert TestClient(Starlette(routes=public.routes())).get(address).status_code == 200


def test_what_is_kept_but_damaged_is_not_used(tmp_path, home):
    models = BrowserModels(Engine(source_folder().parent, device="cpu"), home)
    folder = home / ".browser-models" / found(models, NAME)["key"]
    shutil.copytree(folder, tmp_path / "kept")
    assert read_kept(tmp_path / "kept")
    content = (folder / graph.WEIGHTS).read_bytes()
    (tmp_path / "kept" / graph.WEIGHTS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert read_kept(tmp_path / "kept") is None


def test_a_checkpoint_that_cannot_be_exported_gets_a_sentence(tmp_path):
    shutil.copytree(source_folder(), tmp_path / "models" / NAME)
    models = BrowserModels(Engine(tmp_path / "models", device="cpu"), tmp_path)
    entry = find_entry(models.engine, NAME)
    (entry.path / graph.WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=f"^{NAME}: {graph.WEIGHTS} cannot be read"):
        found_entry(models, entry)


def test_without_onnx_the_choice_says_why(monkeypatch):
    monkeypatch.setattr(pkgutil, "iter_modules", list)
    with gr.Blocks():
        control = denoise.compute_control()
    assert not control.interactive
    assert "this server lacks onnx and onnxscript" in control.info and "requirements-web.txt" in control.info
