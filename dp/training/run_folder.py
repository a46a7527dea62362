"""The folder of a training run: everything the run produces, and the only channel between the training process and the
app. Needs the standard library and filelock only; every file is validated by dp.system.records as it is read.

    config.json          the complete configuration, written before the process starts
    dataset/             the prepared images
    status.json          state, step, loss, ...; always replaced as a whole
    metrics.jsonl        one JSON object per line
    log.txt              the output of the training process
    lock                 held by the training process for as long as it lives
    control/             empty files, one per pending command: stop, pause, save, sample
    samples/000500.png   images of the EMA model at step 500, always from the same seeds
    checkpoints/000500/  the checkpoint folder of step 500, with training-state/ for resuming
    start/               the checkpoint folder that the run starts from, if it makes a finished model fast

A run is alive if and only if its lock is held, which holds after kill -9 and when process ids are reused. The state of
a run is therefore derived: a run whose status.json says "running" while nobody holds its lock is "interrupted". For a
run that trains as a Hugging Face job, dp.training.remote.job keeps the folder up to date, and the job decides whether
it is alive.

Files and folders are written under a temporary name and renamed, so readers never see partial content, and a full disk
does not damage existing files.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dp.system.atomic_files import is_disk_full, remove_leftovers, replacing
from dp.system.records import config_of, metrics_of, name_of, read, step_of
from dp.system.timestamps import Ages
from dp.system.validation import message_of, quote
from dp.training.locks import acquire_lock, is_locked
from dp.training.status import ACTIVE_STATES, RemoteJob, RunStatus, parse_status

COMMANDS = ("stop", "pause", "save", "sample")
HEARTBEAT_TIMEOUT_S = 60  # a live run without a heartbeat for longer is shown as not responding
HANDOVER_TIMEOUT_S = 3  # how long a new process waits for the previous one to exit
LOCK_TIMEOUT_S = 0.5  # much longer than `is_locked` blocks the lock
TAIL_BYTES, MAX_ERROR_CHARACTERS = 64 << 10, 4000
METRICS_CHUNK_BYTES = 1 << 20  # of metrics.jsonl, per read
MAX_NAME_LENGTH = 80
DISK_FULL = "the disk is full; nothing is lost. Free some space, then press Resume"

_heartbeats = Ages()
# Run folders that this process must not recreate -> a file that exists for as long as the folder does.
_guard_files: dict[Path, Path] = {}


class RunLocked(ValueError):
    """Another process or a remote job is training this run."""


class RunFolderMissing(OSError):
    """A run folder was deleted or moved while this process was writing to it."""


def list_runs(runs_dir: str | Path) -> list[RunFolder]:
    """Return the runs directly below `runs_dir`, newest first."""
    # os.path returns False for folders that this user may not read, such as lost+found; Path would raise.
    runs = [RunFolder(path) for path in Path(runs_dir).glob("[!.]*") if os.path.isdir(path)]
    runs = [run for run in runs if os.path.exists(run.config_file) or os.path.exists(run.status_file)]
    return sorted(runs, key=RunFolder.created, reverse=True)


def _parse_steps(names: Iterable[str]) -> list[int]:
    return sorted(step for name in names if (step := step_of(name)) is not None)


class RunFolder:
    """The paths of a run, and atomic writes to them. The folder is created by the first write."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.dataset, self.samples, self.start = (self.path / name for name in ("dataset", "samples", "start"))
        self.config_file, self.status_file = self.path / "config.json", self.path / "status.json"
        self.metrics_file, self.log_file = self.path / "metrics.jsonl", self.path / "log.txt"

    @property
    def id(self) -> str:
        return name_of(self.path.resolve())

    @property
    def name(self) -> str:
        """Return the name that the user gave the run, or its id."""
        try:
            return (self.config().get("name") or "").strip()[:MAX_NAME_LENGTH] or self.id
        except ValueError:
            return self.id

    def checkpoint(self, step: int) -> Path:
        return self.path / "checkpoints" / f"{step:06d}"

    def sample(self, step: int) -> Path:
        return self.samples / f"{step:06d}.png"

    def checkpoint_steps(self) -> list[int]:
        """Return the steps that have a complete checkpoint, in increasing order."""
        return _parse_steps(path.name for path in (self.path / "checkpoints").glob("*") if os.path.isdir(path))

    def sample_steps(self) -> list[int]:
        """Return the steps that have sample images, in increasing order."""
        return _parse_steps(path.stem for path in self.samples.glob("*.png") if os.path.isfile(path))

    # ------------------------------------------------------------------------
    # Configuration, status, metrics and log

    def config(self) -> dict[str, Any]:
        """Return the content of config.json, or {} if there is none, as for a Trainer used as a library.

        Raises ValueError if the file is damaged.
        """
        try:
            return config_of(read(self.config_file))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ValueError(f"config.json of the run {quote(self.id)} cannot be read: {error}") from None

    def created(self) -> float:
        """Return when the run was created, in Unix seconds."""
        with suppress(ValueError, TypeError, KeyError):  # damaged or missing
            return float(self.config()["created"])
        with suppress(OSError):
            return self.path.stat().st_ctime
        return 0.0  # the folder is being deleted

    def status(self) -> RunStatus:
        """Return the current status of the run."""
        fields = self._read_status()
        state = fields.get("state", "interrupted" if os.path.exists(self.status_file) else "new")
        is_alive = state in (*ACTIVE_STATES, "new", "interrupted") and self.is_alive()
        if is_alive:
            state = state if state in ACTIVE_STATES else "preparing"
            state = "stopping" if self.is_requested("stop") else "pausing" if self.is_requested("pause") else state
        elif state in ACTIVE_STATES:
            state = "interrupted"
        is_responding = is_alive and self.seconds_since_heartbeat() < HEARTBEAT_TIMEOUT_S
        return RunStatus.from_json(fields, state, is_responding)

    def seconds_since_heartbeat(self) -> float:
        """Return the seconds since the last heartbeat, or infinity if there was none."""
        heartbeat = self._read_status().get("heartbeat")
        if not heartbeat:
            return float("inf")
        if self.has_active_job():  # its heartbeats are converted to this machine's clock
            return max(0.0, time.time() - heartbeat)
        return _heartbeats.age(self.path.resolve(), heartbeat)

    def update_status(self, **fields: Any) -> None:
        """Merge `fields`, which are named as in RunStatus, into status.json."""
        if isinstance(remote := fields.get("remote"), RemoteJob):
            fields["remote"] = remote.to_json()
        with self.replacing(self.status_file) as temporary:
            temporary.write_text(json.dumps(self._read_status() | fields, indent=1), encoding="utf-8")

    def _read_status(self) -> dict[str, Any]:
        try:
            return parse_status(read(self.status_file))
        except (OSError, ValueError):
            return {}

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        self._create()
        with self.metrics_file.open("ab+") as file:
            prefix = b""
            if file.tell():
                file.seek(-1, os.SEEK_END)
                prefix = b"" if file.read(1) == b"\n" else b"\n"  # a crash left the last line incomplete
            file.write(prefix + json.dumps(record).encode() + b"\n")

    def metrics(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Return the records from byte `offset` on, at most METRICS_CHUNK_BYTES of them, and the offset to pass to the
        next call, which also reads a line that is still being written. A record with an `event` contains the step that
        the run continues from: earlier records of later steps are no longer part of the run.
        """
        try:
            if not os.path.isfile(self.metrics_file):  # opening a pipe would block
                return [], 0
            with self.metrics_file.open("rb") as file:
                file.seek(offset)
                chunk = file.read(METRICS_CHUNK_BYTES)
        except OSError:
            return [], 0
        lines, newline, rest = chunk.rpartition(b"\n")
        if not newline and len(rest) == METRICS_CHUNK_BYTES:  # no valid line is that long
            return [], offset + len(rest)
        parsed = [metrics_of(line) for line in lines.split(b"\n")]
        return [record for record in parsed if record], offset + len(lines) + len(newline)

    def tail(self, lines: int = 20) -> str:
        """Return the last lines of log.txt."""
        try:
            with self.log_file.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
                return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
        except OSError:
            return ""

    # ------------------------------------------------------------------------
    # Writing, for as long as the folder exists

    @cached_property
    def _root(self) -> Path:
        return self.path.resolve()

    @contextmanager
    def without_recreating(self, file: Path) -> Iterator[None]:
        """Within the block, raise RunFolderMissing instead of creating the folder again once its `file` is gone."""
        _guard_files[self._root] = file
        try:
            yield
        finally:
            del _guard_files[self._root]

    def missing_reason(self) -> str:
        """Return an error message if the folder was deleted or moved while this process is writing to it, else ''."""
        file = _guard_files.get(self._root)
        if file is None or file.exists():
            return ""
        place = quote(str(self.path))
        return f"the run folder {place} was deleted or moved, so training ends; if you moved it, resume it there"

    def check_exists(self) -> None:
        """Raise RunFolderMissing if the folder was deleted or moved while this process is writing to it."""
        if reason := self.missing_reason():
            raise RunFolderMissing(reason)

    def _create(self, folder: Path | None = None) -> None:
        """Create the run folder, and `folder` in it, if they do not exist."""
        self.check_exists()
        if self._root not in _guard_files:
            self.path.mkdir(parents=True, exist_ok=True)
        if folder and folder != self.path:
            self._create(folder.parent)
            folder.mkdir(exist_ok=True)

    @contextmanager
    def replacing(self, target: Path) -> Iterator[Path]:
        """Replace a file or folder of this run atomically; see dp.system.atomic_files.replacing."""
        self._create(target.parent)
        with replacing(target, makes_parents=False) as temporary:
            yield temporary

    # ------------------------------------------------------------------------
    # Commands and the lock

    def request(self, command: str) -> None:
        """Request one of COMMANDS from the training process."""
        file = self._control_file(command)
        file.parent.mkdir(exist_ok=True)
        file.touch()

    def is_requested(self, command: str) -> bool:
        """Return whether a command is pending."""
        return os.path.exists(self._control_file(command))

    def clear_request(self, command: str) -> None:
        self._control_file(command).unlink(missing_ok=True)

    def _control_file(self, command: str) -> Path:
        if command not in COMMANDS:
            raise ValueError(f"the command must be one of {', '.join(COMMANDS)}, got {quote(command)}")
        return self.path / "control" / command

    @property
    def lock(self) -> FileLock:
        """Return the lock of this path: one object per process, so that nested blocks can acquire it again."""
        return FileLock(self._root / "lock", is_singleton=True)

    def is_alive(self) -> bool:
        """Return whether a process holds the lock, or a remote job was active when it was last checked."""
        return self.has_active_job() or is_locked(self.path.resolve() / "lock")

    def has_active_job(self) -> bool:
        """Return whether the run was training as a remote job when that job was last checked."""
        return bool((self._read_status().get("remote") or {}).get("is_active"))

    @contextmanager
    def hold_lock(self) -> Iterator[None]:
        """Hold the lock of this run within the block. Old requests and temporary files are deleted first; an error
        that leaves the block is written to status.json. Raises RunLocked if another process or a job trains the run.
        """
        lock = self.lock
        if lock.is_locked:  # by an outer block
            yield
            return
        if self.has_active_job():
            raise RunLocked(f"the run {quote(self.id)} is already training as a Hugging Face job")
        try:
            acquire_lock(lock, HANDOVER_TIMEOUT_S)
        except Timeout:
            raise RunLocked(f"the run {quote(self.id)} is already training in another process") from None
        try:
            for command in COMMANDS:
                self.clear_request(command)
            for folder in (self.path, self.samples, self.path / "checkpoints"):
                remove_leftovers(folder)
            _guard_files[self._root] = self._root / "lock"
            yield
        except Exception as error:
            with suppress(OSError):  # the run is then shown as interrupted, and can be resumed just as well
                self._write_failure(error)
            raise
        finally:
            _guard_files.pop(self._root, None)
            lock.release()

    def _write_failure(self, error: Exception) -> None:
        if is_disk_full(error):
            steps = self.checkpoint_steps()
            place = f" to continue from step {steps[-1]:,}" if steps else ""
            return self.update_status(state="paused", message=DISK_FULL + place, error=None)
        trace = traceback.format_exc()[-MAX_ERROR_CHARACTERS:]
        self.update_status(state="failed", message=message_of(error), error=trace)
