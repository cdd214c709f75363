"""Encodings: the nine cases that peers get wrong, other languages, and what is not text."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest import encoding
from ingest.errors import Unreadable
from tests.ingest.documents import parse


def read(source: Path | bytes) -> tuple[str, encoding.Detection]:
    detected = encoding.detect(source)
    return "".join(encoding.decode(source, detected)), detected


CHINESE = "第一条 为了保障电子商务各方主体的合法权益，规范电子商务行为，制定本法。\n第二条 略。\n"
TRADITIONAL = "第一條 為了保障電子商務各方主體的合法權益，規範電子商務行為，制定本法。\n第二條 略。\n"
NAMES = CHINESE * 30 + "朱镕基、李堃、王喆等出席。\n"
LOG = "2024-01-01 00:00:00 INFO request served in 12 ms\n" * 30 + CHINESE
ONE_BAD_BYTE = (CHINESE * 20).encode()[:1023] + b"\xff" + (CHINESE * 20).encode()[1023:]

NINE = {
    "utf-8": (CHINESE.encode(), CHINESE),
    "gbk": (CHINESE.encode("gbk"), CHINESE),
    "gbk-only characters after the first kilobyte": (NAMES.encode("gbk"), NAMES),
    "ascii first, gbk later": (LOG.encode("gbk"), LOG),
    "gb18030 with a rare character": ((CHINESE + "𠮷").encode("gb18030"), CHINESE + "𠮷"),
    "big5": (TRADITIONAL.encode("big5"), TRADITIONAL),
    "utf-16 with a byte order mark": (CHINESE.encode("utf-16"), CHINESE),
    "utf-16-le without": (CHINESE.encode("utf-16-le"), CHINESE),
    "utf-8 with one bad byte": (ONE_BAD_BYTE, ONE_BAD_BYTE.decode("utf-8", "replace")),
}
OTHERS = {
    "cp949": "전자상거래 및 통신판매 등에 의한 재화 또는 용역의 공정한 거래에 관한 사항을 규정함",
    "cp932": "この法律は、電子商取引の健全な発展を図ることを目的とする。",
    "euc_jp": "この法律は、電子商取引の健全な発展を図ることを目的とする。",
    "cp1252": "Déjà vu à l’été, où le café coûte très cher — 30 €.",
    "cp1251": "Настоящий закон регулирует отношения в области электронной торговли.",
    "utf-16-be": CHINESE,
    "utf-32": CHINESE,
    "utf-32-le": CHINESE,
    "gb18030": TRADITIONAL,
}


@pytest.mark.parametrize("case", NINE)
def test_nine_cases_come_out_character_for_character(case: str) -> None:
    raw, text = NINE[case]
    assert read(raw)[0] == text


def test_replaced_bytes_are_counted() -> None:
    assert encoding.detect(NINE["utf-8 with one bad byte"][0]).replaced > 0
    assert encoding.detect(NINE["gbk"][0]).replaced == 0


@pytest.mark.parametrize("name", OTHERS)
def test_other_languages(name: str) -> None:
    text, detected = read(OTHERS[name].encode(name))
    assert text == OTHERS[name], detected


@pytest.mark.parametrize("word", ["姓名", "你好", "合同", "张三,23", "价格表"])
def test_a_word_is_enough_for_chinese(word: str) -> None:
    assert read(word.encode("gbk"))[0] == word


def _nested(case: str, suffix: str) -> tuple[bytes, str]:
    """The case inside a format, in the same encoding."""
    raw, text = NINE[case]
    frame = {
        "txt": ("", ""),
        "md": ("# Title\n\n", "\nThe end.\n"),
        "csv": ("id,name\n1,2\n", "x,y\n"),
        "html": ("<html><head><meta charset=utf-8></head><body><pre>", "</pre></body></html>"),
        "json": ('{"text": "', '"}'),
    }[suffix]
    if suffix == "json":
        raw = raw.replace(b"\n", b" ") if b"\n\0" not in raw else raw.replace(b"\n\0", b" \0")
        text = text.replace("\n", " ")
    code = "utf-16-le" if "utf-16" in case else "ascii"
    bom = raw[:2] if raw.startswith(b"\xff\xfe") else b""
    return bom + frame[0].encode(code) + raw[len(bom) :] + frame[1].encode(code), text


@pytest.mark.parametrize("suffix", ["txt", "md", "csv", "html", "json"])
@pytest.mark.parametrize("case", NINE)
def test_nine_cases_in_each_text_format(tmp_path: Path, case: str, suffix: str) -> None:
    raw, text = _nested(case, suffix)
    path = tmp_path / f"file.{suffix}"
    path.write_bytes(raw)
    parsed = parse(path, ocr=False)
    found = "".join(segment.text for segment in parsed.segments)
    for line in text.strip().split("\n"):
        assert line.strip() in found
    assert parsed.report.encoding


@pytest.mark.parametrize(
    "raw",
    [
        bytes(range(256)) * 40,
        b"MZ\x90\0\x03\0\0\0" + bytes(i * 7919 % 251 for i in range(5000)),
        b"text with \0\0\0\0 nothing \0\0\0\0" * 10,
    ],
)
def test_bytes_that_are_not_text_are_refused(raw: bytes) -> None:
    with pytest.raises(Unreadable, match="not text"):
        read(raw)


def test_a_declared_charset_is_evidence_not_truth() -> None:
    page = '<meta charset="utf-8"><p>' + CHINESE
    assert CHINESE in read(page.encode("gbk"))[0]
    polish = '<meta charset="iso-8859-2"><p>Zażółć gęślą jaźń'
    assert read(polish.encode("iso-8859-2"))[0] == polish


@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co"], exclude_characters="\ufeff")))
def test_utf8_is_kept_exactly(text: str) -> None:
    assert read(text.encode())[0] == text


@given(st.binary(max_size=400))
def test_any_bytes_give_clean_text_or_a_refusal(raw: bytes) -> None:
    try:
        text, detected = read(raw)
    except Unreadable:
        return
    text.encode()
    assert not any(ord(c) < 32 and c not in "\t\n" for c in text)
    assert detected.replaced >= 0


@given(st.sampled_from(["\r\n", "\r", "\n"]), st.integers(0, 40))
def test_line_ends_are_normalised_across_pieces(end: str, shift: int) -> None:
    lines = ["字" * shift, *["行"] * 5]
    whole = read(end.join(lines).encode())[0]
    assert whole == "\n".join(lines)


def test_a_carriage_return_at_the_end_of_a_piece(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a" * (encoding.PIECE - 1) + b"\r\nb" + "字".encode() * encoding.PIECE)
    text = read(path)[0]
    assert text[encoding.PIECE - 1 : encoding.PIECE + 2] == "\nb字"
    assert text.endswith("字字")


def test_json_escapes_of_lone_surrogates_do_not_reach_the_text(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"text": "前\ud800后"}))
    "".join(segment.text for segment in parse(path, ocr=False).segments).encode()


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\ufeff"), min_size=1))
def test_utf8_without_a_fault_is_judged_as_any_other(text: str) -> None:
    """The quick way of nearly all files, and the long way of the rest."""
    content = text.encode()

    def outcome(judge: Callable[[], object]) -> object:
        try:
            return judge()
        except Unreadable as error:
            return str(error)

    quick = outcome(lambda: encoding._is_utf8(content, "it"))
    found = outcome(lambda: encoding._checked(content, "utf-8", 0, "it"))
    assert quick in (found if isinstance(found, str) else True, False)
    assert quick or "\0" in text


def test_a_program_is_not_taken_for_utf_16() -> None:
    """Almost any bytes are valid UTF-16 without a mark: headers, code, and tables of names."""
    names = b"".join(b"_ZN4core3fmt%d\0getProcAddress\0" % n for n in range(40))
    for seed in range(20):
        draw = random.Random(seed)
        code = bytes(
            draw.choice((draw.randrange(256), 0x48, 0x8B, 0xFF)) for _ in range(draw.randrange(40, 3000))
        )
        for content in (b"MZ\x90\0\x03\0" + code, b"MZ" + draw.randbytes(500), names[seed:] + code[:9]):
            with pytest.raises(Unreadable, match="is not text"):
                encoding.detect(content)


@pytest.mark.parametrize(
    "text", [CHINESE, TRADITIONAL, "สวัสดีครับ " * 20, "مرحبا بالعالم " * 20, "안녕하세요 여러분 " * 20]
)
def test_text_in_utf_16_without_a_mark_is_read(text: str) -> None:
    assert read(text.encode("utf-16-le"))[0] == text
