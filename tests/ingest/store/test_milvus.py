"""What is Milvus's own: addresses, tenants, the collections, writers that die, servers that are away."""

import json
import os
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from pymilvus import MilvusClient

from ingest.errors import Away, Busy, Mismatch, UserError
from ingest.normalize import terms
from ingest.store import Change, Identity, drop_milvus, open_store, parse_address
from ingest.store.milvus.client import field_text, query_text, term_text
from ingest.types import DocumentPart
from tests.ingest.store.factories import EMBEDDER, new_document, new_vectors, put
from tests.milvus import free_port, start


@pytest.fixture
def address(milvus_server: str) -> str:
    return f"{milvus_server}/kb_{uuid4().hex}"


@pytest.mark.parametrize(
    "text",
    [
        "milvus://host:19530/laws",
        "milvus://10.0.0.1:1/_a1",
        "milvus+tls://host:443/db/laws",
        "milvus://[::1]:19530/laws?tenant=acme-1",
    ],
)
def test_an_address_is_written_as_it_was_read(text: str) -> None:
    address = parse_address(text)
    assert str(address) == text
    assert parse_address(str(address)) == address
    assert address.uri.startswith("https://" if "+tls" in text else "http://")


def test_the_usual_port_need_not_be_named() -> None:
    assert str(parse_address("milvus://host/laws")) == "milvus://host:19530/laws"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("milvus://", "names no server"),
        ("milvus:///laws", "names no server"),
        ("milvus://host", "letters of English"),
        ("milvus://host/劳动法", "letters of English"),
        ("milvus://host/1a", "letters of English"),
        ("milvus://host/a/b/c", "letters of English"),
        ("milvus://host:port/laws", "host or port"),
        ("milvus://host:99999/laws", "host or port"),
        ("milvus://host/laws?x=1", r"only \?tenant="),
        ("milvus://host/laws#x", r"only \?tenant="),
        ('milvus://host/laws?tenant=a" or 1==1', "up to 64 letters"),
        ("milvus://root:secret@host/laws", "MILVUS_TOKEN"),
    ],
)
def test_a_wrong_address_is_refused_with_how_to_write_one(text: str, why: str) -> None:
    with pytest.raises(UserError, match=rf"{why}.*milvus://HOST:19530/NAME") as raised:
        parse_address(text)
    assert "secret" not in str(raised.value)


def test_text_is_analysed_as_words_of_letters_and_digits() -> None:
    assert field_text("勞動合同，Ａ ２０２３！", "words") == "劳动合同 a 2023"
    assert field_text("合同 год 東京タワー", "words") == "合同 u433u43eu434 东京 u30bfu30ef u30efu30fc"
    assert term_text("合同", "words") == "合同"
    assert term_text("год", "words") == "u433u43eu434"
    assert field_text("合同法 fox", "bigrams") == "u5408u540c u540cu6cd5 fox"
    assert query_text("合同 合同 fox", "words") == "合同 fox"
    assert field_text(" ，\0", "words") == field_text("", "bigrams") == ""
    assert len(field_text("合" * 50_000, "bigrams").encode()) <= 65_535


def test_the_collection_says_which_encoder_made_it(address: str) -> None:
    """Seen by the client alone, as any other program would."""
    place = parse_address(address)
    with open_store(place, create=EMBEDDER) as store:
        chunks = put(store, "a.txt", ["劳动合同期限，由双方约定"])
    client = MilvusClient(place.uri)
    description = client.describe_collection(place.name)
    assert json.loads(description["properties"]["rag.embedder"])["name"] == EMBEDDER.name
    assert {function["name"] for function in description["functions"]} == {"words_bm25", "bigrams_bm25"}
    words = next(field for field in description["fields"] if field["name"] == "words")
    assert json.loads(words["params"]["analyzer_params"])["tokenizer"] == "jieba"
    found = client.search(place.name, ["合同"], anns_field="words_bm25", limit=3, output_fields=["text"])
    assert ["".join(hit["entity"]["text"]) for hit in found[0]] == [chunks[0].text]
    client.close()


def test_two_writers_of_one_document_leave_it_once(address: str) -> None:
    place = parse_address(address)
    document, passages, chunks = new_document("a.txt", ["the one sentence"])
    with open_store(place, create=EMBEDDER) as one, open_store(place) as two:
        with one.change() as first, two.change() as second:
            for change in (first, second):
                change.put(document)
                change.add(DocumentPart(document, passages, chunks, new_vectors(chunks)))
        assert one.count() == len(chunks)
        assert one.verify() == two.verify() == []
        assert list(one.documents()) == list(two.documents()) == [document]


def test_tenants_share_collections_and_see_their_own(address: str) -> None:
    places = [parse_address(f"{address}?tenant={tenant}") for tenant in ("a", "b")]
    with open_store(places[0], create=EMBEDDER) as a, open_store(places[1], create=EMBEDDER) as b:
        put(a, "a.txt", ["a secret sentence of a"])
        put(b, "a.txt", ["another sentence of b"])
        for store, word in ((a, "secret"), (b, "another")):
            assert store.info().documents == 1
            found = store.chunks(store.search_words(terms("secret another sentence"), 10).keys)
            assert any(word in chunk.text for chunk in found.values())
            every = store.chunks(store.sample(10))
            assert set(store.chunks(store.search_dense(store.vectors([*every])[0], 9).keys)) <= {*every}
            assert {chunk.document for chunk in every.values()} == {next(store.documents()).id}
        theirs = b.sample(1)
        assert a.chunks(theirs) == {}
        assert a.sequence != b.sequence
        b.rebuild()
        assert a.verify() == b.verify() == []
        with pytest.raises(Mismatch):
            open_store(places[0], create=Identity("other", 8))
        with pytest.raises(UserError, match=r"shared by tenants; name yours: .*\?tenant=NAME"):
            open_store(parse_address(address))
    drop_milvus(places[1])
    with open_store(places[0]) as a:
        assert a.info().documents == 1
    with pytest.raises(UserError, match=r"no knowledge base at .*tenant=b"):
        open_store(places[1])  # nor of one whose name is mistyped


def test_a_knowledge_base_that_is_not_shared_has_no_tenants(address: str) -> None:
    open_store(parse_address(address), create=EMBEDDER).close()
    with pytest.raises(UserError, match=r"not shared; leave \?tenant= out"):
        open_store(parse_address(f"{address}?tenant=a"), create=EMBEDDER)


def test_a_dropped_knowledge_base_is_gone(address: str) -> None:
    place = parse_address(address)
    open_store(place, create=EMBEDDER).close()
    drop_milvus(place)
    drop_milvus(place)
    with pytest.raises(UserError, match="no knowledge base"):
        open_store(place)


def test_a_killed_writer_is_never_seen_and_swept_when_it_is_old(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child ends inside its change, as by a kill."""
    monkeypatch.setattr("ingest.store.milvus.transaction.BATCH", 1)
    place = parse_address(address)
    with open_store(place, create=EMBEDDER) as store:
        put(store, "a.txt", ["the first sentence"])
        before = store.sequence
        child = os.fork()
        if not child:
            with open_store(place) as own, own.change() as change:
                document, passages, chunks = new_document("a.txt", ["a half sentence"])
                change.put(document)
                change.add(DocumentPart(document, passages, chunks, new_vectors(chunks)))
                os._exit(0)
        os.waitpid(child, 0)
        assert store.sequence == before
        assert [
            c.text for c in store.chunks(store.search_words(terms("half sentence"), 9).keys).values()
        ] == [" sentence"]
        assert store.count() == 4
        store.rebuild()
        assert store.count() == 4, "a change of now may still be under way"
        monkeypatch.setattr("ingest.store.milvus.transaction.WORK", -1)
        assert any("rag kb rebuild" in finding for finding in store.verify())
        store.rebuild()
        assert store.count() == 2
        assert store.verify() == []


def test_rows_that_a_killed_writer_left_are_deleted(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child ends when its change can be seen, before the old rows are gone."""
    place = parse_address(address)
    with open_store(place, create=EMBEDDER) as store:
        put(store, "a.txt", ["the first sentence"])
        child = os.fork()
        if not child:
            monkeypatch.setattr("ingest.store.milvus.transaction.sweep", lambda *_, **__: os._exit(0))
            with open_store(place) as own:
                put(own, "a.txt", ["a second sentence"])
        os.waitpid(child, 0)
        assert store.text(next(store.documents()).id) == "a second sentence"
        assert store.count() == 4
        assert any("rag kb rebuild" in finding for finding in store.verify())
        store.rebuild()
        assert store.count() == 2
        assert store.text(next(store.documents()).id) == "a second sentence"
        assert store.verify() == []


def test_a_lost_row_is_found(address: str) -> None:
    place = parse_address(address)
    with open_store(place, create=EMBEDDER) as store:
        chunks = put(store, "a.txt", ["the first sentence", "and one more"])
        client = MilvusClient(place.uri)
        client.delete(place.name, filter=f"start == {chunks[0].start}")
        client.delete(f"{place.name}_passages", filter="start > 0")
        client.close()
        assert [finding.partition(";")[0] for finding in store.verify()] == [
            "a.txt: 3 chunks, not 4",
            "a.txt: 1 passages, not 2",
            "a.txt: 18 characters, not 30",
        ]


def test_collections_left_incomplete_by_a_kill_are_completed(address: str) -> None:
    place = parse_address(address)
    open_store(place, create=EMBEDDER).close()
    client = MilvusClient(place.uri)
    client.drop_collection(place.name)
    client.close()
    with pytest.raises(UserError, match="no knowledge base"):
        open_store(place)
    with open_store(place, create=EMBEDDER) as store:
        assert len(put(store, "a.txt", ["a sentence"])) == store.count()


def test_a_collection_of_others_is_left_alone(milvus_server: str) -> None:
    name = f"other_{uuid4().hex}"
    client = MilvusClient(parse_address(f"{milvus_server}/{name}").uri)
    client.create_collection(f"{name}_passages", dimension=4)
    place = parse_address(f"{milvus_server}/{name}")
    for use in (lambda: open_store(place, create=EMBEDDER), lambda: drop_milvus(place)):
        with pytest.raises(UserError, match=f"{name}_passages is something else; choose another"):
            use()
    assert [other for other in client.list_collections() if name in other] == [f"{name}_passages"]
    client.close()


def test_no_knowledge_base_takes_part_of_another(address: str) -> None:
    """Their names may be one another's with a suffix."""
    longer = parse_address(f"{address}_passages")
    with open_store(longer, create=EMBEDDER) as store:
        put(store, "a.txt", ["a sentence"])
        with pytest.raises(UserError, match="choose another name"):
            open_store(parse_address(address), create=EMBEDDER)
        assert store.verify() == []


def test_a_drop_that_was_killed_can_be_finished(address: str) -> None:
    place = parse_address(address)
    open_store(place, create=EMBEDDER).close()
    client = MilvusClient(place.uri)
    client.drop_collection(f"{place.name}_documents")
    drop_milvus(place)
    assert not [name for name in client.list_collections() if place.name in name]
    client.close()


def test_one_tenant_can_be_dropped_and_not_all_of_them_at_once(address: str) -> None:
    mine = parse_address(f"{address}?tenant=a")
    with open_store(mine, create=EMBEDDER) as store:
        put(store, "a.txt", ["a sentence"])
    with pytest.raises(UserError, match="shared by tenants"):
        drop_milvus(parse_address(address))
    client = MilvusClient(mine.uri)
    for suffix in ("", "_passages", "_documents"):
        client.release_collection(mine.name + suffix)
    client.close()
    drop_milvus(mine)
    with pytest.raises(UserError, match="no knowledge base"):
        open_store(mine)
    with open_store(mine, create=EMBEDDER) as store:
        assert store.info().documents == store.count() == 0


def test_an_index_missing_after_a_kill_is_created(address: str) -> None:
    place = parse_address(address)
    with open_store(place, create=EMBEDDER) as store:
        put(store, "a.txt", ["a sentence that lasts"])
    client = MilvusClient(place.uri)
    client.release_collection(place.name)
    client.drop_index(place.name, "bigrams_bm25")
    with open_store(place, create=EMBEDDER) as store:
        assert len(store.search_words(terms("lasts"), 3, field="bigrams").keys) == 1
    assert "bigrams_bm25" in client.list_indexes(place.name)
    client.close()


def test_invisible_chunks_do_not_displace_visible_ones(address: str) -> None:
    with open_store(parse_address(address), create=EMBEDDER) as store:
        put(store, "a.txt", ["the one sentence"])
        document, passages, chunks = new_document("b.txt", ["the one sentence"] * 20)
        with store.change() as change:
            change.put(document)
            change.add(DocumentPart(document, passages, chunks, new_vectors(chunks)))
            dense = store.search_dense(new_vectors(chunks)[0], 1)
            for ranking in (store.search_words(terms("sentence"), 1), dense):
                found = store.chunks(ranking.keys).values()
                assert [chunk.source for chunk in found] == ["a.txt"]


def test_rows_removed_by_another_writer_are_not_made_visible(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.store.milvus.transaction.BATCH", 1)
    document, passages, chunks = new_document("a.txt", ["the one sentence"])

    def fail(other: Change) -> None:
        with store.change() as change:
            for writer in (change, other):
                writer.put(document)
                writer.add(DocumentPart(document, passages, chunks, new_vectors(chunks)))
            raise ZeroDivisionError

    def write() -> None:
        with store.change() as change, pytest.raises(ZeroDivisionError):
            fail(change)

    with open_store(parse_address(address), create=EMBEDDER) as store:
        with pytest.raises(Busy, match="writes the same documents"):
            write()
        assert store.document("a.txt") is None
        assert put(store, "a.txt", ["the one sentence"]) == chunks
        assert store.verify() == []


def test_titles_and_headings_may_be_of_any_length(address: str) -> None:
    long = "标题" * 40_000
    document, passages, chunks = new_document("a.txt", ["the one sentence"])
    document, chunks = replace(document, title=long), [replace(c, title=long) for c in chunks]
    passages = [replace(passage, label=long) for passage in passages]
    with open_store(parse_address(address), create=EMBEDDER) as store:
        with store.change() as change:
            change.put(document)
            change.add(DocumentPart(document, passages, chunks, new_vectors(chunks)))
        assert store.document("a.txt") == document
        assert store.passages(chunks[:1]) == passages
        assert set(store.chunks(store.sample(9)).values()) == set(chunks)


def test_a_knowledge_base_that_is_dropped_while_it_is_read_is_reported(address: str) -> None:
    place = parse_address(address)
    with open_store(place, create=EMBEDDER) as store:
        drop_milvus(place)
        for read in (store.count, store.info, lambda: store.document("a.txt")):
            with pytest.raises(Away):
                read()
    with pytest.raises(UserError, match="nowhere"):
        open_store(replace(place, database="nowhere"))


def test_an_unavailable_server_is_reported_in_one_line(tmp_path: Path) -> None:
    port = free_port()
    place = parse_address(f"milvus://127.0.0.1:{port}/laws")
    with pytest.raises(UserError, match=rf"{port}/laws refused the request.*MILVUS_TOKEN"):
        open_store(place)
    server = start(tmp_path / "milvus", port)
    try:
        with open_store(place, create=EMBEDDER) as store:
            put(store, "a.txt", ["a sentence that lasts"])
    finally:
        server.kill()
        server.wait()
    server = start(tmp_path / "milvus", port)
    try:
        with open_store(place) as store:
            assert len(store.search_words(terms("lasts"), 3).keys) == 1
            assert store.verify() == []
    finally:
        server.terminate()
        server.wait()
