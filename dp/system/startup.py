"""Check the environment and the options at the start of the app, before Gradio and torch read them: every problem is
either corrected or reported in one sentence. Standard library only.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from dp.system import environment, proxies, stdio
from dp.system.environment import port_in
from dp.system.validation import message_of, quote

FIRST_PORT, PORTS = 7860, 100  # the defaults of Gradio
COUNTS = ("GRADIO_NUM_PORTS", "GRADIO_NODE_NUM_PORTS", "GRADIO_ANALYTICS_MAX_EVENTS", "GRADIO_DEBUG")


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Exit with code 2 and the error message in one line if the block raises ValueError or OSError."""
    try:
        yield
    except (ValueError, OSError) as error:
        sys.stderr.write(" ".join(message_of(error).split()) + "\n")
        sys.exit(2)


def prepare() -> None:
    """Check the environment variables, and change those on which Gradio and other libraries would fail. Raises
    ValueError.
    """
    stdio.protect()
    environment.cores()
    environment.precision()
    environment.device()
    environment.port()
    for name in COUNTS:
        text = os.environ.get(name)
        if text is not None and not (text.strip().isdecimal() and len(text) < 9):
            raise ValueError(f"{name} must be a whole number, got {quote(text)}")
    check_home()
    prepare_folders()
    proxies.prepare()
    if why := proxies.problem():
        sys.stderr.write(f"{why}. The app works, but cannot reach the Hugging Face Hub.\n")


def check_home() -> None:
    """Create the folder in DP_HOME. Raises ValueError if that is impossible. If DP_HOME is not set and the default
    folder cannot be created, only print that training is unavailable.
    """
    folder = environment.runs_dir()
    if folder == Path(os.devnull):  # disables training
        return
    try:
        check_writable(folder)
    except OSError as error:
        why = f"{quote(str(folder))} cannot be used ({error.strerror or error})"
        if os.environ.get("DP_HOME"):
            raise ValueError(f"DP_HOME must be a writable folder: {why}") from None
        sys.stderr.write(f"The folder of the training runs {why}. Set DP_HOME to another folder to train.\n")


def prepare_folders() -> None:
    """Set GRADIO_TEMP_DIR to a folder of this app, and HOME if the user has no home folder. Raises ValueError if
    GRADIO_TEMP_DIR is set to an unusable folder.
    """
    if given := os.environ.get("GRADIO_TEMP_DIR"):
        try:
            check_writable(Path(given))
        except OSError as error:
            why = f"{quote(given)} cannot be used ({error.strerror or error})"
            raise ValueError(f"GRADIO_TEMP_DIR must be a writable folder: {why}") from None
    folder = Path(given) if given else private_folder()
    if folder.name != environment.UPLOADS:  # unless a parent process set it here
        os.environ["GRADIO_TEMP_DIR"] = str(folder / environment.UPLOADS)
    try:
        Path.home()
    except RuntimeError:  # no HOME, and the user is unknown to the system, as in some containers
        os.environ["HOME"] = str(private_folder())


def check_writable(folder: Path) -> None:
    """Create a folder if necessary, and a temporary file in it. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def is_private_folder(folder: Path) -> bool:
    """Return whether a folder in a shared location belongs to this user and is writable. It is created if necessary."""
    try:
        check_writable(folder)
        return not folder.is_symlink() and (os.name == "nt" or folder.stat().st_uid == os.geteuid())
    except OSError:
        return False


def temporary_folder() -> str:
    """Return the folder for temporary files. Raises ValueError if none is writable."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        raise ValueError("no folder for temporary files is writable: set TMPDIR to one") from None


@cache
def private_folder() -> Path:
    """Return a folder for temporary files of this user. It is the same at each start, unless another user owns it."""
    folder = Path(temporary_folder(), f"dp-{os.geteuid() if hasattr(os, 'geteuid') else 'files'}")
    with suppress(OSError):
        folder.mkdir(0o700)
    return folder if is_private_folder(folder) else Path(tempfile.mkdtemp(prefix="dp-", dir=temporary_folder()))


# ----------------------------------------------------------------------------
# Where to listen


def listen_address(host: str | None, port: str | None) -> tuple[str, int]:
    """Return the name and port for Gradio to listen on: those of the options --host and --port, or else
    GRADIO_SERVER_NAME and the first free port from GRADIO_SERVER_PORT. Raises ValueError.
    """
    name = "--host" if host else "GRADIO_SERVER_NAME"
    # Gradio probes ports on the name in this variable regardless of its arguments, and fails with IPv6.
    variable = os.environ.pop("GRADIO_SERVER_NAME", None)
    host = (host or variable or "127.0.0.1").strip().removeprefix("[").removesuffix("]")
    host = "127.0.0.1" if host == "localhost" else host  # may resolve to ::1 even without IPv6
    first = environment.port() or FIRST_PORT
    tries = int(os.environ.get("GRADIO_NUM_PORTS", PORTS))
    chosen = None if port is None else port_in("--port", port)
    for candidate in [chosen] if chosen else range(first, min(first + max(tries, 1), 65_536)):
        if is_free(name, host, candidate):
            return f"[{host}]" if ":" in host else host, candidate
    if chosen:
        raise ValueError(f"--port {chosen} is in use: choose another one, or omit --port to use the first free one")
    raise ValueError(f"no port from {first} to {candidate} is free: choose one with --port")


def is_free(name: str, host: str, port: int) -> bool:
    """Return whether a server can listen on `host` and on the loopback address, which Gradio probes first. Raises
    ValueError, with the name of the option, if `host` is not an address of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, place in [(family, place) for family, *_, place in found] + [(socket.AF_INET, ("127.0.0.1", port))]:
            try_port(family, place)
    except (OSError, ValueError) as error:  # ValueError: the name cannot be encoded
        code, why = getattr(error, "errno", None), getattr(error, "strerror", None) or error
        if code == errno.EADDRINUSE:
            return False
        if code == errno.EACCES:
            raise ValueError(
                f"port {port} requires privileges ({why}): choose a port of at least 1024 with --port"
            ) from None
        rule = "an address or name of this machine, such as 127.0.0.1, 0.0.0.0, ::1, :: or localhost"
        raise ValueError(f"{name} must be {rule}; got {quote(host)} ({why})") from None
    return True


def try_port(family: int, place: tuple) -> None:
    """Raise OSError if a server cannot listen at this address."""
    with socket.socket(family) as probe:
        if os.name != "nt":  # on Windows, the option allows two servers on one port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind(place)
