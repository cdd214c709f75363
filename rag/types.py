"""The types of the read side: a question, its passages, and an answer that quotes them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ingest.chunk import Span
from ingest.embed import Vector
from ingest.normalize import Field, Terms
from ingest.store import Ranking
from ingest.types import Chunk, Hit, Passage

Script = Literal["han", "latin"]
FinishReason = Literal["stop", "length"]
"""Why a reply ended: by itself, or because it had as many tokens as it may have."""
Idf = Callable[[Sequence[str], Field], Sequence[float]]
"""The weight of each normalized term in the collection."""

MARK = re.compile(r"[\[［【]\s*(\d{1,3}(?:\s*[,，、;；]\s*\d{1,3})*)\s*[\]］】](?!\()")
"""A citation mark: `[1]`, `[1, 2]`, `【1】`; not a Markdown link. Group 1 is the numbers."""
NOT_FOUND: dict[Script, str] = {"han": "资料中没有提到。", "latin": "The passages do not say."}
"""The reply that a model should give if the passages have no answer."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    text: str


CountTokens = Callable[[Sequence[Message]], int]
"""The tokens of a prompt."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a language model samples the tokens of an answer.

    The same seed gives the same text. None means the model's default; temperature 0 always takes the
    likeliest token.
    """

    max_new_tokens: int = 512
    temperature: float | None = None
    top_p: float | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()
    """The text ends before the first of these."""
    response_format: str = ""
    """OpenAI's field of this name as JSON, for a model that is served elsewhere."""


@dataclass(frozen=True, slots=True)
class Query:
    """A stand-alone question and its analysis.

    `normalized` is its text as in the word index, `content` the terms of its content words, `keywords`
    those without particles, for texts of which there are too few to weigh them.
    `codes` are the part numbers, error codes and articles that it names.
    """

    text: str
    script: Script
    normalized: str
    content: Terms
    keywords: Terms
    codes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class AnswerSpan:
    """`text[start:end]`, and by how much its logits exceed those of "no answer"."""

    start: int
    end: int
    margin: float


@dataclass(frozen=True, slots=True)
class ReaderOutput:
    """What the reader says of one chunk.

    `offsets` are the characters of each token, `starts` and `ends` the logits (tokens,) of the first and
    the last token of an answer, less those of "no answer". `score` is how surely the chunk answers the
    question, about 0 if as likely as not.
    """

    offsets: Sequence[Span]
    starts: NDArray[np.float32]
    ends: NDArray[np.float32]
    score: float


@dataclass(frozen=True, slots=True)
class RefusalFeatures:
    """What the confidence of a question depends on.

    `excess` is the best fused score minus `ScoreNorm.level`: how much better the knowledge base matches
    this question than unrelated questions. `reading` is the reader's best score, 0 without a reader.
    """

    excess: float
    reading: float = 0.0


@dataclass(frozen=True, slots=True)
class Retrieval:
    """The passages that were retrieved for a question.

    `vector` is the question's. `ranking` has every chunk that any search found, with its fused
    score. `hits` are the best chunk of each passage, best first, and `passages` the whole passages
    in the same order. `readings` are the reader's of the first hits. `confidence` is the probability that they contain an answer; `answerable` is
    false if it is below the threshold. `sequence` is the store's change number before the search.
    Under constant writes newer passages may be among them, but none that was removed before.
    """

    query: Query
    vector: Vector
    ranking: Ranking
    hits: tuple[Hit, ...]
    passages: tuple[Passage, ...]
    readings: tuple[ReaderOutput, ...]
    features: RefusalFeatures
    confidence: float
    threshold: float
    answerable: bool
    sequence: int


@dataclass(frozen=True, slots=True)
class Source:
    """A passage for a language model, and the hit that found it."""

    passage: Passage
    hit: Hit


@dataclass(frozen=True, slots=True)
class Citation:
    """A quote and its place. Invariant: the document's text[start:end] == quote."""

    number: int
    chunk: Chunk
    start: int
    end: int
    quote: str


@dataclass(frozen=True, slots=True)
class PromptOmissions:
    """What did not fit into a language model's window."""

    turns: int = 0
    passages: int = 0
    shortened: int = 0
    """Passages of which only the retrieved chunk is left."""

    def __bool__(self) -> bool:
        return bool(self.turns or self.passages or self.shortened)


@dataclass(frozen=True, slots=True)
class Prompt:
    """The `messages` for a model; `sources[n - 1]` is the passage with the number `[n]` in them."""

    messages: tuple[Message, ...]
    sources: tuple[Source, ...]
    dropped: PromptOmissions
    tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer's text, whose marks `[1]` are the citations' numbers.

    A refusal has no citations; its `hits` are the nearest ones. `span` are the characters of the text that
    the reader takes for the answer itself. The other fields are for answers of a language model: `generator` is its name, `unsupported` are the spans of `text` that no passage
    supports, in order, `unknown` the marked numbers that no passage has, with repetitions,
    `prompt` is its input, and `finish_reason` says whether it is complete.
    """

    question: str
    text: str
    citations: tuple[Citation, ...]
    hits: tuple[Hit, ...]
    confidence: float
    refused: bool
    generator: str = ""
    span: Span | None = None
    unsupported: tuple[Span, ...] = ()
    unknown: tuple[int, ...] = ()
    dropped: PromptOmissions = PromptOmissions()
    prompt: Prompt | None = None
    finish_reason: FinishReason = "stop"
