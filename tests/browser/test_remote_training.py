"""A run sent to a rented machine from the page, through a Hub on this machine whose Jobs are real processes."""

from __future__ import annotations

import json

import pytest
from conftest import LEFT_EARLY, WINDOWS
from fakehub import refuses
from pages import owners, window
from test_prepare import png, write
from test_publish import environment, everything_below, served, signed_in  # noqa: F401 (a fixture)
from test_remote import gone, hub, shown  # noqa: F401 (a fixture)
from test_train_tab import asking, home, in_state, open_train_tab, sooner_or_later  # noqa: F401 (a fixture)
from tiny_runs import make_run, shorten, state

from dp.training.remote import job
from dp.training.run_folder import list_runs
from dp.ui.auth import permission
from dp.ui.training import remote_training

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
WRITER, BOB = "hf_alice", "hf_bob"


@pytest.fixture(autouse=True)
def bob(hub):  # noqa: F811
    """Add another user to this Hub."""
    hub.users[BOB] = ("bob", True)


@pytest.fixture
def hasty(monkeypatch):
    """Let the page synchronize remote runs, and their Jobs report, several times a second."""
    monkeypatch.setattr(remote_training, "EXCHANGE_S", 0.3)
    monkeypatch.setattr(remote_training, "REPORT_S", 0.2)


def says(page, part, words, seconds=150):
    page.wait_for_function(
        "([part, words]) => document.querySelector(`#board ${part}`).innerText.includes(words)",
        arg=[part, words],
        timeout=seconds * 1000,
    )


def priced(page):
    page.wait_for_selector("#board .rent .main:enabled")


def press(page, verb, answer=None):
    page.click(f"#board [data-verb={verb}]")
    if answer:
        page.click(f"#board .confirmation .{answer}")


def start(page, token=""):
    if token:
        page.fill("#board .rent .token", token)
    page.click("#board .rent .main")


# ----------------------------------------------------------------------------
# The page


@pytest.mark.browser
@pytest.mark.parametrize("options", WINDOWS[:1])
def test_a_run_trains_on_a_rented_machine_and_its_token_is_not_stored(
    browser,
    hub,  # noqa: F811
    environment,  # noqa: F811
    hasty,
    tmp_path,
    options,
    capfd,
):
    run = make_run(tmp_path, train_num_steps=1_000_000, save_and_sample_every=40)
    answers, hub.has_machines = [], False
    with served(environment) as url, window(browser, url, **options) as page:
        page.on("response", lambda answer: answers.append(answer) if "component_server" in answer.url else None)
        open_train_tab(page)
        press(page, "rent")
        priced(page)
        assert page.input_value("#board .rent .machine") == "a10g-small"
        says(page, ".price", "a10g-small (1 × A10G, 24 GB) costs $1.00 per hour, at most $2.00. It pauses after")
        page.fill("#board .rent .timeout", "90m")
        says(page, ".price", "at most $1.50. It pauses after at most 90 minutes")
        page.select_option("#board .rent .machine", "cpu-basic")
        says(page, ".price", "cpu-basic (2 vCPU, 16 GB) costs $0.01 per hour, at most $0.02")
        page.fill("#board .rent .timeout", "soon")
        says(page, ".price", "A time limit must be written as 30m, 2h or 1d")
        assert page.is_disabled("#board .rent .main")
        page.fill("#board .rent .timeout", "1h")
        priced(page)
        for token, said in (("", "a token is required"), (WRITER + "x", "does not accept this token")):
            start(page, token)
            says(page, ".rent .outcome", said)
            assert page.input_value("#board .rent .token") == ""
        assert hub.jobs == {} and state(run) == "new"

        start(page, WRITER)
        in_state(page, "queued")
        says(page, ".message", "Waiting for a machine (cpu-basic).")
        says(page, ".job .job-description", "On a rented machine (cpu-basic) since")
        assert page.get_attribute("#board .job a", "href") == f"{hub.url}/jobs/alice/job0"
        assert not page.is_visible("#board .rent") and not page.is_visible("#board [data-verb=rent]")
        (job,) = hub.jobs.values()
        assert job["spec"]["flavor"] == "cpu-basic" and job["spec"]["timeoutSeconds"] == 3600
        hub.is_forked = False
        hub.run(job)
        hub.is_forked = True
        in_state(page, "preparing")
        in_state(page, "running")
        page.wait_for_function("+document.querySelector('#board .chart').dataset.points >= 3", timeout=150_000)
        page.wait_for_function("+document.querySelector('#board .run').dataset.samples >= 1", timeout=150_000)
        assert list_runs(run.path.parent)[0].has_active_job() and run.status().pid is None
        press(page, "pause")
        in_state(page, "paused")
        says(page, ".message", "you are not being charged")
        assert run.status().step > 0 and not page.is_visible("#board .job")
        total = run.status().step + 20
        shorten(run, total)

        press(page, "rent")
        priced(page)
        assert not page.is_visible("#board .rent .token")  # typed once per page
        start(page)
        in_state(page, "queued")
        hub.trouble["inspect"] = refuses(503)
        says(page, ".job .job-problem", "The Hub has an internal problem (error 503)")
        assert page.locator("#board .checkpoints canvas:visible").count() >= 1
        hub.trouble.clear()
        says(page, ".job .last-check", "Last checked at")
        hub.run(hub.jobs["job1"])
        in_state(page, "finished")  # it may have too few steps left to be seen running
        assert run.status().step == total == run.checkpoint_steps()[-1] and len(hub.repos) == 1
        press(page, "delete")
        says(page, ".confirmation", f"Its repository {run.status().remote.repo} on Hugging Face stays")
        page.click("#board .confirmation .no")
        press(page, "forget", "yes")
        page.wait_for_selector("#board [data-verb=forget]", state="hidden")
        assert hub.repos == {} and run.checkpoint_steps()[-1] == total
        said = "".join(answer.text() for answer in answers) + page.content()
        stored = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
        assert page.evaluate("[...document.querySelectorAll('input')].every(box => !box.value.includes('hf_'))")
    said += "".join(capfd.readouterr())
    assert WRITER not in said + stored and WRITER.encode() not in everything_below(tmp_path)


@pytest.mark.browser
def test_a_new_page_asks_for_the_token_and_then_saves_samples_and_cancels(
    browser,
    hub,  # noqa: F811
    environment,  # noqa: F811
    hasty,
    tmp_path,
):
    run = make_run(tmp_path, train_num_steps=1_000_000, save_and_sample_every=100_000)
    job.start(run, "a10g-small", "1h", WRITER, every=0.2)
    with served(environment) as url, window(browser, url, forgiven=LEFT_EARLY) as page:  # after a reload
        open_train_tab(page)
        page.wait_for_selector("#board .sign-in .token")
        in_state(page, "queued")  # there was no request to the Hub
        for token, said in ((WRITER + "x", "does not accept this token"), (BOB, "The job belongs to alice")):
            page.fill("#board .sign-in .token", token)
            page.click("#board .sign-in .main")
            says(page, ".sign-in .outcome", said)
        assert run.has_active_job()  # another user's token cannot see its Job, which continues
        page.fill("#board .sign-in .token", WRITER)
        page.click("#board .sign-in .main")
        in_state(page, "running")
        assert not page.is_visible("#board .sign-in")
        press(page, "save")
        sooner_or_later(lambda: run.checkpoint_steps())
        press(page, "sample")
        page.wait_for_function("+document.querySelector('#board .run').dataset.samples >= 1", timeout=150_000)
        press(page, "end", "no")
        with window(browser, url) as other:  # a second page does not repeat it
            open_train_tab(other)
            in_state(other, "running")
            other.wait_for_selector("#board .sign-in .token")
        press(page, "end", "yes")
        in_state(page, "stopped")
        says(page, ".message", "Its job was canceled; Resume continues from step")
        assert hub.jobs["job0"]["stage"] == "CANCELED"
        page.reload()
        open_train_tab(page)
        press(page, "forget", "yes")
        page.click("#board .sign-in .cancel")
        press(page, "forget", "yes")
        page.fill("#board .sign-in .token", WRITER)
        page.click("#board .sign-in .main")
        page.wait_for_selector("#board [data-verb=forget]", state="hidden")
        assert hub.repos == {} and not page.is_visible("#board .sign-in")


@pytest.mark.browser
@pytest.mark.parametrize("options", WINDOWS[1:])  # where the form is far below the button
def test_rent_a_machine_creates_a_run_and_opens_the_form(browser, hub, environment, home, tmp_path, options):  # noqa: F811
    pictures = write(tmp_path / "two", {"1.png": png(1), "2.png": png(2)})
    with (
        served(environment | {"HF_TOKEN": WRITER}) as url,
        window(browser, owners(url, home), **options) as page,
    ):
        open_train_tab(page)
        assert page.is_disabled("#rent-training")
        page.locator("#intake .files").set_input_files([pictures / "1.png", pictures / "2.png"])
        page.wait_for_selector("#intake .upload[data-state=checked]")
        page.click("#rent-training")
        in_state(page, "new")
        priced(page)
        page.wait_for_function(
            """() => {
                const box = document.querySelector('#board .rent .machine').getBoundingClientRect();
                return box.top >= 0 && box.bottom <= innerHeight;
            }"""
        )
        (run,) = list_runs(home)
        assert run.config()["name"] == "images" and not run.is_alive() and not list((home / ".drafts").iterdir())
        assert not page.is_visible("#board .rent .token")  # there is a login
        hub.has_machines = False
        start(page)
        in_state(page, "queued")
        assert hub.jobs["job0"]["spec"]["secrets"] == {"HF_TOKEN": WRITER}
        press(page, "stop")
        in_state(page, "stopped")
        assert hub.jobs["job0"]["stage"] == "CANCELED"


# ----------------------------------------------------------------------------
# The server functions


def asks(run, token="", **more):
    return {"run": run.id, "token": token} | more


def to_rent(run, token="", flavor="a10g-small", timeout="1h"):
    return asks(run, token, flavor=flavor, timeout=timeout)


@pytest.fixture
def run(hub, home, tmp_path):  # noqa: F811
    """Return a new run, on a Hub without a free machine."""
    hub.has_machines = False
    return make_run(tmp_path)


@pytest.mark.parametrize(
    "place, typed, request_of, sent",
    [
        ("home", WRITER, asking(is_local_user=True), WRITER),
        ("home", "", asking(is_local_user=True), "hf_owner"),
        ("home", "", asking(), None),  # from another machine
        ("home", f" {WRITER}\n", asking(), WRITER),
        ("space", "", signed_in(WRITER, 7200), WRITER),
        ("space", BOB, signed_in(WRITER), BOB),
        ("space", "", asking(is_local_user=True), None),
        ("space", "", signed_in(WRITER, -1), None),
    ],
)
def test_which_token_rents(run, hub, monkeypatch, place, typed, request_of, sent):  # noqa: F811
    hub.users["hf_owner"] = ("owner", True)
    monkeypatch.setenv("HF_TOKEN", "hf_owner")
    if place == "space":
        monkeypatch.setenv("SPACE_ID", "owner/space")
        monkeypatch.setenv("DP_ALLOW_TRAINING", "1")
    told = remote_training.machines({}, request_of)
    assert (told["flavor"], told["timeout"]) == ("a10g-small", "2h")
    assert told["machines"][0] == ["cpu-basic", "cpu-basic · $0.01 an hour · 2 vCPU, 16 GB"]
    assert told["machines"][2] == ["tpu", "tpu · 1 × A10G, 24 GB"]
    assert told["login"] is bool(sent and not typed) or typed
    answer = remote_training.rent(to_rent(run, typed), request_of)
    assert {token for *_, token in hub.requests} - {""} == ({sent} if sent else set())
    if sent is None:
        assert answer == {"problem": "a token is required", "asks": True} and state(run) == "new"
    else:
        assert answer == {} and state(run) == "queued"
        assert hub.jobs["job0"]["spec"]["secrets"] == {"HF_TOKEN": sent}
        assert remote_training.exchange(asks(run, typed), request_of) == {}
        assert remote_training.exchange(asks(run), asking()) == {"problem": "a token is required", "asks": True}
        assert remote_training.end(asks(run, typed), request_of) == {} and state(run) == "stopped"
        assert remote_training.forget(asks(run, typed), request_of) == {} and hub.repos == {}


def test_a_sign_in_that_expires_before_the_job_does_not_start_it(run, hub, monkeypatch):  # noqa: F811
    monkeypatch.setenv("SPACE_ID", "owner/space")
    monkeypatch.setenv("DP_ALLOW_TRAINING", "1")
    answer = remote_training.rent(to_rent(run, timeout="3h"), signed_in(WRITER, 7201))
    assert answer["asks"] and answer["problem"].startswith("your sign-in on this page expires in 2 hours, and the job")
    assert hub.jobs == {} and state(run) == "new"
    assert remote_training.rent(to_rent(run, timeout="2h"), signed_in(WRITER, 7201)) == {}


@pytest.mark.parametrize(
    "kind, status, words, needs_another",
    [
        ("job", 402, "no credit for jobs: add some at", False),
        ("job", 403, "create one that may run jobs and write at", True),
        ("job", 404, "does not offer jobs to this account", False),
        ("whoami", 401, "mistyped or has expired", True),
        ("whoami", 500, "an internal problem", False),
    ],
)
def test_an_error_of_the_hub_is_shown(run, hub, kind, status, words, needs_another):  # noqa: F811
    hub.trouble[kind] = refuses(status, X_Error_Message="Invalid credentials in Authorization header")
    answer = remote_training.rent(to_rent(run, WRITER), asking())
    assert words in answer["problem"] and answer.get("asks", False) is needs_another
    assert WRITER not in json.dumps(answer) and state(run) == "new"


def test_no_response_changes_nothing_and_is_shown(run, hub):  # noqa: F811
    assert remote_training.rent(to_rent(run, WRITER), asking()) == {}
    gone(hub)
    before = run.status()
    for function in (remote_training.exchange, remote_training.end):
        answer = function(asks(run, WRITER), asking())
        assert "cannot be reached; check the network connection" in answer["problem"] and "asks" not in answer
    assert run.status() == before
    assert "cannot be reached" in remote_training.machines(None, asking())["problem"]
    price = remote_training.price({"flavor": "a10g-small", "timeout": "1h"}, asking())
    assert "price of a10g-small is unknown" in price["words"]


def test_a_stranger_cannot_cancel_a_job_or_mark_it_as_ended(run, hub):  # noqa: F811
    assert remote_training.rent(to_rent(run, WRITER), asking()) == {}
    for function in (remote_training.exchange, remote_training.end):
        answer = function(asks(run, BOB), asking())
        assert answer == {"problem": "the job belongs to alice, but this token does not", "asks": True}
    assert run.has_active_job() and hub.jobs["job0"]["stage"] == "SCHEDULING"
    assert "training as a Hugging Face job" in remote_training.forget(asks(run, WRITER), asking())["problem"]
    assert "already training" in remote_training.rent(to_rent(run, WRITER), asking())["problem"]


def test_malformed_requests_are_rejected(run, hub):  # noqa: F811
    fine = to_rent(run, WRITER)
    for wrong in ([], None, {}, fine | {"token": 3}, fine | {"flavor": None}, fine | {"timeout": 7}):
        assert remote_training.rent(wrong, asking()) == remote_training.MALFORMED
    for function in (remote_training.exchange, remote_training.end, remote_training.forget):
        for wrong in ([], None, {}, fine | {"token": 3}):
            assert function(wrong, asking()) == remote_training.MALFORMED
        assert "no longer exists" in function(fine | {"run": "x"}, asking())["problem"]
    for wrong in ([], None, {}, {"flavor": "x"}, {"flavor": "x", "timeout": 3}):
        assert remote_training.price(wrong, asking()) == remote_training.MALFORMED
    for change, words in (
        ({"run": ["x"]}, "this run no longer exists"),
        ({"flavor": "h900"}, "unknown machine 'h900'; available: cpu-basic"),
        ({"timeout": "2 weeks"}, "a time limit must be written as"),
        ({"token": "two words"}, "the token is malformed"),
    ):
        assert words in remote_training.rent(fine | change, asking())["problem"]
    for flavor, timeout, words in (("h900", "1h", "unknown machine 'h900'"), ("a10g-small", "0", "a time limit must")):
        assert words in remote_training.price({"flavor": flavor, "timeout": timeout}, asking())["problem"]
    assert "not training as a Hugging Face job" in remote_training.end(asks(run, WRITER), asking())["problem"]
    assert (
        remote_training.exchange(asks(run, WRITER), asking())
        == remote_training.forget(asks(run, WRITER), asking())
        == {}
    )
    assert hub.jobs == {} and state(run) == "new"


def test_renting_needs_permission_to_train(run, hub, monkeypatch):  # noqa: F811
    fine = to_rent(run, WRITER)
    functions = (
        remote_training.machines,
        remote_training.price,
        remote_training.rent,
        remote_training.exchange,
        remote_training.end,
        remote_training.forget,
    )
    for name, reason in (("SPACE_ID", permission.OFF), ("SPACES_ZERO_GPU", permission.ON_ZERO_GPU)):
        monkeypatch.setenv(name, "1")
        assert [function(fine, signed_in(WRITER)) for function in functions] == [{"problem": reason}] * 6
    assert hub.requests == []
