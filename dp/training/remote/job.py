"""Train a run as a Hugging Face job: start it, exchange files and commands with it, cancel it.

`start` uploads the run folder and this code to a private repository of the token's owner, and starts a job that trains
there; see dp.training.remote.worker. Each `refresh` downloads the results and forwards commands, so `pause`, `stop` and
the other functions of dp.training.processes work as for a local run. Between jobs the run folder is complete, and the
run can be resumed here or remotely. A token is used for the call that it is passed to and becomes a secret of the job;
it is never stored.
"""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

from filelock import FileLock, Timeout
from huggingface_hub import HfApi, JobInfo, constants
from huggingface_hub.errors import JobNotFoundError

from dp.hub.client import (
    TIMEOUT_S,
    HubConnectionError,
    HubError,
    HubPermissionError,
    api_for,
    headers_of,
    run_with_timeout,
    token_in,
    translate_errors,
)
from dp.system.text import plain
from dp.system.validation import quote
from dp.training import processes
from dp.training.locks import acquire_lock
from dp.training.remote import hardware, sync, worker
from dp.training.remote.hardware import translate_job_errors
from dp.training.run_folder import COMMANDS, LOCK_TIMEOUT_S, RunFolder
from dp.training.status import ACTIVE_STATES, RemoteJob, RunStatus

REPORT_S = 60  # between reports of a job: each is a commit, and the Hub accepts about a hundred per hour
ACTIVE_STAGES = ("SCHEDULING", "RUNNING")  # of a job
END_STATES = ("finished", "paused", "stopped", "failed")


def start(run: RunFolder, flavor: str, timeout: str | float, token: str | None = None, every: float = REPORT_S) -> None:
    """Start or resume the run as a job on a machine of `flavor` ("a10g-small"; see dp.training.remote.hardware), which
    pauses it before `timeout` ("2h") has passed and reports once `every` so many seconds. Returns once the Hub has
    accepted the job. Raises HubError, or ValueError if the run is already training.
    """
    limit_s, headers = hardware.parse_duration(timeout), headers_of(token)
    if "authorization" not in headers:
        where = f"{constants.ENDPOINT}/settings/tokens"
        raise HubPermissionError(f"a job needs a token that may run jobs and write: {where}")
    with suppress(HubConnectionError):  # the next call raises it, too
        hardware.check_flavor(flavor, hardware.list_hardware(token))
    status = run.status()
    try:
        with acquire_lock(run.lock, LOCK_TIMEOUT_S):
            if run.has_active_job():
                raise Timeout(str(run.path))
            _start(run, status, flavor, limit_s, headers, every)
    except Timeout:
        raise ValueError(f"the run {quote(run.id)} is already training") from None


def _start(run: RunFolder, status: RunStatus, flavor: str, limit_s: int, headers: dict[str, str], every: float) -> None:
    api, launch = api_for(headers), secrets.token_hex(4)
    slug = processes.slug(run.name)
    with translate_errors("your account", headers), translate_job_errors():
        user = run_with_timeout(3 * TIMEOUT_S, api.whoami)["name"]
        repo = status.remote.repo if status.remote else ""
        listing = sync.list_files(api, repo) if repo.startswith(f"{user}/") else None
        if listing is None:
            repo = f"{user}/dp-{slug}-{secrets.token_hex(4)}"
            run_with_timeout(3 * TIMEOUT_S, lambda: api.create_repo(repo, private=True))
            listing = sync.Listing("", {})
    remote = RemoteJob(repo, flavor, limit_s, launch)
    # Remember the repository, so that the next attempt uses it if this one fails.
    run.update_status(state=status.state, remote=remote)
    with translate_errors(repo, headers), translate_job_errors():
        files = code = worker.source_files()
        if run.config_file.exists():  # always upload it: that of an extended run may differ without differing in size
            files = code | {"config.json": run.config_file.read_bytes()}
        outdated = {name for name in listing.files if name.startswith(("code/", "asked/")) and name not in code}
        message = f"Start on a {flavor} from step {status.step:,}"
        sync.upload_changes(api, repo, run, listing, files, outdated, message)
        command = worker.command(repo, launch, limit_s, every)
        spec: dict[str, Any] = {"image": worker.IMAGE, "command": command, "flavor": flavor, "timeout": limit_s}
        spec |= {"namespace": user, "name": f"dp-{slug}", "labels": {"dp": launch}}
        try:
            job = run_with_timeout(6 * TIMEOUT_S, lambda: api.run_job(**spec, secrets={"HF_TOKEN": token_in(headers)}))
        except (HubConnectionError, TimeoutError):
            url = f"{constants.ENDPOINT}/settings/jobs"
            raise HubError(f"the Hub did not respond; the job may have started anyway: check {url} first") from None
    for command in COMMANDS:
        run.clear_request(command)
    now = time.time()
    fields = {"state": "queued", "message": _waiting_message(flavor), "started": now, "heartbeat": now}
    fields |= {"pid": None, "device": None, "error": None}
    run.update_status(**fields, remote=replace(remote, id=job.id, url=job.url, is_active=True))


def _waiting_message(flavor: str) -> str:
    return f"waiting for a machine ({flavor})"


# ----------------------------------------------------------------------------
# While the job is active


def refresh(run: RunFolder, token: str | None = None) -> RunStatus:
    """Forward commands to the job, download its results and return the run's status. Does nothing for a run without an
    active job. Raises HubError if the Hub fails, which does not affect the job.
    """
    file = run.path.resolve() / "exchange.lock"
    if not run.has_active_job():
        return run.status()
    with suppress(Timeout), acquire_lock(FileLock(file), 0), run.without_recreating(file):  # Timeout: already syncing
        if run.has_active_job():
            _sync(run, run.status().remote, headers_of(token))
    return run.status()


def cancel(run: RunFolder, token: str | None = None) -> None:
    """End the job at once. Progress that it has not reported is lost."""
    if not run.has_active_job():
        raise ValueError(f"the run {quote(run.id)} is not training as a Hugging Face job")
    remote = run.status().remote
    headers = headers_of(token)
    with translate_errors(remote.repo, headers), translate_job_errors(), suppress(JobNotFoundError):
        run_with_timeout(3 * TIMEOUT_S, lambda: api_for(headers).cancel_job(**hardware.job_arguments(remote)))
    refresh(run, token)


def delete_repository(run: RunFolder, token: str | None = None) -> None:
    """Delete the run's repository on the Hub; the run folder stays."""
    if run.has_active_job():
        raise ValueError(f"the run {quote(run.id)} is training as a Hugging Face job: stop it first")
    if remote := run.status().remote:
        headers = headers_of(token)
        with translate_errors(remote.repo, headers):
            run_with_timeout(3 * TIMEOUT_S, lambda: api_for(headers).delete_repo(remote.repo, missing_ok=True))
        run.update_status(remote=None)


def _sync(run: RunFolder, remote: RemoteJob, headers: dict[str, str]) -> None:
    repo, api = remote.repo, api_for(headers)
    with translate_errors(repo, headers), translate_job_errors():
        job = None
        with suppress(JobNotFoundError):  # checked before the files: if the job has ended, they are its last
            job = run_with_timeout(3 * TIMEOUT_S, lambda: api.inspect_job(**hardware.job_arguments(remote)))
        if job is None and run_with_timeout(3 * TIMEOUT_S, api.whoami)["name"] != (owner := repo.split("/")[0]):
            # The job may well be active.
            raise HubPermissionError(f"the job belongs to {owner}, but this token does not")
        stage = str(job.status.stage) if job else "DELETED"
        is_over = stage not in ACTIVE_STAGES
        ends = (("stop", "stopped"), ("pause", "paused"))
        end = next((state for command, state in ends if run.is_requested(command)), None)
        if stage == "SCHEDULING" and end:
            run_with_timeout(3 * TIMEOUT_S, lambda: api.cancel_job(**hardware.job_arguments(remote)))
            return _finish(run, remote, {"state": end, "message": f"{end} while waiting for a machine"})
        listing = sync.list_files(api, repo)
        if listing is None and is_over:
            message = f"its repository {repo} no longer exists"
            return _finish(run, remote, {"state": "interrupted", "message": message})
        if listing is None:
            raise HubPermissionError(f"the repository {repo} of this run does not exist, or this token may not read it")
        status = sync.read_status(repo, headers, listing, remote.launch)
        sync.download_changes(repo, headers, run, listing, is_over)
        if not is_over:
            _forward_commands(run, remote, api, listing)
        silent_s = status.pop("silent_s", 0.0)
        if is_over:
            return _finish(run, remote, status | _end_status(run, remote, api, job, status.get("state")))
    if stage == "SCHEDULING":
        status = {"state": "queued", "message": _waiting_message(remote.flavor)}
    elif not status:
        status = {"state": "preparing", "message": "the machine is installing PyTorch"}
    elif status["state"] not in ACTIVE_STATES:  # the run has ended, but the job has not exited yet
        status["state"] = "running"
    run.update_status(**status, heartbeat=time.time() - silent_s, remote=remote)


def _forward_commands(run: RunFolder, remote: RemoteJob, api: HfApi, listing: sync.Listing) -> None:
    """Upload new commands as files asked/<launch>/<command>, which the job deletes once it has handled them."""
    paths = {command: f"asked/{remote.launch}/{command}" for command in COMMANDS}
    remote.forwarded = [command for command in remote.forwarded if command in COMMANDS]
    for command in [command for command in remote.forwarded if paths[command] not in listing.files]:
        run.clear_request(command)
        remote.forwarded.remove(command)
    new = [command for command in COMMANDS if run.is_requested(command) and command not in remote.forwarded]
    if new:
        files = {paths[command]: b"1" for command in new}
        sync.commit(api, remote.repo, files, (), f"Request {', '.join(new)}")
        remote.forwarded += new


def _end_status(
    run: RunFolder, remote: RemoteJob, api: HfApi, job: JobInfo | None, reported: str | None
) -> dict[str, Any]:
    """Return how a run ended whose job is over. reported: the last state that the job reported."""
    if reported in END_STATES:
        return {"state": reported}
    is_cancelled = job is not None and job.status.stage == "CANCELED"
    ran_s = (job.durations and job.durations.running_secs) or 0 if job else 0
    if job is None:
        reason = "the Hub no longer knows its job"
    elif is_cancelled:
        reason = "its job was canceled"
    elif ran_s >= remote.timeout or "timeout" in (job.status.message or "").lower():
        reason = f"its job reached the time limit of {hardware.format_duration(remote.timeout)}"
    elif reported == "interrupted":
        reason = "its process was killed"
    else:
        log = hardware.fetch_log(api, remote)
        with run.log_file.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in log)
        reason = f"its job failed: {plain(job.status.message or (log or ['no error message'])[-1])}"
    steps = run.checkpoint_steps()
    resume = f"Resume continues from step {steps[-1]:,}" if steps else "Resume starts from the beginning"
    return {"state": "stopped" if is_cancelled else "interrupted", "message": f"{reason}; {resume}"}


def _finish(run: RunFolder, remote: RemoteJob, fields: dict[str, Any]) -> None:
    for command in COMMANDS:
        run.clear_request(command)
    run.update_status(**fields, heartbeat=time.time(), remote=replace(remote, is_active=False, forwarded=[]))
