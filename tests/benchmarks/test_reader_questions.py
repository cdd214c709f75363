"""The questions that the reader is trained with: their form, their answers and their traps."""

import json
from pathlib import Path

import pytest

from benchmarks.reader_tables import tables

FOLDER = Path(__file__).parents[2] / "benchmarks/reader"
STYLES = {"colloquial", "formal", "keywords", "english", "table"}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.jsonl")), ids=lambda path: path.stem)
def test_questions_have_an_answer_or_a_trap(path: Path) -> None:
    seen = set()
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        question, passage = row["question"], row.get("passage")
        key = (row["doc"], row.get("start"), passage, question)
        assert key not in seen
        seen.add(key)
        assert row["style"] in STYLES
        assert len(question) >= 4
        assert ("answer" in row) != ("trap" in row)
        if answer := row.get("answer"):
            assert answer not in question
            assert len(answer) <= 80 or answer.isascii()
            assert row["at"] >= 0
            if passage:
                assert passage[row["at"] :].startswith(answer)
        elif passage:
            assert row["trap"].casefold() in f"{row.get('title')} {passage}".casefold()


def test_about_half_of_the_questions_have_no_answer() -> None:
    rows = [
        json.loads(line) for path in FOLDER.glob("*.jsonl") for line in path.read_text("utf-8").splitlines()
    ]
    assert 0.35 < sum("trap" in row for row in rows) / len(rows) < 0.65


def test_answers_of_generated_tables_are_their_cells() -> None:
    rows = list(tables(60, 0))
    assert rows == list(tables(60, 0))
    for row in rows:
        if answer := row.get("answer"):
            assert row["passage"][row["at"] :].startswith(answer)
    assert 0.2 < sum("answer" not in row for row in rows) / len(rows) < 0.6
