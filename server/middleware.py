"""Authentication, rate limits, checks of host and origin, security headers, and slow clients."""

import asyncio
import logging
import re
import secrets
from dataclasses import dataclass
from math import ceil
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ingest.i18n import Language, Translatable, Translator
from server.auth import LOCAL, Keys, Principal
from server.error_responses import error_response
from server.errors import AccessDenied, missing_scope, unknown_base
from server.options import LOOPBACK, ServerOptions
from server.schemas import KeyScope
from server.telemetry import Metrics

if TYPE_CHECKING:
    from server.state import ServerState

log = logging.getLogger("rag.server")

DISCONNECT: Message = {"type": "http.disconnect"}
BODY = {b"content-length", b"transfer-encoding"}
"""Headers that announce a body."""


class SlowClient(Exception):
    """A client did not read the response in time."""


class DisconnectMiddleware:
    """The outermost middleware. It cancels the application when the client of the request leaves.

    `patience` is how many seconds a client may take for one piece, in either direction.
    """

    def __init__(self, app: ASGIApp, patience: float) -> None:
        self.app, self.patience = app, patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        client = _Client(receive, send, self.patience)
        if not {name for name, _ in scope["headers"]} & BODY:  # the application may never receive one
            client.buffer = await client.receive()
        work = asyncio.ensure_future(self.app(scope, client.receive, client.send))
        watch = asyncio.ensure_future(client.watch())
        try:
            await asyncio.wait([work, watch], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, watch):
                task.cancel()
            problem, _ = await asyncio.gather(work, watch, return_exceptions=True)
        if problem is scope.get("state", {}).get("logged"):
            return
        if isinstance(problem, BaseException) and not isinstance(
            problem, asyncio.CancelledError | SlowClient
        ):
            raise problem


class _Client:
    """The messages between one client and the application."""

    def __init__(self, receive: Receive, send: Send, patience: float) -> None:
        self._receive, self._send, self.patience = receive, send, patience
        self.buffer: Message | None = None  # received, but not yet passed to the application
        self.complete = asyncio.Event()  # the request's body has been received
        self.disconnected = asyncio.Event()

    async def receive(self) -> Message:
        if self.buffer is not None:
            message, self.buffer = self.buffer, None
            return message
        if self.complete.is_set():
            await self.disconnected.wait()
            return DISCONNECT
        try:
            message = await asyncio.wait_for(self._receive(), self.patience)
        except TimeoutError:
            reason = Translatable(
                "the request stopped for {seconds:g} s; send it again", seconds=self.patience
            )
            raise HTTPException(408, reason) from None
        if message["type"] == "http.disconnect":
            self.complete.set()
            self.disconnected.set()
        elif not message.get("more_body"):
            self.complete.set()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and not self.complete.is_set():
            # A client that still sends its body could hold the connection.
            MutableHeaders(scope=message)["connection"] = "close"
        try:
            await asyncio.wait_for(self._send(message), self.patience)
        except TimeoutError as slow:
            raise SlowClient from slow

    async def watch(self) -> None:
        """Return when the client has left. It receives nothing before the body is complete."""
        await self.complete.wait()
        while not self.disconnected.is_set():
            if (await self._receive())["type"] == "http.disconnect":
                self.disconnected.set()


def protocol(patience: float) -> type[HttpToolsProtocol]:
    """uvicorn's protocol, which also closes a connection whose request head is late."""

    class TimeoutProtocol(HttpToolsProtocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._timer = self.loop.call_later(patience, self.transport.close)

        def on_headers_complete(self) -> None:
            self._timer.cancel()
            super().on_headers_complete()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._timer.cancel()
            self._timer = self.loop.call_later(patience, self.transport.close)

        def connection_lost(self, exc: Exception | None) -> None:
            self._timer.cancel()
            super().connection_lost(exc)

    return TimeoutProtocol


PUBLIC_PATHS = ("/", "/docs", "/healthz", "/readyz")
"""These need no key: the pages, which ask for one, and the health checks."""
PUBLIC_PREFIX = "/web/"
UPLOAD = re.compile(r"/knowledge-bases/([^/]+)/documents/?")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
SAFE = ("GET", "HEAD")
TRANSLATORS: dict[Language, Translator] = {"en": Translator("en"), "zh": Translator("zh")}
BURST = 20  # requests that may arrive at once, however low the rate is


class RateLimiter:
    """A token bucket for each key, which refills at `rate` requests a minute."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait(self, key: str) -> float:
        """Count a request; returns 0, or in how many seconds the key may make it."""
        now, capacity = monotonic(), max(BURST, self.rate / 10)
        left, since = self._buckets.get(key, (capacity, now))
        left = min(capacity, left + (now - since) * self.rate / 60)
        wait = 0.0 if left >= 1 else (1 - left) * 60 / self.rate
        self._buckets[key] = (left if wait else left - 1), now
        return wait


class AccessMiddleware:
    """Authentication and security headers. It stores the caller in `scope["state"]["who"]`, and what
    writes messages in the caller's language in `scope["state"]["say"]`."""

    def __init__(self, app: ASGIApp, options: ServerOptions, keys: Keys, metrics: Metrics) -> None:
        self.app, self.options, self.keys, self.metrics = app, options, keys, metrics
        self.limiter = RateLimiter(options.rate) if options.rate else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = monotonic(), 499  # if the client leaves before it is answered

        async def respond(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        request, who = secrets.token_hex(8), None
        language = preferred_language(Headers(scope=scope).get("accept-language", ""))
        scope.setdefault("state", {}).update(request=request, say=TRANSLATORS[language])
        try:
            who = scope["state"]["who"] = self._authenticate(scope)
            await self.app(scope, receive, respond)
        except AccessDenied as problem:
            response = error_response(
                TRANSLATORS[language], problem.status, problem, problem.code, "access",
                headers=problem.headers,
            )  # fmt: skip
            await response(scope, receive, respond)
        finally:
            route, seconds = getattr(scope.get("route"), "path", "other"), monotonic() - start
            self.metrics.requests.labels(route, scope["method"], str(status)).inc()
            self.metrics.latency.labels(route).observe(seconds)
            fields = {
                "request": request, "method": scope["method"], "route": route, "status": status,
                "seconds": round(seconds, 4), "key": who.id if who else None,
            }  # fmt: skip
            log.info("request", extra={"fields": fields})

    def _authenticate(self, scope: Scope) -> Principal:
        headers, path, keys_in_use = Headers(scope=scope), scope["path"], self.keys.in_use
        self._check_origin(headers, scope["method"], check_host=not keys_in_use)
        if path in PUBLIC_PATHS or path.startswith(PUBLIC_PREFIX):
            return Principal("", "", ())
        if not keys_in_use:
            return LOCAL
        kind, _, token = headers.get("authorization", "").partition(" ")
        who = self.keys.authenticate(token.strip()) if kind.lower() == "bearer" else None
        if who is None:
            message = Translatable("this needs a key: Authorization: Bearer KEY")
            raise AccessDenied(401, "invalid_api_key", message, www_authenticate="Bearer")
        if self.limiter and (wait := ceil(self.limiter.wait(who.id))):
            self.metrics.rejections.labels("rate").inc()
            message = Translatable(
                "this key may make {rate} requests a minute; wait {wait} s",
                rate=self.options.rate, wait=wait,
            )  # fmt: skip
            raise AccessDenied(429, "rate_limit_exceeded", message, retry_after=str(wait))
        if scope["method"] == "POST" and (upload := UPLOAD.fullmatch(path)):
            # Checked here, because the files would be on the disk when the route runs.
            if not who.may("read", upload[1]):
                raise AccessDenied(404, "not_found", unknown_base(upload[1]).message)
            if not who.may("write", upload[1]):
                raise missing_scope(f"write:{upload[1][:80]}")
        return who

    def _check_origin(self, headers: Headers, method: str, *, check_host: bool) -> None:
        """Reject pages of other sites, whether they send a form or point their own host name at
        this server (DNS rebinding)."""
        host = headers.get("host", "")
        if check_host and _host_name(host) not in (*LOOPBACK, *self.options.hosts):
            message = Translatable("this server is not {host!r}; start it with --allow-host", host=host[:100])
            raise AccessDenied(421, "unknown_host", message)
        if method in SAFE:
            return
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if origin in self.options.origins:
            return
        foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
        if foreign or site not in ("none", "same-origin"):
            message = Translatable("a page of another site may not change anything here")
            raise AccessDenied(403, "foreign_page", message)


def preferred_language(accepted: str) -> Language:
    """The language that `Accept-Language` prefers: Chinese if it ranks above English."""
    weights: dict[str, float] = {}
    for part in accepted.split(",")[:20]:
        tag, _, weight = part.strip().partition(";q=")
        language = tag.partition("-")[0].lower()
        try:
            weights.setdefault(language, float(weight or 1))
        except ValueError:
            continue
    return "zh" if weights.get("zh", 0) > weights.get("en", 0) else "en"


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


@dataclass(frozen=True)
class RequestContext:
    """The server, the caller, and the caller's language."""

    state: "ServerState"
    who: Principal
    say: Translator

    def require(self, scope: KeyScope, base: str | None = None) -> None:
        """Raises `AccessDenied` unless the key has `scope`, and `NotFound` if the key may not even
        read `base`, so that it can't learn of it."""
        if base is not None and not self.who.may("read", base):
            raise unknown_base(base)
        if not self.who.may(scope, base):
            raise missing_scope(f"{scope}:{base}" if base else scope)


def context_of(request: Request) -> RequestContext:
    return RequestContext(request.app.state.server, request.state.who, request.state.say)


Context = Annotated[RequestContext, Depends(context_of)]
