"""What can and what can't be read, and the documents beside the repository, if present."""

import json
import re
import unicodedata
from pathlib import Path

import pytest

from ingest.errors import Unreadable
from ingest.i18n import translate
from ingest.ocr import available
from ingest.parse import parse
from tests.ingest.documents import DATA, package, paragraph, pdf, read, whole, word

SHARED = Path(__file__).parents[3].parent / "shared" / "documents"


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    path = pdf(tmp_path / "a.docx", [["Alpha"]])
    parsed = parse(path)
    assert "Alpha" in whole(parsed)[0]
    assert parsed.report.format == "pdf"
    assert parsed.report.warnings == ("the name says docx, the content is pdf",)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("password-aes-256.pdf", "needs a password"),
        ("testWORD_protected_passtika.docx", "needs a password"),
        ("blank-page.pdf", "holds no text"),
    ],
)
def test_locked_and_blank_files_say_so(name: str, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason) as caught:
        parse(DATA / name)
    assert name in translate(caught.value.message, "zh")
    assert translate(caught.value.message, "zh") != str(caught.value)


def test_damaged_containers_are_refused(tmp_path: Path) -> None:
    content = (DATA / "ocr_test.docx").read_bytes()
    for name, raw, reason in (
        ("empty.pdf", b"", "is empty"),
        ("blank.txt", b" \n\n", "is empty"),
        ("cut.docx", content[: len(content) // 2], "damaged or cut off"),
        ("blanks.txt", b" " * 5000, "is empty"),
        ("song.txt", b"ID3\x04\0\0", "audio"),
        ("a.gz", b"\x1f\x8b\x08", "gzip archive"),
        ("png.txt", b"\x89PNG\r\n\x1a\n" + b"\0" * 99, "not text" if available() else "image"),
    ):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(Unreadable, match=reason):
            parse(tmp_path / name)


def test_text_that_begins_like_another_format_is_text(tmp_path: Path) -> None:
    for text in ("文件以 %PDF- 开头", "ID3 标签说明", " " * 5000 + "文字"):
        (tmp_path / "a.txt").write_text(text)
        parsed = parse(tmp_path / "a.txt")
        assert parsed.report.format == "txt"
        assert whole(parsed)[0].strip() == text.strip()


def test_a_pdf_may_begin_with_other_bytes(tmp_path: Path) -> None:
    path = pdf(tmp_path / "a.pdf", [["Alpha"]])
    path.write_bytes(b"\n\n" + path.read_bytes())
    assert parse(path).report.format == "pdf"


def test_bombs_and_entities_are_refused_before_they_unfold(tmp_path: Path) -> None:
    bomb = word(tmp_path / "bomb.docx", paragraph(" " * 80_000_000))
    with pytest.raises(Unreadable, match=r"refused.*unpacks"):
        parse(bomb)
    laugh = package(
        tmp_path / "laugh.docx",
        {"word/document.xml": '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><a>&c;</a>'},
    )
    with pytest.raises(Unreadable, match="entities"):
        parse(laugh)


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text))


def _shared() -> list[dict]:
    if not SHARED.is_dir():
        return []
    records = [json.loads(line) for line in (SHARED / "manifest.jsonl").read_text().splitlines()]
    return [r for r in records if r.get("needles")]


@pytest.mark.parametrize("record", _shared(), ids=lambda record: record["file"])
def test_shared_documents_hold_their_needles(record: dict) -> None:
    text = _squeezed(read(SHARED / record["file"])[0])
    assert [needle for needle in record["needles"] if _squeezed(needle) not in text] == []
