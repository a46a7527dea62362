"""The training process: waits for the device, then trains, alone or as one of several processes that torchrun or
`accelerate launch` started.

Only `train` and `benchmark` load torch, through dp's public names, which are imported on first use: the process holds
the run's lock from the beginning, and may wait for the device for hours.
"""

import os
import tempfile
import time
from typing import Any

from filelock import FileLock, Timeout

import dp
from dp.system.validation import message_of
from dp.training.locks import acquire_lock, device_lock_file
from dp.training.run_folder import RunFolder

POLL_S = 1.0
WARM_UP_STEPS, BENCHMARK_STEPS, BENCHMARK_SAMPLE_STEPS = 2, 10, 2
RANK, PROCESSES = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
WAITING = "queued: starts when the current run ends"
LAUNCH = ":".join(os.environ.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"))


def wait_and_train(run: RunFolder, device: str) -> None:
    """Wait until no other run uses the device, then train. Pause and stop are handled while waiting."""
    now = time.time()
    run.update_status(state="queued", pid=os.getpid(), launch=None, started=now, heartbeat=now, message="", error=None)
    device_lock = FileLock(device_lock_file(run.path.resolve().parent, device))
    is_announced = False
    while True:
        run.check_exists()  # otherwise acquiring the lock would create the folder of the runs again
        try:
            with acquire_lock(device_lock, POLL_S):
                run.update_status(state="preparing", launch=LAUNCH, message="loading the images and the model")
                return train(run)
        except Timeout:
            run.update_status(heartbeat=time.time(), message=WAITING)
            if not is_announced:
                print(f"{run.id}: {WAITING}", flush=True)
            is_announced = True
        for command, state in (("stop", "stopped"), ("pause", "paused")):
            if run.is_requested(command):
                message = f"{state} while waiting for the device"
                return run.update_status(state=state, launch=LAUNCH, message=message)


def wait_for_first_process(run: RunFolder) -> bool:
    """Return, in the other processes of a launch, whether the first one has started to train."""
    while (status := run.status()).launch != LAUNCH:
        time.sleep(POLL_S)
    return status.state not in ("stopped", "paused")


def train(run: RunFolder) -> None:
    """Resume the run and train until it ends."""
    trainer = dp.Trainer.from_run(run.path)
    trainer.resume()
    print(f"{run.id}: {trainer.train()} at step {trainer.step}", flush=True)
    trainer.accelerator.state.destroy_process_group()


def benchmark(run: RunFolder) -> dict[str, Any]:
    """Return the seconds per step and per checkpoint with samples, and the device, or an `error`."""
    try:
        trainer = dp.Trainer.from_run(run.path)
        for step in range(WARM_UP_STEPS + BENCHMARK_STEPS):
            if step == WARM_UP_STEPS:
                start = time.perf_counter()
            float(trainer.train_step())
        seconds_per_step = (time.perf_counter() - start) / BENCHMARK_STEPS
        with tempfile.TemporaryDirectory() as folder:
            trainer.run, start = RunFolder(folder), time.perf_counter()
            trainer.save(1)
            saving = time.perf_counter() - start
            sample_steps, trainer.sample_steps = trainer.sample_steps, BENCHMARK_SAMPLE_STEPS
            trainer.sample(1)
            sampling = (time.perf_counter() - start - saving) * sample_steps / BENCHMARK_SAMPLE_STEPS
    except Exception as error:
        return {"error": message_of(error)}
    device = str(trainer.accelerator.device)
    return {"seconds_per_step": seconds_per_step, "seconds_per_save": saving + sampling, "device": device}
