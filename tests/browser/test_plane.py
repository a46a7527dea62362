"""The In 2D tab: its plans and runs, computed in JavaScript, are the library's, and the page plays them."""

import itertools
import re

import numpy as np
import pytest
import torch
from pages import click, unfold

from dp.diffusion.exact import ExactDenoiser
from dp.diffusion.plan import make_plan
from dp.diffusion.samplers import SAMPLERS, is_stochastic, update
from dp.diffusion.schedules import SCHEDULES, make_schedule
from dp.diffusion.settings import SampleSettings
from dp.ui.components.component import read_file

pytestmark = pytest.mark.browser

KEYWORDS = [(name, {}) for name in SCHEDULES]
KEYWORDS += [
    ("cosine", {"start": 0.2, "end": 1, "tau": 2}),
    ("sigmoid", {"start": 0, "tau": 0.3}),
    ("sigmoid", {"tau": 0.2}),
]


@pytest.fixture(scope="module")
def evaluate(browser):
    """A function that calls a JavaScript function with some files of the components in scope, on an empty page."""
    page = browser.new_page()

    def evaluate(files, function, argument):
        code = "\n".join(map(read_file, files)) + f"\nreturn ({function})(argument);"
        return page.evaluate("([code, argument]) => new Function('argument', code)(argument)", [code, argument])

    yield evaluate
    page.close()


def settings_of(case):
    """The library's settings for an argument of `makePlan`."""
    return SampleSettings(
        1,
        timesteps=case["timesteps"],
        sampler=case["sampler"],
        noise_schedule=case["schedule"],
        schedule_kwargs=case["scheduleKwargs"],
        time_difference=case["timeDifference"],
        eta=case["eta"],
        strength=case["strength"],
    )


def cases(timesteps, differences, strengths, scales):
    """Arguments of `makePlan` for every sampler and schedule; eta varies where it has an effect."""
    for sampler, (name, keywords), steps, difference, strength, scale in itertools.product(
        SAMPLERS, KEYWORDS, timesteps, differences, strengths, scales
    ):
        case = {"sampler": sampler, "schedule": name, "scheduleKwargs": keywords, "timesteps": steps, "scale": scale}
        trained = None if name == "linear" else ["linear", {}]
        case |= {"timeDifference": difference, "strength": strength, "trained": trained}
        for eta in (0, 0.4, 1) if sampler == "ddim" else (0,):
            yield case | {"eta": eta}


def test_the_plan_is_the_librarys(evaluate):
    made = list(cases(timesteps=(1, 2, 10, 77), differences=(0, 0.03, 0.5), strengths=(1, 0.3), scales=(1, 0.5)))
    for case, plan in zip(made, evaluate(["shared/plan.js"], "(cases) => cases.map(makePlan)", made)):
        expected = make_plan(settings_of(case), make_schedule("linear"), case["scale"])
        for name in ("t", "s"):
            values = {field: [level[field] for level in plan[name]] for field in expected.t._fields}
            for field, column in values.items():
                np.testing.assert_allclose(column, getattr(getattr(expected, name), field), rtol=0, atol=1e-10)
        np.testing.assert_allclose(plan["table"], expected.table, rtol=0, atol=1e-10)
        np.testing.assert_allclose(plan["networkTime"], expected.network_time, rtol=0, atol=1e-10)
        assert plan["draws"] == expected.draws.tolist()


def test_the_network_gets_the_plans_own_time_without_another_schedule(evaluate):
    case = {"timesteps": 5, "sampler": "ddim", "schedule": "cosine"}
    plan = evaluate(["shared/plan.js"], "makePlan", case)
    assert plan["networkTime"] == [level["t"] for level in plan["t"]]


RUN = """({ cases, points, noise }) => cases.map((settings) => {
    const [plan, denoiser] = [makePlan(settings), createDenoiser(Float64Array.from(points))];
    let drawn = 0;
    const run = createRun({ plan, denoiser, noise: () => Float64Array.from(noise[drawn++]) });
    if (!run.advance(() => false)) throw new Error("not complete");
    const weights = run.x.slice(0, -1).map(([x, y], k) => Array.from(denoiser.weigh(x, y, plan.t[k])));
    return { x: run.x.map((x) => Array.from(x)), weights, counts: weights.map(effectiveCount) };
})"""


def test_a_run_is_the_librarys_with_the_exact_denoiser(evaluate):
    """A point in the plane is an image with two channels and one pixel."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(60, 2, generator=generator, dtype=torch.float64) * 2 - 1
    noise = torch.randn(30, 40, 2, generator=generator, dtype=torch.float64)
    made = list(cases(timesteps=(4, 20), differences=(0, 0.05), strengths=(1,), scales=(1,)))
    flat = {"points": points.flatten().tolist(), "noise": noise.flatten(1).tolist()}
    files = ["shared/plan.js", "plane/denoiser.js", "plane/run.js"]
    for case, run in zip(made, evaluate(files, RUN, flat | {"cases": made})):
        name, keywords = case["schedule"], case["scheduleKwargs"]
        images = (points[:, :, None, None] + 1) / 2
        denoiser = ExactDenoiser(images, noise_schedule=name, schedule_kwargs=keywords)
        plan = make_plan(settings_of(case), make_schedule(name, keywords))
        draws, before = iter(noise[:, :, :, None, None]), None
        x = next(draws)
        for k in range(len(plan)):
            np.testing.assert_allclose(run["x"][k], x.flatten(), rtol=0, atol=1e-8)
            time = plan.network_time[k].expand(len(x))
            weights = denoiser.posterior(x[:1], time[:1])[0]
            np.testing.assert_allclose(run["weights"][k], weights, rtol=0, atol=1e-8)
            assert run["counts"][k] == pytest.approx(float(torch.special.entr(weights).sum().exp()), abs=1e-3)
            x0 = denoiser(x, time)
            drawn = next(draws) if plan.draws[k] else None
            x, before = update(x, x0, before, drawn, plan.table[k].expand(len(x), 4)), x0
        np.testing.assert_allclose(run["x"][-1], x.flatten(), rtol=0, atol=1e-8)
        assert bool(plan.draws.any()) == (is_stochastic(case["sampler"], case["eta"]))


def test_the_noise_is_normal_and_a_particles_own(evaluate):
    draw = "(given) => { const noise = createNoise(...given); return [noise(), noise()].map((x) => [...x]); }"
    few, many, other = (
        np.array(evaluate(["plane/gaussian.js", "plane/run.js"], draw, arguments))
        for arguments in ([1, 200], [1, 1000], [2, 1000])
    )
    np.testing.assert_array_equal(few, many[:, :400])
    for x in (*many, *other):
        assert abs(x.mean()) < 0.08 and abs(x.std() - 1) < 0.06
    pairs = [(many[0], many[1]), (many[0], other[0]), (many[0][::2], many[0][1::2]), (many[0][:-2], many[0][2:])]
    assert all(abs(np.corrcoef(a, b)[0, 1]) < 0.1 for a, b in pairs)


def test_the_training_sets_fit_into_the_square(evaluate):
    sets = "() => Object.entries(POINT_SETS).map(([name, { make }]) => [name, [...make()]])"
    found = dict(evaluate(["shared/plan.js", "plane/gaussian.js", "plane/points.js"], sets, None))
    assert found.pop("drawn") == []
    for name, values in found.items():
        points = np.array(values).reshape(-1, 2)
        assert 300 <= len(points) < 400 and np.abs(points).max() <= 1, name
        assert np.ptp(points[:, 0]) > 1.5 and len(np.unique(points, axis=0)) == len(points), name


# ----------------------------------------------------------------------------
# In the app

PLANE = "#plane .plane"
SEEK = """(share) => {
    const scrub = document.querySelector('#plane .scrub');
    scrub.value = share * scrub.max;
    scrub.dispatchEvent(new Event('input', { bubbles: true }));
}"""
STEPS = "[...document.querySelectorAll('#plane .side')].map((side) => +side.dataset.step)"
PICTURES = "[...document.querySelectorAll('#plane .world')].map((canvas) => canvas.toDataURL())"
TOP_OF_A_MOON = (0.5 - 0.3125 / 4.4, 0.5 - 0.46875 / 4.4)  # across and down; the view shows [-2.2, 2.2]²


def is_playing(page):
    return page.evaluate("document.querySelector('#plane .viewer').classList.contains('playing')")


def computed(page):
    """Wait until both runs are shown."""
    page.wait_for_selector("#plane .viewer[aria-busy=false]")


def steps(page):
    return page.evaluate(STEPS)


def titles(page):
    return page.locator("#plane figcaption").all_inner_texts()


@pytest.fixture
def plane(shared_page):
    """The page with the tab open, at the end of the first example."""
    page = shared_page
    unfold(page.get_by_role("tab", name="In 2D"))
    page.wait_for_selector(f"{PLANE}[data-state=ready]")
    page.get_by_role("button", name="Smooth or jagged").click()
    computed(page)
    page.wait_for_function("document.querySelector('#plane .viewer').classList.contains('playing')")
    page.focus("#plane .viewer")
    page.keyboard.press("End")
    return page


def test_it_begins_when_the_tab_is_opened_and_pauses_when_it_is_left(page):
    assert page.evaluate(f"document.querySelector('{PLANE}')?.dataset.state ?? 'waiting'") == "waiting"
    page.get_by_role("tab", name="In 2D").click()
    page.wait_for_function("document.querySelector('#plane .side.right')?.dataset.step > 2")
    assert is_playing(page)
    page.get_by_role("tab", name="Denoise").click()
    page.wait_for_function("!document.querySelector('#plane .viewer.playing')")
    page.emulate_media(reduced_motion="reduce")
    page.get_by_role("tab", name="In 2D").click()
    page.get_by_role("button", name="Five steps cut corners").click()
    page.wait_for_function(f"String({STEPS}) === '50,5'")  # the end, at once
    assert not is_playing(page)


def test_playing_and_scrubbing_ask_the_server_for_nothing(plane):
    page = plane
    page.asked.clear()
    page.keyboard.press("Home")
    assert steps(page) == [0, 0]
    page.keyboard.press("ArrowRight")
    assert steps(page) == [1, 1]
    page.evaluate(SEEK, 0.5)
    assert steps(page) == [25, 25]
    assert page.inner_text("#plane .side.left .reading") == "step 25 of 50\N{NO-BREAK SPACE}· log-SNR 0.0"
    page.select_option("#plane .speed", "4")
    page.focus("#plane .viewer")
    page.keyboard.press("Space")
    page.wait_for_function(f"{STEPS}[0] > 25")
    page.wait_for_selector("#plane .viewer:not(.playing)")
    assert steps(page) == [50, 50]
    page.select_option("#plane .speed", "1")
    assert [url for url in page.asked if not url.startswith("data:") and "heartbeat" not in url] == []


def test_both_sides_start_from_the_same_noise_until_there_is_a_new_one(plane):
    page = plane
    shows = [page.locator(f"#plane [data-shows={name}]") for name in ("trails", "density")]
    for button in shows:
        button.click()
    ends = page.evaluate(PICTURES)
    page.evaluate(SEEK, 0)
    left, right = page.evaluate(PICTURES)
    assert left == right and ends[0] != ends[1]
    page.get_by_role("button", name="New noise").click()
    page.wait_for_function("document.querySelector('#plane .viewer').classList.contains('playing')")
    page.evaluate(SEEK, 0)
    renewed = page.evaluate(PICTURES)
    assert renewed[0] == renewed[1] != left
    for button in shows:
        button.click()
        assert button.get_attribute("aria-pressed") == "true"


def test_the_examples_set_both_sides(plane):
    page = plane
    for name, shown in (
        ("Five steps cut corners", ["DDIM · 50 steps", "DDIM · 5 steps"]),
        ("Wasted steps", ["DDIM · 10 steps · sigmoid", "DDIM · 10 steps · sigmoid, mostly noise"]),
        ("Time difference", ["DDIM · 20 steps", "DDIM · 20 steps · time difference 2"]),
        ("Smooth or jagged", ["DDIM · 50 steps", "DDPM · 50 steps"]),
    ):
        example = page.get_by_role("button", name=name)
        lesson = page.inner_text("#plane .lesson")
        example.click()
        assert titles(page) == shown and page.inner_text("#plane .lesson") != lesson
        assert example.get_attribute("aria-pressed") == "true"
    assert page.locator("#plane .examples [aria-pressed=true]").count() == 1


def test_a_setting_changes_one_side(plane):
    page = plane
    form = page.get_by_role("group", name="Right")
    form.get_by_label("Sampler").select_option("dpmpp_2m")
    form.get_by_label("Noise schedule").select_option("cosine")
    form.get_by_label("Timesteps").fill("7")
    computed(page)
    assert titles(page) == ["DDIM · 50 steps · sigmoid", "DPM-Solver++(2M) · 7 steps · cosine"]
    assert steps(page) == [50, 7]  # still at the end
    assert page.locator("#plane .examples [aria-pressed=true]").count() == 0
    assert not form.get_by_label("eta").is_visible()  # DDIM's
    form.get_by_label("Timesteps").fill("999")
    assert form.get_by_role("alert").inner_text() == "Timesteps must be a whole number from 1 to 200."
    page.keyboard.press("Tab")
    assert form.get_by_label("Timesteps").input_value() == "7"
    page.get_by_role("group", name="Left").get_by_label("eta").fill("0.25")
    computed(page)
    assert titles(page)[0] == "DDIM · 50 steps · sigmoid · eta 0.25"


def test_a_particle_shows_what_it_may_become(plane):
    page = plane
    before = page.evaluate(PICTURES)
    click(page, "#plane .side.left .world", *TOP_OF_A_MOON)
    assert page.get_attribute(PLANE, "data-followed") != ""
    assert page.evaluate(PICTURES)[0] != before[0]

    def counts():
        text = page.inner_text("#plane .followed")
        return [float(number) for number in re.findall(r"about ([\d.]+) points on the left, ([\d.]+)", text)[0]]

    late = counts()
    page.focus("#plane .viewer")
    page.keyboard.press("Home")
    early = counts()
    assert all(1 <= few < 100 < 300 < many <= 320 for few, many in zip(late, early))
    followed = int(page.get_attribute(PLANE, "data-followed"))
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.get_attribute(PLANE, "data-followed") == str((followed + 1) % 500)
    page.keyboard.press("Escape")
    assert page.get_attribute(PLANE, "data-followed") == "" and page.inner_text("#plane .followed") == ""
    page.get_by_role("button", name="Follow a particle").click()
    assert page.get_attribute(PLANE, "data-followed") != ""


def test_points_are_drawn_up_to_a_limit(plane):
    page = plane
    page.select_option("#plane .points", "word")
    box = page.locator("#plane .pad").bounding_box()
    for down in (0.1, 0.9):
        page.mouse.move(box["x"] + 5, box["y"] + down * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] - 5, box["y"] + down * box["height"], steps=60)
        page.mouse.up()
    assert page.inner_text("#plane .count").startswith("400 points. That is the limit.")
    assert page.input_value("#plane .points") == "drawn"
    computed(page)
    page.get_by_role("button", name="Clear", exact=True).click()
    page.wait_for_selector(f"{PLANE}[data-state=empty]")
    assert page.is_disabled("#plane .play")
    assert page.inner_text("#plane .side.left .reading") == "Draw some points, or choose a training set."

    # With the keyboard: all particles go to the one point.
    page.focus("#plane .pad")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    page.wait_for_selector(f"{PLANE}[data-state=ready]")
    assert page.inner_text("#plane .count").startswith("1 point.")
    page.evaluate(SEEK, 1)
    page.get_by_role("button", name="Follow a particle").click()
    assert "about 1.0 points on the left, 1.0 on the right" in page.inner_text("#plane .followed")
