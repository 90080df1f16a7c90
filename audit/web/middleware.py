"""Plain ASGI layers around the application: who may ask at all, how much they may send, and what every answer carries.

From the outside in: the log and the metrics see every request; headers go on every response; then foreign hosts, posts
from foreign origins and bodies over the limit are turned away before any other code sees them.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from audit.web.settings import WebSettings, is_loopback

API = "/api/"
LOG = logging.getLogger("rlaif.audit.requests")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not no-referrer: with it browsers send "Origin: null" on a form's post, and the check of origins needs the origin.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_SAFE = ("GET", "HEAD", "OPTIONS")


class SecurityHeaders:
    """The headers of every response; what is no static file is kept out of every cache."""

    def __init__(self, app: ASGIApp, secure: bool) -> None:
        self.app = app
        headers = _HEADERS | ({"strict-transport-security": "max-age=31536000"} if secure else {})
        self.headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = list(message.get("headers", []))
                if not any(name == b"cache-control" for name, _ in given):
                    given.append((b"cache-control", b"no-store"))
                message["headers"] = given + self.headers
            await send(message)

        await self.app(scope, receive, with_headers)


class OwnHost:
    """Refuses requests that name another host (400): a name that was rebound to this address gets nothing."""

    def __init__(self, app: ASGIApp, settings: WebSettings) -> None:
        self.app = app
        self.public = urlsplit(settings.public_url).netloc.lower() if settings.public_url else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/healthz" and not self._own(header(scope, b"host")):
            response = PlainTextResponse("This server is not known under that name.\n", status_code=400)
            await response(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _own(self, host: str | None) -> bool:
        if host is None:
            return False
        if self.public is not None:
            return host.lower() == self.public
        return is_loopback(urlsplit(f"//{host}").hostname or "") if _well_formed(host) else False


class OwnOrigin:
    """Refuses writes of pages (403) whose Origin is missing or another one. Programs with a token are not browsers:
    the API takes no cookie, so a foreign page has nothing to ride on there."""

    def __init__(self, app: ASGIApp, settings: WebSettings) -> None:
        self.app = app
        self.public = settings.public_url.rstrip("/").lower() if settings.public_url else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in _SAFE and not scope["path"].startswith(API):
            own = self.public or f"{scope['scheme']}://{header(scope, b'host')}".lower()
            if (header(scope, b"origin") or "").lower() != own:
                text = "This form was not sent from a page of this server, so it was not accepted.\n"
                await PlainTextResponse(text, status_code=403)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class BodyLimit:
    """Refuses larger bodies with 413, by their announced length or while they stream in."""

    def __init__(self, app: ASGIApp, limit_of: Callable[[str], int]) -> None:
        self.app = app
        self.limit_of = limit_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self.limit_of(scope["path"])
        text = f"The request is larger than {limit:,} bytes: send less at once."
        announced = header(scope, b"content-length") or ""
        if announced.isdigit() and int(announced) > limit:
            response: Response = PlainTextResponse(text + "\n", status_code=413)
            if scope["path"].startswith(API):
                response = JSONResponse({"status": 413, "code": "too_large", "detail": text}, status_code=413)
            await response(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise HTTPException(413, text)
            return message

        await self.app(scope, counted, send)


class RequestLog:
    """One JSON line a request: route, status, time, person. Never a query, a body, a header or a token."""

    def __init__(self, app: ASGIApp, observe: Callable[[str, str, int, float], None]) -> None:
        self.app = app
        self.observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, sent = time.perf_counter(), 500, 0
        request_id = secrets.token_hex(6)
        scope.setdefault("state", {})["request_id"] = request_id

        async def watched(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            seconds = time.perf_counter() - began
            # The route's template, not the path: ids and whatever else a caller puts into an address stay out.
            route = _route(scope)
            self.observe(scope["method"], route, status, seconds)
            line = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "request": request_id,
                "method": scope["method"],
                "route": route,
                "status": status,
                "ms": round(1000 * seconds, 1),
                "bytes": sent,
                "user": scope["state"].get("user_id"),
                "client": (scope.get("client") or ("",))[0],
            }
            LOG.info(json.dumps(line))


def header(scope: Scope, name: bytes) -> str | None:
    """The header's value; None where it is missing or sent more than once, which is never honest for these."""
    values = [value for key, value in scope["headers"] if key == name]
    return values[0].decode("latin-1") if len(values) == 1 else None


def _well_formed(host: str) -> bool:
    return not set(host) & set("/\\@?# ")


def _route(scope: Scope) -> str:
    if scope["path"].startswith("/static/"):
        return "/static"
    return getattr(scope.get("route"), "path", "unmatched")
