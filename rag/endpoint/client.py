"""Requests to an engine: tried again where that may help, and cut off from any thread."""

import json
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import asynccontextmanager, contextmanager
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

import anyio
import httpx2
from anyio.from_thread import start_blocking_portal

from ingest.errors import UserError
from rag.endpoint.address import Address, EndpointOptions
from rag.endpoint.token_count import estimate, tokens
from rag.types import Message

AGAIN = frozenset({408, 409, 429, *range(500, 600)} - {501})  # the same request may succeed later
LONGEST_WAIT = 60  # seconds that an engine may ask to wait
LARGEST = 4_000_000  # bytes of an answer that is no stream
SHOWN = 300  # characters of what an engine says of an error
DONE = "[DONE]"

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]


class Unreachable(UserError):
    """The engine is not there, is busy, or failed. `after`: the seconds that it asks to wait; `why` in
    English and Chinese, without the way out."""

    def __init__(
        self, message: str, *, zh: str, after: float = 0, why: tuple[str, str] | None = None
    ) -> None:
        super().__init__(message, zh=zh)
        self.why = why or (str(self), self.zh)
        self.after = after


class Failed(UserError):
    """The engine refuses, breaks off, falls silent or makes no sense. `status` is that of a refusal
    and `said` its reason."""

    def __init__(self, message: str, *, zh: str, status: int = 0, said: str = "") -> None:
        super().__init__(message, zh=zh)
        self.status, self.said = status, said


class Reader(Protocol):
    """Makes text of a stream's events. `ended`: the engine has said that it is complete."""

    ended: bool

    def push(self, data: str) -> str: ...

    def finish(self) -> str: ...


class Wire:
    """Requests to one address, each with a connection of its own."""

    def __init__(
        self,
        address: Address,
        options: EndpointOptions,
        *,
        key: str = "",
        sleep: Sleep = anyio.sleep,
    ) -> None:
        self.address, self.options = address, options
        self._key, self._sleep = key, sleep
        self._under_way: set[Future[Any]] = set()
        # Certificates take longer to read than a token to write: once, and only where asked for.
        encrypted = address.encrypted
        self._tls = (
            httpx2.create_ssl_context() if encrypted else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        )

    def ask(self, method: str, url: str, body: Any = None) -> Any:
        """The JSON value that the engine answers with.

        Raises `Unreachable`, or `Failed` where there is none.
        """

        async def once() -> Any:
            async with self._response(method, url, body) as response:
                return _json(response, await _content(response), self.address)

        with self._running(self._persist, once) as asking:
            try:
                return asking.result()
            except CancelledError:
                raise Unreachable(
                    f"the request to {self.address.base} was stopped",
                    zh=f"对 {self.address.base} 的请求已中止",
                ) from None

    def listen(self, url: str, body: Any, begin: Callable[[], Reader]) -> Iterator[str]:
        """The text that a reader makes of a stream of events, piece by piece, none of them empty.

        Each try has a reader of its own; there is none after the first piece, so no text comes
        twice. Closing the iterator, or `cut`, ends the request at once.
        """
        pieces: SimpleQueue[str | None] = SimpleQueue()

        async def once() -> None:
            await self._read(url, body, begin(), pieces)

        with self._running(self._persist, once) as reading:
            reading.add_done_callback(lambda _: pieces.put(None))
            while (piece := pieces.get()) is not None:
                yield piece
            if not reading.cancelled():
                reading.result()

    def cut(self) -> None:
        """End the requests under way: a stream as if it were complete."""
        for work in tuple(self._under_way):
            work.cancel()

    def apart(self) -> "Wire":
        """One to the same address whose requests are cut off apart from this one's."""
        twin = copy(self)
        twin._under_way = set()
        return twin

    @contextmanager
    def _running(self, work: Callable[..., Awaitable[T]], *given: Any) -> Iterator[Future[T]]:
        """`work` in an event loop of its own: what waits there can be left, whatever it waits for."""
        with start_blocking_portal() as portal:
            future = portal.start_task_soon(work, *given)
            self._under_way.add(future)
            try:
                yield future
            finally:
                self._under_way.discard(future)
                future.cancel()

    async def _persist(self, once: Callable[[], Awaitable[T]]) -> T:
        """What `once` comes to, tried again with growing pauses while it is `Unreachable`."""
        tried = 0
        while True:
            try:
                return await once()
            except Unreachable as problem:
                tried += 1
                if tried == self.options.tries or problem.after > LONGEST_WAIT:
                    raise
                # Spread, so that many who were turned away do not all come back at once.
                pause = random.uniform(0.5, 1) * min(8, 0.5 * 2 ** (tried - 1))
                await self._sleep(max(problem.after, pause))

    async def _read(
        self, url: str, body: Any, reader: Reader, pieces: SimpleQueue[str | None]
    ) -> None:
        given = 0
        try:
            async with self._response("POST", url, body) as response:
                response.encoding = "utf-8"  # as the standard says of events, whatever is declared
                async for event in httpx2.EventSource(response):
                    if event.data == DONE:
                        reader.ended = True
                        break
                    if piece := reader.push(event.data):
                        given += len(piece)
                        pieces.put(piece)
            if not reader.ended:
                raise _broken(self.address, "the stream has no end", "数据流不完整")
        except Unreachable as problem:
            if given and not reader.ended:
                raise Failed(
                    f"{self.address.base} broke off after {given} characters of its answer "
                    f"({problem.why[0]}); ask again",
                    zh=f"{self.address.base} 在输出 {given} 个字符后中断（{problem.why[1]}）；请重新提问",
                ) from problem
            if not reader.ended:
                raise
        if piece := reader.finish():
            pieces.put(piece)

    @asynccontextmanager
    async def _response(self, method: str, url: str, body: Any) -> AsyncIterator[httpx2.Response]:
        """A response with a status of 200 to 299, its body unread."""
        options = self.options
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        with _told(self.address, options):
            async with (
                httpx2.AsyncClient(
                    verify=self._tls,
                    headers=headers,
                    timeout=httpx2.Timeout(
                        options.silence_seconds, connect=options.connect_seconds
                    ),
                    trust_env=not self.address.local,  # a proxy does not lead back to this machine
                    follow_redirects=False,  # else what is said here would be told elsewhere
                ) as client,
                client.stream(method, url, json=body) as response,
            ):
                await _check(response, self.address)
                yield response


async def _content(response: httpx2.Response) -> bytes:
    """The body, or as much of it as is taken."""
    content = b""
    async for part in response.aiter_bytes():
        content += part
        if len(content) > LARGEST:
            break
    return content[:LARGEST]


async def _check(response: httpx2.Response, address: Address) -> None:
    """Raises `Unreachable` or `Failed` for a response that is no success."""
    status = response.status_code
    if response.is_success:
        return
    if response.is_redirect:
        where = response.headers.get("location", "?")[:SHOWN]
        raise Failed(
            f"{address.base} sends on to {one_line(where)}; if that is right, name it as the address",
            zh=f"{address.base} 重定向到 {one_line(where)}；如无误，请直接使用该地址",
            status=status,
        )
    said = _reason(await _content(response)) or response.reason_phrase
    if status in AGAIN:
        raise Unreachable(
            f"{address.base} can't answer now ({status}: {said}); try again later",
            zh=f"{address.base} 暂时无法应答（{status}：{said}）；请稍后再试",
            after=_after(response.headers.get("retry-after", "")),
        )
    if status in (401, 403):
        raise Failed(
            f"{address.base} wants another key ({status}: {said}); put it into the variable "
            "RAG_MODEL_KEY",
            zh=f"{address.base} 拒绝了密钥（{status}：{said}）；请设置环境变量 RAG_MODEL_KEY",
            status=status,
        )
    raise Failed(
        f"{response.request.url} refused the request ({status}: {said})",
        zh=f"{response.request.url} 拒绝了请求（{status}：{said}）",
        status=status,
        said=said,
    )


@contextmanager
def _told(address: Address, options: EndpointOptions) -> Iterator[None]:
    """What goes wrong on the way, in words."""
    try:
        yield
    except httpx2.ReadTimeout:
        seconds = f"{options.silence_seconds:g}"
        raise Failed(
            f"{address.base} has been silent for {seconds} s; if its model is that slow, raise "
            "silence_seconds under [generate.endpoint] in rag.toml",
            zh=f"{address.base} 已 {seconds} 秒没有输出；如模型确实很慢，请在 rag.toml 的 "
            "[generate.endpoint] 中调大 silence_seconds",
        ) from None
    except (httpx2.SSEError, httpx2.DecodingError, httpx2.InvalidURL) as error:
        raise _not_openai(address, one_line(str(error))) from None
    except httpx2.TransportError as error:
        why = one_line(f"{type(error).__name__}: {error}".removesuffix(": "))
        raise _broken(address, why, why) from error


def _broken(address: Address, why: str, why_zh: str) -> Unreachable:
    return Unreachable(
        f"{address.base} can't be reached ({why}); start the engine there, or check the address",
        zh=f"无法访问 {address.base}（{why_zh}）；请启动该服务或检查地址",
        why=(why, why_zh),
    )


def _not_openai(address: Address, why: str) -> Failed:
    return Failed(
        f"{address.base} does not speak as OpenAI's API ({why}); check the address, and its /v1",
        zh=f"{address.base} 不是 OpenAI 兼容接口（{why}）；请检查地址及其中的 /v1",
    )


def _json(response: httpx2.Response, content: bytes, address: Address) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        kind = response.headers.get("content-type", "?")
        raise _not_openai(address, f"{response.request.url}: {one_line(kind)}") from None


def _reason(content: bytes) -> str:
    """What an engine says of an error, on one line: `error.message`, as OpenAI, or its like."""
    try:
        value = json.loads(content)
    except ValueError:
        return ""
    return reason(value)


def reason(value: Any) -> str:
    """The message within an error's JSON value."""
    for name in ("error", "message", "detail"):
        if isinstance(value, dict) and value.get(name):
            value = value[name]
    return one_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def one_line(text: str) -> str:
    """One line of what a stranger says."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def _after(header: str) -> float:
    """Seconds that a `Retry-After` asks for: a number, or a date."""
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


@dataclass(frozen=True, slots=True)
class Took:
    """Tokens of a prompt and of the reply to it, and whether that was cut at its length."""

    read: int
    written: int
    cut: bool


class Reply:
    """Events go in, text comes out. What a model thinks (vLLM's and llama.cpp's `reasoning_content`,
    Ollama's `reasoning`) is no part of it."""

    def __init__(self, address: Address, messages: Sequence[Message]) -> None:
        self.ended = False
        self._address, self._messages = address, messages
        self._usage: dict[str, Any] = {}
        self._finish = ""
        self._half = ""  # of a character that UTF-16, and so JSON's \u, writes as two
        self._said, self._thought = "", False

    @property
    def took(self) -> Took:
        """By the engine's own account, or estimated where it gives none."""
        read, written = (self._usage.get(f"{side}_tokens") for side in ("prompt", "completion"))
        return Took(
            read or estimate(self._messages),
            written or tokens(self._said),
            self._finish == "length",
        )

    def push(self, data: str) -> str:
        """The text of one event; `UserError` where it tells of an error, or is no chunk."""
        try:
            chunk = json.loads(data)
            if error := chunk.get("error"):
                raise self._failed(error)
            text = self._text(chunk)
        except (ValueError, RecursionError, AttributeError, TypeError):
            said = one_line(data)
            raise Failed(
                f"{self._address.base} sent what is no chunk of an answer: {said}",
                zh=f"{self._address.base} 发来的不是回答的数据块：{said}",
            ) from None
        return self._whole(text)

    def finish(self) -> str:
        """What is left; `UserError` where all the room for an answer went into thinking."""
        if self._finish == "length" and self._thought and not self._said:
            raise Failed(
                f"the model at {self._address.base} thought until no room was left for its answer; "
                "raise max_new_tokens, or turn its thinking off",
                zh=f"{self._address.base} 的模型一直在思考，没有为回答留下空间；"
                "请调大 max_new_tokens，或关闭其思考",
            )
        return "\ufffd" if self._half else ""

    def _text(self, chunk: dict[str, Any]) -> str:
        self._usage = chunk.get("usage") or self._usage
        text = ""
        for choice in chunk.get("choices") or []:
            delta = choice.get("delta") or {}
            text += delta.get("content") or ""
            self._thought |= bool(delta.get("reasoning_content") or delta.get("reasoning"))
            self._finish = choice.get("finish_reason") or self._finish
        self.ended |= bool(self._finish)
        return text

    def _whole(self, text: str) -> str:
        """The text without half a character at its end, which waits for its other half."""
        text = self._half + text
        self._half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        text = text.removesuffix(self._half)
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if not self._said:
            text = text.lstrip()  # ChatGLM3 and GLM-4 begin with a line end
        self._said += text
        return text

    def _failed(self, error: Any) -> UserError:
        """That the engine failed meanwhile, as vLLM and SGLang tell it within the stream."""
        said, code = reason(error), error.get("code") if isinstance(error, dict) else None
        en = f"{self._address.base} failed while it answered: {said}"
        zh = f"{self._address.base} 在回答时出错：{said}"
        if isinstance(code, int) and code in AGAIN:
            return Unreachable(en, zh=zh)
        return Failed(en, zh=zh)
