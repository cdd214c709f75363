"""PDF: page by page; a page without usable text is drawn and read by OCR."""

import re
from collections.abc import Iterator
from pathlib import Path

from ingest.headings import heading as chinese_heading
from ingest.ocr import INSTALL, Reader
from ingest.parse.blocks import Block, clean, heading, mark
from ingest.parse.lines import rejoin
from ingest.parse.office import extract
from ingest.parse.pictures import Pictures

DPI = 200
DRAWING = 10.0  # seconds that one page may take to be drawn
MOST_PAGES = 300  # drawn and read by OCR in one document
EMPTY_PAGES = 30  # in a row without text; then the rest is not drawn any more

_SOUP = re.compile(r"[\xa1-\xff]{2,}")
_CID = re.compile(r"\(cid:\d+\)")
_PRIVATE = re.compile("[\ue000-\uf8ff\ufffd\U000f0000-\U0010ffff\0-\x08\x0e-\x1f]")


def pdf_blocks(
    path: Path, *, reader: Reader | None, pictures: Pictures, warn: list[str]
) -> Iterator[Block]:
    result = extract(path, "application/pdf", images=True)
    read: list[int] = []
    undrawn: list[int] = []
    empty = 0  # pages in a row in which OCR found nothing
    unread: dict[str, list[int]] = {}
    for page in result.pages or []:
        number = page["page_number"]
        yield mark("page", f"p. {number}")
        text = clean(page["content"])
        trouble = "" if text else "no text layer"
        if text and is_mojibake(text):
            trouble = "a text layer that is mojibake"
        tried = len(read) + len(undrawn)
        if trouble and reader and tried < MOST_PAGES and empty < EMPTY_PAGES:
            seen = _ocr(path, number, reader)
            text = clean(seen or "")
            (undrawn if seen is None else read).append(number)
            empty = 0 if text else empty + 1
        elif trouble:
            unread.setdefault(trouble, []).append(number)
            text = ""
        yield from _lines(text)
        if not trouble:
            for image in page["images"]:
                yield from pictures.blocks(image["data"])
    for trouble, pages in unread.items():
        reason = INSTALL if reader is None else f"OCR stops after {MOST_PAGES} or empty pages"
        warn.append(f"pages with {trouble}: {len(pages)}, from p. {pages[0]} on ({reason})")
    if undrawn:
        warn.append(f"pages that could not be drawn for OCR: {', '.join(map(str, undrawn[:10]))}")
    pictures.read += len(read)


def is_mojibake(text: str) -> bool:
    """Whether a page's text is what a font without a usable character map leaves: runs of upper
    Latin-1 ("£± ¹ØÓÚ"), private-use or control characters, (cid:12)."""
    visible = sum(not character.isspace() for character in text) or 1
    soup = sum(len(run) for run in _SOUP.findall(text))
    cids = sum(map(len, _CID.findall(text)))
    return max(soup, cids, 2 * len(_PRIVATE.findall(text))) > 0.3 * visible


def _ocr(path: Path, number: int, reader: Reader) -> str | None:
    """What OCR reads on a page; None when the page can't be drawn."""
    import kreuzberg

    reader.patience(DRAWING)
    try:
        picture = kreuzberg.render_pdf_page(str(path), number - 1, dpi=DPI)
    except (kreuzberg.KreuzbergError, RuntimeError, ValueError):
        return None
    return reader.text(picture)


def _lines(text: str) -> Iterator[Block]:
    """Paragraphs of a page; chapter headings stand alone."""
    held: list[str] = []
    for line in rejoin(text).split("\n"):
        found = chinese_heading(line)
        if found or not line.strip():
            if held:
                yield Block("\n".join(held))
            held = []
            if found:
                yield heading(*found)
        else:
            held.append(line)
    if held:
        yield Block("\n".join(held))
