"""The process that trains a run: it waits for the device, then trains, alone or as one of several processes that
torchrun or `accelerate launch` started.

Only `train` and `trial` load torch, by dp's public names, which are imported when they are first used: the process
holds the run's lock from the first moment, and may wait for the device for hours.
"""

import os
import tempfile
import time

from filelock import FileLock, Timeout

import dp
from dp.system.validation import message_of
from dp.training.run_folder import RunFolder, acquired

POLL_S = 1.0
WARM_UP_STEPS, TRIAL_STEPS, TRIAL_SAMPLE_STEPS = 2, 10, 2
RANK, PROCESSES = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
WAITS = "waits until the run before it leaves the device"
LAUNCH = ":".join(os.environ.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"))


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
    """Return, in the other processes of a launch, whether the first one has started to train."""
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
