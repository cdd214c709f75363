"""What is shipped: better somewhere beyond chance, worse nowhere."""

from math import nan

import pytest

from finetune.evaluate.compare import decide
from ingest.i18n import translate
from rag.evaluate.report import UNDEFINED, Difference, Figure


def compared(
    measure: str,
    base: float,
    adapter: float,
    margin: float,
    *,
    condition: str = "retrieved",
    p: float = 0.001,
) -> dict[tuple[str, str], Difference]:
    difference = adapter - base
    first, second = (Figure(value, value - margin, value + margin, 50) for value in (base, adapter))
    low, high = difference - margin, difference + margin
    return {(condition, measure): Difference(first, second, difference, low, high, p)}


BETTER = compared("f1", 0.4, 0.6, 0.1)


def test_an_adapter_that_is_only_better_is_shipped() -> None:
    decided = decide(BETTER | compared("f1", 0.5, 0.48, 0.1, condition="gold"))
    assert decided.ship
    [reason] = decided.reasons
    assert reason == ("better: F1, retrieved: 0.400 → 0.600 (+0.200; 95 % +0.100 – +0.300; 50 questions)")
    assert translate(reason, "zh").startswith("提升：F1，检索所得：0.400 → 0.600")


@pytest.mark.parametrize("condition", ["closed", "gold", "retrieved", "general"])
def test_a_worse_f1_prevents_shipping(condition: str) -> None:
    decided = decide(BETTER | compared("f1", 0.5, 0.4, 0.09, condition=condition))
    assert not decided.ship
    assert [reason.split(":")[0] for reason in decided.reasons] == ["worse"]


@pytest.mark.parametrize("measure", ["refusal_precision", "refusal_recall"])
def test_worse_refusals_prevent_shipping_unless_their_f1_is_better(measure: str) -> None:
    worse = compared(measure, 0.9, 0.7, 0.1)
    assert not decide(BETTER | worse).ship
    assert not decide(BETTER | worse | compared("refusal_f1", 0.4, 0.45, 0.1)).ship
    assert decide(BETTER | worse | compared("refusal_f1", 0.2, 0.7, 0.1)).ship
    whole = compared("refusal_f1", 0.2, 0.7, 0.1, condition="passages")
    assert decide(BETTER | worse | whole).ship
    assert not decide(BETTER | worse | compared("f1", 0.6, 0.4, 0.1, condition="gold") | whole).ship


def test_secondary_measures_do_not_decide() -> None:
    assert decide(BETTER | compared("bleu4", 50, 20, 5) | compared("exact", 0.9, 0.1, 0.1)).ship
    assert not decide(compared("exact", 0.1, 0.9, 0.1)).ship


def test_an_adapter_without_improvement_is_not_shipped() -> None:
    for comparisons in ({}, compared("f1", 0.4, 0.5, 0.2), compared("f1", 0.4, 0.6, 0.1, p=0.2)):
        [reason] = decide(comparisons).reasons
        assert not decide(comparisons).ship
        assert reason.startswith("nothing got better beyond chance")


@pytest.mark.parametrize("condition", ["closed", "general"])
def test_a_collapse_needs_no_interval(condition: str) -> None:
    decided = decide(BETTER | compared("f1", 0.5, 0.2, 0.4, condition=condition, p=0.3))
    assert not decided.ship
    assert decided.reasons[0].startswith("collapsed: F1")
    # With passages, or where the base knew nothing, there is none.
    assert decide(BETTER | compared("f1", 0.5, 0.2, 0.4, condition="gold")).ship
    assert decide(BETTER | compared("f1", 0.08, 0.02, 0.1, condition=condition)).ship


def test_undefined_values_decide_nothing() -> None:
    undefined = Difference(UNDEFINED, Figure(0.5, 0.2, 0.8, 9), nan, nan, nan, nan)
    assert decide(BETTER | {("retrieved", "refusal_precision"): undefined}).ship
