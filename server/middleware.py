"""The door: who may come in, from which page, how often; and what every answer says to a browser."""

import logging
import re
import secrets
from collections import OrderedDict
from math import ceil
from time import monotonic
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ingest.errors import UserError
from server.auth import LOCAL, Keys, Principal
from server.clients import bodiless
from server.errors import no_base
from server.metrics import Metrics
from server.options import LOOPBACK, ServerOptions
from server.words import failure, speaker

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

    def __init__(self, status: int, code: str, en: str, zh: str, **headers: str) -> None:
        super().__init__(en, zh=zh)
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
                401, "invalid_api_key", "this needs a key: Authorization: Bearer KEY",
                "需要密钥：Authorization: Bearer KEY", www_authenticate="Bearer",
            )  # fmt: skip
        if self.rates and (wait := self.rates.take(who.id)):
            self.metrics.turned_away.labels("rate").inc()
            raise Denied(
                429, "rate_limit_exceeded",
                f"this key may make {self.options.rate} requests a minute; wait {ceil(wait)} s",
                f"该密钥每分钟最多 {self.options.rate} 次请求；请等待 {ceil(wait)} 秒",
                retry_after=str(ceil(wait)),
            )  # fmt: skip
        if scope["method"] == "POST" and (upload := UPLOAD.fullmatch(path)):
            self._check_upload(who, upload[1])
        return who

    def _check_upload(self, who: Principal, base: str) -> None:
        """Before its files are read, for they would lie on the disk by the time that a route asks."""
        if not who.may("read", base):
            unknown = no_base(base)
            raise Denied(404, "not_found", str(unknown), unknown.zh)
        if not who.may("write", base):
            raise Denied(
                403, "insufficient_scope", f"this needs a key with the scope write:{base[:80]}",
                f"需要有 write:{base[:80]} 权限的密钥",
            )  # fmt: skip

    def _check_page(self, headers: Headers, method: str, *, strict: bool) -> None:
        """No other site's page may use this server: not by a form, not by a name of its own that
        it lets point here."""
        host = headers.get("host", "")
        if strict and _hostname(host) not in (*LOOPBACK, *self.options.hosts):
            raise Denied(
                421, "unknown_host", f"this server is not {host[:100]!r}; start it with --allow-host",
                f"本服务器不是 {host[:100]!r}；请用 --allow-host 启动",
            )  # fmt: skip
        if method in SAFE:
            return
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
        if foreign or site not in ("none", "same-origin"):
            raise Denied(
                403, "foreign_page", "a page of another site may not change anything here",
                "其他网站的页面不能在此更改内容",
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
