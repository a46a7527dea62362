"""The proxies that the environment names: http_proxy, https_proxy and all_proxy, in small or capital letters.

Gradio makes requests to the app itself, which no proxy may see; and it cannot even be imported where httpx rejects a
proxy's address. So the app takes such an address out of its environment, and only calls to the Hub, which would need
the proxy, fail: they are never sent around it. Standard library and socksio only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

try:
    import socksio
except ImportError:
    socksio = None

from dp.system.validation import MAX_QUOTED, quote

SCHEMES = ("http", "https", "all")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
hidden: dict[str, str] = {}  # the variables that `prepare` took out of the environment, as they were
_problems: list[str] = []  # why


def problem() -> str | None:
    """Return why no request may leave this process, in a sentence that names the variable; None where it may."""
    return next(iter([*_problems, *(words for _, words in _unusable())]), None)


def prepare() -> None:
    """Make the environment such that Gradio starts in any case: hide the proxies that cannot be used, and exclude
    loopback from the others.
    """
    for scheme, words in list(_unusable()):
        _problems.append(words)
        for name in [name for name in os.environ if name.lower() == f"{scheme}_proxy"]:
            hidden[name] = os.environ.pop(name)
    given = getproxies_environment()
    if not given:
        return
    names = [plain for name in given.get("no", "").split(",") if (plain := _excluded(name.strip()))]
    if any(scheme in SCHEMES for scheme in given) and "*" not in names:
        names += [name for name in LOOPBACK if name not in names]
    os.environ["no_proxy"] = ",".join(names)  # which comes before NO_PROXY


def _excluded(name: str) -> str:
    """Return an entry of no_proxy as httpx takes it: [::1] without brackets, and nothing for what it fails on, as on a
    network of IPv6 addresses.
    """
    if match := re.fullmatch(r"\[(.*)\](?::\d*)?", name):
        name = match[1]
    with suppress(ValueError):
        return str(ip_address(name))
    is_name = re.fullmatch(r"(?:\w+://)?[^:\[\]]*(?::\d{1,5})?", name)
    return name if is_name and name.isascii() else ""


def _unusable() -> Iterator[tuple[str, str]]:
    for scheme, address in getproxies_environment().items():
        if scheme in SCHEMES and (why := _fault(address)):
            found = (
                name for name, value in os.environ.items() if value == address and name.lower() == f"{scheme}_proxy"
            )
            shown = f"{next(found)}={_without_password(address)}"
            yield scheme, f"the proxy in the environment variable {shown} cannot be used: {why}"


def _fault(address: str) -> str | None:
    rule = "write it as http://host:port or socks5://host:port"
    if not (address.isascii() and address.isprintable()):
        return rule
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        parts.port  # noqa: B018 (raises where it is none)
    except ValueError:
        return rule
    if parts.scheme in ("socks5", "socks5h"):
        return None if socksio else "SOCKS needs the package socksio (pip install socksio)"
    if parts.scheme in ("http", "https"):
        return None
    return "its scheme must be http, https, socks5 or socks5h"


def _without_password(address: str) -> str:
    before, at, host = address[:MAX_QUOTED].rpartition("@")
    return quote(f"{before.partition('://')[0]}://…@{host}" if at else host)
