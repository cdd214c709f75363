"""What callers rely on of any store: add, change, remove, search, read."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.errors import Mismatch, UserError
from ingest.normalize import FIELDS, terms
from ingest.store import Identity, MilvusAddress, Store, open_store
from ingest.types import Chunk, DocumentPart
from rag.retrieve import idf
from tests.ingest.store.conftest import Location
from tests.ingest.store.factories import DIM, EMBEDDER, TEXTS, new_document, new_vectors, put

WORDS = ["劳动合同的期限", "the quick brown fox", "合同期限與報酬", "fox 与 合同", "又一句话"]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["a.txt", "b.txt", "c.txt"]),
        st.lists(st.sampled_from(WORDS), max_size=3),
        st.booleans(),
    ),
    min_size=1,
    max_size=5,
)
QUERIES = ["合同", "fox", "報酬 期限"]


@pytest.fixture
def place(places: Callable[[], Location]) -> Location:
    return places()


@pytest.fixture
def store(place: Location) -> Iterator[Store]:
    with open_store(place, create=EMBEDDER) as opened:
        yield opened


def by_words(store: Store, query: str, field: str = "words", k: int = 100) -> list[Chunk]:
    ranking = store.search_words(terms(query), k, field=field)  # type: ignore[arg-type] - both fields
    assert (ranking.scores > 0).all()
    assert (np.diff(ranking.scores) <= 0).all()
    return list(store.chunks(ranking.keys).values())


def scored(store: Store, query: str, field: str) -> dict[str, float]:
    ranking = store.search_words(terms(query), 100, field=field)  # type: ignore[arg-type] - both fields
    chunks = store.chunks(ranking.keys).values()
    return {c.id: round(float(s), 4) for c, s in zip(chunks, ranking.scores, strict=True)}


def by_vector(store: Store, vector: np.ndarray, k: int = 100) -> list[tuple[str, float]]:
    ranking = store.search_dense(vector, k)
    chunks = store.chunks(ranking.keys).values()
    return sorted((c.id, round(float(s), 2)) for c, s in zip(chunks, ranking.scores, strict=True))


def expected(chunks: list[Chunk], vector: np.ndarray) -> list[tuple[str, float]]:
    scores = new_vectors(chunks).astype(np.float16).astype(np.float32) @ vector
    return sorted((c.id, round(float(s), 2)) for c, s in zip(chunks, scores, strict=True) if s > 0)


def test_a_document_comes_back_as_it_went_in(store: Store) -> None:
    texts = ["第一条 为了完善劳动合同制度。", "Second paragraph\0with NUL.", "𠮷野家"]
    document, passages, chunks = new_document("a.txt", texts, context="标题 › 表头")
    vectors = new_vectors(chunks)
    with store.change() as change:
        change.put(document)
        change.add(DocumentPart(document, passages[:1], chunks[:1], vectors[:1]))
        change.add(DocumentPart(document, passages[1:], chunks[1:], vectors[1:]))
    ranking = store.search_dense(vectors[0], 10)
    best = int(ranking.keys[0])
    assert store.chunks([best, best + 12345]) == {best: chunks[0]}
    keys = store.sample(100).tolist()
    assert sorted(store.chunks(keys).values(), key=lambda c: c.start) == chunks
    assert list(store.chunks(keys[::-1])) == keys[::-1]
    assert store.passages(chunks) == [p for c in chunks for p in passages if c.passage[0] == p.start]
    assert [store.chunks_within(passage) for passage in passages] == [
        [c for c in chunks if c.passage[0] == p.start] for p in passages
    ]
    assert store.document("a.txt") == store.by_id(document.id) == document
    assert list(store.documents()) == [document]
    assert store.document("b.txt") is None
    assert store.by_id("b") is store.by_id('" or 1 == 1') is None
    read = store.vectors([best, best + 12345])
    np.testing.assert_allclose(read[0], vectors[0], atol=1e-3)
    assert not read[1].any()
    info = store.info()
    assert (info.documents, info.passages, info.chunks) == (1, 3, len(chunks))
    assert info.sequence == store.sequence
    assert store.verify() == []


def test_any_span_of_the_text_can_be_read(store: Store) -> None:
    chunks = put(store, "a.txt", ["一二三四五", "六七", "八九十甲乙丙"])
    whole = "一二三四五六七八九十甲乙丙"
    assert store.length(chunks[0].document) == len(whole)
    for start in range(len(whole) + 2):
        for end in [*range(start, len(whole) + 2), None]:
            assert store.text(chunks[0].document, start, end) == whole[start:end]
    for gone in ("gone", '" or 1 == 1'):
        with pytest.raises(KeyError):
            store.text(gone)


def test_text_of_any_length_is_kept(store: Store) -> None:
    long = "𠮷 " * 50_000
    chunks = put(store, "a.txt", [long])
    assert store.text(chunks[0].document) == long
    assert store.chunks_within(store.passages(chunks[:1])[0]) == chunks


def test_words_are_found_in_either_script(store: Store) -> None:
    law = put(store, "a.txt", ["勞動合同法第三十九條的規定", "完全无关的一句闲话"])[:2]
    weather = put(store, "b.txt", ["The weather is fine today, said nobody"])
    for query in ("劳动合同", "勞動合同", "第三十九条的"):
        for field in ("words", "bigrams"):
            assert by_words(store, query, field)[0] in law
    assert by_words(store, "WEATHER") == weather[:1]
    for nothing in ("", "，。", "xyzzy", "\0"):
        assert by_words(store, nothing) == []
        assert by_words(store, nothing, "bigrams") == []
    assert store.doc_freq(["weather", "xyzzy"]) == [1, 0]
    assert store.doc_freq([]) == []


def test_a_search_within_documents_is_that_of_a_store_with_only_these(places: Callable[[], Location]) -> None:
    """As exact as a search without the others: not the best of all, of which few are in scope."""
    texts = {f"{name}.txt": [f"{name} contract number {n} of many" for n in range(30)] for name in "abcd"}
    with open_store(places(), create=EMBEDDER) as store, open_store(places(), create=EMBEDDER) as only:
        chunks = {source: put(store, source, text) for source, text in texts.items()}
        for source in ("b.txt", "d.txt"):
            put(only, source, texts[source])
        wanted = (chunks["b.txt"][0].document, chunks["d.txt"][0].document)
        for vector in new_vectors([group[3] for group in chunks.values()]):
            expected, found = only.search_dense(vector, 9), store.search_dense(vector, 9, within=wanted)
            assert found.scores.tolist() == pytest.approx(expected.scores.tolist())
            assert {c.document for c in store.chunks(found.keys).values()} <= set(wanted)
        for field in FIELDS:
            found = store.search_words(terms("contract many b d"), 100, field=field, within=wanted)
            assert {c.document for c in store.chunks(found.keys).values()} == set(wanted)
            assert (np.diff(found.scores) <= 0).all()
            assert len(found.keys) == len(
                only.search_words(terms("contract many b d"), 100, field=field).keys
            )
        for none in ((), ("gone",)):
            assert not len(store.search_dense(vector, 9, within=none).keys)
            assert not len(store.search_words(terms("contract"), 9, within=none).keys)


def test_document_frequencies_are_estimated(store: Store) -> None:
    """Milvus tells only what its scores show, and milvus-lite weighs each of its segments by itself."""
    put(store, "a.txt", [f"合同第{number}条 {'期限' if number % 4 else '报酬'}" for number in range(60)])
    put(store, "b.txt", ["租赁 agreement"])
    terms = {"words": ["合同", "期限", "报酬", "租赁", "none"], "bigrams": ["合同", "期限", "报酬"]}
    counts = {"words": [60, 45, 15, 1, 0], "bigrams": [60, 45, 15]}
    for field, words in terms.items():
        estimates = store.doc_freq(words, field=field)  # type: ignore[arg-type] - both fields
        np.testing.assert_allclose(
            idf(estimates, store.count()), idf(counts[field], store.count()), rtol=0.25, atol=0.35
        )


def test_replacing_a_document_keeps_only_the_new_text(store: Store) -> None:
    old = put(store, "a.txt", ["the old sentence here"])
    before = store.sequence
    put(store, "a.txt", ["a fresh sentence here"])
    assert store.sequence > before
    assert by_words(store, "old") == []
    assert len(by_words(store, "fresh")) == 1
    assert store.info().documents == 1
    assert store.count() == 2
    with pytest.raises(KeyError):
        store.passages(old)
    assert store.verify() == []


def test_the_same_document_again_changes_nothing(store: Store) -> None:
    first = put(store, "a.txt", ["the very same sentence"])
    assert put(store, "a.txt", ["the very same sentence"]) == first
    assert store.count() == len(first)
    assert set(by_words(store, "sentence")) <= set(first)
    assert store.verify() == []


def test_a_document_put_twice_in_a_change_is_the_last_one(store: Store) -> None:
    with store.change() as change:
        for texts in (["an early draft"], ["the final text"]):
            document, passages, chunks = new_document("a.txt", texts)
            change.put(document)
            change.add(DocumentPart(document, passages, chunks, new_vectors(chunks)))
        assert not change.remove("b.txt")
    assert by_words(store, "draft") == []
    assert store.text(document.id) == "the final text"
    assert store.count() == len(chunks)
    with store.change() as change:
        assert change.remove("a.txt")
        assert not change.remove("a.txt")
    assert store.info().documents == store.count() == 0
    assert store.verify() == []


def test_vectors_of_known_texts_are_found_by_digest(store: Store) -> None:
    chunks = put(store, "a.txt", ["some text to know", "more of the same kind"])
    known = store.known_vectors([chunk.digest for chunk in chunks] + [b"x" * 16])
    assert set(known) == {chunk.digest for chunk in chunks}
    halves = new_vectors(chunks).astype(np.float16).astype(np.float32)
    assert np.array_equal([known[chunk.digest] for chunk in chunks], halves)


def test_a_failed_change_leaves_no_trace(store: Store) -> None:
    put(store, "a.txt", ["the first sentence"])
    before = store.info(), by_words(store, "sentence")
    document, passages, chunks = new_document("b.txt", ["another sentence"])

    def fail() -> None:
        with store.change() as change:
            change.remove("a.txt")
            change.put(document)
            change.add(DocumentPart(document, passages, chunks, new_vectors(chunks)))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    after = store.info(), by_words(store, "sentence")
    assert replace(before[0], bytes=None) == replace(after[0], bytes=None)
    assert before[1] == after[1]
    assert store.verify() == []


def test_nothing_of_an_open_change_can_be_seen(store: Store) -> None:
    put(store, "a.txt", ["the first sentence"])
    document, passages, chunks = new_document("a.txt", ["another sentence"])
    with store.change() as change:
        change.put(document)
        change.add(DocumentPart(document, passages, chunks, new_vectors(chunks)))
        assert {c.text for c in by_words(store, "sentence another first")} == {"the first", " sentence"}
        assert not {id_ for id_, _ in by_vector(store, new_vectors(chunks)[0])} & {
            chunk.id for chunk in chunks
        }
        assert store.by_id(document.id) is None
        with pytest.raises(KeyError):
            store.passages(chunks)
        assert [d.id for d in store.documents()] != [document.id]
    assert store.passages(chunks)[0] == passages[0]


def test_parts_that_do_not_fit_are_refused(store: Store) -> None:
    document, passages, chunks = new_document("a.txt", ["some text", "and more"])
    vectors = new_vectors(chunks)

    def add(*batch: object, first: bool = True) -> None:
        with store.change() as change:
            if first:
                change.put(document)
            change.add(DocumentPart(document, *batch))  # type: ignore[arg-type] - what is wrong with it is the point

    for message, batch in {
        "does not continue at 0": (passages[1:], chunks[2:], vectors[2:]),
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


def test_a_reader_sees_what_another_store_has_written(store: Store, place: Location) -> None:
    with open_store(place, create=EMBEDDER) as reader:
        assert by_words(reader, "sentence") == []
        chunks = put(store, "a.txt", ["the first sentence"])
        assert reader.sequence == store.sequence
        assert (chunks[0].id, 1.0) in by_vector(reader, new_vectors(chunks)[0], 1)
        assert len(by_words(reader, "sentence")) == 1
        store.rebuild()
        put(store, "b.txt", ["one more sentence"])
        assert len(by_words(reader, "sentence")) == 2


def test_values_are_kept_beside_the_documents(store: Store) -> None:
    assert store.get_meta("calibration") is None
    large = {"简": [1, 2.5, None], "long": ["字" * 100_000]}
    with store.change() as change:
        change.set_meta("calibration", large)
    assert store.get_meta("calibration") == large
    assert list(store.documents()) == []


def test_another_embedder_is_refused_with_both_names(store: Store, place: Location) -> None:
    other = Identity("other", 8)
    with pytest.raises(Mismatch, match=r"made-up \(16-d\).*other \(8-d\).*ingest again.*--kb"):
        open_store(place, create=other)
    with pytest.raises(Mismatch, match="prefix"):
        open_store(place, create=Identity("made-up", DIM))


def test_a_missing_knowledge_base_is_an_error_with_the_way_out(places: Callable[[], Location]) -> None:
    with pytest.raises(UserError, match=r"no knowledge base at .*rag ingest"):
        open_store(places())


def test_a_sample_is_drawn_from_all(store: Store) -> None:
    assert len(store.sample(5)) == 0
    chunks = put(store, "a.txt", TEXTS)
    keys = store.sample(20)
    assert len(set(keys.tolist())) == len(keys)
    assert 5 <= len(keys) <= 20
    assert set(store.chunks(keys).values()) <= set(chunks)
    starts = [chunk.start for chunk in store.chunks(keys).values()]
    assert min(starts) < chunks[-1].start / 2 < max(starts)


@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(steps=STEPS)
def test_any_history_ends_in_the_state_of_a_fresh_store(
    places: Callable[[], Location], steps: list[tuple[str, list[str], bool]]
) -> None:
    expected_texts: dict[str, list[str]] = {}
    living: dict[str, list[Chunk]] = {}
    place = places()
    with open_store(place, create=EMBEDDER) as store:
        for source, texts, removing in steps:
            if removing:
                with store.change() as change:
                    assert change.remove(source) == (source in expected_texts)
                expected_texts.pop(source, None)
                living.pop(source, None)
            else:
                expected_texts[source] = texts
                living[source] = put(store, source, texts)
        chunks = [chunk for group in living.values() for chunk in group]
        vector = new_vectors(chunks)[0] if chunks else np.ones(DIM, np.float32)
        assert by_vector(store, vector) == expected(chunks, vector)
        before = {(q, f): scored(store, q, f) for q in QUERIES for f in ("words", "bigrams")}
        store.rebuild()
        assert store.verify() == []
        assert by_vector(store, vector) == expected(chunks, vector)
        with open_store(places(), create=EMBEDDER) as fresh:
            for source, texts in expected_texts.items():
                put(fresh, source, texts)
            for query in QUERIES:
                for field in ("words", "bigrams"):
                    found, rebuilt = scored(store, query, field), scored(fresh, query, field)
                    assert set(found) == set(rebuilt) == set(before[query, field])
                    if not isinstance(place, MilvusAddress):  # milvus-lite weighs each segment by itself
                        assert found == rebuilt
