"""`python -m dp train RUN`: the process that trains the run in a folder, as one process or, under torchrun or
`accelerate launch`, as one of many. `python -m dp train PICTURES --out RUN` begins that run first. `--trial` tries ten
steps instead, and says on standard output how long they took; `--on hf-jobs` trains elsewhere: see
dp.training.remote.cli.

It holds the run's lock from the first moment, then waits for the device's, and only then loads torch: by dp's public
names, which are handed out when they are asked for.

Over budget: the trial has to be a process that loads torch and ends, too.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from contextlib import suppress

from filelock import FileLock, Timeout

import dp
from dp.system import environment, stdio
from dp.system.validation import message_of
from dp.training import cli
from dp.training.remote import cli as remote_cli
from dp.training.run_folder import RunFolder, acquired

POLL_S = 1.0
WARM_UP_STEPS, TRIAL_STEPS, TRIAL_SAMPLE_STEPS = 2, 10, 2
RANK, PROCESSES = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
WAITS = "waits until the run before it leaves the device"
INTERRUPTED = b"\nsaving, then leaving: the same command goes on from there. Ctrl-C again leaves at once.\n"
LAUNCH = ":".join(os.environ.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dp train",
        usage="%(prog)s RUN\n       %(prog)s PICTURES... --out RUN [settings]",
        description="Train a model on pictures. Ctrl-C saves and pauses; the same command goes on from there.",
        epilog="example: python -m dp train my/pictures --out runs/mine --steps 5000",
    )
    cli.add_options(parser)
    remote_cli.add_options(parser)
    parser.add_argument("--trial", action="store_true", help="try ten steps, and write how long they took as JSON")
    stdio.protect()
    args = parser.parse_args()
    try:
        cores, device = environment.cores(), environment.device() or "device"
        run = cli.run_of(args)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{message_of(error)}\n")
    except KeyboardInterrupt:
        sys.exit(130)  # as shells count it
    if args.prepare:
        return
    if cores:  # as in dp.system.device; torch reads it when it is loaded
        os.environ["OMP_NUM_THREADS"] = str(max(1, cores // PROCESSES))
    if hasattr(os, "nice"):
        os.nice(10)  # whoever samples on the same processor comes first
    try:
        if args.on:
            remote_cli.begin(run, args)
            pause_on_interrupt(run)
            remote_cli.watch(run)
        elif args.trial:
            print(json.dumps(trial(run)))
        elif RANK == 0:
            with run.held():
                pause_on_interrupt(run)
                follow(run, device)
        elif wait_for_the_first(run):
            train(run)
    except (ValueError, OSError, MemoryError) as error:  # for people; status.json has the rest
        sys.exit(message_of(error))
    except KeyboardInterrupt:
        sys.exit(130)
    if PROCESSES > 1:  # threads of torch's still let go of tensors, and abort a process in which Python has ended
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def pause_on_interrupt(run: RunFolder) -> None:
    """Ctrl-C asks the run to pause; once more, and this process ends at once."""

    def ask(*_) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run.ask("pause")
        with suppress(OSError):  # the terminal is gone
            os.write(2, INTERRUPTED)  # print might just be in the middle of a line of its own

    signal.signal(signal.SIGINT, ask)


def follow(run: RunFolder, name: str) -> None:
    """Wait for the device of that name, then train."""
    now = time.time()
    run.report(state="queued", pid=os.getpid(), launch=None, started=now, heartbeat=now, message="", error=None)
    device = FileLock(run.path.resolve().parent / f".{name.replace(':', '-')}.lock")
    is_said = False
    while True:
        run.check_there()  # or the lock below would make DP_HOME anew
        try:
            with acquired(device, POLL_S):
                run.report(state="preparing", launch=LAUNCH, message="loading the pictures and the model")
                return train(run)
        except Timeout:
            run.report(heartbeat=time.time(), message=WAITS)
            if not is_said:
                print(f"{run.id} {WAITS}", flush=True)
            is_said = True
        for verb, state in (("stop", "stopped"), ("pause", "paused")):
            if run.asked(verb):
                return run.report(state=state, launch=LAUNCH, message=f"{state} while it waited for the device")


def wait_for_the_first(run: RunFolder) -> bool:
    """Of the other processes of one launch: whether the first one has come to train."""
    while (status := run.status()).get("launch") != LAUNCH:
        time.sleep(POLL_S)
    return status["state"] not in ("stopped", "paused")


def train(run: RunFolder) -> None:
    trainer = dp.Trainer.of(run.path)
    trainer.resume()
    print(f"{run.id}: {trainer.train()} at step {trainer.step}", flush=True)
    trainer.accelerator.state.destroy_process_group()


def trial(run: RunFolder) -> dict:
    try:
        trainer = dp.Trainer.of(run.path)
        for step in range(WARM_UP_STEPS + TRIAL_STEPS):
            if step == WARM_UP_STEPS:
                start = time.perf_counter()
            float(trainer.train_step())
        seconds_per_step = (time.perf_counter() - start) / TRIAL_STEPS
        with tempfile.TemporaryDirectory() as folder:
            trainer.run, start = RunFolder(folder), time.perf_counter()
            trainer.save(1)
            saving = time.perf_counter() - start
            asked, trainer.sample_steps = trainer.sample_steps, TRIAL_SAMPLE_STEPS
            trainer.sample(1)
            sampling = (time.perf_counter() - start - saving) * asked / TRIAL_SAMPLE_STEPS
    except Exception as error:
        return {"error": message_of(error)}
    device = str(trainer.accelerator.device)
    return {"seconds_per_step": seconds_per_step, "seconds_per_save": saving + sampling, "device": device}


if __name__ == "__main__":
    main()
