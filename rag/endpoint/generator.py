"""The `Generator` of a model on a server, with OpenAI's client."""

import copy
import json
import os
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from collections.abc import Generator as Steps
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.endpoint import KEY, Address, EndpointOptions, engines, no_adapter
from rag.types import FinishReason, Message, Sampling

if TYPE_CHECKING:
    import openai

DEFAULT_WINDOW = 4096  # tokens: Ollama's smallest
HEADERS = (
    "accept", "accept-encoding", "connection", "content-length", "content-type", "host", "user-agent",
)  # fmt: skip
"""Those that are sent. OpenAI's client would add others about this machine, and from variables that are
meant for another service (OPENAI_ORG_ID, OPENAI_CUSTOM_HEADERS …)."""

T = TypeVar("T")
Note = Callable[[Translatable], None]  # shows a message to the user


def reach(model: str, options: EndpointOptions, *, note: Note) -> "EndpointGenerator":
    """The generator of an address; no request is sent yet. The key comes from the environment and is
    only sent to this address. Raises `UserError` if the address or the key is not valid."""
    address = Address.parse(model)
    if _key() and address.base.startswith("http:") and not address.local:
        note(
            Translatable(
                "{key} is sent to {base} unencrypted; use https:// if others share the network",
                key=KEY, base=address.base,
            )
        )  # fmt: skip
    return EndpointGenerator(address, options, note=note)


def _key() -> str:
    """The key, read only where it is sent, so that no option, trace or other process holds it."""
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError("the variable {key} holds a character that keys can't have; set it again", key=KEY)
    return key


@cache
def _certificates() -> ssl.SSLContext:
    """Cached, since reading them takes longer than generating a token."""
    import httpx2

    return httpx2.create_ssl_context()


class EndpointGenerator:
    """One conversation with an endpoint: `stop` only ends its own requests. The engine is explored when
    it is first needed, and again after a failure, since another engine may have been started."""

    def __init__(self, address: Address, options: EndpointOptions, *, note: Note) -> None:
        self.address, self.options, self.name = address, options, address.name
        self._note = note
        self._engines: list[engines.Engine] = []  # one at most, shared with all conversations
        self._requests: set[Future[Any]] = set()
        self._reply: ReplyStream | None = None

    def copy(self) -> "EndpointGenerator":
        """A generator of the same model for a concurrent conversation."""
        other = copy.copy(self)
        other._requests, other._reply = set(), None
        return other

    @property
    def engine(self) -> engines.Engine:
        for engine in self._engines:
            return engine
        engine = engines.explore(self.address, self._ask)
        self._engines[:] = [engine]
        if not self.options.context and not engine.window:
            message = Translatable(
                "{base} does not report its model's window; {tokens} tokens are assumed; set context "
                "under [generate.endpoint] in rag.toml",
                base=self.address.base,
                tokens=DEFAULT_WINDOW,
            )
            self._note(message)
        return engine

    @property
    def context(self) -> int:
        return self.options.context or self.engine.window or DEFAULT_WINDOW

    @property
    def usage(self) -> "TokenUsage | None":
        """Of the last reply; None before the first."""
        return self._reply.usage if self._reply else None

    def use(self, adapter: Path | None) -> tuple[str, ...]:
        if adapter:
            raise no_adapter(self.address, str(adapter))
        return ()

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt, by the model's own tokenizer, or at least as many if that is unknown."""
        if self.options.tokenizer:
            return self._local_count(messages)
        engine, counted = self.engine, None
        if engine.counts:
            counted = engines.count(engine.kind, self._ask, engine.model, engines.to_openai(messages))
        return counted or engines.estimate(messages)

    @cached_property
    def _local_count(self) -> engines.CountTokens:
        return engines.local_count(self.options.tokenizer)

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Steps[str, None, FinishReason]:
        """The reply piece by piece, none of them empty; closing the generator ends the request. Raises
        `UserError` if the engine can't be reached, refuses, fails or times out."""
        body = {
            "model": self.engine.model, "messages": engines.to_openai(messages), "stream": True,
            "stream_options": {"include_usage": True}, "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed,
            "response_format": json.loads(sampling.response_format or "null"),
        }  # fmt: skip
        body = {name: value for name, value in body.items() if value is not None}
        self._reply = reply = ReplyStream(self.address, messages)
        pieces: SimpleQueue[str | None] = SimpleQueue()

        async def read() -> None:
            import openai

            kind, path = openai.AsyncStream[object], "/chat/completions"
            options: Any = {"cast_to": object, "stream": True, "stream_cls": kind}
            async with self._client() as client, await client.post(path, body=body, **options) as events:
                content = events.response.headers.get("content-type", "?")
                if not content.startswith("text/event-stream"):
                    raise engines.not_openai(self.address, content)
                try:
                    async for chunk in events:
                        if piece := reply.push(chunk):
                            pieces.put(piece)
                except openai.APIConnectionError:
                    if not reply.finish_reason:  # after the end it does not matter
                        raise

        try:
            with self._running(read) as reading:
                reading.add_done_callback(lambda _: pieces.put(None))
                while (piece := pieces.get()) is not None:
                    yield piece
                if reading.cancelled():
                    return "stop"
                with engines.faults(self.address, self.options, reply.text):
                    reading.result()
            reply.check_end()
            return "length" if reply.finish_reason == "length" else "stop"
        except engines.EngineFailure:
            self._engines.clear()
            raise

    def stop(self) -> None:
        """End the current reply as if it were complete; the engine sees a closed connection."""
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
            with self._running(request) as future, engines.faults(address, self.options):
                value = future.result()
        except CancelledError:
            raise engines.Unreachable("the request to {base} was stopped", base=address.base) from None
        if not isinstance(value, dict):
            raise engines.not_openai(address, f"{url}: {value}")
        return value

    @contextmanager
    def _running(self, work: Callable[[], Awaitable[T]]) -> Iterator[Future[T]]:
        """Run `work` in a separate event loop, so that it can be cancelled at any time."""
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
        """A client for one request, in the current event loop."""
        import httpx2
        import openai

        key = _key()
        authorization = {"Authorization": f"Bearer {key}"} if key else {}

        class Connection(openai.DefaultAsyncHttpxClient):
            async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
                headers = {name: request.headers[name] for name in HEADERS if name in request.headers}
                request.headers = httpx2.Headers(headers | authorization)
                try:
                    return await super().send(request, **options)
                except httpx2.ReadTimeout as error:  # no retry: the engine may still be working
                    raise openai.APITimeoutError(request) from error

        options = self.options
        connection = Connection(
            verify=_certificates(),
            timeout=httpx2.Timeout(options.silence_seconds, connect=options.connect_seconds),
            trust_env=not self.address.local,  # a proxy can't reach this machine
            follow_redirects=False,  # the prompt must not be sent elsewhere
        )
        return openai.AsyncOpenAI(
            base_url=self.address.base,
            api_key="-",  # the connection sends the real one, or none
            max_retries=options.tries - 1,
            http_client=connection,
        )


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens of a prompt and of the reply."""

    read: int
    written: int


class ReplyStream:
    """The text of a stream of chunks, without the model's thoughts (vLLM's and llama.cpp's
    `reasoning_content`, Ollama's `reasoning`)."""

    def __init__(self, address: Address, messages: Sequence[Message]) -> None:
        self.text, self.finish_reason = "", ""
        self._address, self._messages = address, messages
        self._usage: dict[str, Any] = {}
        self._thought = False

    @property
    def usage(self) -> TokenUsage:
        """As the engine reports it, or else an estimate."""
        read, written = (self._usage.get(f"{side}_tokens") for side in ("prompt", "completion"))
        return TokenUsage(read or engines.estimate(self._messages), written or engines.tokens(self.text))

    def push(self, chunk: Any) -> str:
        """The text of one chunk. Raises `EngineFailure` if it is not a chunk of an answer."""
        text = ""
        try:
            self._usage = chunk.get("usage") or self._usage
            for choice in chunk.get("choices") or []:
                delta = choice.get("delta") or {}
                text += delta.get("content") or ""
                self._thought |= bool(delta.get("reasoning_content") or delta.get("reasoning"))
                self.finish_reason = choice.get("finish_reason") or self.finish_reason
        except (AttributeError, TypeError):
            raise engines.not_openai(self._address, str(chunk)) from None
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if not self.text:
            text = text.lstrip()  # ChatGLM3 and GLM-4 begin with a line end
        self.text += text
        return text

    def check_end(self) -> None:
        """Raises `EngineFailure` if the stream has no end, or if the model's thoughts took all the tokens
        of the answer."""
        if not self.finish_reason:
            raise engines.broken_off(self._address, self.text, Translatable("the stream has no end"))
        if self.finish_reason == "length" and self._thought and not self.text:
            raise engines.EngineFailure(
                "the thoughts of the model at {base} took all the tokens of its answer; raise "
                "max_new_tokens, or turn thinking off",
                base=self._address.base,
            )
