"""The Compare tab: runs that differ in one setting start from the same noise and are played on one clock."""

import shutil

import gradio as gr
import numpy as np
import pytest
import torch
from models import model, save_fast
from pages import awaited, close_toasts, decode, hearing_late, settle, type_numbers, unfold

from dp import DiffusionPolicy
from dp.data.codec import make_grid, to_uint8
from dp.serving.engine import Engine
from dp.serving.handle import SampleRequest
from dp.training.run_folder import RunFolder
from dp.ui.sampling.comparison import ComparisonResult, Comparisons, side_by_side
from dp.ui.sampling.page_values import TRAINED
from dp.ui.sampling.variants import FAST, MAX_VARIANTS, SHORT_RUNS, make_variants
from dp.ui.streaming import Sessions
from dp.ui.tabs.compare import AXES, NUMBERS, axes, checkpoints_of_run
from dp.ui.zero_gpu import GpuRunner

SAMPLERS = ["dpmpp_2m", "ddim", "ddpm"]
VALUES = {
    "sampler": [*SAMPLERS, "dpmpp_2m_sde"],
    "timesteps": ["3", "5", 8, "12"],
    "schedule": [TRAINED, "linear", "cosine", "sigmoid"],
    "difference": ["0", "0.5", "2"],
    "eta": [0, "0.5", "1"],
    "checkpoint": ["one", "two"],
    "class": ["1", "3", ""],
    "guidance": ["1", "0", "2.5"],
    SHORT_RUNS: ["2", "9", "5"],
    FAST: ["1", "2", "4"],
}


@pytest.fixture
def engine(tiny_rin, tmp_path):
    for name, conv_widths in (("one", ()), ("two", (8,))):
        DiffusionPolicy(tiny_rin(conv_widths=conv_widths, num_classes=3)).save_pretrained(tmp_path / name)
    save_fast(DiffusionPolicy(tiny_rin(num_classes=3)), tmp_path / "one-fast", "one")
    DiffusionPolicy(tiny_rin()).save_pretrained(tmp_path / "without classes")
    return Engine(tmp_path, device="cpu")


def page_values(timesteps=20, sampler="dpmpp_2m", eta=0, seed=7, random_seed=False, axis=None, checkpoint="one"):
    """axis: what is to be compared; guidances can be compared only for a class."""
    values = {"label": "2"} if axis == "guidance" else {}
    values |= {
        "checkpoint": checkpoint,
        "images": 2,
        "timesteps": timesteps,
        "sampler": sampler,
        "noise_schedule": TRAINED,
    }
    return values | {"time_difference_steps": 0, "eta": eta, "seed": seed, "random_seed": random_seed}


def run(runner, variants):
    """Return all values of each variant, and the result. runner: the engine or a lent GPU."""
    with gr.Blocks() as page:
        sessions = Sessions(runner, page)
    page.queue()
    comparison, told = Comparisons(sessions).start("a session", variants, {}), [[] for _ in variants]

    async def watch():
        async for news in side_by_side(sessions, "a session", comparison):
            for i, value in news.items():
                told[i].append(value)

    awaited(watch())
    return told, comparison.result


@pytest.mark.parametrize("axis", [value for _, value in AXES])
def test_all_variants_start_from_the_same_noise_to_the_bit(engine, axis):
    variants = make_variants(engine, axis, VALUES[axis], page_values(random_seed=True, axis=axis))
    assert len({variant.settings.seed for variant in variants}) == 1
    assert len({variant.label for variant in variants}) == len(variants)
    first = [engine.policy(variant.checkpoint).init_state(variant.settings).x_t for variant in variants]
    assert all(torch.equal(x_t, first[0]) for x_t in first)
    # The same on the engine, where the variants share model calls.
    handles = [engine.submit(variant.settings, variant.checkpoint) for variant in variants]
    shown = []
    for handle in handles:
        for _ in handle:
            pass
        assert handle.state == "done"
        shown.append(handle.trajectory.frames[0].x_t)
    assert all(np.array_equal(x_t, shown[0]) for x_t in shown)


@pytest.mark.parametrize("axis", [value for _, value in AXES if value not in (SHORT_RUNS, FAST)])
def test_variants_differ_only_in_the_chosen_setting(engine, axis):
    field = {"sampler": "sampler", "timesteps": "timesteps", "schedule": "noise_schedule", "eta": "eta"}
    field |= {"difference": "time_difference", "checkpoint": "batch_size", "class": "label", "guidance": "guidance"}
    variants = make_variants(engine, axis, VALUES[axis], page_values(axis=axis))
    rests = [vars(variant.settings) | {field[axis]: None} for variant in variants]
    assert all(rest == rests[0] for rest in rests)
    apart = {(variant.checkpoint, getattr(variant.settings, field[axis])) for variant in variants}
    assert len(apart) == len(variants) == len(VALUES[axis])


def test_each_variant_ends_with_the_images_of_the_library(engine):
    variants = make_variants(engine, "timesteps", ["3", "8", "12"], page_values())
    told, result = run(engine, variants)
    policy = engine.policy("one")
    ends = [to_uint8(policy.sample(2, timesteps=n, sampler="dpmpp_2m", seed=7)) for n in (3, 8, 12)]
    for variant, values, images in zip(variants, told, ends):
        assert values[0]["state"] == "waiting" and values[-1]["state"] == "done"
        assert {value["label"] for value in values} == {variant.label}
        np.testing.assert_allclose(decode(values[-1]["src"]), make_grid(images), atol=1)
    table = result.table()
    assert table["longest"] == "12 steps"
    by_checkpoint = make_variants(engine, "checkpoint", VALUES["checkpoint"], page_values(axis="checkpoint"))
    assert ComparisonResult(by_checkpoint).table()["longest"] == by_checkpoint[-1].label
    assert [row[:2] for row in table["rows"]] == [["3 steps", "3"], ["8 steps", "8"], ["12 steps", "12"]]
    for row, images in zip(table["rows"], ends):
        far = np.sqrt(np.mean(((images.astype(float) - ends[-1]) / 255) ** 2))
        assert abs(float(row[3]) - far) < 2e-3 and float(row[2]) > 0


def test_one_checkpoint_is_not_compared_with_itself(engine):
    with pytest.raises(gr.Error, match="choose two checkpoints or more"):
        make_variants(engine, "checkpoint", ["one"], page_values())


@pytest.mark.parametrize(
    "count, opened, chosen",
    [(1, 1, [1]), (6, 2, [1, 2, 3, 4, 5, 6]), (11, 5, [1, 3, 5, 7, 9, 11]), (11, 6, [1, 3, 6, 7, 9, 11]),
     (20, 20, [1, 5, 9, 12, 16, 20]), (20, 19, [1, 5, 9, 12, 19, 20])],
)  # fmt: skip
def test_a_runs_checkpoint_is_compared_with_others_of_that_run(engine, tiny_rin, tmp_path, count, opened, chosen):
    for name, steps in (("mine", range(1, count + 1)), ("other", [1])):
        run = RunFolder(tmp_path / "runs" / name)
        run.update_status(state="finished")
        for step in steps:
            shutil.copytree(tmp_path / "one", run.checkpoint(step))
    engine = Engine(tmp_path, device="cpu", runs=tmp_path / "runs")
    assert checkpoints_of_run(engine, f"mine/{opened:06d}") == [f"mine/{step:06d}" for step in chosen]
    if len(chosen) > 1:
        names = [f"mine/{step:06d}" for step in chosen]
        labels = [variant.label for variant in make_variants(engine, "checkpoint", names, page_values())]
        assert labels == [f"{step:06d} · mine" for step in chosen]


def test_step_k_of_a_long_run_is_paired_with_a_k_step_run(engine):
    variants = make_variants(engine, SHORT_RUNS, ["9", "2"], page_values(timesteps=60))
    assert [variant.label for variant in variants] == [
        "step 2 of 60",
        "whole 2-step run",
        "step 9 of 60",
        "whole 9-step run",
    ]
    told, result = run(engine, variants)
    policy = engine.policy("one")
    steps = list(policy.stream(2, timesteps=60, sampler="dpmpp_2m", seed=7))
    for i, k in enumerate((2, 9)):
        cut, short = told[2 * i][-1], told[2 * i + 1][-1]
        assert (cut["index"], cut["timesteps"], cut["state"], cut["until"]) == (k, 60, "done", k)
        np.testing.assert_allclose(decode(cut["src"]), make_grid(to_uint8((steps[k - 1].x0 + 1) / 2)), atol=1)
        alone = policy.sample(2, timesteps=k, sampler="dpmpp_2m", seed=7)
        np.testing.assert_allclose(decode(short["src"]), make_grid(to_uint8(alone)), atol=1)
    assert result.table()["longest"] == "the 60-step run"
    assert all(float(far) > 0 for *_, far in result.table()["rows"])


@pytest.mark.parametrize("chosen", ["one", "one-fast", "two"])
def test_a_fast_model_is_compared_with_the_one_that_it_was_made_from(engine, chosen):
    values = page_values(sampler="ddim", eta=0.5, checkpoint=chosen)
    variants = make_variants(engine, FAST, ["1", "2", 4], values)
    *few, original = variants
    labels = ["one-fast, 1 step", "one-fast, 2 steps", "one-fast, 4 steps", "original one, 20 steps"]
    assert [variant.label for variant in variants] == labels
    assert {(one.checkpoint, one.settings.sampler) for one in few} == {("one-fast", "consistency")}
    assert (original.checkpoint, original.settings.sampler) == ("one", "dpmpp_2m")
    assert ComparisonResult(variants).table()["longest"] == original.label  # from which distances are measured
    for steps, words in (([str(k) for k in range(1, 7)], "choose 1 to 5"), ([0], "Timesteps")):
        with pytest.raises(gr.Error, match=words):
            make_variants(engine, FAST, steps, values)


def test_without_a_fast_model_or_its_original_there_is_nothing_to_compare(engine, tmp_path):
    shutil.rmtree(tmp_path / "one")
    assert FAST not in [value for _, value in axes(engine)]
    with pytest.raises(gr.Error, match="no fast model"):
        make_variants(engine, FAST, ["1"], page_values(checkpoint="two"))


def test_a_fast_run_is_compared_with_the_checkpoint_that_it_started_from(engine, tiny_rin, tmp_path):
    for name in ("cats-1", "cats-2"):
        RunFolder(tmp_path / "runs" / name).update_status(state="finished")
    shutil.copytree(tmp_path / "two", tmp_path / "runs/cats-1/checkpoints/000009")
    save_fast(DiffusionPolicy(tiny_rin()), tmp_path / "runs/cats-2/checkpoints/000002", "cats-1/000009")
    engine = Engine(tmp_path, device="cpu", runs=tmp_path / "runs")
    variants = make_variants(engine, FAST, ["1"], page_values(checkpoint="cats-1/000009"))
    assert [variant.checkpoint for variant in variants] == ["cats-2/000002", "cats-1/000009"]


def test_a_lent_gpu_samples_the_same_images_one_run_after_the_other(engine):
    for axis in ("sampler", SHORT_RUNS):
        variants = make_variants(engine, axis, VALUES[axis], page_values())
        _, together = run(engine, variants)
        told, alone = run(GpuRunner(engine), variants)
        assert [values[-1]["state"] for values in told] == ["done"] * len(variants)
        for row, other in zip(together.table()["rows"], alone.table()["rows"]):
            assert (row[0], row[1]) == (other[0], other[1])
            assert abs(float(row[3]) - float(other[3])) < 2e-3


def test_stop_ends_the_comparison_and_leaves_the_other_tab_alone(engine):
    with gr.Blocks() as page:
        sessions = Sessions(engine, page)
    page.queue()
    variants = make_variants(engine, "sampler", SAMPLERS, page_values(timesteps=1000))

    async def watch():
        [other] = make_variants(engine, "sampler", ["ddim"], page_values(1000))
        mine = sessions.start("a session", SampleRequest(*other.run))
        await anext(mine)
        last = {}
        comparison = Comparisons(sessions).start("a session", variants, {})
        async for news in side_by_side(sessions, "a session", comparison):
            last |= news
            if all(value.get("index", 0) > 2 for value in last.values()) and len(last) == len(variants):
                sessions.stop("a session", tab="compare")
        states = {value["state"] for value in last.values()}
        after = await anext(mine)
        sessions.disconnect("a session")
        await mine.aclose()
        return states, after["state"]

    assert awaited(watch()) == ({"stopped"}, "running")


def test_an_invalid_comparison_is_a_clear_error(engine):
    for axis, chosen, words in (
        ("timesteps", [], "Values: choose 1 to 6 to compare, got 0"),
        ("timesteps", None, "Values: choose 1 to 6"),
        ("timesteps", [str(n) for n in range(1, 8)], "Values: choose 1 to 6 to compare, got 7"),
        (SHORT_RUNS, ["1", "2", "3", "4"], "Values: choose 1 to 3"),
        (SHORT_RUNS, ["20"], "Step k must be a whole number from 1 to 19"),
        ("timesteps", ["many"], "Timesteps must be a whole number from 1 to 1000, got 'many'"),
        ("timesteps", ["2.5"], "Timesteps must be a whole number"),
        ("eta", ["2"], "eta must be a number from 0 to 1"),
        ("sampler", ["euler"], "sampler"),
        ("checkpoint", ["three"], "there is no checkpoint 'three'"),
        ("class", [str(n) for n in range(7)], "Values: choose 1 to 6 to compare, got 7"),
        ("class", ["4"], "there is no class '4'; choose one of: 1, 2, 3"),
        ("guidance", ["2"], "Guidance needs a class"),
        ("guidance", ["11"], "Guidance"),
        ("weather", ["fine"], "cannot compare by 'weather': choose checkpoint, timesteps,"),
        (["sampler"], ["ddim"], "cannot compare by"),
        ("sampler", {"ddim": 1}, "Values: choose 1 to 6"),
        ("sampler", [["ddim"]], "sampler"),
        ("timesteps", [[5]], "Timesteps must be a whole number"),
        (SHORT_RUNS, [{}], "Step k must be a whole number"),
    ):
        with pytest.raises(gr.Error, match=words.replace("(", r"\(")):
            make_variants(engine, axis, chosen, page_values())
    for axis in ("class", "guidance"):
        with pytest.raises(gr.Error, match="without classes has no classes to compare: choose another checkpoint"):
            make_variants(engine, axis, [], page_values(checkpoint="without classes"))


def test_classes_are_compared_only_if_a_model_has_some(engine, tiny_rin, tmp_path):
    assert axes(engine) == AXES
    DiffusionPolicy(tiny_rin()).save_pretrained(tmp_path / "plain" / "one")
    offered = [value for _, value in axes(Engine(tmp_path / "plain", device="cpu"))]
    assert offered == [value for _, value in AXES if value not in ("class", "guidance", FAST)]


def test_the_default_values_can_be_compared(engine):
    for axis, (offered, first) in NUMBERS.items():
        assert set(first) <= set(offered)
        assert make_variants(engine, axis, first, page_values(timesteps=40, axis=axis))


# ----------------------------------------------------------------------------
# In the browser

PLAYERS = "[...document.querySelectorAll('.player.variant')].filter(p => !p.hidden)"


def until_players(page, condition, seconds=150):
    page.wait_for_function(f"(() => {{ const players = {PLAYERS}; return {condition}; }})()", timeout=seconds * 1000)


def until_done(page, count):
    until_players(
        page, f"players.length === {count} && players.every(p => p.dataset.kept && p.dataset.state === 'done')"
    )


def compare(page, axis=None, values=(), seed=5, **numbers):
    """Open the tab, choose `axis` and `values` if given, and start the comparison. numbers: values of the controls, as
    in `type_numbers`. Without `values`, a page whose axis was chosen before keeps those that it has.
    """
    unfold(page.get_by_role("tab", name="Compare"))
    page.locator("#compare-random input").uncheck()
    if axis and not page.input_value("#axis input").startswith(axis):
        before = page.inner_text("#values")
        page.locator("#axis input").click()
        page.get_by_role("option", name=axis).click()
        page.wait_for_function("before => document.querySelector('#values').innerText !== before", arg=before)
        settle(page)
    if values:
        page.click("#values .remove-all")
        for value in values:
            page.locator("#values input").fill(value)
            page.keyboard.press("Enter")
        page.keyboard.press("Tab")
    type_numbers(page, "compare-", seed=seed, **numbers)
    page.click("#compare")


def shown(page):
    """Return the step and the image that each variant shows."""
    canvas = "p.querySelector('.prediction canvas').toDataURL('image/png')"
    pairs = page.evaluate(f"{PLAYERS}.map(p => [+p.dataset.step, {canvas}])")
    return [step for step, _ in pairs], [decode(picture) for _, picture in pairs]


@pytest.mark.browser
def test_six_variants_on_one_clock_show_the_images_of_the_library(shared_page):
    page = shared_page
    counts = [int(number) for number in NUMBERS["timesteps"][1]]
    compare(page, "Timesteps", images=2)
    until_done(page, MAX_VARIANTS)
    policy = model()
    runs = [list(policy.stream(2, timesteps=n, sampler="dpmpp_2m", seed=5)) for n in counts]
    steps, pictures = shown(page)
    assert steps == counts
    for picture, made in zip(pictures, runs):
        np.testing.assert_allclose(picture, make_grid(to_uint8((made[-1].x0 + 1) / 2)), atol=1)
    assert page.locator("#clock tbody tr").count() == MAX_VARIANTS
    assert page.inner_text("#clock tbody tr:last-child").split()[:3] == ["100", "steps", "100"]
    assert page.is_visible("#clock .distances canvas")
    ends = [f"{made[-1].log_snr:.1f}".replace("-", "−") for made in runs]
    assert page.locator("#clock .snr .reading .value").all_inner_texts() == ends

    # Align by progress: half of each run. Then align by noise level: the same log-SNR.
    asked = []
    page.on("request", lambda request: request.url.startswith("data:") or asked.append(request.url))
    page.locator("#clock .scrub").fill("50")
    half = [max(n // 2, 1) for n in counts]
    until_players(page, f"String(players.map(p => +p.dataset.step)) === '{','.join(map(str, half))}'")
    page.select_option("#clock .align-by", "log_snr")
    page.locator("#clock .scrub").fill("60")
    levels = sorted({step.log_snr for made in runs for step in made})
    level = np.interp(0.6 * (len(levels) - 1), range(len(levels)), levels)
    there = [max([step.index for step in made if step.log_snr <= level], default=1) for made in runs]
    assert min(there) > 1  # all runs have moved on
    until_players(page, f"String(players.map(p => +p.dataset.step)) === '{','.join(map(str, there))}'")
    assert [url for url in asked if "heartbeat" not in url] == []

    page.focus("#clock .clock")
    page.keyboard.press("Home")
    until_players(page, "players.every(p => +p.dataset.step === 1)")
    page.select_option("#clock .pane", "noisy")
    pictures = page.evaluate(f"{PLAYERS}.map(p => p.querySelector('.noisy canvas').toDataURL('image/png'))")
    noisy = [decode(src) for src in pictures]
    assert all(np.array_equal(picture, noisy[0]) for picture in noisy)  # all variants share the noise
    page.keyboard.press("End")
    until_players(page, f"String(players.map(p => +p.dataset.step)) === '{','.join(map(str, counts))}'")

    page.select_option("#clock .pane", "prediction")
    third = page.locator(".player.variant .prediction canvas").nth(2)
    box = third.bounding_box()
    third.click(position={"x": box["width"] / 4, "y": box["height"] / 2})  # the first of two images
    until_players(page, "players.every(p => p.dataset.image === '0')")
    page.focus("#clock .clock")
    page.keyboard.press("Escape")
    until_players(page, "players.every(p => p.dataset.image === undefined)")
    page.keyboard.press("Space")
    until_players(page, "+players[5].dataset.step > 5 && +players[5].dataset.step < 95")
    page.keyboard.press("Space")


@pytest.mark.soak
@pytest.mark.browser
def test_a_comparison_whose_messages_arrive_together_ends(page):
    with hearing_late(page, beside="Denoise"):
        compare(page, images=1)
        until_done(page, 3)
        page.wait_for_selector("#compare", state="visible")
        assert page.locator("#clock tbody tr").count() == 3 and not page.is_visible("#compare-stop")
        compare(page, "Step k of a long run")
        until_done(page, 6)
        assert page.locator(".variants.pairs").count() == 1
    compare(page, values=("5", "900"), timesteps=1000, images=4)
    until_players(
        page, "players.length === 4 && +players[2].dataset.step > 0 && players[2].dataset.state === 'running'"
    )
    page.focus("#compare-stop")
    page.keyboard.press("Enter")
    until_players(page, "players[2].dataset.state === 'stopped'")
    page.wait_for_function("document.activeElement.id === 'compare'")


@pytest.mark.browser
def test_pairs_show_their_steps_and_the_other_tab_keeps_its_run(shared_page):
    page = shared_page
    type_numbers(page, timesteps=5)
    page.click("#generate")
    page.wait_for_function("document.querySelector('#player .player').dataset.kept")
    mine = page.evaluate("sessionStorage.getItem('dp-run')")
    compare(page, "Step k of a long run", images=2)
    until_done(page, 6)
    policy = model()
    made = list(policy.stream(2, timesteps=40, sampler="dpmpp_2m", seed=5))
    steps, pictures = shown(page)
    assert steps == [5, 5, 10, 10, 20, 20]
    for i, k in enumerate((5, 10, 20)):
        np.testing.assert_allclose(pictures[2 * i], make_grid(to_uint8((made[k - 1].x0 + 1) / 2)), atol=1)
        alone = policy.sample(2, timesteps=k, sampler="dpmpp_2m", seed=5)
        np.testing.assert_allclose(pictures[2 * i + 1], make_grid(to_uint8(alone)), atol=1)
    tops = page.evaluate(f"{PLAYERS}.map(p => p.getBoundingClientRect().top)")
    assert tops[0] == tops[2] == tops[4] < tops[1] == tops[3] == tops[5]
    assert page.evaluate("sessionStorage.getItem('dp-run')") == mine

    compare(page, values=("2", "3", "4", "5"))
    page.locator(".toast-body", has_text="Values: choose 1 to 3 to compare, got 4").wait_for()
    close_toasts(page)
    page.get_by_role("tab", name="Denoise").click()
    assert page.get_attribute("#player .player", "data-state") == "done"


@pytest.mark.browser
def test_a_reloaded_page_shows_its_comparison_and_its_controls(shared_page):
    page = shared_page
    compare(page, "Timesteps", values=("4", "900"), images=2)
    until_players(page, "players.length === 2 && players[0].dataset.state === 'done' && +players[1].dataset.step > 2")
    for state in ("running", "stopped"):
        page.reload()
        page.wait_for_selector("#generate")
        unfold(page.get_by_role("tab", name="Compare"))
        until_players(page, f"players.length === 2 && players[1].dataset.state === '{state}'")
        assert page.input_value("#axis input") == "Timesteps"
        assert [token.strip() for token in page.locator("#values .token").all_inner_texts()] == ["4", "900"]
        for control, value in (("images", "2"), ("seed", "5")):
            assert page.input_value(f"#compare-{control} input[type=number]") == value
        assert not page.locator("#compare-random input").is_checked() and not page.is_visible("#compare-timesteps")
        assert page.locator("#clock tbody th").all_inner_texts() == ["4 steps", "900 steps"]
        if state == "running":
            page.click("#compare-stop")
            until_players(page, "players[1].dataset.state === 'stopped'")
    until_players(page, "players[0].dataset.kept === '4'")
    _, [picture, _] = shown(page)
    images = model().sample(2, timesteps=4, sampler="dpmpp_2m", seed=5)
    np.testing.assert_allclose(picture, make_grid(to_uint8(images)), atol=1)
