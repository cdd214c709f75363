"""The corpora keep their promises: formats, counts, and answers that stand in the documents."""

import json
import unicodedata
from collections import Counter
from difflib import SequenceMatcher
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ingest.sandbox import Sandbox

ROOT = Path(__file__).parents[1]
CORPORA = sorted(path.parent for path in (ROOT / "corpora").glob("*/questions.jsonl"))
MINI = Path(__file__).parent / "data" / "eval-mini"
FIELDS = {"id", "question", "answers", "answerable", "gold", "language", "kind"}
KINDS = {"number", "name", "date", "place", "definition", "list", "procedure", "yes_no"}
TRADITIONAL = set(
    "書華國處與還個會來對說時過這無電話費後關點開資訊務員產業長門號證間樣麼連線執實覺爾記憶擇變動"
)

each_corpus = pytest.mark.parametrize("corpus", CORPORA, ids=lambda path: path.name)


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def normal(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def count(questions: list[dict], **wanted: object) -> int:
    return sum(all(question[key] == value for key, value in wanted.items()) for question in questions)


def quotes_by_document(corpus: Path) -> dict[str, list[str]]:
    quotes: dict[str, list[str]] = {}
    for question in records(corpus / "questions.jsonl"):
        for gold in question["gold"]:
            quotes.setdefault(gold["document"], []).append(gold["quote"])
    return quotes


def decoded(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("gb18030")


def html_text(path: Path) -> str:
    pieces: list[str] = []
    parser = HTMLParser()
    parser.handle_data = pieces.append
    parser.feed(decoded(path))
    parser.close()
    return "".join(pieces)


WITNESSES = {".md": decoded, ".txt": decoded, ".csv": decoded, ".html": html_text}


def test_there_are_at_least_two_corpora_and_they_are_small():
    assert {"laws", "rust-book"} <= {corpus.name for corpus in CORPORA}
    files = [path for path in (ROOT / "corpora").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 3_000_000


@each_corpus
def test_a_corpus_says_where_it_comes_from(corpus: Path):
    questions = records(corpus / "questions.jsonl")
    readme = (corpus / "README.md").read_text("utf-8")
    unanswerable = count(questions, answerable=False)
    counts = f"{len(questions) - unanswerable} answerable, {unanswerable} not"
    assert f"{len(questions)} questions: {counts}" in readme
    assert (corpus / "LICENSE").stat().st_size
    for path in (corpus / "docs").iterdir():
        assert f"`{path.name}`" in readme
    assert len({path.suffix for path in (corpus / "docs").iterdir()}) >= 6


@each_corpus
def test_questions_are_many_and_mixed_and_refusals_can_be_told(corpus: Path):
    questions = records(corpus / "questions.jsonl")
    for answerable in (True, False):  # one question is at most one in a hundred of either rate
        assert count(questions, answerable=answerable) >= 100
    assert count(questions, language="en") >= 6
    assert sum(bool(TRADITIONAL & set(question["question"])) for question in questions) >= 5
    kinds = Counter(question["kind"] for question in questions)
    assert set(kinds) <= KINDS
    assert len(kinds) >= 6


@each_corpus
def test_every_question_has_the_fields(corpus: Path):
    questions = records(corpus / "questions.jsonl")
    assert len({question["id"] for question in questions}) == len(questions)
    assert len({normal(question["question"]) for question in questions}) == len(questions)
    for question in questions:
        assert set(question) == FIELDS
        assert question["language"] == ("en" if question["question"].isascii() else "zh")
        assert bool(question["answers"]) == bool(question["gold"]) == question["answerable"]
        assert all(answer.strip() for answer in question["answers"])


@each_corpus
def test_answers_stand_in_their_quotes(corpus: Path):
    for question in records(corpus / "questions.jsonl"):
        quotes = [normal(gold["quote"]) for gold in question["gold"]]
        for answer in question["answers"]:
            assert any(normal(answer) in quote for quote in quotes), (question["id"], answer)


@each_corpus
def test_quotes_stand_in_their_documents(corpus: Path):
    """As parsed, and where a few lines can read a format, as read without the parser too.

    In a process of its own, as ingestion parses: in this one a ChatGLM may have taken ONNX
    Runtime's threads, and RapidOCR wants some to itself.
    """
    with Sandbox() as parser:
        for name, quotes in quotes_by_document(corpus).items():
            path = corpus / "docs" / name
            texts = ["".join(segment.text for segment in parser.parse(path).segments)]
            if path.suffix in WITNESSES:
                texts.append(WITNESSES[path.suffix](path))
            for text in map(normal, texts):
                assert [quote for quote in quotes if normal(quote) not in text] == []


@each_corpus
def test_every_document_is_asked_about(corpus: Path):
    assert set(quotes_by_document(corpus)) == {path.name for path in (corpus / "docs").iterdir()}


@each_corpus
def test_a_question_does_not_copy_its_quote(corpus: Path):
    for question in records(corpus / "questions.jsonl"):
        asked = normal(question["question"])
        for gold in question["gold"]:
            match = SequenceMatcher(None, asked, normal(gold["quote"]), False).find_longest_match()
            assert match.size <= max(14, 0.7 * len(asked)), (question["id"], match.size)


def test_eval_mini_is_a_valid_evaluation_set():
    passages = {record["_id"]: record for record in records(MINI / "corpus.jsonl")}
    queries = {record["_id"]: record for record in records(MINI / "queries.jsonl")}
    header, *lines = (MINI / "qrels.tsv").read_text("utf-8").splitlines()
    pairs = [tuple(line.split("\t")) for line in lines]
    assert header == "query-id\tcorpus-id\tscore"
    assert (len(passages), len(queries)) == (40, 30)
    assert len({normal(passage["text"]) for passage in passages.values()}) == 40
    assert {query for query, _, _ in pairs} == {i for i, query in queries.items() if query["answerable"]}
    assert sum(not query["answerable"] for query in queries.values()) == 6
    for query, passage, score in pairs:
        assert score == "1"
        text = normal(passages[passage]["text"])
        assert any(normal(answer) in text for answer in queries[query]["answers"])
