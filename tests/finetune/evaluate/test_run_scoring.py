"""What a reply is worth, by hand."""

from collections.abc import Iterator

import pytest

from finetune.evaluate.questions import Case, Cases, GoldSpan, HeldOutQuestion
from finetune.evaluate.run import ScoredReply, score
from rag.pipeline import Pipeline
from rag.types import NOT_FOUND
from tests.finetune.factories import GREEDY, NUMBERS, Careful, grounded_rows, pair, pipeline_over, write_docs
from tests.tiny import fact, question


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    home = tmp_path_factory.mktemp("home")
    with pipeline_over(write_docs(home / "docs"), home / "kb") as made:
        yield made


@pytest.fixture(scope="module")
def cases(pipeline: Pipeline) -> dict[str, Case]:
    [row] = [row for row in grounded_rows(pipeline.store) if row["id"] == "q-甲"]
    place = GoldSpan(str(row["document"]), int(str(row["start"])), int(str(row["end"])))
    asked = HeldOutQuestion("q", question("甲"), (NUMBERS["甲"], fact("甲", NUMBERS["甲"])), places=(place,))
    made = Cases(pair(Careful(), Careful()), pipeline, GREEDY)
    found = made.of(asked, ("closed", "gold", "retrieved", "distractors"))
    return {case.condition: case for case in found}


def judged(pipeline: Pipeline, case: Case, text: str) -> ScoredReply:
    return score(case, text, pipeline.store)


def test_short_and_long_answers_match_exactly(pipeline: Pipeline, cases: dict[str, Case]) -> None:
    whole = f"{fact('甲', NUMBERS['甲'])[:-1]}[1]。"
    for text in (whole, NUMBERS["甲"]):
        columns = judged(pipeline, cases["gold"], text).scores
        assert columns["exact"] == columns["contains"] == columns["f1"] == 1
    assert judged(pipeline, cases["closed"], f"是{NUMBERS['甲']}").scores["exact"] == 0
    assert judged(pipeline, cases["closed"], f"是{NUMBERS['甲']}").scores["contains"] == 1


def test_only_citations_of_the_answering_passage_count(pipeline: Pipeline, cases: dict[str, Case]) -> None:
    case = cases["retrieved"]
    [right] = case.gold
    wrong = next(n for n in range(1, len(case.sources) + 1) if n != right)
    text = fact("甲", NUMBERS["甲"])[:-1]
    for marks, grounded, known in (
        (f"[{right}]", 1, 1),
        (f"[{wrong}]", 0, 1),
        (f"[{right}, {wrong}]", 0, 1),
        (f"[{right}][9]", 0, 0),
        ("[0]", 0, 0),
    ):
        columns = judged(pipeline, case, f"{text}{marks}。").scores
        assert (columns["grounded"], columns["known"]) == (grounded, known), marks
    bare = judged(pipeline, case, f"{text}。").scores
    assert bare["grounded"] == 0
    assert "known" not in bare


def test_an_invented_sentence_is_unsupported(pipeline: Pipeline, cases: dict[str, Case]) -> None:
    right = fact("甲", NUMBERS["甲"])
    reply = judged(pipeline, cases["gold"], f"{right[:-1]}[1]。乙厂位于上海市浦东新区[1]。")
    assert (reply.scores["claims"], reply.scores["unsupported"]) == (2, 1)
    assert list(reply.unsupported) == ["乙厂位于上海市浦东新区[1]。"]


def test_refusals(pipeline: Pipeline, cases: dict[str, Case]) -> None:
    missed = judged(pipeline, cases["gold"], NOT_FOUND["han"])
    assert missed.refused
    assert missed.scores["f1"] == missed.scores["agreed"] == missed.scores["wanted"] == 0
    assert missed.scores["misrefused"] == 1
    right = judged(pipeline, cases["distractors"], NOT_FOUND["han"])
    assert right.scores["agreed"] == right.scores["wanted"] == right.scores["refused"] == 1
    assert "f1" not in right.scores
    made_up = judged(pipeline, cases["distractors"], "甲厂的编号是999[1]。")
    assert (made_up.scores["agreed"], made_up.scores["wanted"]) == (0, 1)
    assert made_up.scores["unsupported"] == 1


def test_closed_book_has_no_refusals(cases: dict[str, Case]) -> None:
    columns = score(cases["closed"], NOT_FOUND["han"], None).scores
    assert set(columns) == {"asked", "exact", "contains", "f1", "rouge_l", "bleu4"}
    assert columns["f1"] == 0
