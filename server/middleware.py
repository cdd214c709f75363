"""The door: who may come in, from which page, how often; and what every answer says to a browser."""

import asyncio
import logging
import re
import secrets
from collections import OrderedDict
from math import ceil
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ingest.errors import UserError
from ingest.i18n import Translatable
from server.auth import LOCAL, Keys, Principal
from server.errors import failure, no_base, speaker
from server.options import LOOPBACK, ServerOptions
from server.telemetry import Metrics

GONE: Message = {"type": "http.disconnect"}


class Dawdled(Exception):
    """A client took no more of a response."""


class Attended:
    """Runs an application as long as the client of the request is there.

    `patience` is how many seconds a client may take for one piece, in either direction.
    """

    def __init__(self, app: ASGIApp, patience: float) -> None:
        self.app, self.patience = app, patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        line = _Line(receive, send, self.patience)
        if bodiless(scope):
            line.held = await line.receive()
        work = asyncio.ensure_future(self.app(scope, line.receive, line.send))
        watch = asyncio.ensure_future(line.watch())
        try:
            await asyncio.wait([work, watch], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, watch):
                task.cancel()
            done = await asyncio.gather(work, watch, return_exceptions=True)
        problem = done[0]
        if problem is scope.get("state", {}).get("told") or isinstance(
            problem, asyncio.CancelledError | Dawdled
        ):
            return
        if isinstance(problem, BaseException):
            raise problem


class _Line:
    """What passes between one client and the application."""

    def __init__(self, receive: Receive, send: Send, patience: float) -> None:
        self._receive, self._send, self.patience = receive, send, patience
        self.held: Message | None = None  # read already, on the application's behalf
        self.complete = asyncio.Event()  # the request's body has been read
        self.gone = asyncio.Event()

    async def receive(self) -> Message:
        if self.held is not None:
            message, self.held = self.held, None
            return message
        if self.complete.is_set():
            await self.gone.wait()
            return GONE
        try:
            message = await asyncio.wait_for(self._receive(), self.patience)
        except TimeoutError:
            message = GONE
        if message["type"] == "http.disconnect":
            self.complete.set()
            self.gone.set()
        elif not message.get("more_body"):
            self.complete.set()
        return message

    async def send(self, message: Message) -> None:
        try:
            await asyncio.wait_for(self._send(message), self.patience)
        except TimeoutError as slow:
            raise Dawdled from slow

    async def watch(self) -> None:
        """Returns when the client is gone; to be left alone while the body is read."""
        await self.complete.wait()
        while not self.gone.is_set():
            if (await self._receive())["type"] == "http.disconnect":
                self.gone.set()


def bodiless(scope: Scope) -> bool:
    """Whether a request announces no body, so that the application may never read one."""
    names = {name for name, _ in scope["headers"]}
    return not names & {b"content-length", b"transfer-encoding"}


def protocol(patience: float) -> type[HttpToolsProtocol]:
    """uvicorn's, which hangs up on a client that does not complete a request's head in time."""

    class Patient(HttpToolsProtocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._head = self.loop.call_later(patience, self._hang_up)

        def on_headers_complete(self) -> None:
            self._head.cancel()
            super().on_headers_complete()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._head.cancel()
            self._head = self.loop.call_later(patience, self._hang_up)

        def connection_lost(self, exc: Exception | None) -> None:
            self._head.cancel()
            super().connection_lost(exc)

        def _hang_up(self) -> None:
            self.transport.close()

    return Patient


OPEN = ("/", "/healthz", "/readyz")
"""What needs no key: the page, which asks for one, and whether the server is alive."""
OPEN_FOLDER = "/web/"
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
BURST = 20  # requests that may come at once, however low the rate
REMEMBERED = 10_000  # keys whose rate is known

log = logging.getLogger("rag.server")


class Denied(UserError):
    """A request that is turned away at the door."""

    def __init__(self, status: int, code: str, message: Translatable, **headers: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Rates:
    """Requests of each key, as a bucket that fills at `rate` a minute."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, who: str) -> float:
        """0, or how many seconds to wait."""
        now, room = monotonic(), max(BURST, self.rate / 10)
        left, since = self._buckets.get(who, (room, now))
        left = min(room, left + (now - since) * self.rate / 60)
        wait = 0.0 if left >= 1 else (1 - left) * 60 / self.rate
        self._buckets[who] = (left if wait else left - 1), now
        self._buckets.move_to_end(who)
        while len(self._buckets) > REMEMBERED:
            self._buckets.popitem(last=False)
        return wait


class Guard:
    """The outermost part of the application. It puts who asks into `scope["state"]["who"]`."""

    def __init__(self, app: ASGIApp, options: ServerOptions, keys: Keys, metrics: Metrics) -> None:
        self.app, self.options, self.keys, self.metrics = app, options, keys, metrics
        self.rates = Rates(options.rate) if options.rate else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = monotonic(), 499  # nobody was there any more to be answered
        read = bodiless(scope)

        async def piece() -> Message:
            nonlocal read
            message = await receive()
            read = read or not message.get("more_body")
            return message

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
                if not read:  # who is answered before having said all could hold the line for ever
                    headers["connection"] = "close"
            await send(message)

        request = secrets.token_hex(8)
        scope.setdefault("state", {})["request"] = request
        who = None
        try:
            who = self._admit(scope)
            scope["state"]["who"] = who
            await self.app(scope, piece, answer)
        except Denied as denied:
            await _deny(denied, scope, answer)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, scope["method"], str(status)).inc()
            self.metrics.latency.labels(route).observe(monotonic() - begun)
            line = {
                "request": request,
                "method": scope["method"],
                "route": route,
                "status": status,
                "seconds": round(monotonic() - begun, 4),
                "key": who.id if who else None,
            }
            log.info("request", extra={"fields": line})

    def _admit(self, scope: Scope) -> Principal:
        headers, path = Headers(scope=scope), scope["path"]
        asked = self.keys.in_use
        self._check_page(headers, scope["method"], strict=not asked)
        if path in OPEN or path.startswith(OPEN_FOLDER):
            return Principal("", "", ())
        if not asked:
            return LOCAL
        kind, _, token = headers.get("authorization", "").partition(" ")
        who = self.keys.check(token.strip()) if kind.lower() == "bearer" else None
        if who is None:
            raise Denied(
                401, "invalid_api_key", Translatable("this needs a key: Authorization: Bearer KEY"), www_authenticate="Bearer",
            )  # fmt: skip
        if self.rates and (wait := self.rates.take(who.id)):
            self.metrics.turned_away.labels("rate").inc()
            raise Denied(
                429, "rate_limit_exceeded",
                Translatable("this key may make {rate} requests a minute; wait {wait} s", rate=self.options.rate, wait=ceil(wait)),
                retry_after=str(ceil(wait)),
            )  # fmt: skip
        if scope["method"] == "POST" and (upload := UPLOAD.fullmatch(path)):
            self._check_upload(who, upload[1])
        return who

    def _check_upload(self, who: Principal, base: str) -> None:
        """Before its files are read, for they would lie on the disk by the time that a route asks."""
        if not who.may("read", base):
            raise Denied(404, "not_found", no_base(base).message)
        if not who.may("write", base):
            raise Denied(
                403, "insufficient_scope", Translatable("this needs a key with the scope write:{base}", base=base[:80]),
            )  # fmt: skip

    def _check_page(self, headers: Headers, method: str, *, strict: bool) -> None:
        """No other site's page may use this server: not by a form, not by a name of its own that
        it lets point here."""
        host = headers.get("host", "")
        if strict and _hostname(host) not in (*LOOPBACK, *self.options.hosts):
            raise Denied(
                421, "unknown_host", Translatable("this server is not {host!r}; start it with --allow-host", host=host[:100]),
            )  # fmt: skip
        if method in SAFE:
            return
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
        if foreign or site not in ("none", "same-origin"):
            raise Denied(
                403, "foreign_page", Translatable("a page of another site may not change anything here"),
            )  # fmt: skip


def _hostname(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


async def _deny(denied: Denied, scope: Scope, send: Send) -> None:
    say = speaker(Headers(scope=scope))
    body = failure(denied, say, kind="access", code=denied.code).model_dump_json().encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    raw = [(k.encode(), v.encode("latin-1")) for k, v in (headers | denied.headers).items()]
    await send({"type": "http.response.start", "status": denied.status, "headers": raw})
    await send({"type": "http.response.body", "body": body if scope["method"] != "HEAD" else b""})
