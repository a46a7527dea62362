"""The start of the app: everything that the environment and the options can get wrong is either mended or said in one
sentence, before Gradio and torch read it. Standard library only.
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

FIRST_PORT, PORTS = 7860, 100  # Gradio's
COUNTS = ("GRADIO_NUM_PORTS", "GRADIO_NODE_NUM_PORTS", "GRADIO_ANALYTICS_MAX_EVENTS", "GRADIO_DEBUG")


@contextmanager
def told() -> Iterator[None]:
    """End the process with exit code 2 and one sentence where the block raises ValueError or OSError."""
    try:
        yield
    except (ValueError, OSError) as error:
        sys.stderr.write(" ".join(message_of(error).split()) + "\n")
        sys.exit(2)


def prepare() -> None:
    """Check the variables of the environment, and mend what Gradio and its relatives would stumble over. Raises
    ValueError.
    """
    stdio.protect()
    environment.cores()
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
    """Make the folder that DP_HOME names. Without DP_HOME a folder that cannot be made only keeps training away."""
    folder = environment.runs_dir()
    if folder == Path(os.devnull):  # no runs at all
        return
    try:
        check_writable(folder)
    except OSError as error:
        why = f"{quote(str(folder))} cannot be used ({error.strerror or error})"
        if os.environ.get("DP_HOME"):
            raise ValueError(f"DP_HOME must be a folder that can be written: {why}") from None
        sys.stderr.write(f"The folder of the training runs {why}: to train, set DP_HOME to another one.\n")


def prepare_folders() -> None:
    """Give Gradio a folder of our own for its files, and the libraries a home, where there is none. Raises ValueError
    on a GRADIO_TEMP_DIR that cannot be used.
    """
    if given := os.environ.get("GRADIO_TEMP_DIR"):
        try:
            check_writable(Path(given))
        except OSError as error:
            why = f"{quote(given)} cannot be used ({error.strerror or error})"
            raise ValueError(f"GRADIO_TEMP_DIR must be a folder that can be written: {why}") from None
    folder = Path(given) if given else private_folder()
    if folder.name != environment.UPLOADS:  # not inherited from an app of ours
        os.environ["GRADIO_TEMP_DIR"] = str(folder / environment.UPLOADS)
    try:
        Path.home()
    except RuntimeError:  # no HOME, and the system does not know this user, as in some containers
        os.environ["HOME"] = str(private_folder())


def check_writable(folder: Path) -> None:
    """Make a folder unless it is there, and a file in it. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def is_ours(folder: Path) -> bool:
    """Whether a folder in a shared place belongs to this user and can be written; it is made where it is not there."""
    try:
        check_writable(folder)
        return not folder.is_symlink() and (os.name == "nt" or folder.stat().st_uid == os.geteuid())
    except OSError:
        return False


def temporary() -> str:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        raise ValueError("no folder for temporary files can be written: set TMPDIR to one that can") from None


@cache
def private_folder() -> Path:
    """Return a folder for this user's temporary files, the same at each start unless somebody else has taken it."""
    folder = Path(temporary(), f"dp-{os.geteuid() if hasattr(os, 'geteuid') else 'files'}")
    with suppress(OSError):
        folder.mkdir(0o700)
    return folder if is_ours(folder) else Path(tempfile.mkdtemp(prefix="dp-", dir=temporary()))


# ----------------------------------------------------------------------------
# Where to listen


def address(host: str | None, port: str | None) -> tuple[str, int]:
    """Return the name and the port for Gradio to listen on: those of the options --host and --port, or else of
    GRADIO_SERVER_NAME and the first free port from GRADIO_SERVER_PORT. Raises ValueError.
    """
    name = "--host" if host else "GRADIO_SERVER_NAME"
    # Gradio tries ports at the name in the variable, whatever it was told, and fails there with IPv6.
    variable = os.environ.pop("GRADIO_SERVER_NAME", None)
    host = (host or variable or "127.0.0.1").strip().removeprefix("[").removesuffix("]")
    host = "127.0.0.1" if host == "localhost" else host  # which may be ::1, too, where there is no IPv6
    first = environment.port() or FIRST_PORT
    tries = int(os.environ.get("GRADIO_NUM_PORTS", PORTS))
    chosen = None if port is None else port_in("--port", port)
    for candidate in [chosen] if chosen else range(first, min(first + max(tries, 1), 65_536)):
        if is_free(name, host, candidate):
            return f"[{host}]" if ":" in host else host, candidate
    if chosen:
        words = "leave --port out for the first free one, or choose another"
        raise ValueError(f"--port {chosen} is taken by another program: {words}")
    raise ValueError(f"no port from {first} to {candidate} is free: choose one with --port")


def is_free(name: str, host: str, port: int) -> bool:
    """Whether a server can listen there, and on the loopback port where Gradio looks first. Raises ValueError, with the
    option's name, where `host` is no address of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, place in [(family, place) for family, *_, place in found] + [(socket.AF_INET, ("127.0.0.1", port))]:
            try_port(family, place)
    except (OSError, ValueError) as error:  # ValueError: a name that no encoding of names takes
        code, why = getattr(error, "errno", None), getattr(error, "strerror", None) or error
        if code == errno.EADDRINUSE:
            return False
        if code == errno.EACCES:
            raise ValueError(
                f"port {port} is not for every program ({why}): choose one from 1024 with --port"
            ) from None
        words = "an address or name of this machine, such as 127.0.0.1, 0.0.0.0, ::1, :: or localhost"
        raise ValueError(f"{name} must be {words}; got {quote(host)} ({why})") from None
    return True


def try_port(family: int, place: tuple) -> None:
    """Raises OSError where no server can listen."""
    with socket.socket(family) as probe:
        if os.name != "nt":  # there it means the opposite
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind(place)
