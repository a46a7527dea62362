"""File locks. A process holds the lock of its run for as long as it lives, so a held lock means a live process.

Needs the standard library and filelock only.
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from dp.system.validation import quote

_probe_lock = threading.Lock()  # two threads that probe at once would each take the other for the lock's holder


class LockingUnsupported(ValueError):
    """The disk of a run folder does not support file locks."""


def acquire_lock(lock: FileLock, timeout_s: float) -> AcquireReturnProxy:
    """Acquire a lock; release it with its `release` method or by using the result as a context manager.

    Raises filelock's Timeout if another process holds the lock for longer than `timeout_s`, and LockingUnsupported if
    the disk has no file locks.
    """
    try:
        return lock.acquire(timeout=timeout_s)
    except Timeout:
        raise
    except (OSError, NotImplementedError) as error:
        folder, reason = Path(lock.lock_file).parent, getattr(error, "strerror", None) or error
        raise LockingUnsupported(
            f"cannot lock files in {quote(str(folder))} ({reason}): a training run needs a writable folder on a disk "
            "with file locks, which many network drives lack. Set DP_HOME to a folder on a local disk"
        ) from None


def device_lock_file(runs_dir: Path, device: str) -> Path:
    """Return the file that a run in `runs_dir` locks for as long as it trains on `device`."""
    return runs_dir / f".{device.replace(':', '-')}.lock"


def is_locked(file: Path) -> bool:
    """Return whether a process holds the lock `file`; False on a disk without file locks.

    A shared lock is taken for an instant, so several apps can check at the same time.
    """
    if not os.path.exists(file):
        return False
    if fcntl is None:
        return _is_locked_exclusively(file)
    with suppress(OSError):
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.ENOSYS:  # filelock may have a fallback here
                return _is_locked_exclusively(file)
            return error.errno in (errno.EAGAIN, errno.EACCES)
        finally:
            os.close(descriptor)
    return False


def _is_locked_exclusively(file: Path) -> bool:
    """Check by acquiring the lock, the only way on systems without shared locks."""
    with _probe_lock:
        try:
            with FileLock(file, timeout=0):
                return False
        except Timeout:
            return True
        except (OSError, NotImplementedError):
            return False
