"""Passages -> the sentences that answer, each cited. No language model."""

from dataclasses import dataclass

from ingest.embed import Embedder
from ingest.errors import UserError
from ingest.store import Store
from rag.extract import Source, choose, rank
from rag.fuse import rarity
from rag.layout import one_line, row_in_words
from rag.quote import quote
from rag.score_norm import Background
from rag.types import Answer, Retrieved


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How much of the passages an answer shows."""

    passages: int = 3
    """Sentences are taken from so many of the best passages."""
    sentences: int = 2
    """An answer has at most so many sentences."""

    def __post_init__(self) -> None:
        if self.passages < 1 or self.sentences < 1:
            raise UserError(
                f"[read] passages is {self.passages} and sentences {self.sentences}; need 1 or more",
                zh=f"[read] passages 为 {self.passages}，sentences 为 {self.sentences}；均须不小于 1",
            )


def read(
    found: Retrieved,
    store: Store,
    embedder: Embedder,
    background: Background,
    options: ReadOptions,
) -> Answer:
    """The best sentences as text with citations `[1]`, `[2]`.

    A question for a date, a number or a title is answered by the clause that names one, where one
    stands out; its citation quotes the whole sentence.
    """
    question, centred = found.question, background.centred(found.question, found.vector)
    passages = found.passages[: options.passages]
    ranked = rank(
        question,
        [
            Source(passage.text, f"{hit.chunk.title} {passage.label}", hit.score)
            for hit, passage in zip(found.hits, passages, strict=False)
        ],
        embedder=embedder,
        standard=lambda vectors: background.standard(question, centred, vectors @ centred),
        idf_words=rarity(store, "words"),
        idf_bigrams=rarity(store, "bigrams"),
    )
    citations, lines = [], []
    for number, sentence in enumerate(choose(ranked, most=options.sentences), start=1):
        passage, hit = passages[sentence.source], found.hits[sentence.source]
        citations.append(quote(number, passage, sentence.start, sentence.end, store, hit.chunk))
        whole = sentence.start, sentence.end
        start, end = (sentence.focus or whole) if number == 1 else whole
        above, context = passage.text[: sentence.start], citations[-1].chunk.context
        shown = one_line(row_in_words(passage.text[start:end], above, context))
        lines.append(f"{shown} [{number}]")
    text = "\n".join(lines)
    return Answer(question, text, tuple(citations), found.hits, found.confidence, refused=False)
