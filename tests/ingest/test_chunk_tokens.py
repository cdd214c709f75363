"""A number, a date, a time or a code is never cut, whatever stands around it."""

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.chunk import CLAUSE, Chunker, ChunkOptions, paragraphs, sentences, short_sentences
from ingest.types import Document, ParseReport, Segment

DOCUMENT = Document("a.txt", "", "0", ParseReport("txt"))
NUMBERS = st.integers(0, 10**9)
DIGITS = st.integers(0, 59).map("{:02}".format)
TOKENS = st.one_of(
    NUMBERS.map("{:,}".format),
    st.tuples(NUMBERS, DIGITS).map("{0[0]:,}.{0[1]}".format),
    st.tuples(NUMBERS, DIGITS).map("-{0[0]}.{0[1]}%".format),
    st.tuples(DIGITS, DIGITS).map(":".join),
    st.tuples(DIGITS, DIGITS).map("：".join),
    st.tuples(DIGITS, DIGITS, DIGITS).map("20{0[0]}年{0[1]}月{0[2]}日".format),
    st.tuples(DIGITS, DIGITS, DIGITS, DIGITS).map("20{0[0]}年06月{0[1]}日{0[2]}:{0[3]}".format),
    st.tuples(DIGITS, DIGITS, DIGITS).map("20{0[0]}-{0[1]}-{0[2]}".format),
    st.tuples(DIGITS, DIGITS).map("GF-YC-20{0[0]}-05{0[1]}-002".format),
    st.tuples(DIGITS, DIGITS).map("GB/T47{0[0]}-19{0[1]}".format),
)
WORDS = st.text("营业收入金额为及的，；：、。 |\n", min_size=1, max_size=40)
TEXTS = st.lists(st.tuples(WORDS, TOKENS), min_size=1, max_size=40)


def count(texts: list[str]) -> list[int]:
    return [len(text) + 1 for text in texts]


def inner(parts: list[tuple[str, str]]) -> tuple[str, set[int]]:
    """The text of the parts and the offsets that lie within one of its tokens."""
    text, inside = "", set[int]()
    for words, token in parts:
        start = len(text) + len(words)
        inside.update(range(start + 1, start + len(token)))
        text += words + token
    return text, inside


def boundaries(text: str) -> Iterator[int]:
    for split in (paragraphs, sentences, short_sentences):
        yield from (bound for span in split(text) for bound in span)
    yield from (match.end() for match in CLAUSE.finditer(text))
    for size in (64, 100):
        options = ChunkOptions(chunk_tokens=size, passage_tokens=2 * size, context_tokens=0)
        for passages, chunks in Chunker(count, size, options).split(DOCUMENT, [Segment(text)]):
            yield from (part.end for part in (*passages, *chunks))


@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_no_boundary_lies_within_a_token(parts: list[tuple[str, str]]) -> None:
    text, inside = inner(parts)
    assert not inside.intersection(boundaries(text))


def test_a_long_text_without_stops_is_cut_between_tokens() -> None:
    text, inside = inner([("金额为", f"{n * 7919:,}.00") for n in range(200)])
    assert not inside.intersection(boundaries(text))


def test_the_rest_of_a_long_row_keeps_its_label_and_header() -> None:
    names = [f"第{n}列" for n in range(40)]
    row = " | ".join(f"{n * 7919:,}" for n in range(39))
    text = f"| {' | '.join(names)} |\n|{' --- |' * 40}\n| 营业收入 | {row} |\n| 成本 | {row} |"
    options = ChunkOptions(chunk_tokens=120, passage_tokens=300, context_tokens=40)
    [(_, chunks)] = Chunker(count, 500, options).split(DOCUMENT, [Segment(text)])
    for chunk in chunks:
        if chunk.text.endswith("| ") and chunk.start > text.index("营业收入"):
            assert "营业收入" in chunk.indexed or "成本" in chunk.indexed
