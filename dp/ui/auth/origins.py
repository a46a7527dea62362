"""The host names and origins from which the server accepts requests.

Every web page that the owner of a local app opens can send requests to it. Three headers that no page can forge tell
where a request comes from: Host (an unknown name means DNS rebinding), Origin and Sec-Fetch-Site. X-Forwarded-Host is
ignored, because any page can set it.
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
    """The host names that the server answers to, and the other sites that may call its API.

    hosts, origins: names with or without a port; without one, every port is allowed. listens_on: the name in --host;
    the server answers to it, but its other ports are other sites. any_ip: accept every IP address as a host, since DNS
    rebinding needs a name. any_host: accept every host, as on a Space, whose platform routes by name.
    """

    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    listens_on: str = "127.0.0.1"
    any_ip: bool = False
    any_host: bool = False

    @classmethod
    def from_environment(
        cls, server_name: str | None, hosts: Iterable[str], origins: Iterable[str], environment: Mapping[str, str]
    ) -> Access:
        """Return the access rules of a server that listens on `server_name`. hosts, origins: from the command line, in
        addition to DP_ALLOWED_HOSTS and DP_ALLOWED_ORIGINS (comma-separated). Raises ValueError for an invalid name.
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

    def rejection_reason(self, method: str, path: str, headers: Headers) -> str | None:
        """Return a sentence that says why a request is rejected, or None if it is accepted."""
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
        """Return whether a page of `origin` may call the server, which it addressed as `host`."""
        scheme, separator, rest = origin.lower().partition("://")
        if not separator or not rest:
            return False  # "null": a sandboxed frame, a file
        default = {"http": "80", "https": "443"}.get(scheme)
        pages = [split_port(rest), split_port(host)]
        page, own = ((name, port or default) for name, port in pages)  # browsers omit the default port
        return page == own or is_listed(rest, self.hosts | self.origins)

    def frame_ancestors(self) -> str | None:
        """Return the Content-Security-Policy that lets only pages of this machine and of allowed sites show the page in
        a frame, against clickjacking. None on a Space, which is shown in a frame.
        """
        if self.any_host:
            return None
        pages = [f"http://{name}:*" for name in ("localhost", "127.0.0.1")]
        pages += sorted(name if ":" in name else f"{name}:*" for name in self.hosts | self.origins)
        return " ".join(["frame-ancestors 'self'", *pages])

    def is_other_site(self, origin: str | None, host: str) -> bool:
        """Return whether an allowed `origin` is not the server's own, so that browsers need CORS headers."""
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
    """Return `name[:port]` of a host name or a URL. Raises ValueError, which names the option, if it is neither."""
    try:
        parts = urlsplit(name if "://" in name else f"//{name}")
        is_name = parts.hostname and parts.port != 0 and parts.username is None and not set("* ;,'\"") & set(name)
        encoded = parts.netloc if ":" in parts.hostname else parts.netloc.encode("idna").decode()  # as browsers send it
    except (ValueError, TypeError):  # an invalid port or name
        is_name = False
    if not is_name or parts.path.strip("/") or parts.query:
        raise ValueError(f"{option} takes names like example.com or example.com:8443, got {quote(name)}")
    return encoded.lower()


def split_port(netloc: str) -> tuple[str, str | None]:
    """Split "name:port" or "[::1]:port". The name is in lower case, without brackets and a trailing dot."""
    match = re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*)(?::(\d*))?", netloc.strip().lower())
    if not match:
        return netloc.strip().lower(), None
    return match[1].strip("[]").rstrip("."), match[2] or None


def is_listed(netloc: str, names: Iterable[str]) -> bool:
    """Return whether `names` contain this name, with the same port or without one."""
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
