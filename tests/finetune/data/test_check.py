"""The data doctor: what it finds, row by row, and what it leaves alone."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.check import Diagnosis, Repeats, controls, diagnose, special_words
from finetune.data.formats import GROUNDED, examples
from finetune.data.template import RowEncoder
from finetune.types import Example
from ingest.i18n import translate
from rag.chatglm.tokenization import open_tokenizer
from rag.types import Message
from tests.rag.chatglm.vocabularies import published

DATA = Path(__file__).parents[2] / "data/alpaca"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_tokenizer(published(tmp_path_factory.mktemp("v3"), 3))


def row(instruction: str, output: Any, **more: Any) -> dict[str, Any]:
    return {"instruction": instruction, "output": output, **more}


def example(question: str, answer: str, source: str = "a:1", input: str = "") -> Example:
    return Example((Message("user", question), Message("assistant", answer)), input, source=source)


def checked(folder: Path, rows: list[Any], **options: Any) -> Diagnosis:
    path = folder / "a.json"
    path.write_text(json.dumps(rows), "utf-8")
    return diagnose([path], **options)


def findings_of(diagnosis: Diagnosis) -> list[tuple[str, str, bool]]:
    return [(one.source, one.problem, one.bad) for one in diagnosis.findings]


def test_each_problem_is_found_at_its_row(tmp_path: Path) -> None:
    rows = [
        row("问一", "答一"),
        row("问一", "答二"),
        row(" 问一\n", "答一 "),
        row("问二", ""),
        row("问三", "<|user|>答[gMASK]</s>"),
        row("问四", "答" * 20),
        row("问五", ["答"]),
        row("问一", "答三"),
    ]
    diagnosis = checked(tmp_path, rows, max_length=21)
    assert findings_of(diagnosis) == [
        ("a.json:2", "conflict", False),
        ("a.json:3", "duplicate", False),
        ("a.json:4", "empty", True),
        ("a.json:5", "special", False),
        ("a.json:5", "long", False),
        ("a.json:6", "long", False),
        ("a.json:7", "type", True),
        ("a.json:8", "conflict", False),
    ]
    texts = [finding.text for finding in diagnosis.findings]
    assert texts[0] == "the same question as a.json:1, but another answer"
    assert texts[1] == "the same as a.json:1"
    assert "<|user|>, [gMASK], </s>" in texts[3]
    assert texts[5] == "22 characters, more than 21; --model counts tokens"
    assert (diagnosis.rows, diagnosis.usable, diagnosis.bad, diagnosis.warned) == (8, 6, 2, 5)
    assert diagnosis.lengths.tolist() == [4, 4, 7, 22, 22, 4]
    assert [*diagnosis.by_problem()][-1] in ("duplicate", "special")
    assert all(translate(finding.text, "zh") not in ("", finding.text) for finding in diagnosis.findings)


def test_clean_data_has_no_findings() -> None:
    diagnosis = diagnose([DATA / "alpaca_zh.json", DATA / "history_small.json"])
    assert (diagnosis.findings, diagnosis.rows, diagnosis.usable) == ((), 14, 14)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.text("ab \n", max_size=4), st.text("ab \n", max_size=3), st.text("xy ", max_size=3)),
        max_size=12,
    )
)
def test_repeats_equal_those_of_a_full_comparison(rows: list[tuple[str, str, str]]) -> None:
    repeats = Repeats()
    seen: list[tuple[str, str]] = []
    for at, (question, input, answer) in enumerate(rows):
        asked = " ".join([*question.split(), *input.split()])
        text = " ".join(answer.split())
        equal = [i for i, one in enumerate(seen) if one == (asked, text)]
        same = [i for i, one in enumerate(seen) if one[0] == asked]
        found = list(repeats(example(question, answer, f"a:{at}", input)))
        if equal:
            assert [(one.problem, one.text) for one in found] == [("duplicate", f"the same as a:{equal[0]}")]
        elif same:
            assert [one.problem for one in found] == ["conflict"]
            assert f"a:{same[0]}," in found[0].text
        else:
            assert found == []
        seen.append((asked, text))


def test_earlier_turns_make_a_question_different() -> None:
    repeats = Repeats()
    past = (Message("user", "问"), Message("assistant", "答"))
    for number, before in enumerate([(), past, (Message("system", "问"),)]):
        example = Example((*before, *past), source=f"a:{number}")
        assert list(repeats(example)) == []


@pytest.mark.parametrize("sign", ["\x00", "\x07", "\x1b", "\r", "\x9b", "\u202e", "\u2066"])
def test_control_characters(sign: str) -> None:
    for one in (example(f"问{sign}", "答"), example("问", f"{sign}答"), example("问", "答", input=sign)):
        (found,) = controls(one)
        assert (found.problem, found.bad) == ("control", False)
        assert f"(U+{ord(sign):04X})" in found.text
        assert sign not in found.text + translate(found.text, "zh")


def test_line_ends_and_tabs_are_no_control_characters() -> None:
    assert list(controls(example("a\tb\r\nc\n", "d\u3000é🙂\u200d"))) == []


@pytest.mark.parametrize("word", ["<|assistant|>", "[gMASK]", "[MASK]", "<sop>", "</s>", "<eos>"])
def test_special_words(word: str) -> None:
    for one in (example(f"问{word}", "答"), example("问", word), example("问", "答", input=word)):
        (found,) = special_words(one)
        assert (found.problem, found.bad) == ("special", False)
        assert word in found.text


@pytest.mark.parametrize("text", ["sop", "a < b > c", "<div>", "|user|", "[1]", "[Round 1]"])
def test_words_that_are_not_special(text: str) -> None:
    assert list(special_words(example(text, text))) == []


def test_lengths_are_those_of_training_rows(tokenizer: Any) -> None:
    path = DATA / "history_small.json"
    for generation in (2, 3):
        encoder = RowEncoder(tokenizer, generation)
        rows = [row for one in examples([path]) for row in encoder(one).rows]
        diagnosis = diagnose([path], encoder=encoder)
        assert diagnosis.unit == "tokens"
        assert diagnosis.lengths.tolist() == [len(row) for row in rows]


def test_rows_that_will_be_cut_and_rows_that_can_not_be(tokenizer: Any, tmp_path: Path) -> None:
    rows = [row("问", "答"), row("问", "今天天气很好。" * 50), row("问题", "回答", system="说明" * 200)]
    encoder = RowEncoder(tokenizer, 3, max_length=64)
    diagnosis = checked(tmp_path, rows, encoder=encoder)
    assert findings_of(diagnosis) == [
        ("a.json:2", "conflict", False),
        ("a.json:2", "long", False),
        ("a.json:3", "long", True),
    ]
    whole = [
        len(RowEncoder(tokenizer, 3, max_length=10_000)(one).rows[0])
        for one in examples([tmp_path / "a.json"])
    ]
    assert diagnosis.lengths.tolist() == whole
    assert diagnosis.findings[1].text.startswith(f"{whole[1]} tokens, more than 64")
    assert "max_length is 64" in diagnosis.findings[2].text
    assert (diagnosis.usable, diagnosis.bad) == (2, 1)


def test_a_cited_passage_is_never_cut(tokenizer: Any, tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "[1] 资料。" * 60 + "问？"},
        {"role": "assistant", "content": "答[1]。"},
    ]
    rows = [{"messages": messages, **dict.fromkeys(GROUNDED, 1)}, row("问", "答")]
    diagnosis = checked(tmp_path, rows, encoder=RowEncoder(tokenizer, 3, max_length=64))
    assert findings_of(diagnosis) == [("a.json:1", "long", True)]
    assert "would lose passages" in diagnosis.findings[0].text
    assert [one.source for one in diagnosis.samples] == ["a.json:2"]


@pytest.mark.parametrize("with_tokens", [True, False])
def test_turns_without_a_place_are_reported(tokenizer: Any, tmp_path: Path, *, with_tokens: bool) -> None:
    rows = [row("三", "四", history=[["一", "二"]], system="说明"), row("问", "答")]
    encoder = RowEncoder(tokenizer, 3, "tutorial") if with_tokens else None
    diagnosis = checked(tmp_path, rows, encoder=encoder, template="tutorial")
    assert findings_of(diagnosis) == [("a.json:1", "place", False)]
    assert "the tutorial form has no place for 3 earlier messages" in diagnosis.findings[0].text
    assert findings_of(checked(tmp_path, rows)) == []


def test_samples_are_the_first_the_longest_or_the_wanted_rows(tmp_path: Path) -> None:
    rows = [row(f"问{i}", "答" * (1 + 20 * (i == 7))) for i in range(10)]
    assert [one.source for one in checked(tmp_path, rows).samples] == [
        "a.json:1", "a.json:2", "a.json:8",
    ]  # fmt: skip
    chosen = checked(tmp_path, rows, wanted=["4", "a.json:10", "b.json:1"]).samples
    assert [one.source for one in chosen] == ["a.json:4", "a.json:10"]


def test_rows_are_not_kept_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(5_000):
            file.write(json.dumps(row(f"{number}", "答" * 2_000), ensure_ascii=False) + "\n")
    tracemalloc.start()
    diagnosis = diagnose([path])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert diagnosis.usable == 5_000
    assert diagnosis.lengths.dtype == np.int32
    assert path.stat().st_size > 30_000_000
    assert peak < 12_000_000
