"""What a reply is worth: a case and the text that a model wrote -> columns of numbers.

A measure is the sum of one column over that of another (`finetune.evaluate.run.compare`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from finetune.conditions import Case
from finetune.evaluate.metrics import bare, bleu4, contains, exact, f1, rouge_l
from ingest.sentences import Span
from ingest.store import Store
from rag.cite import cite, claims
from rag.reply import declines, marks, numbers

TEXT_METRICS = {
    "exact": exact,
    "contains": contains,
    "f1": f1,
    "rouge_l": rouge_l,
    "bleu4": bleu4,
}


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's reply: `cited` are the numbers that it marks, in order, and `unsupported` the spans
    of its text that no passage supports."""

    text: str
    refused: bool
    cited: tuple[int, ...]
    unsupported: tuple[Span, ...]
    columns: Mapping[str, float]


def judge(case: Case, text: str, store: Store | None) -> Reply:
    """The columns are 0 or 1 or counts, but for the text metrics; a column that is missing says
    that the case does not measure it.

    `asked` and the text metrics: of cases with an answer, the best over the answers; marks are left
    out, and a refusal is worth 0. `refused`, `wanted` (a refusal would be right), `agreed` (both):
    of cases with passages. `grounded`: the reply cites the passage that answers and nothing else;
    of cases that have it. `marked`, `known`: of replies with marks, whether all have a passage.
    `claims`, `unsupported`: sentences of replies that are no refusals.
    """
    refused = declines(text)
    columns: dict[str, float] = {}
    if not case.refuse:
        said = "" if refused else bare(text)
        columns["asked"] = 1.0
        for name, metric in TEXT_METRICS.items():
            columns[name] = max(metric(said, answer) for answer in case.question.answers)
    if not case.sources:
        return Reply(text, refused, (), (), columns)
    assert store
    cited = tuple(number for mark in marks(text) for number in numbers(mark))
    columns["refused"], columns["wanted"] = float(refused), float(case.refuse)
    columns["agreed"] = float(refused and case.refuse)
    if not case.refuse:
        columns["grounded"] = float(bool(cited) and case.gold.issuperset(cited))
        columns["misrefused"] = float(refused)
    if refused:
        return Reply(text, refused, cited, (), columns)
    found = cite(text, case.question.text, case.sources, store)
    if cited:
        columns["marked"], columns["known"] = 1.0, float(not found.unknown)
    columns["claims"] = float(len(claims(text)))
    columns["unsupported"] = float(len(found.unsupported))
    return Reply(text, refused, cited, found.unsupported, columns)
