"""`python -m dp train RUN --on hf-jobs`: train a run as a Hugging Face job and follow it from the command line."""

from __future__ import annotations

import argparse
import sys
import time

from dp.hub.client import HubError
from dp.training.remote import hardware, job
from dp.training.run_folder import RunFolder

POLL_S = 5.0


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("train on a rented machine; the price is shown first")
    text = "train as a Hugging Face job, on the account of this login (hf auth login) or of the token in HF_TOKEN"
    group.add_argument("--on", choices=("hf-jobs",), help=text)
    group.add_argument(
        "--flavor", default=hardware.DEFAULT_FLAVOR, metavar="NAME", help="kind of machine (%(default)s)"
    )
    group.add_argument(
        "--timeout", default=hardware.DEFAULT_TIMEOUT, metavar="TIME", help="time limit: 30m, 2h, 1d (%(default)s)"
    )


def start_job(run: RunFolder, args: argparse.Namespace) -> None:
    """Start the job after its price was shown and, in a terminal, confirmed; do nothing if it is already active."""
    if not run.has_active_job():
        print(hardware.describe_price(args.flavor, args.timeout), flush=True)
        if sys.stdin.isatty() and input("Start it? [y/N] ").strip().lower() not in ("y", "yes"):
            raise ValueError("not started")
        job.start(run, args.flavor, args.timeout)
    url = run.status().remote.url
    print(f"{url}: continues without this terminal; the same command shows its progress again", flush=True)


def watch(run: RunFolder) -> None:
    """Download the results and print the progress until the job ends. Raises ValueError if it failed."""
    printed = ""
    while run.has_active_job():
        try:
            status = job.refresh(run)
            step = f"step {status.step:,} of {status.total:,}" if status.total else status.message
            line = f"{run.id}: {status.state}, {step}"
        except HubError as error:
            line = f"{error}; retrying"
        if line != printed:
            print(line, flush=True)
        printed = line
        if run.has_active_job():
            time.sleep(POLL_S)
    status = run.status()
    print(f"{run.id}: {status.message}", flush=True)
    if status.state in ("failed", "interrupted"):
        raise ValueError(status.error or "the job ended before the run was finished; the same command resumes it")
