"""Check the proxies in the environment: http_proxy, https_proxy and all_proxy, in lower or upper case.

Gradio sends requests to the app itself, which must not go through a proxy, and it cannot be imported if httpx rejects
the address of a proxy. The app therefore removes invalid addresses from its environment. Calls to the Hub then fail;
they are never sent without the proxy. Standard library and socksio only.
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
hidden: dict[str, str] = {}  # the variables that `prepare` removed from the environment
_problems: list[str] = []  # the reasons


def problem() -> str | None:
    """Return why this process must not send requests to other hosts, with the name of the variable, or None."""
    return next(iter([*_problems, *(reason for _, reason in _unusable())]), None)


def prepare() -> None:
    """Change the environment so that Gradio can start: remove invalid proxies, and exclude loopback addresses from the
    others.
    """
    for scheme, reason in list(_unusable()):
        _problems.append(reason)
        for name in [name for name in os.environ if name.lower() == f"{scheme}_proxy"]:
            hidden[name] = os.environ.pop(name)
    given = getproxies_environment()
    if not given:
        return
    names = [valid for name in given.get("no", "").split(",") if (valid := _no_proxy_entry(name.strip()))]
    if any(scheme in SCHEMES for scheme in given) and "*" not in names:
        names += [name for name in LOOPBACK if name not in names]
    os.environ["no_proxy"] = ",".join(names)  # takes precedence over NO_PROXY


def _no_proxy_entry(name: str) -> str:
    """Return an entry of no_proxy in a form that httpx accepts: [::1] without brackets, and "" for entries on which
    httpx fails, such as IPv6 networks.
    """
    if match := re.fullmatch(r"\[(.*)\](?::\d*)?", name):
        name = match[1]
    with suppress(ValueError):
        return str(ip_address(name))
    is_name = re.fullmatch(r"(?:\w+://)?[^:\[\]]*(?::\d{1,5})?", name)
    return name if is_name and name.isascii() else ""


def _unusable() -> Iterator[tuple[str, str]]:
    """Yield scheme and reason for each invalid proxy in the environment."""
    for scheme, address in getproxies_environment().items():
        if scheme in SCHEMES and (why := _fault(address)):
            names = (
                name for name, value in os.environ.items() if value == address and name.lower() == f"{scheme}_proxy"
            )
            variable = f"{next(names)}={_without_password(address)}"
            yield scheme, f"the proxy in the environment variable {variable} cannot be used: {why}"


def _fault(address: str) -> str | None:
    rule = "write it as http://host:port or socks5://host:port"
    if not (address.isascii() and address.isprintable()):
        return rule
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        parts.port  # noqa: B018 (raises ValueError if it is invalid)
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
