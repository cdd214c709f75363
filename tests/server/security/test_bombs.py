"""Files that expand, nest or never end are refused; the worker and the next file survive."""

import io
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from ingest.errors import Unreadable
from ingest.sandbox import Sandbox
from tests.ingest.documents import W, pdf, word
from tests.server.servers import ended, filled, row, served, upload, wait_for

PAGES = 100_000
COLUMNS = 1_000_000
MEGABYTES = 400


def swelling(path: Path) -> None:
    """A few hundred kilobytes that expand to hundreds of megabytes."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("word/document.xml", "w", force_zip64=True) as part,
    ):
        part.write(f"<w:document {W}><w:body><w:p><w:r><w:t>".encode())
        for _ in range(MEGABYTES):
            part.write(b"A" * (1 << 20))
        part.write(b"</w:t></w:r></w:p></w:body></w:document>")


def laughing(path: Path) -> None:
    """Entities of entities."""
    levels = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
    body = f'<!DOCTYPE d [<!ENTITY l0 "ha">{levels}]><w:document {W}><w:body><w:p><w:r><w:t>&l11;</w:t></w:r></w:p></w:body></w:document>'
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", body)


def revealing(path: Path) -> None:
    """An entity that is a file of this machine."""
    body = (
        '<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
        f"<w:document {W}><w:body><w:p><w:r><w:t>&x;</w:t></w:r></w:p></w:body></w:document>"
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", body)


def nested(path: Path) -> None:
    """Archives in archives, each of which is large when it is unpacked."""
    data = b"0" * (1 << 20)
    for depth in range(6):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for copy in range(10 if depth else 64):
                archive.writestr(f"{copy}.zip", data)
        data = packed.getvalue()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("word/embeddings/inner.zip", data)
        archive.writestr("word/document.xml", f"<w:document {W}><w:body/></w:document>")


def deep(path: Path) -> None:
    path.write_text("<div>" * 200_000 + "deep", "utf-8")


def looping(path: Path) -> None:
    """A PDF whose page tree contains itself."""
    path.write_bytes(
        b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
        b"2 0 obj<</Type/Pages/Count 9/Kids[2 0 R 2 0 R]/Parent 2 0 R>>endobj\n"
        b"trailer<</Root 1 0 R/Size 3/Prev 0>>\nstartxref\n0\n%%EOF"
    )


BOMBS: dict[str, Callable[[Path], None]] = {
    "swelling.docx": swelling, "laughing.docx": laughing, "revealing.docx": revealing,
    "nested.docx": nested, "deep.html": deep, "looping.pdf": looping,
}  # fmt: skip


def test_a_worker_outlives_the_bombs_and_reads_what_lies_between_them(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {}
    for name, make in BOMBS.items():
        make(tmp_path / name)
        files[name] = (tmp_path / name).read_bytes()
        files[f"after {name}.txt"] = f"在 {name} 之后的文件照样被读取。\n"
    with served(tmp_path / "data") as (parts, supervisor):
        wait_for(supervisor.alive)
        before = supervisor.pid
        job = upload(parts, files)
        wait_for(ended(parts, job), 150)
        assert supervisor.pid == before  # the very process that began
        assert row(parts, job)["state"] == "done"
        states = {file["name"]: file for file in parts.jobs.files(job)}
        for name in BOMBS:
            assert states[f"after {name}.txt"]["state"] == "added", name
        for name in ("swelling.docx", "laughing.docx", "looping.pdf"):
            assert states[name]["state"] == "refused"
            assert name in states[name]["problem"]
        with parts.knowledge_bases.open("mine") as pipeline:
            store = pipeline.store
            for head in store.documents():
                assert "root:" not in store.text(head.id)
                assert store.length(head.id) < 2_000_000


def many_pages() -> bytes:
    """A PDF of `PAGES` pages that share one line."""
    parts, places = [b"%PDF-1.4\n"], []
    size = len(parts[0])

    def add(content: bytes) -> None:
        nonlocal size
        places.append(size)
        parts.append(b"%d 0 obj\n%b\nendobj\n" % (len(places), content))
        size += len(parts[-1])

    line = b"BT /F 12 Tf 20 100 Td (page of many) Tj ET"
    kids = b" ".join(b"%d 0 R" % (5 + page) for page in range(PAGES))
    add(b"<</Type/Catalog/Pages 2 0 R>>")
    add(b"<</Type/Pages/Count %d/Kids[%b]>>" % (PAGES, kids))
    add(b"<</Length %d>>stream\n%b\nendstream" % (len(line), line))
    add(b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>")
    for _ in range(PAGES):
        add(b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]/Contents 3 0 R"
            b"/Resources<</Font<</F 4 0 R>>>>>>")  # fmt: skip
    rows = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = (
        b"xref\n0 %d\n0000000000 65535 f \n%btrailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF"
    )
    return b"".join([*parts, end % (len(places) + 1, rows, len(places) + 1, size)])


def test_a_hundred_thousand_pages_and_a_million_columns_end_within_their_limits(
    tmp_path: Path,
) -> None:
    """It may be read or refused, but the child's limits hold, and the next file is read."""
    wide = ",".join(f"c{n}" for n in range(COLUMNS)) + "\n" + ",".join("1" * COLUMNS) + "\n"
    (tmp_path / "wide.csv").write_text(wide)
    (tmp_path / "many.pdf").write_bytes(many_pages())
    (tmp_path / "after.txt").write_text("之后的文件照样被读取。\n", "utf-8")
    with Sandbox(ocr=False) as sandbox:
        parsed = sandbox.parse(tmp_path / "wide.csv")
        assert sum(len(segment.text) for segment in parsed.segments) < 100_000
        assert "only the first 1000" in str(parsed.report.warnings)
        with suppress(Unreadable):
            texts = (segment.text for segment in sandbox.parse(tmp_path / "many.pdf").segments)
            assert sum(text.count("page of many") for text in texts) == PAGES
        assert sandbox.memory < sandbox.limits.memory
        after = sandbox.parse(tmp_path / "after.txt")
        assert "照样被读取" in "".join(segment.text for segment in after.segments)


def test_the_generated_files_are_what_they_say(tmp_path: Path) -> None:
    """Otherwise it would be refused only because it can't be opened."""
    import pypdfium2

    (tmp_path / "many.pdf").write_bytes(many_pages())
    with pypdfium2.PdfDocument(tmp_path / "many.pdf") as opened:
        assert len(opened) == PAGES
    swelling(tmp_path / "swelling.docx")
    assert (tmp_path / "swelling.docx").stat().st_size < 1_000_000
    with zipfile.ZipFile(tmp_path / "swelling.docx") as archive:
        assert archive.infolist()[0].file_size > MEGABYTES << 20
    word(tmp_path / "plain.docx", "<w:p><w:r><w:t>plain</w:t></w:r></w:p>")
    with Sandbox(ocr=False) as sandbox:
        assert "plain" in "".join(s.text for s in sandbox.parse(tmp_path / "plain.docx").segments)


@pytest.mark.parametrize("pages", [0, 10**6])
def test_a_page_that_is_not_there_is_not_drawn(tmp_path: Path, pages: int) -> None:
    with filled(tmp_path) as mine:
        mine.upload({"two.pdf": pdf(tmp_path / "two.pdf", [["one"], ["two"]]).read_bytes()})
        found = mine.documents()["two.pdf"]["id"]
        answer = mine.client.get(f"/knowledge-bases/mine/documents/{found}/pages/{pages}")
        assert answer.status_code in (404, 422)
