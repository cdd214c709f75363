"""A set is read or refused by file and line; predictions are scored; reports survive a file."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from ingest.errors import UserError
from ingest.i18n import translate
from rag.evaluate.dataset import Dataset
from rag.evaluate.report import EvalReport, compare, draw
from rag.evaluate.score import Prediction, SourceSpan, evaluate

CORPUS = {"长城": "长城东起山海关。西至嘉峪关。", "黃河": "黃河全長約5464公里。", "rome": "Rome fell in 476."}
QUERIES = [
    {"_id": "q1", "text": "长城东起哪里？", "answers": ["山海关"], "answerable": True},
    {"_id": "q2", "text": "黄河多长？", "answers": ["５４６４公里"], "answerable": True},
    {"_id": "q3", "text": "泰山多高？", "answers": ["1545米"], "answerable": False},
]
QRELS = "query-id\tcorpus-id\tscore\nq1\t长城\t1\nq2\t黃河\t2\nq2\trome\t0\n"


def write_lines(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "mini"
    folder.mkdir()
    entries = [{"_id": id, "title": "", "text": text} for id, text in CORPUS.items()]
    write_lines(folder / "corpus.jsonl", entries)
    write_lines(folder / "queries.jsonl", QUERIES)
    (folder / "qrels.tsv").write_text(QRELS)
    return folder


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    (tmp_path / "law" / "docs").mkdir(parents=True)
    (tmp_path / "law" / "docs" / "法.txt").write_text("第一条 甲。\n第二条 乙\n丙。\n第三条 丁。")
    gold = [{"document": "法.txt", "quote": "第二条乙丙"}]
    questions = [
        {"id": "1", "question": "第二条？", "answers": ["乙丙"], "gold": gold, "language": "zh"},
        {"id": "2", "question": "第九条？", "answers": [], "answerable": False, "gold": []},
    ]
    write_lines(tmp_path / "law" / "questions.jsonl", questions)
    return tmp_path / "law"


def answering(**predictions: Prediction) -> Callable[[str], Prediction]:
    """A `predict` that knows the fixture's questions by id."""
    ids = {query["text"]: query["_id"] for query in QUERIES}
    return lambda question: predictions[ids[question]]


def predict(*sources: str, sentences: tuple[str, ...] = (), confidence: float = 0.5) -> Prediction:
    return Prediction(
        ranked=[SourceSpan(source, 0, 5) for source in sources],
        sentences=sentences,
        passage=CORPUS[sources[0]],
        citations=[SourceSpan(sources[0], 0, 3, CORPUS[sources[0]][:3])],
        confidence=confidence,
        refused=confidence < 0.5,
    )


GOOD = {
    "q1": predict("长城", "长城", "rome", sentences=("长城东起山海关。",), confidence=0.9),
    "q2": predict("rome", "黃河", sentences=("", "黃河全長約 5464 公里"), confidence=0.6),
    "q3": predict("rome", confidence=0.2),
}


def test_beir_folder_is_read(beir: Path) -> None:
    dataset = Dataset.load(beir)
    assert dataset.name == "mini"
    assert {entry.id: entry.text for entry in dataset.entries} == CORPUS
    assert [question.answerable for question in dataset.questions] == [True, True, False]
    assert dataset.questions[1].grades == {"黃河": 2, "rome": 0}


def test_original_beir_layout_drops_queries_of_other_splits(beir: Path) -> None:
    (beir / "qrels").mkdir()
    (beir / "qrels.tsv").rename(beir / "qrels" / "test.tsv")
    bare = [{"_id": query["_id"], "text": query["text"]} for query in QUERIES]
    write_lines(beir / "queries.jsonl", bare)
    assert [question.id for question in Dataset.load(beir).questions] == ["q1", "q2"]


def test_sample_is_seeded_and_keeps_order(beir: Path) -> None:
    dataset = Dataset.load(beir)
    assert dataset.sample(99) == dataset
    drawn = dataset.sample(2, seed=3)
    assert drawn == dataset.sample(2, seed=3)
    assert len(drawn.questions) == 2
    assert all(a.id < b.id for a, b in pairwise(drawn.questions))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("corpus.jsonl", b'{"_id": "a", "text": "x"}\n{"_id": ', "corpus.jsonl:2: not JSON"),
        ("corpus.jsonl", b"[1]\n", "corpus.jsonl:1: a list"),
        ("corpus.jsonl", b'{"_id": "a"}\n', "corpus.jsonl:1: no field 'text'"),
        ("corpus.jsonl", b'{"_id": 7, "text": "x"}\n', "corpus.jsonl:1: _id is 7"),
        ("corpus.jsonl", b'\n{"_id": "\xb0\xa1"}\n', "corpus.jsonl:2: not UTF-8"),
        ("queries.jsonl", b'{"_id": "q1", "text": "x"}\n' * 2, "queries.jsonl:2: id 'q1' was used"),
        ("queries.jsonl", b'{"_id": "q1", "text": "x"}\n', "qrels.tsv:3: query 'q2' is not in"),
        ("qrels.tsv", b"q1\tnowhere\t1\n", "qrels.tsv:1: entry 'nowhere' is not in"),
        ("qrels.tsv", b"q1\trome\n", "qrels.tsv:1: 2 columns"),
        ("qrels.tsv", b"q1\trome\thigh\n", "qrels.tsv:1: score 'high'"),
        ("qrels.tsv", b"q1\trome\t1\n", "queries.jsonl:2: query q2 has answerable: true, but"),
        ("qrels.tsv", b"q3\trome\t1\nq1\trome\t1\nq2\trome\t1\n", "queries.jsonl:3: query q3"),
    ],
)
def test_a_wrong_line_is_named(beir: Path, file: str, content: bytes, message: str) -> None:
    (beir / file).write_bytes(content)
    with pytest.raises(UserError) as caught:
        Dataset.load(beir)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) + translate(caught.value.message, "zh")
    assert str(caught.value) != translate(caught.value.message, "zh")


@pytest.mark.parametrize("file", ["corpus.jsonl", "queries.jsonl", "qrels.tsv"])
def test_a_missing_file_is_named(beir: Path, file: str) -> None:
    (beir / file).unlink()
    with pytest.raises(UserError, match=file):
        Dataset.load(beir)


def test_our_folder_is_read_and_checked(ours: Path) -> None:
    dataset = Dataset.load(ours)
    assert dataset.docs == ours / "docs"
    assert dataset.questions[0].gold[0].quote == "第二条乙丙"
    (ours / "docs" / "法.txt").unlink()
    with pytest.raises(UserError, match=r"questions.jsonl:1: gold names '法.txt'"):
        Dataset.load(ours)


def test_figures_of_a_known_run(beir: Path) -> None:
    figures = evaluate(Dataset.load(beir), answering(**GOOD), CORPUS.__getitem__).figures()
    values = {name: figure.value for name, figure in figures.items()}
    assert values["recall@1"] == 0.5
    assert values["recall@5"] == 1.0
    assert values["mrr@10"] == 0.75
    assert values["answer_in_sentence"] == 0.5
    assert values["answer_in_two"] == 1.0  # full-width digits fold
    assert values["answer_in_passage"] == 0.5
    assert values["auroc"] == 1.0
    assert values["false_answers_at_5"] == 0.0
    assert values["false_refusals"] == values["false_answers"] == 0.0
    assert values["right"] == 1.0
    assert values["citations"] == 1.0
    assert all(figure.low <= figure.value <= figure.high for figure in figures.values())
    assert figures["recall@1"].questions == 2
    assert figures["auroc"].questions == 3


def test_spans_are_compared_with_the_answers(beir: Path) -> None:
    spans = {"q1": "山海关", "q2": "约5464公里", "q3": "1545米"}
    ask = answering(**{id: Prediction([], span=span) for id, span in spans.items()})
    figures = evaluate(Dataset.load(beir), ask, CORPUS.__getitem__).figures()
    assert figures["exact"].value == 0.5
    assert figures["f1"].value == pytest.approx((1 + 6 / 7) / 2)  # 5464, 公, 里 of 约, 5464, 公, 里
    assert figures["exact"].questions == 2


def test_traditional_answers_are_not_simplified_ones(beir: Path) -> None:
    simplified = predict("黃河", sentences=("黄河全长约5464公里",))
    row = {"_id": "q2", "text": "黄河多长？", "answers": ["全長約5464公里"], "answerable": True}
    write_lines(beir / "queries.jsonl", [QUERIES[0], row, QUERIES[2]])
    report = evaluate(Dataset.load(beir), answering(**GOOD | {"q2": simplified}), CORPUS.__getitem__)
    assert report.rows[1].scores["answer_in_two"] == 0.0


def test_an_inexact_citation_counts_against(beir: Path) -> None:
    shifted = Prediction(
        ranked=[], citations=[SourceSpan("rome", 1, 4, "Rom"), SourceSpan("rome", 0, 4, "Rome")]
    )
    report = evaluate(Dataset.load(beir), lambda _: shifted, CORPUS.__getitem__)
    assert report.figures()["citations"].value == 0.5
    assert "auroc" not in report.figures()  # not asked for, so not judged


def test_gold_quotes_are_found_across_line_breaks(ours: Path) -> None:
    text = (ours / "docs" / "法.txt").read_text()
    third, second = text.index("第三条"), text.index("第二条")

    def ask(_: str) -> Prediction:
        spans = [(third, len(text)), (second, second + 5), (second, third), (0, second)]
        return Prediction(ranked=[SourceSpan("some/where/法.txt", start, end) for start, end in spans])

    scores = evaluate(Dataset.load(ours), ask, {"some/where/法.txt": text}.__getitem__).rows[0].scores
    assert scores["recall@1"] == 0.0
    assert scores["mrr@10"] == 0.5
    assert scores["recall@5"] == 1.0


def test_a_quote_that_the_text_lacks_makes_the_document_gold(ours: Path) -> None:
    def ask(_: str) -> Prediction:
        return Prediction(ranked=[SourceSpan("另.txt", 0, 2), SourceSpan("法.txt", 0, 2)])

    texts = {"另.txt": "第二条乙丙", "法.txt": "識別不出"}
    report = evaluate(Dataset.load(ours), ask, texts.__getitem__)
    assert report.rows[0].scores["mrr@10"] == 0.5


def test_reports_survive_a_file(beir: Path, tmp_path: Path) -> None:
    report = evaluate(
        Dataset.load(beir), answering(**GOOD), CORPUS.__getitem__, settings={"name": "混合", "k": 8}
    )
    report.save(tmp_path / "report.json")
    loaded = EvalReport.load(tmp_path / "report.json")
    assert loaded == report
    assert loaded.figures() == report.figures()
    assert all(value.p == 1.0 and value.difference == 0 for value in compare(report, loaded).values())
    (tmp_path / "report.json").write_text('{"rows": 1}')
    with pytest.raises(UserError, match="not a saved report"):
        EvalReport.load(tmp_path / "report.json")
    with pytest.raises(UserError, match="cannot read the report"):
        EvalReport.load(tmp_path / "nowhere.json")


def test_different_questions_are_not_compared(beir: Path) -> None:
    dataset = Dataset.load(beir)
    whole = evaluate(dataset, answering(**GOOD), CORPUS.__getitem__)
    part = evaluate(dataset.sample(2), answering(**GOOD), CORPUS.__getitem__)
    with pytest.raises(UserError, match=r"mini \(3 questions\) with mini \(2; only one has"):
        compare(whole, part)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_picture_is_drawn_whatever_the_names(beir: Path, tmp_path: Path, suffix: str) -> None:
    figures = evaluate(Dataset.load(beir), answering(**GOOD), CORPUS.__getitem__).figures()
    draw({"words": figures, "混合检索": figures}, tmp_path / f"bars.{suffix}")
    assert (tmp_path / f"bars.{suffix}").stat().st_size > 1000
    with pytest.raises(UserError, match=r"ends in \.png or \.svg"):
        draw({"words": figures}, tmp_path / "bars.gif")


def test_names_that_no_font_draws_are_numbered(beir: Path, tmp_path: Path) -> None:
    figures = evaluate(Dataset.load(beir), answering(**GOOD), CORPUS.__getitem__).figures()
    for name in ("configuration 2", "\U000f0000"):
        draw({"words": figures, name: figures}, tmp_path / f"{name}.png")
    same = (tmp_path / "configuration 2.png").read_bytes()
    assert (tmp_path / "\U000f0000.png").read_bytes() == same


ROOT = Path(__file__).parents[3]
SETS = [
    ROOT / "tests" / "data" / "eval-mini",
    *sorted(path.parent for path in (ROOT / "corpora").glob("*/questions.jsonl")),
    *sorted((ROOT.parent / "shared" / "eval").glob("*/")),
]


@pytest.mark.parametrize("folder", SETS, ids=lambda folder: folder.name)
def test_our_and_the_shared_sets_load(folder: Path) -> None:
    dataset = Dataset.load(folder)
    assert all(question.answers for question in dataset.questions if question.answerable)
    assert not all(question.answerable for question in dataset.questions)
