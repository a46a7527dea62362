"""Which requests a server accepts, by the names in their headers.

A local app is reachable from every web page that its owner opens. Three headers, which no page can forge, tell whose
request it is: Host (a foreign name means DNS rebinding), Origin and Sec-Fetch-Site. X-Forwarded-Host is not among them:
anybody can send it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from dp.system.validation import quote

ASSET = re.compile(
    r"/(assets|static|svelte|custom_component)/|/(theme\.css|favicon\.ico|manifest\.json)$|/gradio_api/file="
)


@dataclass(frozen=True)
class Access:
    """Which names the server answers to, and from which other sites its API may be called.

    hosts, origins: names with or without a port; without one, every port. listens_on: the name of --host, to which the
    server answers, but whose other ports are other sites. any_ip: every IP address is a name, because an address cannot
    be rebound. any_host: as on a Space, whose platform routes by the name.
    """

    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    listens_on: str = "127.0.0.1"
    any_ip: bool = False
    any_host: bool = False

    @classmethod
    def of(
        cls, server_name: str | None, hosts: Iterable[str], origins: Iterable[str], environment: Mapping[str, str]
    ) -> Access:
        """Return the access of a server that listens on `server_name`. hosts, origins: those of the command line, added
        to DP_ALLOWED_HOSTS and DP_ALLOWED_ORIGINS (with commas between). Raises ValueError on a name that is none.
        """
        server_name = (server_name or environment.get("GRADIO_SERVER_NAME") or "127.0.0.1").strip("[]")
        is_space = bool(environment.get("SPACE_ID"))
        allowed = {*hosts, *_listed(environment.get("DP_ALLOWED_HOSTS"))}
        allowed |= set(_listed(environment.get("SPACE_HOST"))) if is_space else set()
        allowed_origins = {*origins, *_listed(environment.get("DP_ALLOWED_ORIGINS"))}
        return cls(
            hosts=frozenset(authority(name, "--allowed-host or DP_ALLOWED_HOSTS") for name in allowed),
            origins=frozenset(authority(name, "--allowed-origin or DP_ALLOWED_ORIGINS") for name in allowed_origins),
            listens_on=server_name.lower(),
            any_ip=not is_loopback(server_name),
            any_host=is_space,
        )

    def problem(self, method: str, path: str, headers: Headers) -> str | None:
        """Return why a request is rejected, in a sentence for the person who reads it; None where it passes."""
        for name in ("host", "origin"):
            if len(headers.getlist(name)) > 1:
                return f"The request has more than one {name.capitalize()} header."
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self.allows_host(host):
            return (
                f"This server does not accept requests for the host name {quote(host)}. "
                "To allow it, start the app with --allowed-host NAME, or set DP_ALLOWED_HOSTS."
            )
        if origin is not None:
            return None if self.allows_origin(origin, host) else _foreign(f"Origin {quote(origin)}")
        site = headers.get("sec-fetch-site", "none")
        if site in ("none", "same-origin"):
            return None
        is_navigation = headers.get("sec-fetch-mode") == "navigate"
        if method in ("GET", "HEAD") and (is_navigation or ASSET.search(path)):
            return None
        return _foreign(f"Sec-Fetch-Site {quote(site)}")

    def allows_host(self, host: str) -> bool:
        name, _ = split_port(host)
        is_own = is_loopback(name) or name == self.listens_on or (self.any_ip and is_ip(name))
        return self.any_host or is_own or is_listed(host, self.hosts)

    def allows_origin(self, origin: str, host: str) -> bool:
        """Whether a page of `origin` may call a server that it addressed as `host`."""
        scheme, separator, rest = origin.lower().partition("://")
        if not separator or not rest:
            return False  # "null": a sandboxed frame, a file
        default = {"http": "80", "https": "443"}.get(scheme)
        pages = [split_port(rest), split_port(host)]
        page, own = ((name, port or default) for name, port in pages)  # browsers leave the default port out
        return page == own or is_listed(rest, self.hosts | self.origins)

    def frame_ancestors(self) -> str | None:
        """Return the Content-Security-Policy for frames, in which a click meant for the page around them could land on
        ours: only pages of this machine and of allowed sites may show one. None on a Space, which is a frame.
        """
        if self.any_host:
            return None
        pages = [f"http://{name}:*" for name in ("localhost", "127.0.0.1")]
        pages += sorted(name if ":" in name else f"{name}:*" for name in self.hosts | self.origins)
        return " ".join(["frame-ancestors 'self'", *pages])

    def is_other_site(self, origin: str | None, host: str) -> bool:
        """Whether an allowed `origin` is another one than the server's own, so that a browser asks for CORS headers."""
        return origin is not None and origin.lower().partition("://")[2] != host.lower()


def _foreign(what: str) -> str:
    return (
        f"This request comes from another site ({what}), which may not call this server. To allow that site, start the "
        "app with --allowed-origin URL, or set DP_ALLOWED_ORIGINS. Behind a proxy that changes Host, use "
        "--allowed-host to allow the name that visitors see."
    )


def _listed(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def authority(name: str, option: str) -> str:
    """Return `name[:port]` of a name or a URL. Raises ValueError, which names the option, where it is neither."""
    try:
        parts = urlsplit(name if "://" in name else f"//{name}")
        is_name = parts.hostname and parts.port != 0 and parts.username is None and not set("* ;,'\"") & set(name)
        encoded = parts.netloc if ":" in parts.hostname else parts.netloc.encode("idna").decode()  # as browsers send it
    except (ValueError, TypeError):  # a port that is no number below 65,536, or a name that is none
        is_name = False
    if not is_name or parts.path.strip("/") or parts.query:
        raise ValueError(f"{option} takes names like example.com or example.com:8443, got {quote(name)}")
    return encoded.lower()


def split_port(netloc: str) -> tuple[str, str | None]:
    """Split "name:port" and "[::1]:port"; the name in lower case and without brackets and the root's dot."""
    match = re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*)(?::(\d*))?", netloc.strip().lower())
    if not match:
        return netloc.strip().lower(), None
    return match[1].strip("[]").rstrip("."), match[2] or None


def is_listed(netloc: str, names: Iterable[str]) -> bool:
    name, port = split_port(netloc)
    return any(name == known and port_of in (None, port) for known, port_of in map(split_port, names))


def is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(name: str) -> bool:
    return name == "localhost" or (is_ip(name) and ipaddress.ip_address(name).is_loopback)
