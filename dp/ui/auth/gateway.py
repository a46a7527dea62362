"""The ASGI middleware in front of every route: is this request from our own page, who sends it, how much may it send.

Pure ASGI, not BaseHTTPMiddleware: runs are parked when the server sees that a stream's reader has gone, and that class
hides it.
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

OWNER = "dp.owner"  # the key of the scope: whether the sender holds the owner's cookie
BODY_BYTES = 6 << 20  # of any request but an upload: a start image and its mask as JSON
UPLOAD_BYTES = 32 << 20  # of one request to Gradio's upload route, however many files it contains
LINGER_BYTES, LINGER_S = 64 << 20, 5  # read and dropped of a rejected body, so that its sender reads the answer
KEPT_S = 3600  # how long Gradio keeps an uploaded file
VISITOR_BYTES, ALL_VISITORS_BYTES = 256 << 20, 2 << 30  # in the upload cache at once
SMALLEST_UPLOAD = 1 << 16  # what any upload counts as: a thousand tiny files cost something, too
UPLOAD = re.compile(r"/gradio_api/upload/?$")
# Routes of Gradio that this app does not use: links that store a page's state on disk, and requests to other servers.
CLOSED = re.compile(r"/gradio_api/(deep_link|proxy=|file=\s*\w+:/)")
FORWARDED = (b"x-forwarded-host", b"x-gradio-server")  # by which Gradio would write its addresses


@dataclass
class Upload:
    visitor: str
    size: int
    started: float = field(default_factory=time.monotonic)


class UploadQuota:
    """The bytes that visitors have uploaded within the last hour, by network address."""

    def __init__(self):
        self.uploads: list[Upload] = []

    def room(self, visitor: str) -> int:
        """Return how many bytes the visitor may still upload."""
        self.uploads = [upload for upload in self.uploads if time.monotonic() - upload.started < KEPT_S]
        mine = sum(upload.size for upload in self.uploads if upload.visitor == visitor)
        return max(0, min(VISITOR_BYTES - mine, ALL_VISITORS_BYTES - sum(upload.size for upload in self.uploads)))

    def reserve(self, visitor: str, size: int) -> Upload:
        """Count an upload of at most `size` bytes before it comes in: several may come at once."""
        self.uploads.append(Upload(visitor, size))
        return self.uploads[-1]


class Gateway:
    """Wraps the whole app. Rejected requests get a plain sentence and 403, 413 or 429; the others get `OWNER` in their
    scope, and headers for other sites that may call.
    """

    def __init__(self, app: ASGIApp, access: Access, owner: Owner):
        self.app, self.access, self.owner, self.quota = app, access, owner, UploadQuota()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers, is_http = Headers(scope=scope), scope["type"] == "http"
        if problem := self.access.problem(scope["method"] if is_http else "", scope["path"], headers):
            if is_http:
                return await PlainTextResponse(problem, 403)(scope, receive, send)
            return await send({"type": "websocket.close", "code": 1008, "reason": problem[:100]})
        if is_http and (answer := self.redirect_of_key(scope) or closed(scope)):
            return await answer(scope, receive, send)
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
        await self.limited(scope, headers, receive, send)

    def is_known(self, host: bytes) -> bool:
        """Whether a proxy may say that the visitor has addressed it by this name."""
        return self.access.allows_host(host.decode("latin-1").partition("://")[2] or host.decode("latin-1"))

    def redirect_of_key(self, scope: Scope) -> Response | None:
        """Return the answer to `/?key=…` with the right key: the cookie, and the same address without the key."""
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        key = dict(query).get("key")
        if scope["method"] != "GET" or key is None or not self.owner.accepts_key(key):
            return None
        location = "?" + urlencode([pair for pair in query if pair[0] != "key"])
        response = Response(status_code=303, headers={"location": location, "cache-control": "no-store"})
        response.headers["referrer-policy"] = "no-referrer"
        response.headers["set-cookie"] = self.owner.set_cookie(scope.get("scheme") == "https")
        return response

    async def limited(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        """Call the app with a body that ends in 413 or 429 where it is too large."""
        is_upload = scope["method"] == "POST" and bool(UPLOAD.search(scope["path"]))
        if is_upload:
            visitor = network_of(scope)
            room = self.quota.room(visitor)
            upload = self.quota.reserve(visitor, min(UPLOAD_BYTES, room, length_of(headers) or UPLOAD_BYTES))
        limit, status = UPLOAD_BYTES if is_upload else BODY_BYTES, 413
        words = f"The request is larger than the limit of {limit >> 20} MB. Send less at a time."
        if is_upload and room < limit:
            limit, status = room, 429
            words = "The upload limit of this address for the last hour is used up. Try again later."
        body = Body(receive, send, limit)
        body.is_too_large = length_of(headers) > limit
        try:
            if not body.is_too_large:
                await self.app(scope, body.receive, body.send)
        except BodyTooLarge:
            pass
        finally:
            if is_upload:
                upload.size = max(min(body.received, limit), SMALLEST_UPLOAD) if body.received else 0
        if body.is_too_large and not body.has_answered:
            if "expect" not in headers:  # such a sender waits for a go-ahead
                await body.linger()
            await PlainTextResponse(words, status, {"connection": "close"})(scope, receive, send)


class BodyTooLarge(Exception):
    """Raised in the app where it reads past the limit."""


class Body:
    """A request's body up to `limit` bytes, counted as it comes in, and the response where it stayed within."""

    def __init__(self, receive: Receive, send: Send, limit: int):
        self._receive, self._send, self.limit = receive, send, limit
        self.received, self.is_whole, self.is_too_large, self.has_answered = 0, False, False, False

    async def receive(self) -> Message:
        message = await self._receive()
        self.received += len(message.get("body", b""))
        self.is_whole = not message.get("more_body")
        if self.received > self.limit:
            self.is_too_large = True
            raise BodyTooLarge
        return message

    async def send(self, message: Message) -> None:
        if self.is_too_large and not self.has_answered:
            return  # the app's own words about the error that it met while reading
        self.has_answered = True
        await self._send(message)

    async def linger(self) -> None:
        """Read some more: a connection that is closed while its peer still sends shows no answer to it."""
        dropped = 0
        if self.is_whole:
            return
        with anyio.move_on_after(LINGER_S):
            while dropped < LINGER_BYTES and (message := await self._receive()).get("more_body"):
                dropped += len(message.get("body", b""))


def preflight(origin: str, headers: Headers) -> Response:
    """Answer a browser that asks whether a page of the allowed `origin` may send what it wants to send."""
    allowed = {"access-control-allow-methods": "GET, HEAD, POST", "access-control-max-age": "600"}
    allowed["access-control-allow-headers"] = headers.get("access-control-request-headers", "")
    return Response(status_code=204, headers=allowed | cors(origin))


def with_headers(send: Send, headers: dict[str, str]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(headers)
        await send(message)

    return sending


def closed(scope: Scope) -> Response | None:
    is_closed = CLOSED.search(scope["path"])
    return PlainTextResponse("This app does not provide this route.", 404) if is_closed else None


def length_of(headers: Headers) -> int:
    """Return the length of a body as its sender states it; 0 where it states none."""
    text = headers.get("content-length", "")
    return int(text[:18]) if text.isdecimal() else 0


def network_of(scope: Scope) -> str:
    """Return whose uploads are counted together: an address, or the /64 of an IPv6 address, which one person has."""
    address = (scope.get("client") or ("",))[0]
    return str(ipaddress.ip_network((address, 64), strict=False)) if ":" in address and is_ip(address) else address


def cors(origin: str) -> dict[str, str]:
    return {
        "access-control-allow-origin": origin,
        "access-control-allow-credentials": "true",
        "access-control-expose-headers": "*",
        "vary": "Origin",
    }
