"""DrawingML, which Word and PowerPoint share: paragraphs of shapes, charts, SmartArt."""

import contextlib
from collections.abc import Iterator
from xml.etree.ElementTree import Element

from ingest.parse.blocks import Block, clean, table
from ingest.parse.notation import equation, scripts
from ingest.parse.opc import REL, Package, local, walk

A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
Relations = dict[str, tuple[str, str]]


def drawing_blocks(package: Package, element: Element, relations: Relations) -> Iterator[Block]:
    """The chart or SmartArt that an element refers to."""
    for attribute in (REL + "id", REL + "dm"):
        kind, part = relations.get(element.get(attribute, ""), ("", ""))
        if kind == "chart" and part in package:
            yield from _chart(package.xml(part))
        elif kind == "diagramData" and part in package:
            texts = filter(None, map(paragraph_text, package.xml(part).iter(A + "p")))
            yield from (Block(text, (), at > 0) for at, text in enumerate(texts))


def _chart(root: Element) -> Iterator[Block]:
    """The chart's titles, and its series as a table with one column each."""
    yield from (Block(text) for text in map(paragraph_text, root.iter(A + "p")) if text)
    head, first, columns = [""], {}, []
    for series in (element for element in root.iter() if local(element) == "ser"):
        values = {local(child): _points(child) for child in series}
        first = first or values.get("cat") or values.get("xVal") or {}
        head.append(" ".join(values.get("tx", {}).values()))
        columns.append(values.get("val") or values.get("yVal") or {})
    places = sorted({*first, *(place for column in columns for place in column)})
    if columns and places:
        rows = ([column.get(place, "") for column in (first, *columns)] for place in places)
        yield from table([head, *rows])


def _points(element: Element) -> dict[int, str]:
    """Index -> value as the chart shows it, apart from its number format except percent."""
    form, points = "", {}
    for part in element.iter():
        if local(part) == "formatCode":
            form = part.text or ""
        elif local(part) in ("pt", "tx"):
            index = part.get("idx", "0")
            text = next((v.text or "" for v in part.iter() if local(v) == "v"), "")
            with contextlib.suppress(ValueError):
                text = f"{float(text):.{form.count('0') - 1}%}" if form.endswith("0%") else text
            points.setdefault(int(index) if index.isdecimal() and len(index) < 7 else 0, text)
    return points


_RUNS = frozenset(("r", "fld", "oMath"))


def paragraph_text(paragraph: Element) -> str:
    """Without struck text; superscripts and equations as `notation` writes them."""
    pieces: list[tuple[str, str]] = []
    for part in walk(paragraph, _RUNS):
        name = local(part)
        if name == "br":
            pieces.append(("", "\n"))
        elif name == "oMath":
            pieces.append(("", equation(part)))
        elif name in _RUNS:
            font = part.find(A + "rPr")
            struck, baseline = ("noStrike", "0") if font is None else (
                font.get("strike", "noStrike"), font.get("baseline", "0")
            )  # fmt: skip
            text = "".join(t.text or "" for t in part.iter(A + "t"))
            align = "subscript" if baseline.startswith("-") else "superscript"
            if struck == "noStrike":
                pieces.append(("" if baseline.rstrip("%") in ("0", "") else align, text))
    return clean(scripts(pieces))
