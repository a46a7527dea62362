"""The ASGI middleware in front of every route. It decides whether a request comes from our own page, who sends it and
how much it may send.

It is pure ASGI because BaseHTTPMiddleware hides the disconnects of clients, after which the engine parks their runs.
"""

from __future__ import annotations

import ipaddress
import re
import time
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dp.ui.auth.origins import Access, is_ip
from dp.ui.auth.owner import Owner

OWNER = "dp.owner"  # key in the ASGI scope: whether the request has the owner's cookie
BODY_BYTES = 6 << 20  # limit of a request, which may contain a start image and its mask as JSON
UPLOAD_BYTES = 32 << 20  # limit of a request to Gradio's upload route, with any number of files
LINGER_BYTES, LINGER_S = 64 << 20, 5  # how much of a rejected body is read, so that its sender gets the response
UPLOAD_TTL_S = 3600  # how long Gradio keeps an uploaded file
VISITOR_BYTES, ALL_VISITORS_BYTES = 256 << 20, 2 << 30  # limits of the upload cache
MIN_UPLOAD_BYTES = 1 << 16  # what the smallest upload counts as, so that many tiny files are limited, too
UPLOAD = re.compile(r"/gradio_api/upload/?$")
# Gradio's routes that the app does not use: links that store a page's state on disk, and proxied requests.
CLOSED_ROUTES = re.compile(r"/gradio_api/(deep_link|proxy=|file=\s*\w+:/)")
FORWARDED = (b"x-forwarded-host", b"x-gradio-server")  # Gradio builds its URLs from these


@dataclass
class CountedUpload:
    """One upload: its visitor's network, its size in bytes and the monotonic time when it started."""

    visitor: str
    size: int
    started: float = field(default_factory=time.monotonic)


class UploadQuota:
    """Limits the bytes that visitors upload per hour, by network address."""

    def __init__(self):
        self.uploads: list[CountedUpload] = []

    def remaining(self, visitor: str) -> int:
        """Return how many bytes the visitor may still upload."""
        self.uploads = [upload for upload in self.uploads if time.monotonic() - upload.started < UPLOAD_TTL_S]
        mine = sum(upload.size for upload in self.uploads if upload.visitor == visitor)
        return max(0, min(VISITOR_BYTES - mine, ALL_VISITORS_BYTES - sum(upload.size for upload in self.uploads)))

    def reserve(self, visitor: str, size: int) -> CountedUpload:
        """Count an upload of at most `size` bytes before its body is read, since several may arrive simultaneously."""
        self.uploads.append(CountedUpload(visitor, size))
        return self.uploads[-1]


class Gateway:
    """Wraps the whole app. A rejected request gets a sentence as plain text with status 403, 413 or 429. An accepted
    one gets `OWNER` in its scope, and CORS headers if it comes from another allowed site.
    """

    def __init__(self, app: ASGIApp, access: Access, owner: Owner):
        self.app, self.access, self.owner, self.quota = app, access, owner, UploadQuota()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers, is_http = Headers(scope=scope), scope["type"] == "http"
        if problem := self.access.rejection_reason(scope["method"] if is_http else "", scope["path"], headers):
            if is_http:
                return await PlainTextResponse(problem, 403)(scope, receive, send)
            return await send({"type": "websocket.close", "code": 1008, "reason": problem[:100]})
        if is_http and (response := self.redirect_with_cookie(scope) or closed_route(scope)):
            return await response(scope, receive, send)
        trusted = [pair for pair in scope["headers"] if pair[0].lower() not in FORWARDED or self.is_known(pair[1])]
        scope = scope | {"headers": trusted, OWNER: self.owner.accepts_cookies("; ".join(headers.getlist("cookie")))}
        if not is_http:
            return await self.app(scope, receive, send)
        if policy := self.access.frame_ancestors():
            send = with_headers(send, {"content-security-policy": policy})
        if self.access.is_other_site(origin := headers.get("origin"), headers.get("host", "")):
            if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                return await preflight(origin, headers)(scope, receive, send)
            send = with_headers(send, cors(origin))
        await self.call_limited(scope, headers, receive, send)

    def is_known(self, host: bytes) -> bool:
        """Return whether to trust a proxy's header that contains this host name."""
        return self.access.allows_host(host.decode("latin-1").partition("://")[2] or host.decode("latin-1"))

    def redirect_with_cookie(self, scope: Scope) -> Response | None:
        """Return the response to `/?key=…` if the key is right: a redirect to the address without it that sets the
        cookie.
        """
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        key = dict(query).get("key")
        if scope["method"] != "GET" or key is None or not self.owner.accepts_key(key):
            return None
        location = "?" + urlencode([pair for pair in query if pair[0] != "key"])
        response = Response(status_code=303, headers={"location": location, "cache-control": "no-store"})
        response.headers["referrer-policy"] = "no-referrer"
        response.headers["set-cookie"] = self.owner.set_cookie(scope.get("scheme") == "https")
        return response

    async def call_limited(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        """Call the app, and respond with 413 or 429 if the body is too large."""
        is_upload = scope["method"] == "POST" and bool(UPLOAD.search(scope["path"]))
        if is_upload:
            visitor = network_of(scope)
            remaining = self.quota.remaining(visitor)
            upload = self.quota.reserve(visitor, min(UPLOAD_BYTES, remaining, length_of(headers) or UPLOAD_BYTES))
        limit, status = UPLOAD_BYTES if is_upload else BODY_BYTES, 413
        text = f"The request exceeds the limit of {limit >> 20} MB. Send less at a time."
        if is_upload and remaining < limit:
            limit, status = remaining, 429
            text = "The hourly upload limit of this network address is reached. Try again later."
        body = Body(receive, send, limit)
        body.is_too_large = length_of(headers) > limit
        try:
            if not body.is_too_large:
                await self.app(scope, body.receive, body.send)
        except BodyTooLarge:
            pass
        finally:
            if is_upload:
                upload.size = max(min(body.received, limit), MIN_UPLOAD_BYTES) if body.received else 0
        if body.is_too_large and not body.has_responded:
            if "expect" not in headers:  # such a client sends no body before a response
                await body.linger()
            await PlainTextResponse(text, status, {"connection": "close"})(scope, receive, send)


class BodyTooLarge(Exception):
    """Raised in the app when it reads past the limit."""


class Body:
    """Receives a request's body up to `limit` bytes, and drops the app's response to a larger one."""

    def __init__(self, receive: Receive, send: Send, limit: int):
        self._receive, self._send, self.limit = receive, send, limit
        self.received, self.is_complete, self.is_too_large, self.has_responded = 0, False, False, False

    async def receive(self) -> Message:
        message = await self._receive()
        self.received += len(message.get("body", b""))
        self.is_complete = not message.get("more_body")
        if self.received > self.limit:
            self.is_too_large = True
            raise BodyTooLarge
        return message

    async def send(self, message: Message) -> None:
        if self.is_too_large and not self.has_responded:
            return  # the app's response to BodyTooLarge
        self.has_responded = True
        await self._send(message)

    async def linger(self) -> None:
        """Read and drop more of the body: a client whose connection closes while it still sends misses the response."""
        dropped = 0
        if self.is_complete:
            return
        with anyio.move_on_after(LINGER_S):
            while dropped < LINGER_BYTES and (message := await self._receive()).get("more_body"):
                dropped += len(message.get("body", b""))


def preflight(origin: str, headers: Headers) -> Response:
    """Return the response to a CORS preflight request from the allowed `origin`."""
    allowed = {"access-control-allow-methods": "GET, HEAD, POST", "access-control-max-age": "600"}
    allowed["access-control-allow-headers"] = headers.get("access-control-request-headers", "")
    return Response(status_code=204, headers=allowed | cors(origin))


def with_headers(send: Send, headers: dict[str, str]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(headers)
        await send(message)

    return sending


def closed_route(scope: Scope) -> Response | None:
    """Return a 404 response if the route is one of CLOSED_ROUTES."""
    is_closed = CLOSED_ROUTES.search(scope["path"])
    return PlainTextResponse("This app does not provide this route.", 404) if is_closed else None


def length_of(headers: Headers) -> int:
    """Return the Content-Length; 0 if there is no valid one."""
    text = headers.get("content-length", "")
    return int(text[:18]) if text.isdecimal() else 0


def network_of(scope: Scope) -> str:
    """Return the network whose uploads are counted together: an IPv4 address, or the /64 of an IPv6 address."""
    address = (scope.get("client") or ("",))[0]
    return str(ipaddress.ip_network((address, 64), strict=False)) if ":" in address and is_ip(address) else address


def cors(origin: str) -> dict[str, str]:
    return {
        "access-control-allow-origin": origin,
        "access-control-allow-credentials": "true",
        "access-control-expose-headers": "*",
        "vary": "Origin",
    }
