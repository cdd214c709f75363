"""PowerPoint: each slide a page, its title a heading, then its shapes, tables, charts and notes."""

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

from ingest.files import damaged
from ingest.i18n import Translatable
from ingest.parse.blocks import Block, clean, heading, mark, table
from ingest.parse.opc import REL, Package, local, open_package, walk
from ingest.parse.pdf import Pictures

A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
P = "{http://schemas.openxmlformats.org/presentationml/2006/main}"
_SKIPPED_ROLES = ("sldNum", "dt", "ftr", "hdr", "sldImg")
_SHAPES = frozenset(("sp", "pic", "graphicFrame"))


def slide_blocks(path: Path, *, pictures: Pictures) -> Iterator[Block]:
    with open_package(path) as package:
        parts = _slides(package)
        if not parts:
            raise damaged(path.name, Translatable("it has no slides"))
        for number, part in enumerate(parts, 1):
            yield mark("page", f"p. {number}")
            yield from _slide(package, part, pictures)


def _slides(package: Package) -> list[str]:
    """The parts of the slides in the order of the show."""
    relations = package.relations("ppt/presentation.xml")
    if "ppt/presentation.xml" not in package:
        raise damaged(package.name, Translatable("it has no presentation part"))
    order = package.xml("ppt/presentation.xml").iter(P + "sldId")
    parts = [relations.get(slide.get(REL + "id", ""), ("", ""))[1] for slide in order]
    return [part for part in parts if part in package]


def _slide(package: Package, part: str, pictures: Pictures) -> Iterator[Block]:
    relations = package.relations(part)
    for shape in walk(package.xml(part), _SHAPES):
        kind = local(shape)
        if kind == "sp":
            yield from _shape(shape)
        elif kind == "graphicFrame":
            yield from _frame(package, shape, relations)
        if kind in _SHAPES:
            for blip in shape.iter(A + "blip"):
                target = relations.get(blip.get(REL + "embed", ""), ("", ""))[1]
                if target in package:
                    yield from pictures.blocks(package.read(target))
    for kind, target in relations.values():
        if kind == "notesSlide" and target in package:
            for shape in package.xml(target).iter(P + "sp"):
                yield from _shape(shape)


def _shape(shape: Element) -> Iterator[Block]:
    placeholder = shape.find(f".//{P}nvPr/{P}ph")
    role = "" if placeholder is None else placeholder.get("type", "")
    if role in _SKIPPED_ROLES:
        return
    paragraphs = [text for text in map(_text, shape.iter(A + "p")) if text]
    if role in ("title", "ctrTitle") and paragraphs:
        yield heading(" ".join(paragraphs), 1)
    else:
        yield from (Block(text, (), at > 0) for at, text in enumerate(paragraphs))


def _frame(package: Package, frame: Element, relations: dict[str, tuple[str, str]]) -> Iterator[Block]:
    """A table, or the text of a chart or diagram."""
    for grid in frame.iter(A + "tbl"):
        rows = [
            ["\n".join(filter(None, map(_text, cell.iter(A + "p")))) for cell in row.iter(A + "tc")]
            for row in grid.iter(A + "tr")
        ]
        yield from table(rows)
    for element in frame.iter():
        for attribute in (REL + "id", REL + "dm"):
            kind, part = relations.get(element.get(attribute, ""), ("", ""))
            if kind == "chart" and part in package:
                yield from _chart(package.xml(part))
            elif kind == "diagramData" and part in package:
                texts = [text for text in map(_text, package.xml(part).iter(A + "p")) if text]
                yield from (Block(text, (), at > 0) for at, text in enumerate(texts))


def _chart(root: Element) -> Iterator[Block]:
    """The chart's titles, and its series as a table with one column each."""
    yield from (Block(text) for text in map(_text, root.iter(A + "p")) if text)
    head, columns = [""], [[]]
    for series in (element for element in root.iter() if local(element) == "ser"):
        values = {local(c): [v.text or "" for v in c.iter() if local(v) == "v"] for c in series}
        columns[0] = columns[0] or values.get("cat", [])
        head.append(" ".join(values.get("tx", [])))
        columns.append(values.get("val", []))
    height = max(map(len, columns))
    if len(columns) > 1 and height:
        padded = [column + [""] * (height - len(column)) for column in columns]
        yield from table([head, *map(list, zip(*padded, strict=True))])


def _text(paragraph: Element) -> str:
    parts = [element for element in walk(paragraph) if local(element) in ("t", "br")]
    return clean("".join("\n" if local(part) == "br" else part.text or "" for part in parts))
