"""OpenDocument texts and slides, read as the HTML that they resemble; and older office formats, read by
kreuzberg, which is used only here."""

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from ingest.files import damaged, locked
from ingest.i18n import Translatable
from ingest.parse.blocks import Block, clean, comment, heading, mark, table
from ingest.parse.html import Page
from ingest.parse.notation import superscript
from ingest.parse.opc import attributes, local, open_document, whole_number
from ingest.parse.pdf import Pictures
from ingest.parse.sheet import CELLS

MIME = {
    "doc": "application/msword",
    "ppt": "application/vnd.ms-powerpoint",
    "rtf": "application/rtf",
    "msg": "application/vnd.ms-outlook",
}

_DELETED = re.compile(rb"\{[^{}]*\\deleted(?![a-z0-9])[^{}]*\}")  # in RTF, a change that is recorded
_SUPERSCRIPT = re.compile(rb"(\\super(?![a-z0-9])(?:\\[a-z]+-?\d*)*[ \r\n]?)([^\\{}]+)")

_TAGS = {  # of OpenDocument -> of HTML
    **{"p": "p", "list": "ul", "list-item": "li", "line-break": "br", "frame": "div", "custom-shape": "div"},
    **{"table": "table", "table-row": "tr", "table-cell": "td", "tracked-changes": "del"},
    **dict.fromkeys(("page-number", "desc", "title", "forms", "date-time", "footer", "header"), "del"),
}


def opendocument_blocks(path: Path, *, pictures: Pictures, warn: list[str]) -> Iterator[Block]:
    """The text without what is deleted, struck or hidden, or the slides in order, each with its notes.
    Comments, footnotes and what pictures say follow the text or the slide."""
    with open_document(path) as package:
        root = package.xml("content.xml")
        named = package.xml("styles.xml").iter() if "styles.xml" in package else ()
        styles = {
            attributes(style).get("name", ""): _tag(style)
            for style in chain(named, root.iter())
            if local(style) == "style"
        }
        slides = [element for element in root.iter() if local(element) == "page"]
        shown = [slide for slide in slides if styles.get(attributes(slide).get("style-name", "")) != "del"]
        for part in shown if slides else [root]:
            page, apart = Page(), list[Block]()
            _feed(page, part, styles, apart)
            page.close()
            yield mark("page", f"p. {slides.index(part) + 1}") if slides else Block("")
            yield from page.take()
            yield from apart
            for image in (attributes(e).get("href", "") for e in part.iter() if local(e) == "image"):
                if image in package:
                    yield from pictures.blocks(package.read(image))
    if hidden := [at for at, slide in enumerate(slides, 1) if slide not in shown]:
        warn.append(Translatable("hidden slides are left out: {slides}", slides=hidden[:20]))


def _tag(style: Element) -> str:
    """The tag of HTML for what a style says of text or of a slide, or an empty one."""
    values = attributes(style)
    for inner in map(attributes, style):
        unseen = inner.get("display") == "none" or inner.get("visibility") == "hidden"
        if unseen or inner.get("text-line-through-style", "none") != "none":
            return "del"
        place = inner.get("text-position", "0%")
        if not place.startswith("0%"):
            return "sub" if place.startswith(("sub", "-")) else "sup"
    return "h1" if "Title" in (values.get("name"), values.get("parent-style-name")) else ""


def _feed(page: Page, element: Element, styles: Mapping[str, str], apart: list[Block]) -> None:
    values, name = attributes(element), local(element)
    if name in ("annotation", "note-body"):
        texts = {local(e): " ".join("".join(e.itertext()).split()) for e in element if local(e) == "creator"}
        text = "\n".join("".join(e.itertext()) for e in element.iter() if local(e) == "p")
        apart.append(
            Block(text if name == "note-body" else comment(texts.get("creator", ""), text, sample=text))
        )
        return
    tag = styles.get(values.get("style-name", "")) if name in ("p", "span") else ""
    if name == "h" or values.get("class") == "title":
        tag = f"h{min(whole_number(values.get('outline-level')) or 1, 6)}"
    tag = tag or _TAGS.get(name, "")
    if tag:
        spans = (values.get(f"number-{way}-spanned") for way in ("columns", "rows"))
        page.handle_starttag(tag, list(zip(("colspan", "rowspan"), spans, strict=True)))
    page.handle_data(" " if name in ("s", "tab") else element.text or "")
    for child in element:
        _feed(page, child, styles, apart)
        page.handle_data(child.tail or "")
    if tag:
        page.handle_endtag(tag)


def extract(path: Path, mime: str) -> Any:
    """kreuzberg's `ExtractionResult`, without OCR and cleaning. Raises `Unreadable` if it refuses."""
    import kreuzberg

    content = path.read_bytes()
    if mime == MIME["rtf"]:
        content = _SUPERSCRIPT.sub(_raised, _DELETED.sub(b"", content))
    config = kreuzberg.ExtractionConfig(
        use_cache=False,
        enable_quality_processing=False,
        include_document_structure=True,
        output_format="plain",
        concurrency=kreuzberg.ConcurrencyConfig(max_threads=2),
        content_filter=kreuzberg.ContentFilterConfig(
            include_headers=True, include_footers=True, strip_repeating_text=False
        ),
    )
    try:
        return kreuzberg.extract_bytes_sync(content, mime, config)
    except (kreuzberg.KreuzbergError, RuntimeError, ValueError, OSError) as error:
        if re.search("password|encrypt", str(error), re.IGNORECASE):
            raise locked(path.name) from error
        raise damaged(path.name, str(error).strip().split(": ")[-1][:200]) from error


def _raised(script: re.Match[bytes]) -> bytes:
    """A superscript of RTF as `notation` writes it."""
    return script[1] + superscript(script[2].decode("latin-1")).encode("latin-1")


def document_blocks(path: Path, kind: str) -> Iterator[Block]:
    """Old Word and PowerPoint, RTF: headings, paragraphs without struck text, tables."""
    result = extract(path, MIME[kind])
    nodes = (result.document or {}).get("nodes", [])
    if not nodes:
        yield from (Block(clean(part)) for part in result.content.split("\n\n"))
    for node in nodes:
        content = node["content"]
        if struck := [
            a for a in node.get("annotations") or () if a["kind"]["annotation_type"] == "strikethrough"
        ]:
            content["text"] = _without(content["text"], struck)
        if content["node_type"] in ("heading", "title"):
            yield heading(content.get("text") or "", content.get("level") or 1)
        elif content["node_type"] == "table":
            yield from table(_grid(content["grid"]))
        elif content["node_type"] == "list_item":
            yield Block("- " + clean(content.get("text") or ""), (), True)
        elif content["node_type"] not in ("group", "image"):
            yield Block(clean(content.get("text") or ""))


def _without(text: str, struck: list[dict[str, Any]]) -> str:
    """The text without these parts, whose places count bytes."""
    encoded = text.encode()
    for part in sorted(struck, key=lambda part: -part["start"]):
        encoded = encoded[: part["start"]] + encoded[part["end"] :]
    return encoded.decode(errors="replace")


def _grid(grid: dict[str, Any]) -> Iterator[list[str]]:
    """The rows of kreuzberg's cell list."""
    row: list[str] = []
    at = 0
    for cell in grid["cells"]:
        if cell["row"] != at:
            yield row
            row, at = [], cell["row"]
        if cell["col"] < CELLS:
            row += [""] * (cell["col"] - len(row)) + [cell["content"]]
    yield row
