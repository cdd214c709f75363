"""Small honest stand-ins: they do the real job on a small scale, and nothing is scripted."""

import re
from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

import numpy as np

from ingest.chunk import sentences
from ingest.embed import Vector, Vectors
from ingest.errors import Unreadable
from ingest.types import ParsedFile, ParseReport, Segment
from rag.generate import Reply
from rag.types import NOT_FOUND, Message, Sampling


class HashEmbedder:
    """Bags of hashed character bigrams: texts that share bigrams are near each other."""

    name = "hash-bigrams"
    dim = 256
    max_tokens = 120

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def count(self, text: str) -> int:
        return len(text)

    def count_many(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    def embed_query(self, text: str) -> Vector:
        return self._vector(text)

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        for text in texts:
            if len(text) > self.max_tokens:
                raise ValueError(f"a text of {len(text)} tokens; the window holds {self.max_tokens}")
        self.embedded += texts
        return np.array([self._vector(text) for text in texts], np.float32).reshape(-1, self.dim)

    def _vector(self, text: str) -> Vector:
        vector = np.full(self.dim, 1e-3, np.float32)
        for pair in pairwise(text):
            slot = blake2b("".join(pair).encode("utf-8", "surrogatepass"), digest_size=2).digest()
            vector[int.from_bytes(slot) % self.dim] += 1
        return vector / np.linalg.norm(vector)


class TextParser:
    """Reads UTF-8 files; anything else is unreadable, as with the real one."""

    def parse(self, path: Path) -> ParsedFile:
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise Unreadable(f"{path} is not text") from error
        return ParsedFile(path.stem, [Segment(text)], ParseReport("txt", "utf-8"))


class CopyingGenerator:
    """Replies with the sentence of the fenced passages that shares most with the question.

    A token is a character. `prompts` holds what it was asked, `pieces` how much of its replies was
    taken. `on_read` is for those that tell how much of a prompt they have read.
    """

    name = "copy"

    def __init__(self, context: int = 4000) -> None:
        self.context = context
        self.stopped = False
        self.adapter: Path | None = None
        self.prompts: list[tuple[Message, ...]] = []
        self.pieces = 0
        self.on_read: Callable[[float], None] = lambda share: None

    def count(self, messages: Sequence[Message]) -> int:
        return sum(len(message.text) for message in messages)

    def stop(self) -> None:
        self.stopped = True

    def use(self, adapter: Path | None) -> tuple[str, ...]:
        self.adapter = adapter
        return ()

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        self.stopped = False
        self.prompts.append(tuple(messages))
        question, text = messages[-1].text, "\n\n".join(message.text for message in messages)
        asked = set(pairwise(re.findall(r"\w", question.rpartition("\n\n")[2].partition("：")[2])))
        fenced = re.findall(r"^\[(\d+)\].*\n(`{3,})\n([\s\S]*?)\n\2$", text, re.MULTILINE)
        best, reply = 1, NOT_FOUND["han"]
        for number, _, passage in fenced:
            for start, end in sentences(passage):
                shared = len(asked & set(pairwise(re.findall(r"\w", passage[start:end]))))
                if shared > best:
                    best, reply = shared, f"{passage[start:end].strip()}[{number}]"
        for piece in reply[: sampling.max_new_tokens]:
            if self.stopped:
                return "stop"
            self.pieces += 1
            yield piece
        return "length" if len(reply) > sampling.max_new_tokens else "stop"
