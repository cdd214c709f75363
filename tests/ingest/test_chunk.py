"""Chunks: nothing cut, nothing lost, nothing over the window."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.chunk import Chunker, ChunkOptions, Places, paragraphs, sentences
from ingest.errors import UserError
from ingest.types import Chunk, Document, Mark, ParseReport, Passage, Segment

DOCUMENT = Document("laws/a.txt", "劳动合同法", "0", ParseReport("txt"))
OPTIONS = ChunkOptions(chunk_tokens=24, passage_tokens=60, context_tokens=12)
TEXTS = st.text(alphabet="我们是。！？；：” \nAbc.|#-第一条（）", min_size=1, max_size=300)


def count(texts: Sequence[str]) -> list[int]:
    """A token a character and one for the start, as a Unigram tokenizer's word mark."""
    return [len(text) + 1 for text in texts]


def split(*segments: Segment, window: int = 40) -> tuple[list[Passage], list[Chunk]]:
    parts = list(Chunker(count, window, OPTIONS).split(DOCUMENT, segments))
    return [p for ps, _ in parts for p in ps], [c for _, cs in parts for c in cs]


@given(st.lists(TEXTS, min_size=1, max_size=3), st.integers(28, 60))
def test_passages_tile_the_text_and_chunks_tile_the_passages(texts: list[str], window: int) -> None:
    whole = "".join(texts)
    passages, chunks = split(*(Segment(text) for text in texts), window=window)
    for tiles in (passages, chunks):
        assert "".join(tile.text for tile in tiles) == whole
        assert all(whole[tile.start : tile.end] == tile.text for tile in tiles)
        assert [tile.end for tile in tiles[:-1]] == [tile.start for tile in tiles[1:]]
    spans = {(passage.start, passage.end) for passage in passages}
    assert all(c.passage in spans and c.passage[0] <= c.start < c.end <= c.passage[1] for c in chunks)


@given(TEXTS, st.integers(28, 60))
def test_no_chunk_outgrows_the_window(text: str, window: int) -> None:
    _, chunks = split(Segment(text), window=window)
    assert all(count([chunk.indexed])[0] <= window for chunk in chunks)


def test_every_row_of_a_table_has_its_header() -> None:
    rows = "".join(f"| 张{i} | {i * 7919} |\n" for i in range(30))
    table = f"| 姓名 | 电话 |\n| --- | --- |\n{rows}"
    half = table.index("| 张15")
    _, chunks = split(Segment("名单如下。\n\n" + table[:half]), Segment(table[half:] + "\n完。"))
    assert len(chunks) > 5
    for chunk in chunks:
        if "张" in chunk.text:
            assert "| 姓名 | 电话 |" in chunk.indexed


def test_a_wide_header_is_kept_whole_if_the_window_holds_it() -> None:
    header = "| " + " | ".join(f"第{i}季度营业收入" for i in range(12)) + " |"
    rows = "".join("| " + " | ".join(f"{i * k}" for k in range(12)) + " |\n" for i in range(20))
    segment = Segment(f"{header}\n| --- |{' --- |' * 11}\n{rows}")
    _, wide = split(segment, window=400)
    _, narrow = split(segment, window=100)
    rows_only = [chunk for chunk in (*wide, *narrow) if chunk.start > len(header) + 60]
    assert all(count([chunk.indexed])[0] <= 100 for chunk in narrow)
    for chunk in rows_only:
        assert header in chunk.context if chunk in wide else "| 第0" in chunk.context


def test_a_section_is_not_joined_to_the_next() -> None:
    text = "第一章 总则\n为了保护劳动者，制定本法。\n第二章 订立\n建立劳动关系，应当订立合同。"
    second = text.index("第二章")
    marks = (Mark(0, "heading", "第一章 总则"), Mark(second, "heading", "第二章 订立"))
    passages, chunks = split(Segment(text, marks))
    assert [passage.label for passage in passages] == ["第一章 总则", "第二章 订立"]
    assert chunks[-1].label(chunks[-1].start) == "第二章 订立"


@pytest.mark.parametrize(
    ("limit", "pieces"),
    [
        (24, ["资产处置收益（损失以“-”号填列）\n", "公允价值变动收益\n信用减值损失\n资产减值损失"]),
        (20, ["149．", "故意杀人罪（第232条）150．", "过失致人死亡罪（第233条）151．", "故意伤害罪"]),
        (18, ["https://", "example.com/", "a_very_long_path_", "without_any_space", "/and/another?x=1"]),
        (16, ["012345678901234", "567890123456789", "0123456789"]),
        (14, ["한국어 문장은 공백으로 ", "나누어지고 길이가 ", "제한보다 깁니다"]),
        (12, ["国务院有关部门应当按照", "职责分工加强监督管理", "并建立健全信息共享机制"]),
    ],
)  # fmt: skip
def test_a_sentence_too_long_is_cut_at_lines_then_clauses_then_words(limit: int, pieces: list[str]) -> None:
    """But for the last, whose words are rjieba's, semantic-text-splitter 0.33 cut them like this."""
    text = "".join(pieces)
    spans = Chunker(count, 400)._pieces(text, limit)
    assert [text[start:end] for start, end in spans] == pieces


@given(TEXTS, st.integers(1, 30))
def test_pieces_tile_a_sentence_within_the_limit(text: str, limit: int) -> None:
    spans = Chunker(count, 400)._pieces(text, limit)
    assert "".join(text[start:end] for start, end in spans) == text
    assert all(start < end for start, end in spans)
    assert all(count([text[start:end]])[0] <= max(limit, 2) for start, end in spans)


def test_a_page_break_within_a_chunk_is_named() -> None:
    marks = (Mark(0, "page", "p. 1"), Mark(6, "page", "p. 2"))
    _, [chunk] = split(Segment("第一页上的话还没完。", marks))
    assert (chunk.label(0), chunk.label(5), chunk.label(6)) == ("p. 1", "p. 1", "p. 2")


def test_options_that_contradict_say_both_values() -> None:
    with pytest.raises(UserError, match=r"chunk_tokens is 500 and passage_tokens 100"):
        ChunkOptions(chunk_tokens=500, passage_tokens=100)
    with pytest.raises(UserError, match=r"context_tokens is 48.*holds 32"):
        Chunker(count, 32)


SENTENCES = st.text(alphabet="我们是。！？；：”」…. \n\tAbc.|#-1第条（一）　", max_size=80)


def cut(text: str, spans: list[tuple[int, int]]) -> list[str]:
    return [text[start:end] for start, end in spans]


@given(SENTENCES)
def test_spans_tile_the_text(text: str) -> None:
    for split in (paragraphs, sentences):
        assert "".join(cut(text, split(text))) == text
        assert all(end > start for start, end in split(text))


@given(SENTENCES)
def test_no_span_of_a_text_with_content_is_blank(text: str) -> None:
    if text.strip():
        assert all(part.strip() for part in cut(text, sentences(text)))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("他说：“你好。”然后走了！真的？", ["他说：“你好。”", "然后走了！", "真的？"]),
        ("面积3.5平方公里。人口多。", ["面积3.5平方公里。", "人口多。"]),
        ("Dr. Smith came. He left.", ["Dr. Smith came. ", "He left."]),
        ("J. R. R. Tolkien wrote it. Good.", ["J. R. R. Tolkien wrote it. ", "Good."]),
        ("一行没有\n结束的话。", ["一行没有\n结束的话。"]),
        ("包括：\n（一）甲；\n（二）乙。", ["包括：\n", "（一）甲；\n", "（二）乙。"]),
        ("第一条 为了。\n第二条 本法。", ["第一条 为了。\n", "第二条 本法。"]),
        ("等等……后来。", ["等等……", "后来。"]),
    ],
)
def test_sentence_ends(text: str, parts: list[str]) -> None:
    assert cut(text, sentences(text)) == parts


def test_hard_wrapped_lines_are_one_paragraph() -> None:
    text = "The quick brown\nfox jumps over\nthe dog.\n\nNext one."
    assert cut(text, paragraphs(text)) == ["The quick brown\nfox jumps over\nthe dog.\n\n", "Next one."]


MARKS = st.lists(
    st.builds(
        Mark,
        st.integers(0, 40),
        st.sampled_from(["page", "heading", "sheet", "row"]),
        st.text("甲乙丙", min_size=1, max_size=2),
        st.integers(1, 3),
    ),
    max_size=12,
).map(lambda marks: sorted(marks, key=lambda mark: mark.start))


def slow_name(marks: list[Mark], offset: int) -> str:
    """The oracle: replay every mark up to `offset`."""
    kinds: dict[str, str] = {}
    headings: list[Mark] = []
    for mark in marks:
        if mark.start > offset:
            break
        if mark.kind == "heading":
            headings = [above for above in headings if above.level < mark.level] + [mark]
        else:
            kinds[mark.kind] = mark.label
            if mark.kind == "sheet":
                kinds.pop("row", None)
    path = " › ".join(mark.label for mark in headings if mark.label not in kinds.values())
    return " · ".join([*kinds.values(), *([path] if path else [])])


@given(MARKS)
def test_names_equal_a_replay_of_all_marks(marks: list[Mark]) -> None:
    places = Places()
    places.extend(marks, 0)
    assert [places.at(i) for i in range(45)] == [slow_name(marks, i) for i in range(45)]


@given(MARKS, st.integers(0, 41))
def test_two_segments_name_as_one(marks: list[Mark], cut: int) -> None:
    places = Places()
    places.extend([mark for mark in marks if mark.start < cut], 0)
    later = [mark for mark in marks if mark.start >= cut]
    places.extend([Mark(m.start - cut, m.kind, m.label, m.level) for m in later], cut)
    assert [places.at(i) for i in range(cut, 45)] == [slow_name(marks, i) for i in range(cut, 45)]


@given(MARKS, st.integers(0, 40), st.integers(1, 10))
def test_places_within_a_span_name_each_of_its_characters(marks: list[Mark], start: int, width: int) -> None:
    places = Places()
    places.extend(marks, 0)
    within = places.within(start, start + width)
    for offset in range(start, start + width):
        name = next((label for at, label in reversed(within) if at <= offset), "")
        assert name == places.at(offset)
