"""Which documents are in a scope."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import UserError
from ingest.store import Store, open_store
from ingest.types import Document, DocumentPart, Fact, ParseReport, Passage
from rag.scope import Scope, period_of
from tests.ingest.store.factories import EMBEDDER, new_vectors

FILES = {
    "/data/合同/2024/甲公司.pdf": "采购合同",
    "/data/合同/2023-11/乙公司.docx": "采购合同",
    "/data/notes/[1] a.md": "日期：二〇二二年五月十二日",
    "/data/notes/plain.txt": "nothing",
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "kb", create=EMBEDDER) as store, store.change() as change:
        for source, text in FILES.items():
            facts = (Fact("date", 0, len(text)),) if "日期" in text else ()
            document = Document(source, "t", source, ParseReport(source.rpartition(".")[2], facts=facts))
            change.put(document)
            passage = Passage(document.id, 0, len(text), text, "")
            change.add(DocumentPart(document, [passage], [], new_vectors([])))
    with open_store(tmp_path / "kb") as store:
        yield store


def names(store: Store, **fields: object) -> set[str]:
    within = Scope(**fields).within(store)  # type: ignore[arg-type] - as the tests call it
    return {each.source.rpartition("/")[2] for each in store.documents() if each.id in within}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"places": ("合同",)}, {"甲公司.pdf", "乙公司.docx"}),
        ({"places": ("合同/2024/*",)}, {"甲公司.pdf"}),
        ({"places": ("合同/2024/",)}, {"甲公司.pdf"}),
        ({"places": ("/data/notes",)}, {"[1] a.md", "plain.txt"}),
        ({"places": ("[[]1[]] a.md",)}, {"[1] a.md"}),
        ({"places": ("*.pdf", "notes/p*")}, {"甲公司.pdf", "plain.txt"}),
        ({"formats": (".PDF", "md")}, {"甲公司.pdf", "[1] a.md"}),
        ({"places": ("合同",), "formats": ("docx",)}, {"乙公司.docx"}),
        ({"since": "2023-12"}, {"甲公司.pdf"}),
        ({"until": "2022-05-12"}, {"[1] a.md"}),
        ({"since": "2022-05-13", "until": "2023"}, {"乙公司.docx"}),
        ({"since": "2024-06-01"}, {"甲公司.pdf"}),
    ],
)
def test_documents_meet_every_field(store: Store, fields: dict, expected: set[str]) -> None:
    assert names(store, **fields) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"places": ("甲公司",)}, "no document is in 甲公司; there are, for example, 甲公司.pdf"),
        ({"places": ("",)}, "no document is in ; there are"),
        ({"places": ("/",)}, "no document is in /; there are"),
        ({"places": ("./",)}, "no document is in ./; there are"),
        ({"places": ("合同", "x/y.pdf")}, "no document is in x/y.pdf"),
        ({"formats": ("xlsx",)}, "no document there is of the format xlsx; the knowledge base has docx, md"),
        ({"since": "2025"}, "no document has a date in 2025–; 3 of 4 have one at all"),
        ({"since": "2024-13"}, "'2024-13' is no date; write 2024, 2024-05 or 2024-05-31"),
        ({"until": "yesterday"}, "'yesterday' is no date"),
        ({"since": "2024", "until": "2023-12-31"}, "no day is since 2024 and until 2023-12-31"),
    ],
)
def test_an_empty_scope_says_what_there_is(store: Store, fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        names(store, **fields)


@given(st.dates())
def test_a_day_is_in_its_month_and_year_alone(day) -> None:
    text = day.isoformat()
    for length in (4, 7, 10):
        Scope(since=text[:length], until=text)
        Scope(since=text, until=text[:length])


def test_a_date_in_the_text_precedes_one_in_the_path(store: Store) -> None:
    periods = {each.source.rpartition("/")[2]: period_of(each, store) for each in store.documents()}
    assert periods == {
        "甲公司.pdf": ("2024-01-01", "2024-12-31"),
        "乙公司.docx": ("2023-11-01", "2023-11-31"),
        "[1] a.md": ("2022-05-12", "2022-05-12"),
        "plain.txt": None,
    }
