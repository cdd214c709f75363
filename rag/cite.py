"""The marks of a model's answer -> citations; its sentences that no passage supports -> flags.

The text itself is never altered: a mark of no passage gives no citation and is counted.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from ingest.chunk import Span, sentences, trim
from ingest.store import Store
from rag.faithfulness import Evidence, Faithfulness, Rarity
from rag.prompt import MARK, declines, marks, numbers
from rag.retrieve import citation, rarity
from rag.types import Citation, Source

_BEFORE = re.compile(rf"(?:{MARK.pattern}\s*)+$")
_WORD = re.compile(r"\w")


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence `text[start:end]` of an answer, its marks left out, and the numbers marked."""

    start: int
    end: int
    text: str
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cited:
    """What the marks of an answer stand for; the fields are those of `Answer`."""

    citations: tuple[Citation, ...]
    unsupported: tuple[Span, ...]
    unknown: tuple[int, ...]


def cite(text: str, question: str, sources: Sequence[Source], store: Store) -> Cited:
    """Citations in the order of the marks, each quoting what of passage n supports its sentence.

    `sources[n - 1]` is the passage that the model knew as `[n]`. Two sentences that rest on the
    same quote share a citation.
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
                found = citation(number, source.passage, *span, store, source.hit.chunk)
                citations[number, span] = found
        if not declines(claim.text) and not faithfulness.supports(claim.text, claim.numbers):
            unsupported.append((claim.start, claim.end))
    return Cited(tuple(citations.values()), tuple(unsupported), tuple(unknown))


def claims(text: str) -> list[Claim]:
    """The sentences of an answer with their marks.

    A mark behind a full stop belongs to the sentence before, unless it stands at the head of a
    line or the answer begins with a mark.
    """
    found = {match.span(): numbers(match) for match in marks(text)}
    blank = text
    for start, end in found:
        blank = f"{blank[:start]}{' ' * (end - start)}{blank[end:]}"
    leads = any(not blank[:start].strip() for start, _ in found)
    starts = [0, *(_claimed(text, start, leads) for start, _ in sentences(blank)[1:])]
    claimed = []
    for start, end in pairwise([*starts, len(text)]):
        inside = [span for span in found if start <= span[0] < end]
        bare = _without(text, start, end, inside)
        cited = tuple(number for span in inside for number in found[span])
        if _WORD.search(bare) or cited:
            claimed.append(Claim(*trim(text, start, end), bare, cited))
    return claimed


def _claimed(text: str, start: int, leads: bool) -> int:
    """`start`, or where the marks directly before it begin that belong to what follows."""
    run = _BEFORE.search(text[:start])
    if not run:
        return start
    heads = leads or text[: run.start()].rstrip(" \t").endswith("\n")
    line = run[0].rfind("\n") + 1
    return run.start() + (line if line or heads else len(run[0]))


def _without(text: str, start: int, end: int, inside: Sequence[Span]) -> str:
    """`text[start:end]` without the marks `inside` it."""
    bounds = [start, *(bound for span in inside for bound in span), end]
    return "".join(text[a:b] for a, b in zip(bounds[::2], bounds[1::2], strict=True)).strip()
