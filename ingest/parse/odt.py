"""OpenDocument texts and presentations, read as the HTML pages that they resemble."""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

from ingest.files import locked
from ingest.i18n import Translatable
from ingest.parse.blocks import Block, comment, mark
from ingest.parse.html import Page
from ingest.parse.opc import local, open_package

_TAGS = {
    **{"p": "p", "h": "h", "list": "ul", "list-item": "li", "span": "span"},
    **{"table": "table", "table-row": "tr", "table-cell": "td"},
}
_DIGITS, _REPEATS = re.compile("[0-9]{1,9}"), 100  # of one cell
_SIGNS = {"s": " ", "tab": " ", "line-break": "\n"}
_SKIPPED = {"tracked-changes", "hidden-text", "forms", "ruby-text", "title", "desc", "note-citation"}
_AFTER = {"note", "annotation", "frame", "custom-shape"}  # not in the middle of a paragraph


def odt_blocks(path: Path, *, warn: list[str]) -> Iterator[Block]:
    with open_package(path) as package:
        manifest = "META-INF/manifest.xml"
        if manifest in package and b"encryption-data" in package.read(manifest):
            raise locked(path.name)
        content = package.xml("content.xml")
        common = package.xml("styles.xml") if "styles.xml" in package else Element("none")
        document = _Document(content, common)
        margins = (e for e in common.iter() if local(e) in ("header", "footer"))
        slides = [element for element in content.iter() if local(element) == "page"]
        unseen = [at for at, slide in enumerate(slides, 1) if document.is_unseen(slide)]
        for at, slide in enumerate(slides, 1):
            if at not in unseen:
                yield mark("page", f"p. {at}")
                document.add(slide)
                yield from document.page.take()
        for element in () if slides else (content, *margins):
            document.add(element)
        document.page.close()
        yield from document.page.take()
        if unseen:
            warn.append(Translatable("hidden slides are left out: {slides}", slides=unseen[:20]))
        if document.hidden:
            warn.append(
                Translatable("hidden or struck text is left out: {count} places", count=document.hidden)
            )


class _Document:
    """Tells the elements of a document to a page as tags."""

    def __init__(self, content: Element, common: Element) -> None:
        self.page = Page(whole=True)
        self.hidden = 0
        self.sample = "".join(content.itertext())[:5000]
        elements = (e for root in (common, content) for e in root.iter() if local(e) == "style")
        self.styles = {_get(element, "name"): element for element in elements}

    def add(self, element: Element, after: list[Element] | None = None) -> None:
        """An element with all below it; what can't stand inside its paragraph is put into `after`."""
        name = local(element)
        if name in _AFTER and after is not None:
            after.append(element)
        elif name == "annotation":
            author = next((e.text or "" for e in element if local(e) == "creator"), "")
            words = " ".join(" ".join(e.itertext()) for e in element if local(e) in ("p", "list"))
            self.page.handle_starttag("p", [])
            self.page.handle_data(comment(author, words, sample=self.sample))
            self.page.handle_endtag("p")
        elif name in ("p", "h"):
            later: list[Element] = []
            self._element(element, later)
            for part in later:
                self.add(part)
        elif name not in _SKIPPED:
            repeats = _get(element, "number-columns-repeated") if name == "table-cell" else ""
            for _ in range(min(int(repeats), _REPEATS) if _DIGITS.fullmatch(repeats) else 1):
                self._element(element, after)

    def _element(self, element: Element, after: list[Element] | None) -> None:
        tag, style = _TAGS.get(local(element), ""), ""
        if tag in ("p", "span"):
            font = self._font(_get(element, "style-name"))
            struck = font.get("text-line-through-style", "none") != "none"
            style = "display:none" if struck or font.get("display") == "none" else ""
            self.hidden += bool(style) and any(element.itertext())
            script = font.get("text-position", "")[:3] if tag == "span" else ""
            tag = {"sup": "sup", "sub": "sub"}.get(script, tag)
            if tag == "p" and "Title" in font["styles"].split():
                tag = "h1"
        elif tag == "h":
            level = _get(element, "outline-level")
            tag = f"h{level}" if re.fullmatch("[1-6]", level) else "h6"
        if tag:
            spans = {"colspan": "number-columns-spanned", "rowspan": "number-rows-spanned"}
            values = [(key, _get(element, name)) for key, name in spans.items()]
            self.page.handle_starttag(tag, [("style", style), *values])
        self.page.handle_data(element.text or "")
        for child in element:
            if sign := _SIGNS.get(local(child)):
                self.page.handle_data(sign)
            else:
                self.add(child, after)
            self.page.handle_data(child.tail or "")
        if tag:
            self.page.handle_endtag(tag)

    def is_unseen(self, slide: Element) -> bool:
        style = self.styles.get(_get(slide, "style-name"), ())
        return any(_get(properties, "visibility") == "hidden" for properties in style)

    def _font(self, name: str) -> dict[str, str]:
        """The text properties of a style and of those that it is based on."""
        font = {"styles": ""}  # their names
        for _ in range(20):
            font["styles"] += f" {name}"
            for properties in self.styles.get(name, ()):
                if local(properties) == "text-properties":
                    own = {key.rpartition("}")[2]: value for key, value in properties.items()}
                    font = own | font
            name = _get(self.styles[name], "parent-style-name") if name in self.styles else ""
        return font


def _get(element: Element, name: str) -> str:
    """The attribute of that name in any namespace."""
    return next((v for k, v in element.items() if k.rpartition("}")[2] == name), "")
