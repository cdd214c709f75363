"""Held-out questions are read from each of their forms, and placed in the knowledge base."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune.evaluate.questions import form_of, read
from finetune.options import Columns
from ingest.errors import UserError
from rag.evaluate.dataset import sample
from rag.pipeline import Pipeline
from tests.finetune.factories import NUMBERS, UNKNOWN, grounded_rows, pipeline_over, write_docs, write_lines
from tests.tiny import TITLE, fact, question


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    home = tmp_path_factory.mktemp("home")
    with pipeline_over(write_docs(home / "docs"), home / "kb") as made:
        yield made


def test_synthetic_questions_have_their_places(pipeline: Pipeline, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "heldout.jsonl", grounded_rows(pipeline.store))
    assert form_of(path) == "grounded"
    found = read(path, pipeline.store)
    assert found.lost == ()
    assert {q.text: q.answers for q in found.questions} == {
        question(name): (number, fact(name, number)) for name, number in NUMBERS.items()
    }
    for each in found.questions:
        [place] = each.places
        assert pipeline.store.text(place.document, place.start, place.end) == each.answers[0]


def test_each_question_occurs_once(pipeline: Pipeline, tmp_path: Path) -> None:
    rows = grounded_rows(pipeline.store)
    path = write_lines(tmp_path / "heldout.jsonl", [*rows, {**rows[0], "id": "x", "gold": None}])
    assert len(read(path, pipeline.store).questions) == len(rows)


def test_questions_without_their_text_are_left_out(pipeline: Pipeline, tmp_path: Path) -> None:
    first, second, *rest = grounded_rows(pipeline.store)
    changed = [{**first, "answer": "000"}, {**second, "document": "gone"}, *rest]
    path = write_lines(tmp_path / "heldout.jsonl", changed)
    found = read(path, pipeline.store)
    assert found.lost == (first["id"], second["id"])
    assert len(found.questions) == len(rest)
    with pytest.raises(UserError, match="none of its 2 questions"):
        read(write_lines(tmp_path / "none.jsonl", changed[:2]), pipeline.store)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"start": "0"}, "start"), ({"question": " "}, "question is empty"), ({"answer": 3}, "answer")],
)
def test_the_error_names_the_wrong_row(
    pipeline: Pipeline, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    first, second, *_ = grounded_rows(pipeline.store)
    path = write_lines(tmp_path / "heldout.jsonl", [first, {**second, **change}])
    with pytest.raises(UserError, match=rf"heldout.jsonl:2: .*{message}"):
        read(path, pipeline.store)


def test_quotes_give_a_set_its_places(pipeline: Pipeline, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_docs(folder / "docs")
    rows: list[dict[str, object]] = [
        {
            "id": f"s-{name}",
            "question": question(name),
            "answers": [number, f"no. {number}"],
            "gold": [{"document": f"{name}/{TITLE}.txt", "quote": fact(name, number)}],
        }
        for name, number in NUMBERS.items()
    ]
    missing = {"id": "s-x", "question": question(UNKNOWN[0]), "answerable": False}
    gone = {**rows[0], "id": "s-y", "gold": [{"document": rows[0]["gold"][0]["document"], "quote": "无"}]}  # type: ignore[index]  # built above
    write_lines(folder / "questions.jsonl", [*rows, missing, {**gone, "question": "另一个？"}])
    assert form_of(folder) == "set"
    found = read(folder, pipeline.store)
    assert found.lost == ("s-y",)
    assert [q.answerable for q in found.questions] == [True] * len(rows) + [False]
    for each in found.questions[:-1]:
        [place] = each.places
        quoted = pipeline.store.text(place.document, place.start, place.end)
        assert quoted == fact(each.text[0], each.answers[0])
    assert found.questions[-1].answers == found.questions[-1].places == ()


def test_alpaca_rows_have_no_place(tmp_path: Path) -> None:
    rows = [{"instruction": "翻译", "input": "你好", "output": "Hello"}]
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps(rows), "utf-8")
    assert form_of(path) == "alpaca"
    [only] = read(path, None).questions
    assert (only.text, only.answers, only.places) == ("翻译", ("Hello",), ())
    assert only.example
    assert only.example.input == "你好"


def test_the_fields_of_alpaca_rows_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps([{"q": "问", "a": "答"}]), "utf-8")
    [only] = read(path, None, Columns(prompt="q", response="a")).questions
    assert (only.text, only.answers) == ("问", ("答",))


def test_a_sample_keeps_its_order(pipeline: Pipeline, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "heldout.jsonl", grounded_rows(pipeline.store))
    questions = read(path, pipeline.store).questions
    drawn = sample(questions, 3, seed=1)
    assert len(drawn) == 3
    assert sorted(drawn, key=questions.index) == list(drawn)
    assert drawn == sample(questions, 3, seed=1)
    assert sample(questions, 99) == questions
