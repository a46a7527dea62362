"""On the page: what a run could still become, and the best possible prediction."""

import pytest
from exact_bundle import bundle, finished
from launching import launched
from pages import canvas_pixels, set_run, until

from dp.serving.candidates import run_candidates
from dp.serving.engine import Engine
from dp.ui.components.clock.clock import map_reader
from dp.ui.components.player.player import server_functions
from dp.ui.sampling.page_values import find_run

OPEN = "document.querySelector('#player .player').dataset"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    bundle(folder, "c", classes=("cats", "dogs"), training_set={})
    return bundle(bundle(folder, "a", training_set={"mirrored": True}), "b")


@pytest.fixture(scope="module")
def url(models):
    with launched(models=models) as address:
        yield address


def choose_model(page, name):
    page.locator("#checkpoint input").click()
    page.get_by_role("option", name=name, exact=True).click()


@pytest.mark.browser
def test_the_candidates_of_all_images_and_of_one(page, models):
    choose_model(page, "a, exact")
    page.wait_for_function("document.querySelector('.about').innerText.includes('for the 9 training images')")
    set_run(page, timesteps=20, seed=3, images=4)
    page.click("#generate")
    until(page, "d.state === 'done' && +d.kept === 20 && step === 20")
    engine = Engine(models)
    found = run_candidates(
        engine, finished(engine, "a, exact", batch_size=4, timesteps=20, sampler="dpmpp_2m", seed=3).request_id
    )

    page.get_by_role("button", name="What could it still become?").click()
    page.wait_for_function(f"{OPEN}.candidates === '20/all'")
    marks = page.locator("#player .marks i")
    assert marks.all_inner_texts() == [f"✓{step}" for step in found.decided]
    assert page.locator("#player .pairs button").count() == 4
    assert [float(text) for text in page.locator("#player .pairs span").all_inner_texts()] == [0, 0, 0, 0]
    page.locator("#player .scrub").fill("0")
    page.wait_for_function(f"{OPEN}.candidates === '1/all'")
    assert marks.all_text_contents() == ["", "", "", ""]
    reading = page.locator("#player .possible .reading")
    assert reading.inner_text() == "step 1: 9 (median)"

    page.locator("#player .pairs button").nth(2).click()
    page.wait_for_function(f"{OPEN}.candidates === '1/2'")
    summary = page.locator("#player .candidates-summary")
    assert summary.inner_text().startswith("At step 1, about 9 of the 9 training images are still possible.")
    assert f"It is decided at step {found.decided[2]}." in summary.inner_text()
    assert page.locator("#player .likeliest li").count() == 8
    minds = page.locator("#player .minds button")
    assert minds.count() == 20
    assert minds.first.inner_text() == "1\n+3" and minds.first.locator("canvas").count() == 6
    decided = minds.nth(found.decided[2] - 1)
    assert decided.inner_text() == f"{found.decided[2]}\n✓" and decided.locator("canvas").count() == 1
    minds.nth(19).click()
    page.wait_for_function(f"{OPEN}.candidates === '20/2'")
    assert summary.inner_text().startswith("At step 20, one of the 9 training images is left.")
    assert page.locator("#player .likeliest li span").first.inner_text() == "100.0%"
    page.locator("#player .show-all").click()
    page.wait_for_function(f"{OPEN}.candidates === '20/all'")
    page.get_by_role("button", name="What could it still become?").click()
    assert page.locator("#player .marks i").count() == 0 and not summary.is_visible()


@pytest.mark.browser
def test_the_best_possible_prediction_of_one_image(page):
    choose_model(page, "a")
    set_run(page, timesteps=6, seed=1, images=1)
    page.click("#generate")
    until(page, "d.state === 'done' && +d.kept === 6 && step === 6")
    page.locator("#player .prediction canvas").click()
    page.get_by_role("button", name="Best possible prediction").click()
    page.wait_for_function(f"{OPEN}.best === '6'")
    text = page.locator("#player .best-summary").inner_text()
    assert "the one training image that is left" in text and "They differ by 0." in text
    page.locator("#player .scrub").fill("0")
    page.wait_for_function(f"{OPEN}.best === '1'")
    assert "the mean of the 9.0 training images (of 9)" in page.locator("#player .best-summary").inner_text()
    page.get_by_role("button", name="Best possible prediction").click()
    page.get_by_role("button", name="Look inside").click()  # its latents are alike
    page.wait_for_function(f"{OPEN}.attention === '1/1/0'")
    alike = "all 4 latents read the same patches, so there are no groups to show"
    assert alike in page.locator("#player .attention-summary").inner_text()
    page.get_by_role("button", name="Look inside").click()
    page.locator("#player .show-all").click()


@pytest.mark.browser
def test_two_panels_of_predictions_leave_each_other_alone(page):
    choose_model(page, "c")
    page.locator("#class input").click()
    page.get_by_role("option", name="dogs", exact=True).click()
    page.locator("#guidance input[type=number]").fill("2")
    set_run(page, timesteps=4, seed=1, images=1)
    page.click("#generate")
    until(page, "d.state === 'done' && +d.kept === 4 && step === 4")
    page.locator("#player .prediction canvas").click()
    page.click("#player .best-toggle")
    page.wait_for_function(f"{OPEN}.best === '4'")
    before = canvas_pixels(page, ".inspector.best")
    page.click("#player .guidance-toggle")
    page.wait_for_function(f"{OPEN}.guidance === '4'")
    assert (canvas_pixels(page, ".inspector.best") == before).all() and before.any()
    for panel in ("best", "guidance"):
        for canvas in page.locator(f"#player .inspector.{panel} canvas").all():
            assert canvas.is_visible()
        page.click(f"#player .{panel}-toggle")
    page.locator("#player .show-all").click()


@pytest.mark.browser
def test_the_map_follows_the_step_the_pointer_and_the_image(page):
    choose_model(page, "b")
    set_run(page, timesteps=6, seed=1, images=4)
    page.click("#generate")
    until(page, "d.state === 'done' && +d.kept === 6 && step === 6")
    toggle = page.get_by_role("button", name="Map", exact=True)
    toggle.click()
    page.wait_for_function(f"{OPEN}.map === '6/all'")
    assert "Each colored dot is a prediction at step 6" in page.locator("#player .map-summary").inner_text()
    page.locator("#player .scrub").fill("1")
    page.wait_for_function(f"{OPEN}.map === '2/all'")
    tiles = page.locator("#player .prediction canvas")
    box = tiles.bounding_box()
    tiles.hover(position={"x": 0.75 * box["width"], "y": 0.75 * box["height"]})
    page.wait_for_function(f"{OPEN}.map === '2/3'")
    assert page.locator("#player .outline").is_visible()
    page.locator("#player .snr canvas").hover()  # a chart's step is shown on the map, too
    page.wait_for_function(f"!['2/all', '2/3'].includes({OPEN}.map)")
    page.mouse.move(0, 0)
    page.wait_for_function(f"{OPEN}.map === '2/all'")
    tiles.click(position={"x": 0.25 * box["width"], "y": 0.75 * box["height"]})
    page.wait_for_function(f"{OPEN}.map === '2/2'")
    page.locator("#player .show-all").click()
    toggle.click()
    assert not page.locator("#player .map-panel").is_visible()


@pytest.mark.browser
def test_the_map_of_a_comparison_has_a_path_for_each_variant(page):
    page.get_by_role("tab", name="Compare").click()
    page.click("#compare")
    clock = "document.querySelector('#clock .clock')"
    page.wait_for_function(f"{clock}.dataset.comparison && {clock}.ariaBusy === 'false'")
    page.locator("#clock .map-toggle").click()
    page.wait_for_function(f"{clock}.dataset.map === '12/all'")  # four images, three samplers
    page.locator(".player.variant:visible .prediction canvas").nth(1).click(position={"x": 10, "y": 10})
    page.wait_for_function(f"{clock}.dataset.map === '3/0'")
    assert "the paths of image 1" in page.locator("#clock .map-summary").inner_text()
    page.locator("#clock .clock").press("Escape")
    page.wait_for_function(f"{clock}.dataset.map === '12/all'")
    page.locator("#clock .map-toggle").click()


@pytest.mark.browser
def test_a_model_without_its_training_images_says_so(page):
    choose_model(page, "b")
    set_run(page, timesteps=2, seed=1, images=1)
    page.click("#generate")
    until(page, "d.state === 'done' && +d.kept === 2 && step === 2")
    toggle = page.get_by_role("button", name="What could it still become?")
    toggle.click()
    reason = "this needs all training images of b, which do not come with it; choose a or c"
    summary = "document.querySelector('#player .candidates-summary')"
    page.wait_for_function(f"text => {summary}.innerText === text", arg=reason)
    assert not page.locator("#player .possible").is_visible()
    toggle.click()


def test_the_runs_of_private_checkpoints_are_for_those_who_may_train(tmp_path, monkeypatch):
    """A run's id is not enough: an exact model's images are the training images."""
    run = tmp_path / "home" / "1-mine" / "checkpoints"
    bundle(run, "000001")
    (run.parent / "config.json").write_text('{"name": "mine"}')
    engine = Engine(bundle(tmp_path / "public", "a", training_set={}), runs=tmp_path / "home")
    private = finished(engine, "mine/000001", batch_size=1, timesteps=2, seed=0)
    public = finished(engine, "a, exact", batch_size=1, timesteps=2, seed=0)
    *_, save = functions = server_functions(engine)
    asked = {"run": private.request_id, "start": 0, "row": 0, "index": 1, "kind": "png"}
    open_to_all = [function(asked) for function in functions]
    assert all(open_to_all) and "content" in save(asked)
    monkeypatch.setenv("SPACE_ID", "ann/space")
    assert find_run(engine, private.request_id) is None
    assert [function(asked) for function in functions[:-1]] == [None] * (len(functions) - 1)
    assert "no longer has this run" in save(asked)["problem"]
    assert all(function(asked | {"run": public.request_id}) for function in functions)
    assert find_run(engine, public.request_id) is public
    map_of = map_reader(engine, most_runs=2)
    assert len(map_of({"runs": [public.request_id] * 2})["variants"]) == 2
    for wrong in (None, {}, {"runs": []}, {"runs": [1]}, {"runs": [public.request_id] * 3}):
        assert map_of(wrong) is None
    assert map_of({"runs": [public.request_id, private.request_id]}) is None
    monkeypatch.setenv("DP_ALLOW_TRAINING", "1")
    assert find_run(engine, private.request_id) is private
