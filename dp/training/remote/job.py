"""A training run as a Job on the Hub's machines: start it, exchange news with it, cancel it.

`start` puts the run folder and this very code into a private repository of whoever's token it is, and starts a Job that
trains there; see dp.training.remote.worker. Each `refresh` brings back what has come of it, and hands over what the run
was asked: `dp.training.processes.pause`, `stop` and the like work as they do for a run on this machine. Between Jobs
the folder is whole, and the run can go on here as well as there. A token is used for the call that it is given to, and
is a secret of the Job; it is written nowhere.
"""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from typing import Any

from filelock import FileLock, Timeout
from huggingface_hub import HfApi, JobInfo, constants
from huggingface_hub.errors import JobNotFoundError

from dp.hub.client import PATIENCE, HubError, Refused, Unreachable, api_for, headers_of, in_words, token_in, within
from dp.system.text import plain
from dp.system.validation import quote
from dp.training import processes
from dp.training.remote import hardware, sync, worker
from dp.training.remote.hardware import refusals
from dp.training.run_folder import ALIVE, PROBED_S, VERBS, RunFolder, acquired

REPORT_S = 60  # from one report of a Job to the next: a commit, of which the Hub takes about a hundred an hour
GOING_ON = ("SCHEDULING", "RUNNING")  # of a Job's stages
ENDED = ("finished", "paused", "stopped", "failed")


def start(run: RunFolder, flavor: str, timeout: str | float, token: str | None = None, every: float = REPORT_S) -> None:
    """Start the run, or resume it, as a Job on a machine of `flavor` ("a10g-small"; see dp.training.remote.hardware),
    which pauses it before `timeout` ("2h") has passed. every: seconds between two of its reports. Returns when the Hub
    has taken it. Raises HubError, or ValueError where the run is going on.
    """
    limit_s, headers = hardware.seconds_of(timeout), headers_of(token)
    if "authorization" not in headers:
        raise Refused(f"a Job needs a token that may run Jobs and write: {constants.ENDPOINT}/settings/tokens")
    with suppress(Unreachable):  # then what follows says it
        hardware.check(flavor, hardware.hardware(token))
    before = run.status()
    try:
        with acquired(run.lock, PROBED_S):
            if run.is_away():
                raise Timeout(str(run.path))
            _start(run, before, flavor, limit_s, headers, every)
    except Timeout:
        raise ValueError(f"the run {quote(run.id)} is already going on") from None


def _start(
    run: RunFolder, before: dict[str, Any], flavor: str, limit_s: int, headers: dict[str, str], every: float
) -> None:
    api, launch = api_for(headers), secrets.token_hex(4)
    slug = processes.slug(run.name)
    with in_words("your account", headers), refusals():
        user = within(3 * PATIENCE, api.whoami)["name"]
        repo = (before["remote"] or {}).get("repo", "")
        there = sync.listing(api, repo) if repo.startswith(f"{user}/") else None
        if there is None:  # a name that nothing of anybody's has
            repo = f"{user}/dp-{slug}-{secrets.token_hex(4)}"
            within(3 * PATIENCE, lambda: api.create_repo(repo, private=True))
            there = sync.Listing("", {})
    remote: dict[str, Any] = {"repo": repo, "flavor": flavor, "timeout": limit_s, "launch": launch, "asked": []}
    run.report(state=before["state"], remote=remote | {"is_going_on": False})  # to go on with, if this comes to nothing
    with in_words(repo, headers), refusals():
        sent = code = worker.code()
        if run.config_file.exists():  # always: an extended run's is as long as before, which looks like the same file
            sent = code | {"config.json": run.config_file.read_bytes()}
        gone = {name for name in there.files if name.startswith(("code/", "asked/")) and name not in code}
        sync.send(api, repo, run, there, sent, gone, f"To a {flavor}, from step {before['step']:,}")
        command = worker.command(repo, launch, limit_s, every)
        spec: dict[str, Any] = {"image": worker.IMAGE, "command": command, "flavor": flavor, "timeout": limit_s}
        spec |= {"namespace": user, "name": f"dp-{slug}", "labels": {"dp": launch}}
        try:
            job = within(6 * PATIENCE, lambda: api.run_job(**spec, secrets={"HF_TOKEN": token_in(headers)}))
        except (Unreachable, TimeoutError):
            where = f"{constants.ENDPOINT}/settings/jobs"
            raise HubError(f"no answer: the Job may have started all the same, look at {where} first") from None
    for verb in VERBS:
        run.obeyed(verb)
    now = time.time()
    facts = {"state": "queued", "message": f"waits for a machine ({flavor})", "started": now, "heartbeat": now}
    facts |= {"pid": None, "device": None, "error": None}
    run.report(**facts, remote=remote | {"job": job.id, "url": job.url, "is_going_on": True})


# ----------------------------------------------------------------------------
# While it goes on


def refresh(run: RunFolder, token: str | None = None) -> dict[str, Any]:
    """Hand over what the run was asked, and bring back what there is of it -> its status. Does nothing for a run that
    no Job trains. HubError where the Hub does not do its part; the run goes on all the same.
    """
    file = run.path.resolve() / "exchange.lock"
    if not run.is_away():
        return run.status()
    with suppress(Timeout), acquired(FileLock(file), 0), run.standing(file):  # or somebody just does it
        if run.is_away():
            _exchange(run, run.status()["remote"], headers_of(token))
    return run.status()


def cancel(run: RunFolder, token: str | None = None) -> None:
    """End the Job at once: what it has not reported is lost."""
    if not run.is_away():
        raise ValueError(f"the run {quote(run.id)} is not going on as a Job")
    remote = run.status()["remote"]
    headers = headers_of(token)
    with in_words(remote["repo"], headers), refusals(), suppress(JobNotFoundError):
        within(3 * PATIENCE, lambda: api_for(headers).cancel_job(**hardware.named(remote)))
    refresh(run, token)


def forget(run: RunFolder, token: str | None = None) -> None:
    """Delete the run's repository; its folder here stays."""
    if run.is_away():
        raise ValueError(f"the run {quote(run.id)} is going on as a Job: stop it first")
    if remote := run.status()["remote"]:
        headers = headers_of(token)
        with in_words(remote["repo"], headers):
            within(3 * PATIENCE, lambda: api_for(headers).delete_repo(remote["repo"], missing_ok=True))
        run.report(remote=None)


def _exchange(run: RunFolder, remote: dict[str, Any], headers: dict[str, str]) -> None:
    repo, api = remote["repo"], api_for(headers)
    with in_words(repo, headers), refusals():
        job = None
        with suppress(JobNotFoundError):  # before it is seen what it has left: then that is all there will be
            job = within(3 * PATIENCE, lambda: api.inspect_job(**hardware.named(remote)))
        if job is None and within(3 * PATIENCE, api.whoami)["name"] != (owner := repo.split("/")[0]):
            raise Refused(f"this Job is {owner}'s, and this token is not")  # it may well go on
        stage = str(job.status.stage) if job else "DELETED"
        is_over = stage not in GOING_ON
        end = next((state for verb, state in (("stop", "stopped"), ("pause", "paused")) if run.asked(verb)), None)
        if stage == "SCHEDULING" and end:
            within(3 * PATIENCE, lambda: api.cancel_job(**hardware.named(remote)))
            return _over(run, remote, {"state": end, "message": f"{end} before there was a machine"})
        there = sync.listing(api, repo)
        if there is None and is_over:
            return _over(run, remote, {"state": "lost", "message": f"its repository {repo} is not there any more"})
        if there is None:
            raise Refused(f"the repository {repo} of this run is not there, or this token may not read it")
        said = sync.status_of(repo, headers, there, remote["launch"])
        sync.bring(repo, headers, run, there, is_over)
        if not is_over:
            _hand_over(run, remote, api, there)
        silent_s = said.pop("silent_s", 0.0)
        if is_over:
            return _over(run, remote, said | _end(run, remote, api, job, said.get("state")))
    if stage == "SCHEDULING":
        said = {"state": "queued", "message": f"waits for a machine ({remote['flavor']})"}
    elif not said:
        said = {"state": "preparing", "message": "the machine installs what training needs"}
    elif said["state"] not in ALIVE:  # the machine is about to be given back
        said["state"] = "running"
    run.report(**said, heartbeat=time.time() - silent_s, remote=remote)


def _hand_over(run: RunFolder, remote: dict[str, Any], api: HfApi, there: sync.Listing) -> None:
    """A file asked/<launch>/<verb> lies in the repository until the Job has obeyed."""
    paths = {verb: f"asked/{remote['launch']}/{verb}" for verb in VERBS}
    remote["asked"] = [verb for verb in remote["asked"] if verb in VERBS]
    for verb in [verb for verb in remote["asked"] if paths[verb] not in there.files]:
        run.obeyed(verb)
        remote["asked"].remove(verb)
    new = [verb for verb in VERBS if run.asked(verb) and verb not in remote["asked"]]
    if new:
        sync.commit(api, remote["repo"], {paths[verb]: b"1" for verb in new}, (), f"Asked to {', '.join(new)}")
        remote["asked"] += new


def _end(run: RunFolder, remote: dict[str, Any], api: HfApi, job: JobInfo | None, said: str | None) -> dict[str, Any]:
    """How a run has ended whose Job is over. said: its state as the Job told it last."""
    if said in ENDED:
        return {"state": said}
    is_cancelled = job is not None and job.status.stage == "CANCELED"
    ran_s = (job.durations and job.durations.running_secs) or 0 if job else 0
    if job is None:
        why = "the Hub does not know its Job any more"
    elif is_cancelled:
        why = "its Job was cancelled"
    elif ran_s >= remote["timeout"] or "timeout" in (job.status.message or "").lower():
        why = f"its Job came to the end of its {hardware.words_of(remote['timeout'])}"
    elif said == "lost":
        why = "its process was killed"
    else:
        log = hardware.log_of(api, remote)
        with run.log_file.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in log)
        why = f"its Job broke off: {plain(job.status.message or (log or ['it does not say why'])[-1])}"
    steps = run.milestones()
    place = f"goes on from step {steps[-1]:,}" if steps else "begins anew"
    return {"state": "stopped" if is_cancelled else "lost", "message": f"{why}; Resume {place}"}


def _over(run: RunFolder, remote: dict[str, Any], facts: dict[str, Any]) -> None:
    for verb in VERBS:
        run.obeyed(verb)
    run.report(**facts, heartbeat=time.time(), remote=remote | {"is_going_on": False, "asked": []})
