"""The program of a Hugging Face job that trains a run.

The job installs PyTorch and the other requirements, downloads the repository, which is a run folder with this code in
it, and runs `python -m dp.training.remote.worker REPO LAUNCH SECONDS EVERY` there. This starts the training process,
uploads its progress to the repository, forwards the commands it finds there, and pauses the run before the job reaches
its time limit. Only this process has the token.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
from dataclasses import asdict

from dp.hub.client import HubError, api_for, headers_for, translate_errors
from dp.system import stdio
from dp.training import processes
from dp.training.remote import sync
from dp.training.run_folder import COMMANDS, RunFolder

IMAGE = "ghcr.io/astral-sh/uv:python3.12-bookworm"
EXCLUDED_REQUIREMENTS = ("gradio", "spaces", "av")  # not needed for training
# uv chooses the PyTorch build that matches the machine's driver.
INSTALL = """export DP_BEGAN=$(date +%s)
cd "$(mktemp -d)" && uv venv --quiet env && uv pip install --quiet --python env/bin/python --torch-backend auto {} &&
exec env/bin/python -c {} {}"""
FETCH = """import os, sys
from huggingface_hub import snapshot_download
os.chdir(os.path.join(snapshot_download(sys.argv[1], local_dir="run"), "code"))
os.execv(sys.executable, [sys.executable, "-m", "dp.training.remote.worker", *sys.argv[1:]])"""
MAX_FAILURES = 20  # consecutive failed reports after which the run pauses: the machine costs money
SAVING_S = 300  # reserved at the end of the job to save and report; at most a fifth of its time
POLL_S = 1.0
TIME_LIMIT_REACHED = "the job reached its time limit"


def source_files() -> dict[str, bytes]:
    """Return the modules of dp that training needs, under their names in the repository."""
    files = [path for path in sorted((processes.ROOT / "dp").rglob("*.py")) if "ui" not in path.parts]
    return {f"code/{path.relative_to(processes.ROOT).as_posix()}": path.read_bytes() for path in files}


def command(repo: str, launch: str, limit_s: float, every_s: float) -> list[str]:
    """Return the command line of a job."""
    lines = (processes.ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    packages = [line for line in lines if re.split(r"[<>=]", line)[0] not in EXCLUDED_REQUIREMENTS]
    arguments = shlex.join([repo, launch, str(limit_s), str(every_s)])
    return ["sh", "-c", INSTALL.format(shlex.join(packages), shlex.quote(FETCH), arguments)]


def main() -> None:
    stdio.protect()
    repo, launch, limit_s, every_s = sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
    headers = headers_for(repo, os.environ.pop("HF_TOKEN", ""))
    run = RunFolder(processes.ROOT.parent)
    installing_s = max(0.0, time.time() - float(os.environ["DP_BEGAN"]))
    deadline = time.monotonic() + limit_s - installing_s - min(SAVING_S, limit_s / 5)
    try:
        processes.start(run)
    except ValueError as error:
        run.update_status(state="failed", message=str(error))
    failures, is_over, is_late, forwarded = 0, False, False, set[str]()
    while not is_over or failures:
        is_over = not run.is_alive()  # before the report, so that the last report contains the end
        if not is_over and not is_late and time.monotonic() > deadline:
            is_late = True
            run.request("pause")
        try:
            with translate_errors(repo, headers):
                report(run, repo, headers, launch, forwarded, is_over, TIME_LIMIT_REACHED if is_late else "")
            failures = 0
        except HubError as error:
            failures += 1
            print(f"{error} ({failures} of {MAX_FAILURES})", flush=True)
            if failures >= MAX_FAILURES and is_over:
                sys.exit(str(error))
            if failures == MAX_FAILURES:
                run.request("pause")
        next_report = time.monotonic() + every_s
        while time.monotonic() < next_report and (failures if is_over else run.is_alive()):
            time.sleep(min(POLL_S, every_s))
    sys.exit(0 if run.status().state in ("finished", "paused", "stopped") else run.tail(1))


def report(
    run: RunFolder, repo: str, headers: dict[str, str], launch: str, forwarded: set[str], is_over: bool, reason: str
) -> None:
    """Forward new commands to the training process and upload its progress.

    forwarded: the commands that the training process has not handled yet; updated in place. reason: why the run
    ended, added to its message.
    """
    api, status = api_for(headers), run.status()
    if (listing := sync.list_files(api, repo)) is None:
        raise HubError(f"the repository {repo} no longer exists")
    paths = {command: f"asked/{launch}/{command}" for command in COMMANDS}
    for command in COMMANDS:
        if paths[command] in listing.files and command not in forwarded and not is_over:
            run.request(command)
            forwarded.add(command)
    done = set(COMMANDS) if is_over else {command for command in forwarded if not run.is_requested(command)}
    silent_s = run.seconds_since_heartbeat() if status.heartbeat else 0.0
    message = f"{reason}: {status.message}" if reason and is_over else status.message
    fields = asdict(status) | {"message": message, "remote": {"launch": launch, "silent_s": silent_s}}
    files = {"status.json": json.dumps(fields).encode()}
    summary = f"{status.state} at step {status.step:,}"
    sync.upload_changes(api, repo, run, listing, files, [paths[command] for command in done], summary)
    forwarded -= done


if __name__ == "__main__":
    main()
