"""The page marks settings that differ from their defaults, and those that changed since the run it shows."""

import pytest
from pages import set_run, show_more, type_numbers, until
from PIL import Image

pytestmark = pytest.mark.browser


def expect_changes(page, text, *chips):
    """Wait until the page says that these settings changed, and lists these chips."""
    said = f"Changed since this run: {text}." if text else ""
    look = """([said, chips]) => {
        const text = document.querySelector('#changes .undrawn');
        const buttons = [...document.querySelectorAll('#changes button')];
        return (text.checkVisibility() ? text.innerText : '') === said &&
            buttons.map((button) => button.innerText).join() === chips.join();
    }"""
    page.wait_for_function(look, arg=[said, [f"{chip} ×" for chip in chips]])
    count = page.get_attribute("#more .label-wrap > span", "data-count")
    assert (count or "") == (f"{len(chips)} changed" if chips else "")


def test_settings_are_compared_with_the_defaults_and_with_the_run(page):
    set_run(page, timesteps=2, seed=3, images=1)
    expect_changes(page, "")  # there is no run yet
    page.click("#generate")
    until(page, "d.state === 'done' && +d.kept === 2 && step === 2")
    show_more(page)
    page.get_by_label("cosine", exact=True).check()
    type_numbers(page, difference=1.5)
    page.locator("#walk input").fill("9")
    type_numbers(page, images=2)
    names = "Images, Noise schedule, Time difference, Walk to seed"
    expect_changes(page, names, "cosine schedule", "time difference 1.5", "walk to seed 9")
    for chip in ("cosine schedule", "time difference 1.5", "walk to seed 9"):
        page.get_by_role("button", name=f"Reset {chip}").click()
    expect_changes(page, "Images")
    assert page.locator("#schedule input:checked").input_value() == "trained"
    type_numbers(page, images=1)
    expect_changes(page, "")

    first = page.get_attribute("#player .player", "data-run")
    page.locator("#random input").check()
    page.click("#generate")
    until(page, f"d.run !== '{first}' && d.state === 'done' && +d.kept === 2 && step === 2")
    page.reload()
    page.wait_for_selector("#player .player")
    until(page, "d.state === 'done' && +d.kept === 2 && step === 2")
    page.wait_for_function("document.querySelector('#timesteps input[type=number]').value === '2'")
    page.wait_for_function("document.querySelector('#random input').checked")
    page.locator("#random input").uncheck()  # the seed is still that of the run
    type_numbers(page, timesteps=3)
    expect_changes(page, "Timesteps")
    page.locator("#seed input").fill("4")
    page.locator("#seed input").press("Tab")
    expect_changes(page, "Timesteps, Seed")


def test_a_start_image_is_a_chip(page, tmp_path):
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "mine.png")
    show_more(page)
    page.locator("#start input[type=file]").set_input_files(tmp_path / "mine.png")
    page.wait_for_selector("#start .start[data-state=chosen]")
    strength = page.input_value("#start .strength")
    expect_changes(page, "", f"start image, strength {strength}")
    page.get_by_role("button", name=f"Reset start image, strength {strength}").click()
    page.wait_for_selector("#start .start[data-state=empty]")
    expect_changes(page, "")
