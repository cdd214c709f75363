"""A stream of OpenAI's chunks -> the text of a reply, how it ended and what it took."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ingest.errors import UserError
from rag.endpoint.address import Address
from rag.endpoint.client import AGAIN, Failed, Unreachable, one_line, reason
from rag.endpoint.token_count import estimate, tokens
from rag.types import Message


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
