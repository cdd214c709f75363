"""The store as its callers see it: add, change, remove, search, read."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ingest.errors import Busy, Mismatch, UserError
from ingest.store import Identity, LocalStore, open_store
from tests.ingest.store.made import DIM, EMBEDDER, made_document, made_vectors, put


@pytest.fixture
def store(tmp_path: Path):
    with open_store(tmp_path / "kb", create=EMBEDDER) as opened:
        yield opened


def test_a_document_comes_back_as_it_went_in(store: LocalStore) -> None:
    texts = ["第一条 为了完善劳动合同制度。", "Second paragraph\0with NUL.", "𠮷野家"]
    document, passages, chunks = made_document("a.txt", texts, context="标题 › 表头")
    vectors = made_vectors(chunks)
    with store.change() as change:
        change.put(document)
        change.add(document, passages[:1], chunks[:1], vectors[:1])
        change.add(document, passages[1:], chunks[1:], vectors[1:])
    ranking = store.search_dense(vectors[0], 10)
    assert list(store.chunks([3, 1, 99, 2])) == [3, 1, 2]
    assert list(store.chunks(range(1, 10)).values()) == chunks
    assert store.passages(chunks) == [
        p for p in passages for c in chunks if c.passage[0] == p.start
    ]
    assert store.document("a.txt") == document
    assert list(store.documents()) == [document]
    assert store.document("b.txt") is None
    assert ranking.keys[0] == 1
    np.testing.assert_allclose(store.vectors([2, 99, 1])[[0, 2]], vectors[[1, 0]], atol=1e-3)
    assert not store.vectors([99]).any()
    info = store.info()
    assert (info.documents, info.passages, info.chunks, info.sequence) == (1, 3, len(chunks), 1)
    assert store.verify() == []


def test_any_span_of_the_text_can_be_read(store: LocalStore) -> None:
    chunks = put(store, "a.txt", ["一二三四五", "六七", "八九十甲乙丙"])
    whole = "一二三四五六七八九十甲乙丙"
    for start in range(len(whole) + 2):
        for end in [*range(start, len(whole) + 2), None]:
            assert store.text(chunks[0].document, start, end) == whole[start:end]
    with pytest.raises(KeyError):
        store.text("gone")


def test_words_are_found_in_either_script(store: LocalStore) -> None:
    put(store, "a.txt", ["勞動合同法第三十九條的規定", "完全无关的一句闲话"])
    put(store, "b.txt", ["The weather is fine today, said nobody"])
    for query in ("劳动合同", "勞動合同", "第三十九条的"):
        for field in ("words", "bigrams"):
            ranking = store.search_words(query, 5, field=field)
            assert ranking.keys[0] == 1 or ranking.keys[0] == 2
            assert (ranking.scores > 0).all()
    assert store.search_words("WEATHER", 5).keys.tolist() == [5]
    for nothing in ("", "，。", "xyzzy", "\0"):
        assert len(store.search_words(nothing, 5).keys) == 0
    assert store.doc_freq(["weather", "xyzzy"]) == [1, 0]


def test_replacing_a_document_keeps_only_the_new_text(store: LocalStore) -> None:
    put(store, "a.txt", ["the old sentence here"])
    put(store, "a.txt", ["a fresh sentence here"])
    assert len(store.search_words("old", 5).keys) == 0
    assert len(store.search_words("fresh", 5).keys) == 1
    assert store.info().documents == 1
    assert store.verify() == []


def test_vectors_of_known_texts_are_found_by_digest(store: LocalStore) -> None:
    chunks = put(store, "a.txt", ["some text to know", "more of the same kind"])
    known = store.known_vectors([chunk.digest for chunk in chunks] + [b"x" * 16])
    assert set(known) == {chunk.digest for chunk in chunks}
    np.testing.assert_allclose(
        [known[chunk.digest] for chunk in chunks], made_vectors(chunks), atol=1e-3
    )


def test_a_failed_change_leaves_no_trace(store: LocalStore) -> None:
    put(store, "a.txt", ["the first sentence"])
    before = store.info(), store.search_words("sentence", 5).keys.tolist()
    document, passages, chunks = made_document("b.txt", ["another sentence"])

    def fail() -> None:
        with store.change() as change:
            change.remove("a.txt")
            change.put(document)
            change.add(document, passages, chunks, made_vectors(chunks))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    after = store.info(), store.search_words("sentence", 5).keys.tolist()
    assert before[0].sequence == after[0].sequence
    assert before[1] == after[1]
    assert store.verify() == []


def test_what_does_not_fit_is_refused(store: LocalStore) -> None:
    document, passages, chunks = made_document("a.txt", ["some text", "and more"])
    vectors = made_vectors(chunks)

    def add(*batch: object, first: bool = True) -> None:
        with store.change() as change:
            if first:
                change.put(document)
            change.add(document, *batch)

    for message, batch in {
        "doesn't go on at 0": (passages[1:], chunks[2:], vectors[2:]),
        r"not \(3, 16\)": (passages, chunks, vectors[:-1]),
        r"not \(4, 15\)": (passages, chunks, vectors[:, :-1]),
        "not finite": (passages, chunks, vectors * np.nan),
        "lies in no passage": (passages[:1], chunks, vectors),
        "not what its passage holds": (passages, [replace(chunks[0], text="x")], vectors[:1]),
    }.items():
        with pytest.raises(ValueError, match=message):
            add(*batch)
    with pytest.raises(ValueError, match="before it is put"):
        add(passages, chunks, vectors, first=False)
    assert store.info().documents == 0


def test_a_reader_sees_what_another_store_has_written(store: LocalStore) -> None:
    with open_store(store.path, expect=EMBEDDER) as reader:
        assert len(reader.search_words("sentence", 5).keys) == 0
        chunks = put(store, "a.txt", ["the first sentence"])
        assert reader.search_dense(made_vectors(chunks)[0], 1).keys.tolist() == [1]
        assert len(reader.search_words("sentence", 5).keys) == 1
        store.rebuild()
        put(store, "b.txt", ["one more sentence"])
        assert len(reader.search_words("sentence", 5).keys) == 2


def test_values_are_kept_beside_the_documents(store: LocalStore) -> None:
    assert store.get_meta("calibration") is None
    with store.change() as change:
        change.set_meta("calibration", {"简": [1, 2.5, None]})
    assert store.get_meta("calibration") == {"简": [1, 2.5, None]}


def test_another_embedder_is_refused_with_both_names(store: LocalStore) -> None:
    other = Identity("other", 8)
    for options in ({"expect": other}, {"create": other}):
        with pytest.raises(Mismatch, match=r"made-up \(16-d\).*other \(8-d\).*ingest again.*--kb"):
            open_store(store.path, **options)
    with pytest.raises(Mismatch, match="prefix"):
        open_store(store.path, expect=Identity("made-up", DIM))


def test_no_knowledge_base_is_said_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rag ingest"):
        open_store(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_second_writer_waits_and_is_then_told_who_writes(store: LocalStore) -> None:
    with (
        open_store(store.path) as other,
        store.change(reason="adding contracts"),
        pytest.raises(Busy, match=r"process \d+ \(adding contracts\)"),
        other.change(timeout=0.05),
    ):
        raise AssertionError("two writers at once")


def test_a_second_writer_gets_its_turn(store: LocalStore) -> None:
    with open_store(store.path) as other:
        threads = [
            threading.Thread(target=put, args=(writer, f"{name}.txt", [f"text of {name}"]))
            for name, writer in (("a", store), ("b", other), ("c", store), ("d", other))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [document.source for document in other.documents()] == [f"{n}.txt" for n in "abcd"]
        assert store.verify() == other.verify() == []
