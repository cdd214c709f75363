"""The reader: its rows, its spans, and what the shipped weights know."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sentencepiece import SentencePieceProcessor

from ingest.embed import e5_graph
from ingest.embed.e5 import BundledEmbedder, open_embedder
from ingest.errors import UserError
from ingest.types import Chunk, Hit, Passage
from rag import reader as reader_module
from rag.extract import Sentence
from rag.load import reader_of
from rag.reader import NO_SPAN, WEIGHTS, Reader, RowBuilder, best_span, open_reader
from rag.retrieve import by_reading
from rag.types import ReaderOutput
from server.models import CachedEmbedder
from tests.fakes import HashEmbedder

TEXTS = (
    "第十九条 劳动合同期限三个月以上不满一年的，试用期不得超过一个月。",
    "Prices rose by 3.5 % in ２０２３ — “more” than expected…",
    "\ud83d 一个\n\n  空  格 ﷺ ㎏ 👩‍👩‍👧 x",
    "",
)


@pytest.fixture(scope="module")
def encoder() -> BundledEmbedder:
    found = open_embedder(threads=1)
    assert isinstance(found, BundledEmbedder)
    return found


@pytest.fixture(scope="module")
def pieces(encoder: BundledEmbedder) -> SentencePieceProcessor:
    return encoder.pieces


@pytest.fixture(scope="module")
def reader(encoder: BundledEmbedder) -> Reader:
    return open_reader("bundled", encoder)


def chunk(text: str, context: str = "") -> Chunk:
    return Chunk("d", "d.txt", "", (), context, 0, len(text), text, (0, len(text)))


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_cover_the_text_in_order(pieces: SentencePieceProcessor, text: str) -> None:
    row = RowBuilder(pieces).row("", "", text)
    assert row.ids[row.first : -1] == e5_graph.encode(pieces, [text])[0]
    assert [start for start, _ in row.offsets] == sorted(start for start, _ in row.offsets)
    covered = "".join(text[start:end] for start, end in row.offsets)
    assert "".join(covered.split()) == "".join(text.split())


def test_a_row_is_a_question_a_context_and_a_chunk(pieces: SentencePieceProcessor) -> None:
    row = RowBuilder(pieces, most=100).row("试用期最长几个月？", "劳动合同法", TEXTS[0] * 30)
    assert len(row.ids) == len(row.features) == 100
    assert len(row.offsets) == len(row.ids) - row.first - 1
    head = pieces.Decode([i for i in row.ids[: row.first] if i > 3])
    assert head.replace(" ", "") == "试用期最长几个月?劳动合同法"  # NFKC


def test_features_tell_which_tokens_the_two_texts_share(pieces: SentencePieceProcessor) -> None:
    row = RowBuilder(pieces).row("劳动合同怎么写", "", "订立合同,应当协商写明工资")
    words = [pieces.IdToPiece(i).strip("\u2581") for i in row.ids]
    cut = row.ids.index(2)
    asked = dict(zip(words[:cut], row.features[:cut].tolist(), strict=True))
    read = dict(zip(words[cut:], row.features[cut:].tolist(), strict=True))
    assert asked["合同"] == 2
    assert read["合同"] == 5
    assert asked["劳动"] == 0
    assert read["工资"] == 3
    assert set(asked.values()) <= {0, 1, 2}
    assert set(read.values()) <= {3, 4, 5}


def test_the_best_span_is_the_best_of_all_within_its_bounds() -> None:
    rng = np.random.default_rng(3)
    offsets = [(k, k + 1) for k in range(9)]
    for _ in range(30):
        reading = ReaderOutput(offsets, *rng.normal(size=(2, 9)).astype(np.float32), 0.0)
        start, end = sorted(rng.choice(10, 2, replace=False).tolist())
        best = best_span(reading, start, end)
        pairs = [(a, b) for a in range(start, end) for b in range(a, end)]
        first, last = max(pairs, key=lambda pair: reading.starts[pair[0]] + reading.ends[pair[1]])
        assert (best.start, best.end) == (first, last + 1)
        assert best.margin <= best_span(reading).margin
    assert best_span(reading, 4, 4) is NO_SPAN


CONTRACT = "当事人应当在签订合同之日起三十日内支付货款。逾期支付的，每日按万分之五支付违约金。"


@pytest.mark.parametrize(
    ("question", "answer"), [("货款要在多久内支付？", "三十日"), ("谁应当支付货款？", "当事人")]
)
def test_the_shipped_reader_finds_the_answer(reader: Reader, question: str, answer: str) -> None:
    (reading,) = reader.read(question, [chunk(CONTRACT, "买卖合同 › 第二章")])
    best = best_span(reading)
    assert answer in CONTRACT[best.start : best.end]


def test_the_shipped_reader_prefers_what_is_there(reader: Reader) -> None:
    text = "年假为每年十五天，病假为每年十天。"
    known, unknown = (reader.read(q, [chunk(text)])[0].score for q in ("年假有几天？", "产假有几天？"))
    assert known > unknown + 2


def test_reading_a_chunk_does_not_depend_on_the_others(reader: Reader) -> None:
    chunks = [chunk(CONTRACT), chunk("短"), chunk(CONTRACT * 3)]
    together = reader.read("违约金是多少？", chunks)
    for one, among in zip(chunks, together, strict=True):
        (alone,) = reader.read("违约金是多少？", [one])
        assert alone.score == pytest.approx(among.score, abs=2e-3)


@pytest.mark.parametrize("text", ["", " \n", "长" * 5000, "\ud83d", "ελληνικά και მშვიდობა"])
@pytest.mark.parametrize("question", ["?", "сколько?", "问" * 2000])
def test_odd_texts_are_read(reader: Reader, question: str, text: str) -> None:
    (reading,) = reader.read(question, [chunk(text)])
    assert np.isfinite(reading.score)
    best = best_span(reading)
    assert 0 <= best.start <= best.end <= len(text)


def test_weights_that_are_missing_or_no_reader_are_told(tmp_path: Path, encoder: BundledEmbedder) -> None:
    encoder = BundledEmbedder(encoder.folder, threads=1)
    with pytest.raises(UserError, match="cannot read"):
        open_reader(str(tmp_path), encoder)
    for content in (b"", b"PK\x03\x04", (Path(reader_module.__file__).parent / WEIGHTS).read_bytes()[:5000]):
        (tmp_path / WEIGHTS).write_bytes(content)
        with pytest.raises(UserError, match="holds no reader"):
            open_reader(str(tmp_path), encoder)


def test_damaged_bundled_weights_are_told(monkeypatch: pytest.MonkeyPatch, encoder: BundledEmbedder) -> None:
    monkeypatch.setattr(reader_module, "BUNDLED_SHA256", "0" * 64)
    with pytest.raises(UserError, match="install chatglm-rag again"):
        open_reader("bundled", encoder)


def test_a_question_in_traditional_characters_is_read_as_one_in_simplified_ones(reader: Reader) -> None:
    text = "有关行政部门应当自收到投诉之日起七个工作日内，予以处理并告知消费者。"
    asked = ("消费者投诉后几个工作日内处理？", "消費者投訴後幾個工作日內處理？")
    simple, traditional = (reader.read(question, [chunk(text)])[0].score for question in asked)
    assert traditional == pytest.approx(simple, abs=1e-4)


def test_weights_of_another_encoder_are_told(tmp_path: Path, encoder: BundledEmbedder) -> None:
    tensors = load_file(Path(reader_module.__file__).parent / WEIGHTS)
    for name in ("l8.aln.w", "l9.fi.b"):
        wide = np.zeros(768, np.float32)
        save_file(tensors | {name: wide}, tmp_path / WEIGHTS)
        with pytest.raises(UserError, match="has shape"):
            open_reader(str(tmp_path), encoder)


def test_who_reads(
    encoder: BundledEmbedder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server's cache of vectors is read through; another encoder, or damaged weights, leave the rules."""
    assert isinstance(reader_of("bundled", CachedEmbedder(encoder)), Reader)
    assert reader_of("none", encoder) is None
    assert reader_of("bundled", HashEmbedder()) is None
    assert not caplog.records
    monkeypatch.setattr(reader_module, "BUNDLED_SHA256", "0" * 64)
    assert reader_of("bundled", encoder) is None
    assert "without the reader" in caplog.text
    with pytest.raises(UserError, match="cannot read"):
        reader_of("nowhere", encoder)


def test_hits_are_ordered_by_retrieval_and_reading() -> None:
    hits = [Hit(chunk(str(k)), score) for k, score in enumerate((9.0, 8.9, 8.0, 1.0))]
    passages = [Passage("d", k, k + 1, str(k), "") for k in range(4)]
    outputs = [ReaderOutput([], np.zeros(0), np.zeros(0), score) for score in (-9.0, 3.0, -9.0)]
    ordered, their_passages, readings = by_reading(hits, passages, outputs)
    assert [hit.chunk.text for hit in ordered] == ["1", "0", "2", "3"]
    assert [passage.text for passage in their_passages] == ["1", "0", "2", "3"]
    assert [each.score for each in readings] == [3.0, -9.0, -9.0]
    scores = [hit.score for hit in ordered]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("shown", "marked"),
    [
        ("应当在三十日内提出，逾期的在十日内补正。", 14),
        ("逾期的在十日内补正。", 4),
        ("十日", 0),
        ("别的", None),
    ],
)
def test_the_mark_is_on_the_right_one_of_two_equal_texts(shown: str, marked: int | None) -> None:
    sentence = Sentence(0, 0, 20, 0.0, shown, "十日", "应当在三十日内提出，逾期的在十日")
    place = sentence.place(shown)
    assert (place and place[0]) == marked
    assert place is None or shown[slice(*place)] == "十日"
