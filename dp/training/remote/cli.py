"""`python -m dp train RUN --on hf-jobs`: train a run as a Job on the Hub from the command line, and watch it there."""

from __future__ import annotations

import argparse
import sys
import time

from dp.hub.client import HubError
from dp.training.remote import hardware, job
from dp.training.run_folder import RunFolder

POLL_S = 5.0


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("on another machine, for money; its price is said first")
    words = "train as a Hugging Face Job, on the account of this login (hf auth login) or of the token in HF_TOKEN"
    group.add_argument("--on", choices=("hf-jobs",), help=words)
    group.add_argument("--flavor", default=hardware.FLAVOR, metavar="NAME", help="of the machine (%(default)s)")
    group.add_argument(
        "--timeout", default=hardware.TIMEOUT, metavar="TIME", help="pause after so long: 30m, 2h, 1d (%(default)s)"
    )


def begin(run: RunFolder, args: argparse.Namespace) -> None:
    """Start the Job, once its price has been said and, at a terminal, accepted; or find that it is going on."""
    if not run.is_away():
        print(hardware.describe(args.flavor, args.timeout), flush=True)
        if sys.stdin.isatty() and input("Start it? [y/N] ").strip().lower() not in ("y", "yes"):
            raise ValueError("not started")
        job.start(run, args.flavor, args.timeout)
    print(
        f"{run.status()['remote']['url']}: goes on without this terminal; the same command finds it again", flush=True
    )


def watch(run: RunFolder) -> None:
    """Bring back what comes of it until it is over, and say how it goes."""
    said = ""
    while run.is_away():
        try:
            status = job.refresh(run)
            step = f"step {status['step']:,} of {status['total']:,}" if status["total"] else status["message"]
            words = f"{run.id}: {status['state']}, {step}"
        except HubError as error:
            words = f"{error}; trying again"
        if words != said:
            print(words, flush=True)
        said = words
        if run.is_away():
            time.sleep(POLL_S)
    status = run.status()
    print(f"{run.id}: {status['message']}", flush=True)
    if status["state"] in ("failed", "lost"):
        raise ValueError(status["error"] or "it has not come to its end; the same command goes on with it")
