"""Whether an adapter is better than its base: ship it or do not, with reasons."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from finetune.evaluate.compare import ALL, MEASURES, Comparison

LEVEL = 0.05
COLLAPSE = 0.5
"""An adapter keeps so much of what its base knows without passages, at least."""
WORTH = 0.1
"""F1 of the base from which that is looked at: below, it knows nothing to lose."""

CONDITION_TITLES = {
    "closed": ("closed book", "闭卷"),
    "gold": ("gold passage", "仅给出处"),
    "retrieved": ("retrieved", "检索所得"),
    "distractors": ("distractors only", "仅干扰段落"),
    "passages": ("all with passages", "带段落合计"),
    "general": ("general", "通用问题"),
}


@dataclass(frozen=True, slots=True)
class Reason:
    """One line, in both languages."""

    text: str
    zh: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reasons` against it where it is not to be shipped, else what got better."""

    ship: bool
    reasons: tuple[Reason, ...]


def verdict(comparisons: Sequence[Comparison]) -> Verdict:
    """Ship what got better somewhere and worse nowhere, by the primary measures.

    Worse: the 95 % interval of the difference lies wholly below 0, or less than half is left of an
    F1 without passages. Better: it lies wholly above 0 and p is below .05, for a few questions make
    narrow intervals. Evidence is asked of what is good, not of what is bad.

    A model that hardly ever refuses does so precisely, and one that always does recalls all. So a
    fall of precision or recall counts only where refusals as a whole (their F1) did not get better.
    """
    against = [*_worse(comparisons), *_collapsed(comparisons)]
    if against:
        return Verdict(False, tuple(against))
    better = tuple(_better(comparisons))
    if better:
        return Verdict(True, better)
    nothing = Reason(
        "nothing got better beyond chance: no primary measure has its 95 % interval above 0 and "
        f"p < {LEVEL}; ask more questions, or train more",
        f"没有任何主要指标有超出偶然的提升（95 % 区间高于 0 且 p < {LEVEL}）；请增加问题或继续训练",
    )
    return Verdict(False, (nothing,))


def _primary(comparisons: Sequence[Comparison]) -> Iterator[Comparison]:
    return (each for each in comparisons if MEASURES[each.measure].primary)


def _worse(comparisons: Sequence[Comparison]) -> Iterator[Reason]:
    surer = {e.condition for e in comparisons if e.measure == "refusal_f1" and e.low > 0}
    for each in _primary(comparisons):
        made_up = each.measure != "f1" and surer & {each.condition, ALL}
        if each.high < 0 and not made_up:
            yield _told("worse", "变差", each)


def _collapsed(comparisons: Sequence[Comparison]) -> Iterator[Reason]:
    for each in comparisons:
        alone = each.condition in ("closed", "general") and each.measure == "f1"
        lost = each.base.value >= WORTH and each.adapter.value < COLLAPSE * each.base.value
        if alone and lost and not each.high < 0:
            yield _told("collapsed", "大幅下降", each)


def _better(comparisons: Sequence[Comparison]) -> Iterator[Reason]:
    for each in _primary(comparisons):
        # A precision has no exact test, and what it gains, F1 or recall gain too.
        if each.measure != "refusal_precision" and each.low > 0 and each.p < LEVEL:
            yield _told("better", "提升", each)


def _told(what: str, what_zh: str, each: Comparison) -> Reason:
    measure = MEASURES[each.measure]
    where, where_zh = CONDITION_TITLES[each.condition]
    figures = (
        f"{each.base.value:.3f} → {each.adapter.value:.3f} "
        f"({each.difference:+.3f}; 95 % {each.low:+.3f} – {each.high:+.3f}"
    )
    return Reason(
        f"{what}: {measure.title}, {where}: {figures}; {each.questions} questions)",
        f"{what_zh}：{measure.zh}，{where_zh}：{figures}；{each.questions} 个问题）",
    )
