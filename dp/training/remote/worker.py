"""What a Job on the Hub does. It installs PyTorch and the like, fetches the repository, which is a run folder with this
very code in it, and runs `python -m dp.training.remote.worker REPO LAUNCH SECONDS EVERY` there.

That starts the training process, reports to the repository what has come of it, finds there what the run is asked, and
pauses it before the Job's time is over. The token is this process's alone.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time

from dp.hub.client import HubError, api_for, headers_for, in_words
from dp.system import stdio
from dp.training import processes
from dp.training.remote import sync
from dp.training.run_folder import VERBS, RunFolder

IMAGE = "ghcr.io/astral-sh/uv:python3.12-bookworm"
NOT_NEEDED = ("gradio", "spaces", "av")  # to train, of requirements.txt
# uv chooses the PyTorch that fits the machine's driver.
INSTALL = """export DP_BEGAN=$(date +%s)
cd "$(mktemp -d)" && uv venv --quiet env && uv pip install --quiet --python env/bin/python --torch-backend auto {} &&
exec env/bin/python -c {} {}"""
FETCH = """import os, sys
from huggingface_hub import snapshot_download
os.chdir(os.path.join(snapshot_download(sys.argv[1], local_dir="run"), "code"))
os.execv(sys.executable, [sys.executable, "-m", "dp.training.remote.worker", *sys.argv[1:]])"""
TRIES = 20  # reports in a row that do not get through; without any, the machine costs money for nothing
SAVING_S = 300  # at the end of the Job's time, to save and report; or a fifth of it, if that is less
POLL_S = 1.0
OUT_OF_TIME = "the Job's time is over"


def code() -> dict[str, bytes]:
    """The files of dp that train, under the names that they have in the repository."""
    files = [path for path in sorted((processes.ROOT / "dp").rglob("*.py")) if "ui" not in path.parts]
    return {f"code/{path.relative_to(processes.ROOT).as_posix()}": path.read_bytes() for path in files}


def command(repo: str, launch: str, limit_s: float, every_s: float) -> list[str]:
    lines = (processes.ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    packages = [line for line in lines if re.split(r"[<>=]", line)[0] not in NOT_NEEDED]
    arguments = shlex.join([repo, launch, str(limit_s), str(every_s)])
    return ["sh", "-c", INSTALL.format(shlex.join(packages), shlex.quote(FETCH), arguments)]


def main() -> None:
    stdio.protect()
    repo, launch, limit_s, every_s = sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
    headers = headers_for(repo, os.environ.pop("HF_TOKEN", ""))
    run = RunFolder(processes.ROOT.parent)
    installing_s = max(0.0, time.time() - float(os.environ["DP_BEGAN"]))
    pauses_at = time.monotonic() + limit_s - installing_s - min(SAVING_S, limit_s / 5)
    try:
        processes.start(run)
    except ValueError as error:
        run.report(state="failed", message=str(error))
    failures, is_over, is_late, taken = 0, False, False, set[str]()
    while not is_over or failures:
        is_over = not run.is_alive()  # before the report, so that the last one has the end in it
        if not is_over and not is_late and time.monotonic() > pauses_at:
            is_late = True
            run.ask("pause")
        try:
            with in_words(repo, headers):
                report(run, repo, headers, launch, taken, is_over, OUT_OF_TIME if is_late else "")
            failures = 0
        except HubError as error:
            failures += 1
            print(f"{error} ({failures} of {TRIES})", flush=True)
            if failures >= TRIES and is_over:
                sys.exit(str(error))
            if failures == TRIES:
                run.ask("pause")
        latest = time.monotonic() + every_s
        while time.monotonic() < latest and (failures if is_over else run.is_alive()):
            time.sleep(min(POLL_S, every_s))
    sys.exit(0 if run.status()["state"] in ("finished", "paused", "stopped") else run.tail(1))


def report(
    run: RunFolder, repo: str, headers: dict[str, str], launch: str, taken: set[str], is_over: bool, note: str
) -> None:
    """taken: what the run was asked, and has not obeyed yet."""
    api, status = api_for(headers), run.status()
    if (there := sync.listing(api, repo)) is None:
        raise HubError(f"the repository {repo} is not there any more")
    paths = {verb: f"asked/{launch}/{verb}" for verb in VERBS}
    for verb in VERBS:
        if paths[verb] in there.files and verb not in taken and not is_over:
            run.ask(verb)
            taken.add(verb)
    done = set(VERBS) if is_over else {verb for verb in taken if not run.asked(verb)}
    silent_s = run.silent_s() if status["heartbeat"] else 0.0
    words = f"{note}: {status['message']}" if note and is_over else status["message"]
    status |= {"message": words, "remote": {"launch": launch, "silent_s": silent_s}}
    gone = [paths[verb] for verb in done]
    note = f"{status['state']} at step {status['step']:,}"
    sync.send(api, repo, run, there, {"status.json": json.dumps(status).encode()}, gone, note)
    taken -= done


if __name__ == "__main__":
    main()
