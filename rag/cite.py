"""Citations from the marks of a model's answer, and the sentences that no passage supports.

The text is never changed: a mark whose number no passage has gives no citation and is counted.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from ingest.chunk import Span, sentences, trim
from ingest.normalize import normalize
from ingest.store import Store
from rag.faithfulness import Evidence, Faithfulness, Rarity
from rag.retrieve import citation, rarity
from rag.types import MARK, NOT_FOUND, Citation, Source

_BEFORE = re.compile(rf"(?:{MARK.pattern}\s*)+$")
_WORD = re.compile(r"\w")


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence of an answer: its span, its `text` without marks, and the numbers in the marks."""

    start: int
    end: int
    text: str
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AnswerCitations:
    """Citations of an answer; the fields are those of `Answer`."""

    citations: tuple[Citation, ...]
    unsupported: tuple[Span, ...]
    unknown: tuple[int, ...]


def cite(text: str, question: str, sources: Sequence[Source], store: Store) -> AnswerCitations:
    """Citations in the order of the marks; each quotes what supports the marked sentence.

    `sources[n - 1]` is passage `[n]` of the prompt. Two sentences that are supported by the same
    quote share a citation.
    """
    terms = Rarity(partial(rarity, store))
    evidence = [
        Evidence(
            source.passage.text,
            f"{source.hit.chunk.title}\n{source.passage.label}\n{source.hit.chunk.context}",
        )
        for source in sources
    ]
    faithfulness = Faithfulness(question, evidence, terms)
    citations: dict[tuple[int, Span], Citation] = {}
    unsupported, unknown = [], []
    for claim in claims(text):
        for number in claim.numbers:
            if not 1 <= number <= len(sources):
                unknown.append(number)
                continue
            source, span = sources[number - 1], evidence[number - 1].quote(claim.text, terms)
            if (number, span) not in citations:
                cited = citation(number, source.passage, *span, store, source.hit.chunk)
                citations[number, span] = cited
        if not declines(claim.text) and not faithfulness.supports(claim.text, claim.numbers):
            unsupported.append((claim.start, claim.end))
    return AnswerCitations(tuple(citations.values()), tuple(unsupported), tuple(unknown))


def claims(text: str) -> list[Claim]:
    """The sentences of an answer with their marks.

    A mark after a full stop belongs to the sentence before it, unless it is at the start of a line
    or the answer begins with a mark.
    """
    marked = {match.span(): numbers(match) for match in marks(text)}
    blank = text
    for start, end in marked:
        blank = blank[:start] + " " * (end - start) + blank[end:]
    leads = any(not blank[:start].strip() for start, _ in marked)
    starts = [0, *(_claim_start(text, start, leads) for start, _ in sentences(blank)[1:])]
    found = []
    for start, end in pairwise([*starts, len(text)]):
        inside = [span for span in marked if start <= span[0] < end]
        bounds = [start, *(bound for span in inside for bound in span), end]
        parts = (text[a:b] for a, b in zip(bounds[::2], bounds[1::2], strict=True))
        bare = "".join(parts).strip()
        cited = tuple(number for span in inside for number in marked[span])
        if _WORD.search(bare) or cited:
            found.append(Claim(*trim(text, start, end), bare, cited))
    return found


def _claim_start(text: str, start: int, leads: bool) -> int:
    """`start`, or the start of the marks directly before it that belong to what follows."""
    run = _BEFORE.search(text[:start])
    if not run:
        return start
    heads = leads or text[: run.start()].rstrip(" \t").endswith("\n")
    line = run[0].rfind("\n") + 1
    return run.start() + (line if line or heads else len(run[0]))


_CODE = re.compile(r"(`{3,}).*?(?:\1|\Z)|`[^`\n]+`", re.DOTALL)


def marks(text: str) -> Iterator[re.Match[str]]:
    """The marks of `text` in order, without those in code, such as `a[1]`."""
    code = [match.span() for match in _CODE.finditer(text)]
    for match in MARK.finditer(text):
        if not any(start <= match.start() < end for start, end in code):
            yield match


def numbers(mark: re.Match[str]) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", mark[1])]


def declines(text: str) -> bool:
    """Whether a reply says that the passages have no answer: exactly, or in a single sentence."""
    if MARK.search(text):
        return False
    normalized = normalize(text).strip(" \t\n\"'“”‘’「」")
    phrases = [normalize(phrase).rstrip("。.") for phrase in NOT_FOUND.values()]
    alone = len(sentences(normalized)) <= 1
    return any(normalized.startswith(phrase) or (alone and phrase in normalized) for phrase in phrases)
