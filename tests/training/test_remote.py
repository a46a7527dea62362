"""Tests of dp.training.remote against a fake Hub, whose jobs are real processes that train."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import huggingface_hub
import pytest
from fakehub import connected, refuses, says
from fakejobs import FakeJobs
from forks import forking
from pages import exit_code
from tiny_runs import contents, ended, make_run, no_process_left_behind, shorten, state, undisturbed, until

from dp.hub.client import HubError
from dp.training import cli, processes
from dp.training.remote import hardware, job
from dp.training.run_folder import RunFolder, RunLocked

ROOT = Path(__file__).resolve().parents[2]
TOKEN, READER = "hf_alice", "hf_reader"
ENDLESS = dict(train_num_steps=1_000_000, save_and_sample_every=1000)
EVERY = 0.2
# huggingface_hub passes files to httpx in a deprecated way.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Yield the fake Hub that this process uses. All training processes are forked and use one thread."""
    monkeypatch.setenv("DP_DEVICE", "cpu")
    monkeypatch.setenv("CPU_CORES", "1")
    jobs_hub = FakeJobs(tmp_path / "machines")
    jobs_hub.is_forked = True
    with forking(), no_process_left_behind(tmp_path / "home"), connected(monkeypatch, tmp_path, jobs_hub) as fake:
        yield fake


def begin(run: RunFolder, timeout: str = "1h") -> None:
    job.start(run, "a10g-small", timeout, TOKEN, every=EVERY)
    assert state(run) == "queued" and run.is_alive()


def shown(run: RunFolder, condition, seconds: float = 150) -> None:
    """Refresh as the page does until `condition` holds; the run must not end before."""

    def holds() -> bool:
        assert run.is_alive(), run.status()
        job.refresh(run, TOKEN)
        return condition()

    until(holds, seconds, EVERY)  # a refresh is several requests, which slow down the training


def over(run: RunFolder) -> str:
    shown(run, lambda: not run.is_alive())
    return state(run)


def gone(hub) -> None:
    hub.close()
    huggingface_hub.close_session()  # otherwise its open connections would be reused


def repo_of(run: RunFolder) -> str:
    return run.status().remote.repo


# ----------------------------------------------------------------------------
# Whole runs


def test_a_run_killed_paused_and_resumed_remotely_and_locally_equals_an_uninterrupted_one(hub, tmp_path):
    run = make_run(tmp_path, train_num_steps=1_000_000, save_and_sample_every=40)
    begin(run)
    shown(run, lambda: len(run.checkpoint_steps()) > 1)
    hub.end("job0", "ERROR", "Job timeout")
    assert over(run) == "interrupted"
    message = run.status().message
    assert re.search(r"its job reached the time limit of 60 minutes; Resume continues from step \d+0", message)

    begin(run)
    known = run.checkpoint_steps()
    shown(run, lambda: run.checkpoint_steps() != known)
    start = lambda run: job.start(run, "cpu-basic", "1h", TOKEN)  # noqa: E731
    for call in (processes.start, processes.delete, job.delete_repository, start):
        with pytest.raises(ValueError, match=r"already training|stop it first"):
            call(run)
    with pytest.raises(RunLocked, match="as a Hugging Face job"), run.hold_lock():
        pass
    processes.pause(run)
    assert state(run) == "pausing"
    assert over(run) == "paused"
    assert (
        not run.is_requested("pause") and job.refresh(run) == run.status()
    )  # no job is active, so the Hub is not contacted

    processes.start(run)  # on this machine
    until(lambda: run.status().state == "running" or not run.is_alive())
    processes.pause(run)
    assert ended(run) == "paused"

    total = run.status().step + 20
    shorten(run, total)
    begin(run)
    assert over(run) == "finished"
    assert contents(run.checkpoint(total)) == contents(undisturbed(run, tmp_path / "other"))
    assert {record["step"] for record in run.metrics()[0] if "loss" in record} == set(range(10, total + 1, 10))
    assert {f"{step:06d}.png" for step in range(40, total + 1, 40)} <= {path.name for path in run.samples.iterdir()}
    assert run.status().step == run.status().total == total and run.status().device == "cpu"
    assert f"finished at step {total}" in run.tail()
    assert hub.repos[repo_of(run)]["private"] and len(hub.repos) == 1
    job.delete_repository(run, TOKEN)
    assert hub.repos == {} and state(run) == "finished" and run.status().remote is None


def test_a_job_pauses_before_its_time_limit(hub, tmp_path):
    run = make_run(tmp_path, **ENDLESS)
    begin(run, timeout="5s")
    assert over(run) == "paused"
    assert "the job reached its time limit: paused" in run.status().message
    assert hub.jobs["job0"]["process"].wait() == 0
    assert hub.jobs["job0"]["spec"]["timeoutSeconds"] == 5


def test_commands_reach_the_job_and_its_token_is_never_stored(hub, tmp_path, caplog):
    caplog.set_level("DEBUG")
    hub.is_forked = False  # /proc/<pid>/environ shows the environment at the start of a process
    run = make_run(tmp_path, **ENDLESS)
    begin(run)
    shown(run, lambda: state(run) == "running")
    spec = hub.jobs["job0"]["spec"]
    assert spec["secrets"] == {"HF_TOKEN": TOKEN}
    assert TOKEN not in json.dumps(spec | {"secrets": None})
    training = next((tmp_path / "machines").glob("*/*/run/status.json"))
    process = Path(f"/proc/{json.loads(training.read_text())['pid']}/environ")
    if process.exists():
        assert b"DP_DEVICE=cpu" in process.read_bytes() and TOKEN.encode() not in process.read_bytes()

    processes.save_now(run)
    processes.sample_now(run)
    shown(run, lambda: not run.is_requested("save") and not run.is_requested("sample"))
    shown(run, lambda: run.checkpoint_steps() and run.samples.exists())
    assert run.status().is_responding
    processes.stop(run)
    assert state(run) == "stopping"
    assert over(run) == "stopped"
    assert not any(name.startswith("asked/") for name in hub.repos[repo_of(run)]["files"])
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert not any(TOKEN.encode() in content for content in hub.repos[repo_of(run)]["files"].values())
    assert TOKEN not in "".join(record.getMessage() for record in caplog.records if record.name.startswith("dp"))


def test_the_command_shows_the_price_trains_remotely_and_follows_the_job(hub, tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path)
    page = (ROOT / "docs" / "several-machines.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^.venv/bin/python (.* --on hf-jobs .*)$", page, re.M)
    options = line.replace("runs/mine", str(run.path)).split()
    assert options[:3] == ["-m", "dp", "train"]
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("os.nice", lambda more: None)
    assert "unknown machine 'h900'; available: cpu-basic" in exit_code(
        monkeypatch, cli, *options[3:], "--flavor", "h900"
    )
    assert not hub.jobs

    monkeypatch.setattr("dp.training.remote.cli.POLL_S", EVERY)
    capsys.readouterr()
    assert exit_code(monkeypatch, cli, *options[3:]) == 0
    price, where, *_, last = capsys.readouterr().out.splitlines()
    assert "costs $1.00 per hour, at most $2.00. It pauses after at most 2 hours" in price
    assert where.startswith(f"{hub.url}/jobs/alice/job0: ") and last == f"{run.id}: finished at step 8 of 8"
    assert state(run) == "finished" and run.checkpoint_steps() == [4, 8]

    assert exit_code(monkeypatch, cli, *options[3:], "--steps", "9") == 0  # the size of config.json does not change
    assert capsys.readouterr().out.endswith(f"{run.id}: finished at step 9 of 9\n")
    assert run.checkpoint_steps() == [4, 8, 9]


# ----------------------------------------------------------------------------
# Prices and time limits


def test_the_price_is_described(hub):
    words = hardware.describe_price("a10g-small", "90m", TOKEN)
    assert words.startswith(
        "a10g-small (1 × A10G, 24 GB) costs $1.00 per hour, at most $1.50. It pauses after at most 90 minutes"
    )
    assert "cpu-basic (2 vCPU, 16 GB) costs $0.01 per hour" in hardware.describe_price("cpu-basic", "2h")
    assert "The price of tpu (1 × A10G, 24 GB) is unknown: see" in hardware.describe_price("tpu", 60)
    with pytest.raises(HubError, match="unknown machine 'h900'; available: cpu-basic, a10g-small, tpu"):
        hardware.describe_price("h900", "2h")
    gone(hub)
    assert "The price of a10g-small is unknown:" in hardware.describe_price("a10g-small", "2h")


@pytest.mark.parametrize("timeout", ["", "2 weeks", "-1h", "0", "nan", "1e9", "31d", 0, None])
def test_an_invalid_time_limit_is_rejected(timeout):
    with pytest.raises(ValueError, match="30m, 2h or 1d"):
        hardware.parse_duration(timeout)


def test_durations_are_parsed_and_formatted():
    assert [hardware.parse_duration(text) for text in ("90", "90s", "1.5m", "2h", "1d", 60)] == [
        90,
        90,
        90,
        7200,
        86400,
        60,
    ]
    texts = [hardware.format_duration(seconds) for seconds in (5, 90, 1800, 5400, 7200, 86400, 200_000)]
    assert texts == ["5 seconds", "90 seconds", "30 minutes", "90 minutes", "2 hours", "24 hours", "2.31 days"]


# ----------------------------------------------------------------------------
# Errors

START_ERRORS = {
    "expired": ("whoami", refuses(401, X_Error_Message="Invalid credentials in Authorization header"), "has expired"),
    "no login page": ("whoami", says(b"<html>"), "did not respond like the Hub"),
    "may not write": ("create", refuses(403), "create one that may run jobs and write at"),
    "no room": ("commit", refuses(403), "create one that may run jobs and write at"),
    "no credit": ("job", refuses(402), "no credit for jobs: add some at"),
    "no Jobs": ("job", refuses(403), "may run jobs"),
    "no such thing": ("job", refuses(404), "does not offer jobs"),
    "odd flavor": ("job", refuses(400, X_Error_Message="flavor is sold out"), "flavor is sold out"),
    "too many": ("job", refuses(429, Retry_After="60"), "wait 60 seconds"),
    "trouble": ("job", refuses(500), "an internal problem"),
}


@pytest.mark.parametrize("kind, trouble, words", START_ERRORS.values(), ids=START_ERRORS)
def test_a_failed_start_changes_nothing(hub, tmp_path, kind, trouble, words):
    run = make_run(tmp_path)
    hub.trouble[kind] = trouble
    with pytest.raises(HubError, match=words):
        job.start(run, "cpu-basic", "1h", TOKEN)
    assert state(run) == "new" and not run.is_alive() and hub.jobs == {}
    hub.trouble.clear()
    hub.has_machines = False
    begin(run)
    assert len(hub.repos) == 1  # the repository of the failed start is used


def test_a_start_without_a_token_or_a_connection_is_an_error(hub, tmp_path):
    run = make_run(tmp_path)
    for token in (None, "", False):
        with pytest.raises(HubError, match="a job needs a token"):
            job.start(run, "cpu-basic", "1h", token)
    with pytest.raises(HubError, match="unknown machine 'h900'"):
        job.start(run, "h900", "1h", TOKEN)
    with pytest.raises(HubError, match="may run jobs and write"):
        job.start(run, "cpu-basic", "1h", READER)
    gone(hub)
    with pytest.raises(HubError, match="check the network connection"):
        job.start(run, "cpu-basic", "1h", TOKEN)
    assert state(run) == "new"


@pytest.mark.parametrize("verb, end", [("stop", "stopped"), ("pause", "paused")])
def test_a_job_waiting_for_a_machine_is_canceled_at_once(hub, tmp_path, verb, end):
    run, hub.has_machines = make_run(tmp_path), False
    begin(run)
    shown(run, lambda: "waiting for a machine (a10g-small)" in run.status().message)
    getattr(processes, verb)(run)
    assert over(run) == end and hub.jobs["job0"]["stage"] == "CANCELED" and not run.is_requested(verb)


REFRESH_ERRORS = {
    "expired": ("inspect", refuses(401, X_Error_Message="Invalid credentials in Authorization header"), "has expired"),
    "forbidden": ("inspect", refuses(403), "may run jobs"),
    "too many": ("info", refuses(429), "too many requests"),
    "trouble": ("info", refuses(503), "error 503"),
    "odd": ("info", says(b"{}"), "did not respond like the Hub"),
    "no repository": (
        "info",
        refuses(404, X_Error_Code="RepoNotFound"),
        "does not exist, or this token may not read it",
    ),
}


@pytest.mark.parametrize("kind, trouble, words", REFRESH_ERRORS.values(), ids=REFRESH_ERRORS)
def test_a_failed_refresh_changes_nothing(hub, tmp_path, kind, trouble, words):
    run, hub.has_machines = make_run(tmp_path), False
    begin(run)
    before = run.status()
    hub.trouble[kind] = trouble
    with pytest.raises(HubError, match=words):
        job.refresh(run, TOKEN)
    assert run.status() == before
    hub.trouble.clear()
    assert job.refresh(run, TOKEN).state == "queued"


def test_a_run_whose_job_is_unknown_is_interrupted(hub, tmp_path):
    run, hub.has_machines = make_run(tmp_path), False
    begin(run)
    hub.jobs.clear()
    assert (
        over(run) == "interrupted"
        and "no longer knows its job; Resume starts from the beginning" in run.status().message
    )


def test_a_run_whose_repository_was_deleted_is_interrupted_and_can_be_restarted(hub, tmp_path):
    run, hub.has_machines = make_run(tmp_path), False
    begin(run)
    hub.repos.clear()
    job.cancel(run, TOKEN)
    assert state(run) == "interrupted" and "no longer exists" in run.status().message
    begin(run)
    assert len(hub.repos) == 1
    job.cancel(run, TOKEN)
    assert state(run) == "stopped" and "was canceled" in run.status().message
    with pytest.raises(ValueError, match="not training as a Hugging Face job"):
        job.cancel(run, TOKEN)


def test_a_failed_installation_is_reported(hub, tmp_path):
    run = make_run(tmp_path)
    hub.is_forked, hub.uv = False, "#!/bin/sh\necho no room for torch >&2\nexit 1\n"
    begin(run)
    assert over(run) == "interrupted" and "its job failed: no room for torch; Resume" in run.status().message
    assert run.tail(1) == "no room for torch"


def test_an_invalid_run_fails_with_its_message(hub, tmp_path):
    run = make_run(tmp_path, train_batch_size=-1)
    begin(run)
    assert over(run) == "failed" and "train_batch_size" in run.status().message
    assert hub.jobs["job0"]["process"].wait() == 1


# ----------------------------------------------------------------------------
# Untrusted content of the repository


def odd_repository(hub, run: RunFolder, **files: bytes) -> None:
    """Put a status.json with odd fields, and other `files`, into the repository."""
    status = {
        "state": "running",
        "step": 7,
        "loss": "high",
        "message": 5,
        "remote": {"launch": run.status().remote.launch, "silent_s": 0},
    }
    status |= {"pid": 1, "total": True, "lr": 3}
    hub.repos[repo_of(run)]["files"] |= {"status.json": json.dumps(status).encode()} | files
    hub.history.clear()


def test_only_files_of_a_run_folder_are_downloaded(hub, tmp_path):
    run, hub.has_machines = make_run(tmp_path), False
    begin(run)
    before = contents(run.path)
    names = ["../../evil", "config.json", "dataset/images.npy", "lock", "control/stop", "samples/x.png", "x.py"]
    names += ["samples/../../000001.png", "checkpoints/../000001/model.safetensors", "checkpoints/000001/evil.pt"]
    odd_repository(hub, run, **{name: b"evil" for name in names})
    idle = subprocess.Popen(["sleep", "600"], start_new_session=True)
    hub.jobs["job0"] |= {"stage": "RUNNING", "process": idle}
    status = job.refresh(run, TOKEN)
    assert (status.state, status.step, status.loss, status.total) == ("running", 7, None, None)
    assert not hasattr(status, "lr") and status.pid is None
    after = contents(run.path)
    assert after.keys() - before.keys() <= {"exchange.lock"} and not list(tmp_path.rglob("*evil*"))
    assert {name: after[name] for name in before if name != "status.json"} == {
        name: content for name, content in before.items() if name != "status.json"
    }
