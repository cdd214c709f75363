"""PowerPoint: each slide a page, its title a heading, then its boxes, tables, charts, notes, comments."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from xml.etree.ElementTree import Element

from ingest.files import damaged
from ingest.i18n import Translatable
from ingest.parse.blocks import Block, clean, comment, heading, mark, table
from ingest.parse.notation import equation, scripts
from ingest.parse.number_format import show
from ingest.parse.opc import REL, Package, local, open_package, walk, whole_number
from ingest.parse.pdf import Pictures
from ingest.parse.sheet import Row, text_table

A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
P = "{http://schemas.openxmlformats.org/presentationml/2006/main}"
_FRAMES = (P + "xfrm", f"{P}spPr/{A}xfrm")  # places of tables and charts, of other shapes
_SKIPPED_ROLES = ("sldNum", "dt", "ftr", "hdr", "sldImg")
_RUNS = frozenset(("r", "fld", "oMath"))
_SHAPES = frozenset(("sp", "pic", "graphicFrame"))
_MOST_BOXES = 500  # on a slide; more are read from top to bottom
Relations = dict[str, tuple[str, str]]
_LABEL = 40  # characters of a box that can be a label or its value


@dataclass(frozen=True, slots=True)
class Box:
    """A shape and its place on the slide."""

    shape: Element
    left: float
    top: float
    right: float
    bottom: float


def slide_blocks(path: Path, *, pictures: Pictures, warn: list[str]) -> Iterator[Block]:
    with open_package(path) as package:
        parts = _slides(package)
        if not parts:
            raise damaged(path.name, Translatable("it has no slides"))
        hidden: list[int] = []
        authors = {
            person.get("id", ""): person.get("name", "")
            for part in package.related("ppt/presentation.xml", "commentAuthors", "authors")
            for person in package.xml(part)
        }
        for number, part in enumerate(parts, 1):
            root = package.xml(part)
            if root.get("show") in ("0", "false"):
                hidden.append(number)
                continue
            yield mark("page", f"p. {number}")
            yield from _slide(package, part, list(_boxes(root)), pictures)
            for target in package.related(part, "comments"):
                yield from _comments(package.xml(target), authors)
        if hidden:
            warn.append(Translatable("hidden slides are left out: {slides}", slides=hidden[:20]))


def _slides(package: Package) -> list[str]:
    """The parts of the slides in the order of the show."""
    relations = package.relations("ppt/presentation.xml")
    if "ppt/presentation.xml" not in package:
        raise damaged(package.name, Translatable("it has no presentation part"))
    order = package.xml("ppt/presentation.xml").iter(P + "sldId")
    return [relations[key][1] for slide in order if (key := slide.get(REL + "id", "")) in relations]


def _slide(package: Package, part: str, boxes: list[Box], pictures: Pictures) -> Iterator[Block]:
    relations = package.relations(part)
    titles = [box for box in boxes if _placeholder(box.shape).get("type") in ("title", "ctrTitle")]
    for line in [*([title] for title in titles), *reading_order([b for b in boxes if b not in titles])]:
        texts = [_texts(box.shape) for box in line]
        if len(line) > 1 and all(len(t) == 1 and len(t[0]) <= _LABEL for t in texts):
            yield Block(" ".join(text for [text] in texts))
            continue
        for box in line:
            yield from _shape(package, box.shape, relations, pictures)
    for target in package.related(part, "notesSlide"):
        for shape in package.xml(target).iter(P + "sp"):
            yield from _paragraphs(shape)


def _comments(root: Element, authors: Mapping[str, str]) -> Iterator[Block]:
    """What reviewers wrote on a slide, of both forms that PowerPoint has for it, and the replies."""
    for note in (e for e in root.iter() if local(e) in ("cm", "reply")):
        lines = (p for e in note if local(e) in ("text", "txBody") for p in e.iter() if p.text)
        if text := "\n".join(line.text or "" for line in lines).strip():
            yield Block(comment(authors.get(note.get("authorId", ""), ""), text, sample=text))


def _boxes(element: Element, scale: Sequence[float] = (1, 0, 1, 0)) -> Iterator[Box]:
    """The shapes below `element`. The coordinates in a group become those of its slide by `scale`: a
    factor and an offset across, and both downwards."""
    for child in element[:1] if local(element) == "AlternateContent" else element:
        if local(child) not in _SHAPES:
            frame = child.find(f"{P}grpSpPr/{A}xfrm") if local(child) == "grpSp" else None
            yield from _boxes(child, scale if frame is None else _inner(frame, scale))
            continue
        properties = child.find(f".//{P}cNvPr")
        if properties is not None and properties.get("hidden") in ("1", "true"):
            continue
        frame = next((f for way in _FRAMES if (f := child.find(way)) is not None), None)
        across, x, down, y = scale
        left, width, top, height = (0, 0, 0, 0) if frame is None else _numbers(frame, "off", "ext")
        left, top = left * across + x, top * down + y
        yield Box(child, left, top, left + width * across, top + height * down)


def _inner(frame: Element, outer: Sequence[float]) -> Sequence[float]:
    """The scale inside a group with this frame."""
    scale: list[float] = []
    place, inner = _numbers(frame, "off", "ext"), _numbers(frame, "chOff", "chExt")
    for at in (0, 2):
        factor = place[at + 1] / (inner[at + 1] or place[at + 1] or 1)
        offset = place[at] - inner[at] * factor
        scale += [factor * outer[at], offset * outer[at] + outer[at + 1]]
    return scale


def _numbers(frame: Element, point: str, extent: str) -> Sequence[float]:
    """Left, width, top, height."""
    values = []
    for name, key in ((point, "x"), (extent, "cx"), (point, "y"), (extent, "cy")):
        child = frame.find(A + name)
        text = "" if child is None else child.get(key, "")
        values.append(int(text) if re.fullmatch(r"-?\d{1,12}", text) else 0)
    return values


def _placeholder(shape: Element) -> dict[str, str]:
    found = shape.find(f".//{P}nvPr/{P}ph")
    return {} if found is None else {"type": "body", **found.attrib}


def reading_order(boxes: list[Box]) -> Iterator[list[Box]]:
    """Lines of boxes: from top to bottom, and boxes side by side on one line if they are labels and
    values. Columns of text are read one after the other."""
    if len(boxes) > _MOST_BOXES:
        yield from ([box] for box in sorted(boxes, key=lambda box: (box.top, box.left)))
        return
    band: list[Box] = []
    for row in [*_split(boxes, "top", "bottom"), []]:
        if band and (not row or len(_split(band + row, "left", "right")) == 1):
            yield from _band(band)
            band = []
        band = band + row


def _band(boxes: list[Box]) -> Iterator[list[Box]]:
    rows, columns = _split(boxes, "top", "bottom"), _split(boxes, "left", "right")
    if len(columns) == 1:
        yield from ([box] for box in sorted(boxes, key=lambda box: (box.top, box.left)))
    elif len(rows) == 1 and all(len(column) == 1 for column in columns):
        yield [box for column in columns for box in column]
    elif _is_grid(rows, columns):
        yield from (sorted(row, key=lambda box: box.left) for row in rows)
    else:
        for column in columns:
            yield from reading_order(column)


def _is_grid(rows: list[list[Box]], columns: list[list[Box]]) -> bool:
    """Whether boxes are to be read by rows: all are short, and closer to their neighbours in the row
    than to those above and below, or two columns of three rows or more."""
    texts = [_texts(box.shape) for row in rows for box in row]
    if not all(len(text) == 1 and len(text[0]) <= _LABEL for text in texts):
        return False
    if len(columns) == 2 and len(rows) > 2:
        return True
    across = min(min(b.left for b in right) - max(b.right for b in left) for left, right in pairwise(columns))
    down = min(
        (min(b.top for b in low) - max(b.bottom for b in high) for high, low in pairwise(rows)), default=0
    )
    return across <= down


def _split(boxes: list[Box], low: str, high: str) -> list[list[Box]]:
    """Groups that do not overlap by more than a quarter of a box."""
    groups: list[list[Box]] = []
    reach = float("-inf")
    for box in sorted(boxes, key=lambda box: getattr(box, low)):
        start, end = getattr(box, low), getattr(box, high)
        if start >= reach - (end - start) / 4:
            groups.append([])
        groups[-1].append(box)
        reach = max(reach, end)
    return groups


def _texts(shape: Element) -> list[str]:
    """The paragraphs of a text box; none for pictures, tables and running elements."""
    if local(shape) != "sp" or _placeholder(shape).get("type") in _SKIPPED_ROLES:
        return []
    return [text for text in map(paragraph_text, shape.iter(A + "p")) if text]


def _paragraphs(shape: Element) -> Iterator[Block]:
    paragraphs = _texts(shape)
    if _placeholder(shape).get("type") in ("title", "ctrTitle") and paragraphs:
        yield heading(" ".join(paragraphs), 1)
    else:
        yield from (Block(text, (), at > 0) for at, text in enumerate(paragraphs))


def _shape(package: Package, shape: Element, relations: Relations, pictures: Pictures) -> Iterator[Block]:
    yield from _paragraphs(shape)
    if local(shape) == "graphicFrame":
        for grid in shape.iter(A + "tbl"):
            yield from text_table(_rows(grid))
        for element in shape.iter():
            yield from drawing_blocks(package, element, relations)
    for blip in shape.iter(A + "blip"):
        target = relations.get(blip.get(REL + "embed", ""), ("", ""))[1]
        if target in package:
            yield from pictures.blocks(package.read(target))


def _rows(grid: Element) -> Iterator[Row]:
    for number, element in enumerate(grid.iter(A + "tr"), 1):
        row = Row(number, {})
        for at, cell in enumerate(element.iter(A + "tc")):
            if not {"hMerge", "vMerge"} & set(cell.keys()):
                columns, rows = (whole_number(cell.get(key, "1")) for key in ("gridSpan", "rowSpan"))
                row.cells[at] = "\n".join(filter(None, map(paragraph_text, cell.iter(A + "p"))))
                row.spans += [(at, at + columns - 1, number + rows - 1)] if columns * rows > 1 else []
        yield row


def drawing_blocks(package: Package, element: Element, relations: Relations) -> Iterator[Block]:
    """The chart or SmartArt that an element refers to."""
    for attribute in (REL + "id", REL + "dm"):
        kind, part = relations.get(element.get(attribute, ""), ("", ""))
        if kind == "chart":
            yield from _chart(package.xml(part))
        elif kind == "diagramData":
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
    """Index -> value as the chart shows it."""
    form, points = "", {}
    for part in element.iter():
        if local(part) == "formatCode":
            form = part.text or ""
        elif local(part) in ("pt", "tx"):
            index = part.get("idx", "0")
            text = next((v.text or "" for v in part.iter() if local(v) == "v"), "")
            with contextlib.suppress(ValueError):
                text = show(float(text), form) if form else text
            points.setdefault(int(index) if index.isdecimal() and len(index) < 7 else 0, text)
    return points


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
