"""Names, states and contrast of everything on the page: axe-core's rules, and some of our own."""

import pytest
from axe_core_python.sync_playwright import Axe
from pages import set_run, settle, unfold, until

pytestmark = pytest.mark.browser

# What assistive technology calls each visible button, fold and group of the tab that is shown.
NAMES = """(panel) => [...panel.querySelectorAll('button, fieldset, [role=group], .label-wrap')]
    .filter((control) => control.checkVisibility({visibilityProperty: true}) && !control.closest('[aria-hidden=true]'))
    .map((control) => (control.ariaLabel || control.innerText || '').trim())"""


def check(page, tab, is_dark):
    page.evaluate(f"document.body.classList.toggle('dark', {str(is_dark).lower()})")
    unfold(page.get_by_role("tab", name=tab))
    found = Axe().run(page, options={"resultTypes": ["violations"]})["violations"]
    serious = [violation for violation in found if violation["impact"] in ("serious", "critical")]
    assert not serious, [(each["id"], [node["html"] for node in each["nodes"]]) for each in serious]
    names = page.locator("[role=tabpanel]:visible").evaluate(NAMES)
    assert all(names) and len(names) == len(set(names))


def test_axe_finds_nothing_serious_in_any_tab(page):
    set_run(page, timesteps=3, seed=3)
    page.click("#generate")
    until(page, "d.state === 'done' && +d.kept === 3 && step === 3")
    for tab, is_dark in (("Denoise", False), ("Compare", True), ("In 2D", False), ("Train", False)):
        check(page, tab, is_dark)


def test_axe_finds_nothing_serious_in_the_panels_about_a_step(page):
    set_run(page, timesteps=3, seed=3)
    page.click("#generate")
    until(page, "d.state === 'done' && +d.kept === 3 && step === 3")
    page.focus(".player")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowLeft")
    for panel in ("apart", "endings"):
        page.click(f".{panel}-toggle")
    until(page, "d.apart === '2' && d.endings?.startsWith('2/')")
    page.focus(".mix [data-part=x0] button")  # highlighted
    for is_dark in (False, True):
        check(page, "Denoise", is_dark)


@pytest.mark.soak
def test_axe_finds_nothing_serious_in_the_other_theme(page):
    for tab, is_dark in (("Denoise", True), ("Compare", False), ("In 2D", True), ("Train", True)):
        check(page, tab, is_dark)


def test_folds_groups_and_reset_buttons_have_names_and_states(page):
    fold = page.get_by_role("button", name="More settings")
    assert fold.get_attribute("aria-expanded") == "false"
    fold.click()
    settle(page)
    assert fold.get_attribute("aria-expanded") == "true"
    for group in ("Sampler", "Noise schedule"):
        assert page.get_by_role("group", name=group).count() == 1
    for control in ("Images", "Timesteps", "Time difference, in steps"):
        assert page.get_by_role("button", name=f"Reset {control}", exact=True).count() == 1
