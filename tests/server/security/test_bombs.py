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
from tests.server.servers import (
    has_ended,
    job_row,
    sample_server,
    server_with_worker,
    upload,
    wait_for,
    worker_pid,
)

PAGES = 100_000
COLUMNS = 1_000_000
MEGABYTES = 400


def large_zip(path: Path) -> None:
    """A few hundred kilobytes that expand to hundreds of megabytes."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("word/document.xml", "w", force_zip64=True) as part,
    ):
        part.write(f"<w:document {W}><w:body><w:p><w:r><w:t>".encode())
        for _ in range(MEGABYTES):
            part.write(b"A" * (1 << 20))
        part.write(b"</w:t></w:r></w:p></w:body></w:document>")


def nested_entities(path: Path) -> None:
    """Entities of entities."""
    levels = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
    body = f'<!DOCTYPE d [<!ENTITY l0 "ha">{levels}]><w:document {W}><w:body><w:p><w:r><w:t>&l11;</w:t></w:r></w:p></w:body></w:document>'
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", body)


def external_entity(path: Path) -> None:
    """An entity that is a file of this machine."""
    body = (
        '<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
        f"<w:document {W}><w:body><w:p><w:r><w:t>&x;</w:t></w:r></w:p></w:body></w:document>"
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", body)


def nested_zip(path: Path) -> None:
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


def deep_html(path: Path) -> None:
    path.write_text("<div>" * 200_000 + "deep", "utf-8")


def page_loop(path: Path) -> None:
    """A PDF whose page tree contains itself."""
    path.write_bytes(
        b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
        b"2 0 obj<</Type/Pages/Count 9/Kids[2 0 R 2 0 R]/Parent 2 0 R>>endobj\n"
        b"trailer<</Root 1 0 R/Size 3/Prev 0>>\nstartxref\n0\n%%EOF"
    )


BOMBS: dict[str, Callable[[Path], None]] = {
    "large_zip.docx": large_zip, "nested_entities.docx": nested_entities, "external_entity.docx": external_entity,
    "nested.docx": nested_zip, "deep.html": deep_html, "looping.pdf": page_loop,
}  # fmt: skip


def test_a_worker_survives_bombs_and_reads_the_files_between_them(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {}
    for name, make in BOMBS.items():
        make(tmp_path / name)
        files[name] = (tmp_path / name).read_bytes()
        files[f"after {name}.txt"] = f"在 {name} 之后的文件照样被读取。\n"
    with server_with_worker(tmp_path / "data") as (parts, supervisor):
        wait_for(supervisor.alive)
        before = worker_pid(supervisor)
        job = upload(parts, files)
        wait_for(has_ended(parts, job), 150)
        assert worker_pid(supervisor) == before  # the very process that began
        assert job_row(parts, job)["state"] == "done"
        states = {file["name"]: file for file in parts.jobs.files(job)}
        for name in BOMBS:
            assert states[f"after {name}.txt"]["state"] == "added", name
        for name in ("large_zip.docx", "nested_entities.docx", "looping.pdf"):
            assert states[name]["state"] == "refused"
            assert name in states[name]["problem"]
        with parts.knowledge_bases.open("mine") as pipeline:
            store = pipeline.store
            for head in store.documents():
                assert "root:" not in store.text(head.id)
                assert store.length(head.id) < 2_000_000


def pdf_with_pages() -> bytes:
    """A PDF of `PAGES` pages that share one line."""
    parts, offsets = [b"%PDF-1.4\n"], []
    size = len(parts[0])

    def add(content: bytes) -> None:
        nonlocal size
        offsets.append(size)
        parts.append(b"%d 0 obj\n%b\nendobj\n" % (len(offsets), content))
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
    rows = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    end = b"xref\n0 %d\n0000000000 65535 f \n%btrailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF"
    return b"".join([*parts, end % (len(offsets) + 1, rows, len(offsets) + 1, size)])


def test_huge_documents_end_within_their_limits(tmp_path: Path) -> None:
    """It may be read or refused, but the child's limits hold, and the next file is read."""
    wide = ",".join(f"c{n}" for n in range(COLUMNS)) + "\n" + ",".join("1" * COLUMNS) + "\n"
    (tmp_path / "wide.csv").write_text(wide)
    (tmp_path / "many.pdf").write_bytes(pdf_with_pages())
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


def test_the_generated_bombs_are_what_they_claim(tmp_path: Path) -> None:
    """Otherwise it would be refused only because it can't be opened."""
    import pypdfium2

    (tmp_path / "many.pdf").write_bytes(pdf_with_pages())
    with pypdfium2.PdfDocument(tmp_path / "many.pdf") as document:
        assert len(document) == PAGES
    large_zip(tmp_path / "large_zip.docx")
    assert (tmp_path / "large_zip.docx").stat().st_size < 1_000_000
    with zipfile.ZipFile(tmp_path / "large_zip.docx") as archive:
        assert archive.infolist()[0].file_size > MEGABYTES << 20
    word(tmp_path / "plain.docx", "<w:p><w:r><w:t>plain</w:t></w:r></w:p>")
    with Sandbox(ocr=False) as sandbox:
        assert "plain" in "".join(s.text for s in sandbox.parse(tmp_path / "plain.docx").segments)


@pytest.mark.parametrize("pages", [0, 10**6])
def test_a_missing_page_is_not_drawn(tmp_path: Path, pages: int) -> None:
    with sample_server(tmp_path) as sample:
        sample.upload({"two.pdf": pdf(tmp_path / "two.pdf", [["one"], ["two"]]).read_bytes()})
        found = sample.documents()["two.pdf"]["id"]
        answer = sample.client.get(f"/knowledge-bases/mine/documents/{found}/pages/{pages}")
        assert answer.status_code in (404, 422)
