"""The `Generator` of a model that is served elsewhere."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import anyio

from ingest.errors import UserError
from rag.endpoint.address import Address, EndpointOptions, no_adapter
from rag.endpoint.client import Failed, Reply, Sleep, Took, Wire
from rag.endpoint.engines import Engine, explore, turns_of
from rag.endpoint.token_count import Count, estimate, local_count
from rag.types import Message, Sampling

KEY = "RAG_MODEL_KEY"
ASSUMED = 4096  # tokens of a window that nobody tells: Ollama's least

Note = Callable[[str, str], None]
"""Told in English and in Chinese what a person should know."""


def reach(model: str, options: EndpointOptions, *, note: Note) -> "EndpointGenerator":
    """The generator of an address; nothing is asked there yet.

    The key comes from the environment, and is sent to this address alone. `UserError` for what is no
    address, or a key that can be none.
    """
    endpoint = Endpoint(Address.parse(model), options, key=_key(), note=note)
    endpoint.warn()
    return EndpointGenerator(endpoint)


class Endpoint:
    """A model at an address. What is served there is asked once, when it is first needed, and anew
    after a failure: another engine may have been started."""

    def __init__(
        self,
        address: Address,
        options: EndpointOptions,
        *,
        key: str,
        note: Note,
        sleep: Sleep = anyio.sleep,
    ) -> None:
        self.address, self.options = address, options
        self.wire = Wire(address, options, key=key, sleep=sleep)
        self._keyed, self._note = bool(key), note
        self._engine: Engine | None = None

    def engine(self, wire: Wire) -> Engine:
        if self._engine is None:
            self._engine = engine = explore(wire)
            if not self.options.context and not engine.window:
                self._note(
                    f"{self.address.base} does not tell its model's window; {ASSUMED} tokens are "
                    "assumed; put context under [generate.endpoint] in rag.toml",
                    f"{self.address.base} 没有给出模型窗口大小，按 {ASSUMED} 个词元处理；"
                    "可在 rag.toml 的 [generate.endpoint] 中设置 context",
                )
            return engine
        return self._engine

    def forget(self) -> None:
        self._engine = None

    def window(self, wire: Wire) -> int:
        return self.options.context or self.engine(wire).window or ASSUMED

    def count(self, wire: Wire, messages: Sequence[Message]) -> int:
        if self.options.tokenizer:
            return self._local(messages)
        engine = self.engine(wire)
        if engine.counter is None:
            return estimate(messages)
        return engine.counter(wire, engine.model, turns_of(messages))

    @cached_property
    def _local(self) -> Count:
        return local_count(self.options.tokenizer)

    def warn(self) -> None:
        """Tell of a key that others may read on its way."""
        if self._keyed and not self.address.encrypted and not self.address.local:
            self._note(
                f"{KEY} goes to {self.address.base} unencrypted; use https:// where others share "
                "the network",
                f"{KEY} 将以明文发送到 {self.address.base}；网络中有他人时请改用 https://",
            )


class EndpointGenerator:
    """One conversation with an endpoint: `stop` ends its own reply, and no other's."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self._wire = endpoint, endpoint.wire.apart()
        self._reply: Reply | None = None

    @property
    def name(self) -> str:
        return self.endpoint.address.name

    @property
    def context(self) -> int:
        return self.endpoint.window(self._wire)

    @property
    def engine(self) -> Engine:
        return self.endpoint.engine(self._wire)

    @property
    def took(self) -> Took | None:
        """Of the last reply; None before the first."""
        return self._reply.took if self._reply else None

    def apart(self) -> "EndpointGenerator":
        """The same model, for one more conversation at the same time."""
        return EndpointGenerator(self.endpoint)

    def use(self, adapter: Path | None) -> tuple[str, ...]:
        if adapter:
            raise no_adapter(self.endpoint.address, str(adapter))
        return ()

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt, by the model's own tokenizer; more than those where nobody has it."""
        return self.endpoint.count(self._wire, messages)

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
        """The reply piece by piece; closing the iterator ends the request.

        `UserError` where the engine can't be reached, refuses, fails or falls silent.
        """
        address = self.endpoint.address

        def begin() -> Reply:
            self._reply = Reply(address, messages)
            return self._reply

        body = self._body(messages, sampling)
        try:
            yield from self._wire.listen(f"{address.base}/chat/completions", body, begin)
        except Failed as failed:
            self.endpoint.forget()
            if "context" not in failed.said.lower():
                raise
            raise Failed(
                f"the prompt and {sampling.max_new_tokens} tokens for the answer are too long for "
                f"{self.name} ({failed.said}); put its window as context under "
                "[generate.endpoint] in rag.toml",
                zh=f"提示连同 {sampling.max_new_tokens} 个回答词元超出了 {self.name} 的窗口"
                f"（{failed.said}）；请在 rag.toml 的 [generate.endpoint] 中把 context 设为其窗口大小",
            ) from failed

    def stop(self) -> None:
        """End the reply under way as if it were complete; the engine sees that nobody listens."""
        self._wire.cut()

    def _body(self, messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
        body = {
            "model": self.engine.model,
            "messages": turns_of(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
        }
        return {name: value for name, value in body.items() if value is not None}


def _key() -> str:
    """Read where it is sent, so that no option, trace or other process ever holds it."""
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"the variable {KEY} holds a character that no key has; set it again",
            zh=f"环境变量 {KEY} 中含有密钥不应有的字符；请重新设置",
        )
    return key
