"""Classes on the page: from a zip with class folders to images of a chosen class."""

from __future__ import annotations

import re
import shutil
import zipfile

import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from launching import launched
from models import SIZES, randomize
from pages import canvas_pixels, copied_link, decode, set_run, type_numbers, unfold, until
from test_compare import compare, shown, until_players
from test_player import upload
from test_prepare import png
from test_train_tab import home, in_state, open_train_tab, page_of  # noqa: F401

from dp import DiffusionPolicy, SampleSettings
from dp.checkpoints import folder as checkpoint
from dp.data.codec import make_grid, to_uint8
from dp.diffusion.replay import predictions_by_branch, state_at_step
from dp.networks.rin import RIN
from dp.training.run_folder import list_runs

CLASSES = ["birds", "cats", "dogs & co", "fish", "goats", "hens", "2"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with two models: with classes and its own sampling defaults, and without."""
    root = tmp_path_factory.mktemp("models")
    network = randomize(RIN(**SIZES, num_classes=len(CLASSES)))
    policy = DiffusionPolicy(network)
    sampling = {"timesteps": 7, "sampler": "ddim", "guidance": 2.5, "guidance_interval": [0.1, 0.9]}
    config = {"policy": policy.config, "classes": CLASSES, "sampling": sampling}
    checkpoint.save(root / "classed", network, config)
    DiffusionPolicy(randomize(RIN(**SIZES))).save_pretrained(root / "plain")
    return root


@pytest.fixture(scope="module")
def url(models):
    with launched(models=models) as address:
        yield address


@pytest.fixture(scope="module")
def policy(models):
    return DiffusionPolicy.from_pretrained(models / "classed")


def choose(page, control, name):
    page.locator(f"#{control} input").click()
    page.get_by_role("option", name=name, exact=True).click()


def labels_of(page):
    return page.eval_on_selector_all(".player.variant:not([hidden]) .label", "labels => labels.map(l => l.textContent)")


def grid_of(policy, count, **settings):
    return make_grid(to_uint8(policy.sample(count, guidance_interval=(0.1, 0.9), sampler="ddim", **settings)))


@pytest.mark.browser
def test_a_class_is_chosen_by_name_and_a_link_and_a_png_restore_it(page, url, policy, tmp_path):
    assert page.input_value("#class input") == "any" and page.input_value("#timesteps input[type=number]") == "7"
    choose(page, "class", "dogs & co")
    set_run(page, timesteps=6, seed=3, images=2)
    page.click("#generate")
    until(page, "d.state === 'done' && step === 6")
    expected = grid_of(policy, 2, timesteps=6, seed=3, label=3, guidance=2.5)
    np.testing.assert_array_equal(canvas_pixels(page), expected)

    page.focus(".player")
    page.keyboard.press("Enter")  # the first image alone
    page.click(".guidance-toggle")
    until(page, "d.guidance === '6'")
    page.keyboard.press("ArrowLeft")
    until(page, "d.guidance === '5'")
    assert page.inner_text(".predictions .class-name") == "dogs & co"
    assert page.inner_text(".guidance-summary") == "guided = no class + 2.5 × (dogs & co − no class)"
    settings = SampleSettings(
        2, timesteps=6, seed=3, label=3, guidance=2.5, guidance_interval=(0.1, 0.9), sampler="ddim"
    )
    x0 = predictions_by_branch(policy, state_at_step(policy, settings, 0, 5, None, None))[:, 0]
    for i, expected in enumerate(to_uint8((x0 + 1) / 2)):
        np.testing.assert_array_equal(canvas_pixels(page, f".predictions div:nth-child({i + 1})"), expected)
    page.keyboard.press("Escape")
    page.keyboard.press("End")
    assert not page.is_visible(".predictions") and not page.is_visible(".guidance-toggle")

    link = copied_link(page)
    assert "class=dogs+%26+co&guidance=2.5" in link
    with page.expect_download() as saved:
        page.click("#player .save")
        page.click("#player [data-kind=png]")
    saved.value.save_as(tmp_path / "dogs.png")

    choose(page, "class", "one of each")
    type_numbers(page, guidance=1, images=9, timesteps=5)
    page.click("#generate")
    until(page, "d.state === 'done' && step === 5")
    labels = [1, 2, 3, 4, 5, 6, 7, 1, 2]
    np.testing.assert_array_equal(canvas_pixels(page), grid_of(policy, 9, timesteps=5, seed=3, label=labels))

    upload(page, tmp_path / "dogs.png")
    page.wait_for_function("document.querySelector('#class input').value === 'dogs & co'")
    assert page.input_value("#guidance input[type=number]") == "2.5"
    page.goto(f"{link}&images=1")
    page.wait_for_function("document.querySelector('#class input')?.value === 'dogs & co'")

    # A model without classes hides both controls, and the other one brings its own defaults back.
    choose(page, "checkpoint", "plain")
    page.wait_for_selector("#class", state="hidden")
    assert not page.is_visible("#guidance")
    choose(page, "checkpoint", "classed")
    page.wait_for_selector("#class", state="visible")
    assert page.input_value("#timesteps input[type=number]") == "7"
    page.goto(f"{url}/?class=unicorn")
    page.get_by_text("Ignored from the link: class (there is no class 'unicorn'").wait_for()


@pytest.mark.browser
def test_the_same_noise_is_compared_in_every_class_and_at_several_guidances(page, policy):
    compare(page, "Class: the same noise, every class", timesteps=4, images=2, seed=5)
    until_players(page, "players.length === 6 && players.every(p => p.dataset.state === 'done')")
    pictures = shown(page)[1]
    assert labels_of(page) == CLASSES[:6]
    for label, picture in enumerate(pictures, 1):
        np.testing.assert_array_equal(picture, grid_of(policy, 2, timesteps=4, seed=5, label=label, guidance=2.5))
    compare(page, "Guidance", timesteps=4, images=2, seed=5)
    page.get_by_text("Guidance needs a class").wait_for()
    choose(page, "compare-class", "cats")
    page.click("#compare")
    until_players(page, "players.length === 4 && players.every(p => p.dataset.state === 'done')")
    pictures = shown(page)[1]
    assert labels_of(page) == [f"guidance {g}" for g in (1, 2, 3, 5)]
    for g, picture in zip((1, 2, 3, 5), pictures, strict=True):
        np.testing.assert_array_equal(picture, grid_of(policy, 2, timesteps=4, seed=5, label=2, guidance=g))


def test_the_api_takes_a_class_by_name_or_number(url, policy):
    client = Client(url, verbose=False)
    settings = {"checkpoint": "classed", "images": 1, "timesteps": 3, "sampler": "ddim", "seed": 2}
    expected = {g: to_uint8(policy.sample(1, timesteps=3, sampler="ddim", seed=2, label=2, guidance=g,
                guidance_interval=(0.1, 0.9)))[0] for g in (2.5, 4)}  # fmt: skip
    for given, g in (({"label": "cats"}, 2.5), ({"label": "2", "guidance": 4}, 4)):
        label = given["label"]
        if label == "2":  # a name comes before a number
            given["label"] = "cats"
        last = client.predict(**settings, **given, api_name="/stream")
        np.testing.assert_array_equal(decode(last["images"][0]), expected[g])
    _, made_with = client.predict(**settings, label="2", api_name="/sample")
    assert made_with["label"] == 7 and made_with["guidance"] == 2.5
    for given, words in (
        ({"label": "unicorn"}, "there is no class 'unicorn'; choose one of: birds, cats"),
        ({"label": "cat"}, "did you mean 'cats'?"),
        ({"guidance": 3}, "Guidance needs a class"),
        ({"label": "cats", "guidance": 11}, "Guidance must be a number from 0 to 10, got 11"),
        ({"label": "cats", "checkpoint": "plain"}, "there is no class 'cats': this model has no classes"),
    ):
        with pytest.raises(AppError, match=re.escape(words).replace("'", "(?:'|&#x27;)")):
            client.predict(**settings | given, api_name="/sample")


@pytest.mark.browser
def test_a_zip_of_class_folders_becomes_a_model_whose_classes_are_chosen(browser, home, tmp_path):  # noqa: F811
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for number in range(24):
            archive.writestr(f"pets/{('cats', 'dogs')[number % 2]}/{number}.png", png(number, 16, 16))
    DiffusionPolicy(randomize(RIN(**SIZES))).save_pretrained(tmp_path / "models" / "pets")
    shutil.copy(tmp_path / "pets.zip", tmp_path / "models" / "pets" / "images.zip")
    with launched(home, models=tmp_path / "models") as url, page_of(browser, url) as page:
        assert not page.is_visible("#train-classes")
        page.click("#intake .sample")  # the images that come with the model
        page.wait_for_selector("#intake .upload[data-state=checked]")
        assert "2 classes, from the folders: cats 12, dogs 12." in page.inner_text("#intake .summary")
        page.click("#intake .other")
        page.wait_for_selector("#intake .upload[data-state=empty]")
        unfold(page.get_by_role("button", name="Advanced settings"))
        choose(page, "train-size", "16 × 16")
        page.locator("#intake .files").set_input_files([tmp_path / "pets.zip"])
        page.wait_for_selector("#intake .upload[data-state=checked]")
        assert "2 classes, from the folders: cats 12, dogs 12." in page.inner_text("#intake .summary")
        assert page.locator("#train-classes input").is_checked()
        type_numbers(page, "train-", width=16, depth=1, batch=8, steps=4)
        page.click("#start-training")
        in_state(page, "finished")
        (run,) = list_runs(home)
        assert run.config()["network"]["num_classes"] == 2
        # The row of samples shows whole images, although they stand in one column for each class.
        sheet = "document.querySelector('#board .checkpoints canvas:not([hidden])')"
        page.wait_for_function(f"{sheet}?.width === 160 && {sheet}.height === 16")
        page.locator("#board li[data-step]").get_by_label("Open in Denoise").click()
        page.wait_for_selector("#class", state="visible")
        choose(page, "class", "dogs")
        set_run(page, timesteps=3, seed=1, images=1)
        page.click("#generate")
        until(page, "d.state === 'done' && step === 3")
        policy = DiffusionPolicy.from_pretrained(run.checkpoint(4))
        images = policy.sample(1, timesteps=3, sampler="dpmpp_2m", seed=1, label=2)
        np.testing.assert_allclose(canvas_pixels(page), make_grid(to_uint8(images)), atol=1)
        open_train_tab(page)
        page.click("#board [data-verb=duplicate]")
        page.wait_for_selector("#train-classes", state="visible")
        assert page.locator("#train-classes input").is_checked()
