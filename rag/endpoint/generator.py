"""The `Generator` of a model that is served elsewhere, asked through OpenAI's client."""

import os
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.endpoint.address import KEY, Address, EndpointOptions, no_adapter
from rag.endpoint.engines import (
    Engine,
    Failed,
    Unreachable,
    broken_off,
    explore,
    faults,
    not_openai,
    turns_of,
)  # fmt: skip
from rag.endpoint.token_count import Count, estimate, local_count, tokens
from rag.types import Message, Sampling

if TYPE_CHECKING:
    import openai

ASSUMED = 4096  # tokens of a window that nobody gives: Ollama's least
SENT = (
    "accept", "accept-encoding", "connection", "content-length", "content-type", "host", "user-agent",
)  # fmt: skip
"""Headers of a request. OpenAI's client adds what its variables (OPENAI_ORG_ID, OPENAI_CUSTOM_HEADERS …)
hold for another service, and what this machine is."""

T = TypeVar("T")
Note = Callable[[Translatable], None]
"""Takes in English and in Chinese what a person should know."""


def reach(model: str, options: EndpointOptions, *, note: Note) -> "EndpointGenerator":
    """The generator of an address; nothing is asked there yet.

    The key comes from the environment, and is sent to this address alone. Raises `UserError` if the
    address or the key is not valid.
    """
    address = Address.parse(model)
    if _key() and address.base.startswith("http:") and not address.local:
        note(
            Translatable(
                "{key} goes to {base} unencrypted; use https:// if others share the network",
                key=KEY,
                base=address.base,
            )
        )
    return EndpointGenerator(address, options, note=note)


def _key() -> str:
    """Read where it is sent, so that no option, trace or other process ever holds it."""
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            "the variable {key} holds a character that no key has; set it again", key=KEY
        )
    return key


@cache
def _certificates() -> ssl.SSLContext:
    """They take longer to read than a token to write."""
    import httpx2

    return httpx2.create_ssl_context()


class EndpointGenerator:
    """One conversation with an endpoint: `stop` ends its own requests, and no other's.

    What is served there is asked once, when it is first needed, and again after a failure: another
    engine may have been started.
    """

    def __init__(self, address: Address, options: EndpointOptions, *, note: Note) -> None:
        self.address, self.options = address, options
        self._note = note
        self._engines: list[Engine] = []  # one at most, shared with all conversations
        self._requests: set[Future[Any]] = set()
        self._reply: Reply | None = None

    def apart(self) -> "EndpointGenerator":
        """The same model, for one more conversation at the same time."""
        other = copy(self)
        other._requests, other._reply = set(), None
        return other

    @property
    def name(self) -> str:
        return self.address.name

    @property
    def engine(self) -> Engine:
        for engine in self._engines:
            return engine
        engine = explore(self.address, self._ask)
        self._engines[:] = [engine]
        if not self.options.context and not engine.window:
            self._note(
                Translatable(
                    "{base} does not give its model's window; {assumed} tokens are assumed; put context "
                    "under [generate.endpoint] in rag.toml",
                    base=self.address.base,
                    assumed=ASSUMED,
                )
            )
        return engine

    @property
    def context(self) -> int:
        return self.options.context or self.engine.window or ASSUMED

    @property
    def took(self) -> "Took | None":
        """Of the last reply; None before the first."""
        return self._reply.took if self._reply else None

    def use(self, adapter: Path | None) -> tuple[str, ...]:
        if adapter:
            raise no_adapter(self.address, str(adapter))
        return ()

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt, by the model's own tokenizer; more than those if nobody has it."""
        if self.options.tokenizer:
            return self._local_count(messages)
        engine = self.engine
        if engine.counter is None:
            return estimate(messages)
        return engine.counter(self._ask, engine.model, turns_of(messages))

    @cached_property
    def _local_count(self) -> Count:
        return local_count(self.options.tokenizer)

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
        """The reply piece by piece, none of them empty; closing the iterator ends the request.

        Raises `UserError` if the engine can't be reached, refuses, fails or falls silent.
        """
        drawing = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
        }
        body = {
            "model": self.engine.model,
            "messages": turns_of(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": sampling.max_new_tokens,
            **{name: value for name, value in drawing.items() if value is not None},
        }
        self._reply = reply = Reply(self.address, messages)
        pieces: SimpleQueue[str | None] = SimpleQueue()

        async def read() -> None:
            import openai

            kind, path = openai.AsyncStream[object], "/chat/completions"
            async with (
                self._client() as client,
                await client.post(
                    path, cast_to=object, body=body, stream=True, stream_cls=kind
                ) as events,
            ):
                content = events.response.headers.get("content-type", "?")
                if not content.startswith("text/event-stream"):
                    raise not_openai(self.address, content)
                try:
                    async for chunk in events:
                        if piece := reply.push(chunk):
                            pieces.put(piece)
                except openai.APIConnectionError:
                    if not reply.finish_reason:  # a drop behind the end is none
                        raise

        try:
            with self._running(read) as reading:
                reading.add_done_callback(lambda _: pieces.put(None))
                while (piece := pieces.get()) is not None:
                    yield piece
                if reading.cancelled():
                    return
                with faults(self.address, self.options, reply.text):
                    reading.result()
            if piece := reply.finish():
                yield piece
        except Failed:
            self._engines.clear()
            raise

    def stop(self) -> None:
        """End the reply under way as if it were complete; the engine sees that nobody listens."""
        for request in tuple(self._requests):
            request.cancel()

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """See `engines.Ask`."""
        address = self.address
        url = f"{address.root}{path}" if path.startswith("/") else f"{address.base}/{path}"

        async def request() -> object:
            async with self._client() as client:
                if body is None:
                    return await client.get(url, cast_to=object)
                return await client.post(url, cast_to=object, body=body)

        try:
            with self._running(request) as asking, faults(address, self.options):
                value = asking.result()
        except CancelledError:
            raise Unreachable("the request to {base} was stopped", base=address.base) from None
        if not isinstance(value, dict):
            raise not_openai(address, f"{url}: {value}")
        return value

    @contextmanager
    def _running(self, work: Callable[[], Awaitable[T]]) -> Iterator[Future[T]]:
        """`work` in an event loop of its own: what waits there can be left, whatever it waits for."""
        from anyio.from_thread import start_blocking_portal

        with start_blocking_portal() as portal:
            future = portal.start_task_soon(work)
            self._requests.add(future)
            try:
                yield future
            finally:
                self._requests.discard(future)
                future.cancel()

    def _client(self) -> "openai.AsyncOpenAI":
        """A client for one request, in the event loop that runs."""
        import httpx2
        import openai

        key = _key()
        authorization = {"Authorization": f"Bearer {key}"} if key else {}

        class Connection(openai.DefaultAsyncHttpxClient):
            async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
                sent = {name: request.headers[name] for name in SENT if name in request.headers}
                request.headers = httpx2.Headers(sent | authorization)
                try:
                    return await super().send(request, **options)
                except httpx2.ReadTimeout as error:  # not asked again: it may be at work
                    raise openai.APITimeoutError(request) from error

        options = self.options
        connection = Connection(
            verify=_certificates(),
            timeout=httpx2.Timeout(options.silence_seconds, connect=options.connect_seconds),
            trust_env=not self.address.local,  # a proxy does not lead back to this machine
            follow_redirects=False,  # or what is said here would be told elsewhere
        )
        return openai.AsyncOpenAI(
            base_url=self.address.base,
            api_key="-",  # the connection sends the real one, or none
            max_retries=options.tries - 1,
            http_client=connection,
        )


@dataclass(frozen=True, slots=True)
class Took:
    """Tokens of a prompt and of the reply to it, and whether that was cut at its length."""

    read: int
    written: int
    cut: bool


class Reply:
    """Chunks go in, text comes out. What a model thinks (vLLM's and llama.cpp's `reasoning_content`,
    Ollama's `reasoning`) is no part of it."""

    def __init__(self, address: Address, messages: Sequence[Message]) -> None:
        self.text, self.finish_reason = "", ""
        self._address, self._messages = address, messages
        self._usage: dict[str, Any] = {}
        self._half = ""  # of a character that UTF-16, and so JSON's \u, writes as two
        self._thought = False

    @property
    def took(self) -> Took:
        """By the engine's own account, or estimated if it gives none."""
        read, written = (self._usage.get(f"{side}_tokens") for side in ("prompt", "completion"))
        return Took(
            read or estimate(self._messages),
            written or tokens(self.text),
            self.finish_reason == "length",
        )

    def push(self, chunk: Any) -> str:
        """The text of one chunk. Raises `Failed` if it is not a chunk of an answer."""
        text = self._half
        try:
            self._usage = chunk.get("usage") or self._usage
            for choice in chunk.get("choices") or []:
                delta = choice.get("delta") or {}
                text += delta.get("content") or ""
                self._thought |= bool(delta.get("reasoning_content") or delta.get("reasoning"))
                self.finish_reason = choice.get("finish_reason") or self.finish_reason
        except (AttributeError, TypeError):
            raise not_openai(self._address, str(chunk)) from None
        self._half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        text = text.removesuffix(self._half)
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if not self.text:
            text = text.lstrip()  # ChatGLM3 and GLM-4 begin with a line end
        self.text += text
        return text

    def finish(self) -> str:
        """What is left. Raises `Failed` if the stream has no end, or all the room for an answer went
        into thinking."""
        if not self.finish_reason:
            raise broken_off(self._address, self.text, Translatable("the stream has no end"))
        if self.finish_reason == "length" and self._thought and not self.text:
            raise Failed(
                "the model at {base} thought until no room was left for its answer; raise "
                "max_new_tokens, or turn its thinking off",
                base=self._address.base,
            )
        return "\ufffd" if self._half else ""
