"""Questions that a passage answers, made from its headings, definitions, lists, tables and figures."""

from collections.abc import Collection

from finetune.questions.cloze import clozes
from finetune.questions.definition import definitions
from finetune.questions.gap import gaps
from finetune.questions.heading import articles, headings
from finetune.questions.listing import lists
from finetune.questions.table import tables
from finetune.synth.pair import Kind, Maker, Pair, Section

MAKERS: dict[Kind, Maker] = {
    "definition": definitions,
    "heading": headings,
    "article": articles,
    "list": lists,
    "table": tables,
    "cloze": clozes,
}


def ask(section: Section, kinds: Collection[Kind] = tuple(MAKERS)) -> list[Pair]:
    """The pairs of a passage in the order of its text; none of them asks the same.

    What an article says is asked only where nothing else is asked about it.
    """
    found: dict[str, Pair] = {}
    if section.script:
        for kind in MAKERS:
            if kind in kinds:
                for pair in _maker(kind, section)(section):
                    found.setdefault(pair.question, pair)
    asked = [pair for pair in found.values() if pair.kind != "article"]
    alone = [
        pair
        for pair in found.values()
        if pair.kind == "article"
        and not any(pair.start < other.end and other.start < pair.end for other in asked)
    ]
    return sorted([*asked, *alone], key=lambda pair: (pair.start, pair.end, pair.question))


def _maker(kind: Kind, section: Section) -> Maker:
    return gaps if kind == "cloze" and section.script == "latin" else MAKERS[kind]


__all__ = ["MAKERS", "Kind", "Pair", "Section", "ask"]
