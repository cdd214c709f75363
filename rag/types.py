"""The nouns of the read side: a question, its passages, and an answer that quotes them."""

from dataclasses import dataclass
from typing import Literal

from ingest.chunk import Span
from ingest.embed import Vector
from ingest.errors import UserError
from ingest.normalize import Terms
from ingest.store import Ranking
from ingest.types import Chunk, Hit, Passage

Script = Literal["han", "latin"]
AnswerType = Literal["date", "number", "person", "place", "title", "reason"]


@dataclass(frozen=True, slots=True)
class Message:
    """What one side of a conversation said."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a language model picks the words of an answer.

    The same seed gives the same text. What is None is the model's own default; temperature 0
    always takes the likeliest token.
    """

    max_new_tokens: int = 512
    temperature: float | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(
                "max_new_tokens is {max_new_tokens}; need 1 or more",
                max_new_tokens=self.max_new_tokens,
            )
        if self.temperature is not None and not 0 <= self.temperature < float("inf"):
            raise UserError(
                "temperature is {temperature}; need 0 (always the likeliest) or more",
                temperature=self.temperature,
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError("top_p is {top_p}; need above 0 and at most 1", top_p=self.top_p)


@dataclass(frozen=True, slots=True)
class Query:
    """A question that stands alone, and what its words say.

    `normalized` is its text as the word index spells it, `content` the terms of its content words.
    `answer_types` are what the answer may be; often none is known, sometimes several are.
    """

    text: str
    script: Script
    normalized: str
    content: Terms
    answer_types: frozenset[AnswerType]


@dataclass(frozen=True, slots=True)
class Retrieved:
    """What the knowledge base holds for a question.

    `vector` is the question's. `ranking` has every chunk that any search found, with its fused
    score. `hits` are the best chunk of each passage, best first, and `passages` the whole passages
    in the same order. `confidence` (0 to 1, larger is surer) says how likely they hold an answer, and
    `answerable` whether that is `threshold` or more.
    `sequence` is the change of the store that they were found at; if the store changes all the
    time, those of the next changes may be among them, but none that was gone by then.
    """

    query: Query
    vector: Vector
    ranking: Ranking
    hits: tuple[Hit, ...]
    passages: tuple[Passage, ...]
    confidence: float
    threshold: float
    answerable: bool
    sequence: int


@dataclass(frozen=True, slots=True)
class Source:
    """A passage that a language model may read, and the hit that found it."""

    passage: Passage
    hit: Hit

    @property
    def narrowed(self) -> "Source":
        """The part of the passage that was found, as a passage of its own."""
        chunk = self.hit.chunk
        label = chunk.label(chunk.start)
        part = Passage(chunk.document, chunk.start, chunk.end, chunk.text, label)
        return Source(part, self.hit)


@dataclass(frozen=True, slots=True)
class Citation:
    """A quote and where it stands. Invariant: the document's text[start:end] == quote."""

    number: int
    chunk: Chunk
    start: int
    end: int
    quote: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """What of a conversation and its passages a language model's window could not hold."""

    turns: int = 0
    passages: int = 0
    shortened: int = 0
    """Passages of which only the chunk that was found is left."""

    def __bool__(self) -> bool:
        return bool(self.turns or self.passages or self.shortened)


@dataclass(frozen=True, slots=True)
class Prompt:
    """`messages` to answer; `sources[n - 1]` is the passage that they number `[n]`."""

    messages: tuple[Message, ...]
    sources: tuple[Source, ...]
    dropped: Dropped
    tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer's text, whose marks `[1]` are the citations' numbers.

    A refusal has no citations; its `hits` say what was looked at. The rest concerns answers that a
    language model wrote: `generator` is its name, `unsupported` the spans of `text` that no passage
    supports, in order, `unknown` the numbers it marked that no passage has, as often as it did, and
    `prompt` what it was asked.
    """

    question: str
    text: str
    citations: tuple[Citation, ...]
    hits: tuple[Hit, ...]
    confidence: float
    refused: bool
    generator: str = ""
    unsupported: tuple[Span, ...] = ()
    unknown: tuple[int, ...] = ()
    dropped: Dropped = Dropped()
    prompt: Prompt | None = None
