"""The run folder: all that a training run leaves behind, and the only channel between it and whoever watches. Standard
library and filelock only. Whatever its files hold, dp.system.records checks it first.

    config.json          the whole request, written before the process starts
    dataset/             the prepared pictures
    status.json          state, step, loss, ... replaced as a whole
    metrics.jsonl        one JSON object a line
    log.txt              the process's own output
    lock                 held by the process as long as it lives
    control/             empty files that ask: stop, pause, save, sample
    samples/000500.png   the EMA's images from the same fixed seeds at every milestone
    checkpoints/000500/  a checkpoint folder, with training-state/ beside the weights for resuming

A milestone is the step it was taken at. Alive means locked: no kill and no pid used twice can deceive that. So the
state that is shown is derived, and a run that says it is going on while nobody holds its lock is `lost`. A run that a
Job on the Hub trains has its life from that Job instead; dp.training.remote.job keeps its folder up to date. Whatever
is written is written aside and renamed: a reader never sees half of it, and a full disk takes nothing that stood there.

Over budget: being the one process that holds a run, and telling how that ended, belong to the folder.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from dp.system.atomic_files import is_disk_full, replacing, tidy
from dp.system.environment import home as home
from dp.system.records import CONFIG, check_fields, metrics_of, name_of, read, status_of, step_of
from dp.system.timestamps import Ages
from dp.system.validation import message_of, quote

ALIVE = ("queued", "preparing", "running", "pausing", "stopping")
STATES = ("new", *ALIVE, "paused", "stopped", "finished", "failed", "lost")
VERBS = ("stop", "pause", "save", "sample")
FACTS = ("total", "loss", "images_per_s", "heartbeat", "started", "message", "error", "pid", "device", "processes")
FACTS += ("remote",)  # of a run that a Job on the Hub trains or has trained: see dp.training.remote.job
NO_STATUS = {"step": 0} | dict.fromkeys(FACTS)
RESPONDS_S = 60  # without a sign of life for longer, a run is shown as not responding
LEAVING_S = 3  # how long a new process waits for the one before it to be gone
PROBED_S = 0.5  # far longer than a look at the lock, which blocks others for that moment
TAIL_BYTES, ERROR_CHARACTERS = 64 << 10, 4000
METRICS_BYTES = 1 << 20  # of metrics.jsonl, at one look
LONGEST_NAME = 80
DISK_FULL = "the disk is full. Nothing is lost: free some space, then press Resume"

_heartbeats = Ages()
_probing = threading.Lock()  # or two threads that look at once would each take the other for the process


_standing: dict[Path, Path] = {}  # the folders that this process writes to -> a file of its own in each


class Busy(ValueError):
    """Another process holds this run."""


class Gone(OSError):
    """The folder of a run that this process writes to has been deleted or moved."""


class NoLocks(ValueError):
    """The disk that a run folder is on cannot lock files."""


def acquired(lock: FileLock, timeout: float) -> AcquireReturnProxy:
    """Take a lock, to be released by its `release` or as a context manager. Raises filelock's Timeout where another
    process holds it, and NoLocks where the disk cannot lock.
    """
    try:
        return lock.acquire(timeout=timeout)
    except Timeout:
        raise
    except (OSError, NotImplementedError) as error:
        folder, why = Path(lock.lock_file).parent, getattr(error, "strerror", None) or error
        raise NoLocks(
            f"cannot lock files in {quote(str(folder))} ({why}): training runs need a folder that can be written and a "
            "disk with file locks, which many network drives lack. Set DP_HOME to a folder on a local disk"
        ) from None


def runs_in(home: str | Path) -> list[RunFolder]:
    """The runs directly below a folder, newest first."""
    runs = [RunFolder(path) for path in Path(home).glob("[!.]*") if os.path.isdir(path)]
    # os.path says False of what this user may not see, as lost+found; Path would raise.
    runs = [run for run in runs if os.path.exists(run.config_file) or os.path.exists(run.status_file)]
    return sorted(runs, key=RunFolder.created, reverse=True)


def _steps(names: Iterable[str]) -> Iterator[int]:
    return (step for name in names if (step := step_of(name)) is not None)


class RunFolder:
    """Paths and atomic writes of one run; the folder is made when something is first written."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.dataset, self.samples = self.path / "dataset", self.path / "samples"
        self.config_file, self.status_file = self.path / "config.json", self.path / "status.json"
        self.metrics_file, self.log_file = self.path / "metrics.jsonl", self.path / "log.txt"

    @property
    def id(self) -> str:
        return name_of(self.path.resolve())

    @property
    def name(self) -> str:
        """Return the name that the user gave the run, or its id."""
        try:
            return (self.config().get("name") or "").strip()[:LONGEST_NAME] or self.id
        except ValueError:
            return self.id

    def checkpoint(self, milestone: int) -> Path:
        return self.path / "checkpoints" / f"{milestone:06d}"

    def sample(self, milestone: int) -> Path:
        return self.samples / f"{milestone:06d}.png"

    def milestones(self) -> list[int]:
        """The steps at which whole checkpoints stand, rising."""
        return sorted(_steps(path.name for path in (self.path / "checkpoints").glob("*") if os.path.isdir(path)))

    def sampled(self) -> list[int]:
        """The steps whose sample images stand, rising."""
        return sorted(_steps(path.stem for path in self.samples.glob("*.png") if os.path.isfile(path)))

    # ------------------------------------------------------------------------
    # What it is, and how it goes

    def config(self) -> dict[str, Any]:
        """config.json; {} where there is none, as in the run of a library's user. ValueError where it is damaged."""
        try:
            config = read(self.config_file)
            check_fields(config, CONFIG)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ValueError(f"config.json of the run {quote(self.id)} cannot be read: {error}") from None
        return config

    def created(self) -> float:
        """When, in unix seconds."""
        with suppress(ValueError, TypeError, KeyError):  # damaged, or not said
            return float(self.config()["created"])
        with suppress(OSError):
            return self.path.stat().st_ctime
        return 0.0  # it is just being deleted

    def status(self) -> dict[str, Any]:
        """The facts last reported, all of NO_STATUS's keys among them, with `state` as it is now, and `is_responding`:
        whether the process has lately said something.
        """
        facts = self._reported()
        state = facts.get("state", "lost" if os.path.exists(self.status_file) else "new")
        is_alive = state in (*ALIVE, "new", "lost") and self.is_alive()
        if is_alive:
            state = state if state in ALIVE else "preparing"
            state = "stopping" if self.asked("stop") else "pausing" if self.asked("pause") else state
        elif state in ALIVE:
            state = "lost"
        is_responding = is_alive and self.silent_s() < RESPONDS_S
        return NO_STATUS | facts | {"state": state, "is_responding": is_responding}

    def silent_s(self) -> float:
        """Return the seconds since the last heartbeat; infinite where there was none."""
        heartbeat = self._reported().get("heartbeat")
        if not heartbeat:
            return float("inf")
        if self.is_away():  # then the heartbeat was computed from this machine's clock
            return max(0.0, time.time() - heartbeat)
        return _heartbeats.age(self.path.resolve(), heartbeat)

    def report(self, **facts: Any) -> None:
        """Merge `facts` into status.json."""
        with self.replacing(self.status_file) as aside:
            aside.write_text(json.dumps(self._reported() | facts, indent=1), encoding="utf-8")

    def _reported(self) -> dict[str, Any]:
        try:
            facts = status_of(read(self.status_file))
        except (OSError, ValueError):
            return {}
        return facts if facts.get("state") in STATES else {k: v for k, v in facts.items() if k != "state"}

    def log(self, record: dict[str, Any]) -> None:
        """One more line of metrics.jsonl."""
        self._make()
        with self.metrics_file.open("ab+") as file:
            start = b""
            if file.tell():
                file.seek(-1, os.SEEK_END)
                start = b"" if file.read(1) == b"\n" else b"\n"  # a crash has torn the line before
            file.write(start + json.dumps(record).encode() + b"\n")

    def metrics(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Return the records from byte `offset` on, of METRICS_BYTES at most, and the offset of the next call, which
        reads a line that is still being written. A record with an `event` has the step from which the run continues:
        earlier records of later steps are no longer part of the run.
        """
        try:
            if not os.path.isfile(self.metrics_file):  # a pipe would be waited for
                return [], 0
            with self.metrics_file.open("rb") as file:
                file.seek(offset)
                part = file.read(METRICS_BYTES)
        except OSError:
            return [], 0
        whole, newline, rest = part.rpartition(b"\n")
        if not newline and len(rest) == METRICS_BYTES:  # no line of ours is that long
            return [], offset + len(rest)
        records = [metrics_of(line) for line in whole.split(b"\n")]
        return [record for record in records if record], offset + len(whole) + len(newline)

    def tail(self, lines: int = 20) -> str:
        """The end of log.txt."""
        try:
            with self.log_file.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
                return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
        except OSError:
            return ""

    # ------------------------------------------------------------------------
    # Writing to it, as long as it is there

    @cached_property
    def _root(self) -> Path:
        return self.path.resolve()

    @contextmanager
    def standing(self, file: Path) -> Iterator[None]:
        """While the block lasts, nothing that this process writes makes the folder anew once `file` in it is gone."""
        _standing[self._root] = file
        try:
            yield
        finally:
            del _standing[self._root]

    def why_gone(self) -> str:
        """Return the words for a folder that was deleted or moved while this process writes to it; else none."""
        file = _standing.get(self._root)
        if file is None or file.exists():
            return ""
        place = quote(str(self.path))
        return f"the run's folder {place} was deleted or moved, so training ends; if you moved it, resume it there"

    def check_there(self) -> None:
        """Raise Gone where the folder is gone."""
        if words := self.why_gone():
            raise Gone(words)

    def _make(self, folder: Path | None = None) -> None:
        """Make the folder, or one in it."""
        self.check_there()
        if self._root not in _standing:
            self.path.mkdir(parents=True, exist_ok=True)
        if folder and folder != self.path:
            self._make(folder.parent)
            folder.mkdir(exist_ok=True)

    @contextmanager
    def replacing(self, target: Path) -> Iterator[Path]:
        """The same as dp.system.atomic_files's, for a file or folder of this run."""
        self._make(target.parent)
        with replacing(target, makes_parents=False) as aside:
            yield aside

    # ------------------------------------------------------------------------
    # Who asks, and who lives

    def ask(self, verb: str) -> None:
        """Ask the process to stop, pause, save or sample."""
        file = self._control(verb)
        file.parent.mkdir(exist_ok=True)
        file.touch()

    def asked(self, verb: str) -> bool:
        return os.path.exists(self._control(verb))

    def obeyed(self, verb: str) -> None:
        self._control(verb).unlink(missing_ok=True)

    def _control(self, verb: str) -> Path:
        if verb not in VERBS:
            raise ValueError(f"a run may be asked to {', '.join(VERBS)}; not to {quote(verb)}")
        return self.path / "control" / verb

    @property
    def lock(self) -> FileLock:
        """One for all RunFolders of this path in this process, so that it may be taken again further in."""
        return FileLock(self._root / "lock", is_singleton=True)

    def is_alive(self) -> bool:
        """Whether a process holds the lock, looked at by trying; or a Job on the Hub trains this run, as far as is
        known.
        """
        return self.is_away() or self._is_held()

    def is_away(self) -> bool:
        """Whether the run was still going on as a Job on the Hub when it was last asked after."""
        return bool((self._reported().get("remote") or {}).get("is_going_on"))

    def _is_held(self) -> bool:
        """Return whether the lock is held, by sharing it for an instant: so several apps may look at once. A disk
        without locks holds none.
        """
        file = self.path.resolve() / "lock"
        if not os.path.exists(file):
            return False
        if fcntl is None:
            return _is_taken(file)
        with suppress(OSError):
            descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno == errno.ENOSYS:  # where filelock may have locks of its own
                    return _is_taken(file)
                return error.errno in (errno.EAGAIN, errno.EACCES)
            finally:
                os.close(descriptor)
        return False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be this run's one process while the block lasts: what was asked before is forgotten, what a killed one left
        half-written is cleared away, and an error that ends the block is reported. Busy where another process is.
        """
        lock = self.lock
        if lock.is_locked:  # further out
            yield
            return
        if self.is_away():
            raise Busy(f"the run {quote(self.id)} is going on as a Job on the Hub")
        try:
            acquired(lock, LEAVING_S)
        except Timeout:
            raise Busy(f"the run {quote(self.id)} is already going on in another process") from None
        try:
            for verb in VERBS:
                self.obeyed(verb)
            for folder in (self.path, self.samples, self.path / "checkpoints"):
                tidy(folder)
            _standing[self._root] = self._root / "lock"
            yield
        except Exception as error:
            with suppress(OSError):  # then it is seen as lost, which is as good: Resume goes on with it
                self._report_end(error)
            raise
        finally:
            _standing.pop(self._root, None)
            lock.release()

    def _report_end(self, error: Exception) -> None:
        if is_disk_full(error):
            place = f"; it goes on from step {self.milestones()[-1]:,}" if self.milestones() else ""
            return self.report(state="paused", message=DISK_FULL + place, error=None)
        trace = traceback.format_exc()[-ERROR_CHARACTERS:]
        self.report(state="failed", message=message_of(error), error=trace)


def _is_taken(file: Path) -> bool:
    """Return whether a lock is held, by taking it: the only way where locks cannot be shared."""
    with _probing:
        try:
            with FileLock(file, timeout=0):
                return False
        except Timeout:
            return True
        except (OSError, NotImplementedError):
            return False
