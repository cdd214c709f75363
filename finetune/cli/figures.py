"""What an evaluation came to, told to a person: the table of figures, then the verdict."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rag.cli.console import out, say, table

if TYPE_CHECKING:
    from finetune.evaluate.compare import Comparison
    from finetune.verdict import Verdict


def show(comparisons: "Sequence[Comparison]", title: str) -> None:
    from finetune.evaluate.compare import BLEU4, MEASURES
    from finetune.verdict import CONDITION_TITLES

    rows: list[tuple[object, ...]] = []
    last = ""
    for each in comparisons:
        measure = MEASURES[each.measure]
        name = say(measure.title, measure.zh)
        rows.append(
            (
                "" if each.condition == last else say(*CONDITION_TITLES[each.condition]),
                name if measure.larger_is_better else f"{name} ↓",
                _number(each.base.value),
                _number(each.adapter.value),
                _number(each.difference, "+"),
                f"{_number(each.low, '+')} – {_number(each.high, '+')}",
                "< 0.001" if each.p < 0.001 else _number(each.p),
                each.questions,
            )
        )
        last = each.condition
    columns = [
        say("condition", "条件"),
        say("measure", "指标"),
        say("base", "基座"),
        say("adapter", "适配器"),
        say("difference", "差"),
        "95 %",
        "p",
        "n",
    ]
    table(title, columns, rows)
    if any(each.measure == "bleu4" for each in comparisons):
        out(say(*BLEU4))


def _number(value: float, sign: str = "") -> str:
    return "–" if value != value else f"{value:{sign}.3f}"


def tell(verdict: "Verdict", count: int) -> None:
    if verdict.ship:
        head = say(f"ship it (on {count} questions)", f"可以采用（依据 {count} 个问题）")
    else:
        head = say(f"do not ship (on {count} questions)", f"不应采用（依据 {count} 个问题）")
    out(head)
    for reason in verdict.reasons:
        out(f"  {say(reason.text, reason.zh)}")
