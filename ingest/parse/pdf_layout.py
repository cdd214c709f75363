"""From the pieces of all pages to blocks: reading order, running lines left out, headings, whole paragraphs."""

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise

from ingest.parse.blocks import Block, chinese_heading, heading, table
from ingest.parse.pdf_page import (
    LEADER,
    WIDE,
    PageContent,
    PdfTable,
    Run,
    is_number,
    join_lines,
    row_text,
    stretches,
    visual_rows,
    width,
)
from ingest.parse.pdf_tables import side_by_side, tables
from ingest.types import Mark

DEEPEST = 8  # columns within columns, at most
LONGEST_HEADING = 60  # characters
NARROWEST = 20  # columns; a shorter line is a cell or a label, never the full width of a text
FULL = 0.85  # of the column's width: a line as long as that was broken because it was full

_ENDED = re.compile(r"[。！？；：.!?:;…”」』]$")
_ITEM = re.compile(
    r"[•·●○■□◆◇▪▫▶►※★☆√✓☑☐*\-–—]|[(（]?[0-9一二三四五六七八九十]{1,3}[)）、.．:：](?!\d)"
    r"|第\s*[0-9一二三四五六七八九十百千零〇]+\s*[编章节条款项]|[①-⑳]|附[件录表]|[(（][a-zA-Z][)）]"
    r"|[ⅰ-ⅹ]|[问答QA][：:]"
)
_NUMBERING = (
    re.compile(r"\d{1,2}(\.\d{1,2}){1,4}[.、\s]?\s*(?=[^\d\s.%])"),
    re.compile(r"[一二三四五六七八九十]{1,3}、\s*"),
    re.compile(r"[（(][一二三四五六七八九十]{1,3}[）)]\s*"),
    re.compile(r"\d{1,2}[、.．]\s*(?=\D)"),  # a list item, unless it is large or bold
)
_PUNCTUATION = re.compile(r"[；，,;：:]$|。|；|\.{3}|…")
_COMMA = re.compile("[，、,]")
_NOTE = re.compile(r"[①-⑳*†‡\d¹²³⁴-⁹]|\[\d+\]|注[：:\d]")
_SPACED = re.compile(f"(?<={WIDE}) (?={WIDE})")
_TOUCHING = re.compile(f"{WIDE}(?={WIDE})")
_WORD = re.compile(r"[^\W\d_]+")
_BROKEN_WORD = re.compile(r"([^\W\d_]+)-$")
_HANGUL = re.compile("[\uac00-\ud7a3]")


@dataclass(slots=True)
class PrintedLine:
    """A printed line of text in its column."""

    text: str
    page: int
    runs: list[Run]
    full: bool = False
    """It reaches the right edge of its column."""
    opens: bool = False
    """It begins a paragraph by its place."""
    note: bool = False
    level: int = 0
    """Rank of a heading; 0 if it is none."""

    @property
    def size(self) -> float:
        return max(run.size for run in self.runs)

    @property
    def bold(self) -> bool:
        return all(run.bold for run in self.runs)


Item = PrintedLine | PdfTable


@dataclass(slots=True)
class Layout:
    """The pages of a document in reading order."""

    items: list[Item] = field(default_factory=list)
    large: list[int] = field(default_factory=list)
    """Pages with a table that is too large to be read as one."""

    def add(self, page: PageContent) -> str:
        """Put the page at the end. Returns its text, with the cells of tables."""
        found, runs, large = tables(page)
        if large:
            self.large.append(page.number)
        pieces = [piece for row in visual_rows(runs) for piece in stretches(row)]
        for one in found:
            one.pages = [page.number] * len(one.rows)
        items = [item for part in _order([*pieces, *found]) for item in _lines(part, page)]
        self.items += items
        return "\n".join(item.text for item in items)

    def add_text(self, text: str, page: int) -> None:
        """Put text without places at the end; its lines are full if they are as wide as those around."""
        lines = [unspaced(line) for line in text.split("\n")]
        widths = [width(line) for line in lines]
        for at, line in enumerate(lines):
            full = widths[at] >= max(NARROWEST, FULL * max(widths[max(0, at - 3) : at + 4]))
            run = Run(line, 0, 0, 0, 0, 0)
            if line:
                self.items.append(PrintedLine(line, page, [run], full, not at or not lines[at - 1]))

    def blocks(self, outline: Mapping[str, int]) -> Iterator[Block]:
        """The text of all pages, with marks."""
        lines = [item for item in self.items if isinstance(item, PrintedLine)]
        body = _body_size(lines)
        for _, own in groupby(lines, key=lambda line: line.page):
            set_notes(list(own), body)
        items = join_tables(self.items)
        set_headings(items, outline, body)
        yield from blocks(items)


def _order(items: list[Run | PdfTable], depth: int = 0) -> list[list[Run | PdfTable]]:
    """Columns from left to right, each from top to bottom; what crosses all columns divides them."""
    gutter = _gutter(items) if depth < DEEPEST else None
    if gutter is None:
        return [items] if items else []
    parts: list[list[Run | PdfTable]] = []
    left: list[Run | PdfTable] = []
    right: list[Run | PdfTable] = []
    for item in sorted(items, key=lambda item: item.top):
        if item.right <= gutter:
            left.append(item)
        elif item.left >= gutter:
            right.append(item)
        else:
            parts += _order(left, depth + 1) + _order(right, depth + 1)
            left, right = [], []
            if parts and len(parts[-1]) and parts[-1][-1].right > gutter > parts[-1][-1].left:
                parts[-1].append(item)
            else:
                parts.append([item])
    return parts + _order(left, depth + 1) + _order(right, depth + 1)


def _gutter(items: Sequence[Run | PdfTable]) -> float | None:
    """A place between two columns of text, which few items cross."""
    runs = [item for item in items if isinstance(item, Run)]
    if len(runs) < 6:
        return None
    size = sorted(run.size for run in runs)[len(runs) // 2]
    lefts, rights = sorted(run.left for run in runs), sorted(run.right for run in runs)
    places = []
    for place in sorted({left - size / 3 for left in lefts}):
        if lefts[0] + 4 * size < place < rights[-1] - 4 * size:
            crossing = bisect_left(lefts, place) - bisect_right(rights, place)
            places.append((crossing, place))
    for crossing, place in sorted(places)[:40]:
        sides = [r for r in runs if r.right <= place], [r for r in runs if r.left >= place]
        if crossing <= 0.25 * len(runs) and all(map(_is_column, sides)):
            return place
    return None


def _is_column(runs: Sequence[Run]) -> bool:
    """Whether these are lines of text columns: at least three, most about as wide as the others."""
    if len(runs) < 3 or max(r.top for r in runs) - min(r.top for r in runs) < 2 * runs[0].size:
        return False
    widths = sorted(run.right - run.left for run in runs)
    wide = 0.6 * widths[int(0.75 * len(widths))]
    lines = [r for r in runs if r.right - r.left > wide and len(r.text) > 7 and not is_number(r.text)]
    return 2 * len(lines) >= len(runs)


def _lines(items: list[Run | PdfTable], page: PageContent) -> Iterator[Item]:
    """The lines and tables of a column, from top to bottom."""
    found = sorted((item for item in items if isinstance(item, PdfTable)), key=lambda t: (t.top, t.left))
    rows = visual_rows(item for item in items if isinstance(item, Run))
    if not rows:
        yield from found
        return
    left = min(row[0].left for row in rows)
    right = max(row[-1].right for row in rows)
    pitches = sorted(b[0].top - a[0].top for a, b in pairwise(rows))
    pitch = pitches[len(pitches) // 3] if pitches else 0
    line: PrintedLine | None = None
    for row in rows:
        while found and found[0].top < row[0].middle:
            yield found.pop(0)
            line = None
        before = line.runs[0] if line else None
        if line:  # a line is full if the word after it had no room
            line.full = right - line.runs[-1].right < _first_word(row[0]) and line.full
        line = PrintedLine(unspaced(row_text(row)), page.number, row)
        size = line.size
        gaps = any(b.left - a.right > 1.5 * size for a, b in pairwise(row))
        line.full = not gaps and row[-1].right - left > 0.4 * (right - left) and right - left > 10 * size
        line.opens = row[0].left - (before.left if before else left) > 1.2 * size
        if before:
            spaced = row[0].top - before.top > 1.5 * max(pitch, size)
            line.opens = line.opens or spaced or abs(before.size - size) > 0.25 * size
        yield line
    yield from found


def _first_word(run: Run) -> float:
    """The room that the first word of a line and a space need; two characters of Chinese."""
    word = run.text.split(" ")[0]
    if _TOUCHING.match(word) or len(word) < 2:
        return 2.5 * run.size
    return (run.right - run.left) * len(word) / len(run.text) + 0.5 * run.size


def set_notes(lines: Sequence[PrintedLine], body: float) -> None:
    """Mark the footnotes of a page: small lines in its lower part, from one with a note's sign on."""
    inside, low = False, 0.4 * max(line.runs[0].bottom for line in lines)
    for line in lines:
        small = line.size < 0.92 * body and line.runs[0].top > low
        inside = small and (inside or bool(_NOTE.match(line.text)))
        line.note = inside


def _body_size(lines: Iterable[PrintedLine]) -> float:
    sizes: Counter[float] = Counter()
    for line in lines:
        sizes[round(line.size * 2) / 2] += len(line.text)
    return sizes.most_common(1)[0][0] if sizes else 0


def set_headings(items: Sequence[Item], outline: Mapping[str, int], body: float) -> None:
    """Give headings their rank, by the outline, the numbering, the size and the weight."""
    lines = [item for item in items if isinstance(item, PrintedLine)]
    sizes = {round(line.size * 2) / 2 for line in lines}
    large = sorted((size for size in sizes if size >= 1.15 * body > 0), reverse=True)
    ranks = {size: min(at, 2) + 1 for at, size in enumerate(large)}
    weight = sum(line.bold for line in lines) < 0.3 * len(lines)
    previous: Item | None = None
    for at, item in enumerate(items):
        if isinstance(item, PrintedLine) and not item.note:
            after = items[at + 1] if at + 1 < len(items) else None
            item.level = _rank(item, outline, ranks, weight)
            flows = isinstance(previous, PrintedLine) and not previous.level and _continues(previous, item)
            into = isinstance(after, PrintedLine) and item.full and _continues(item, after)
            if item.level and (flows or into) and not chinese_heading(item.text):
                item.level = 0
        previous = item
    if sum(line.level > 0 for line in lines) > 0.5 * len(lines):  # slides, or a list of names
        for line in lines:
            line.level = 0 if not chinese_heading(line.text) else line.level


def _rank(line: PrintedLine, outline: Mapping[str, int], ranks: Mapping[float, int], weight: bool) -> int:
    text = " ".join(line.text.split())
    level = outline.get("".join(text.split()))
    if level and len(text) <= LONGEST_HEADING and not _PUNCTUATION.search(text):
        return level
    if found := chinese_heading(text):
        return found[1]
    depth = next((at for at, form in enumerate(_NUMBERING) if form.match(text)), None)
    if depth is not None:
        text = text.rstrip("：:")
    bad = _PUNCTUATION.search(text) or not re.search(r"[^\W\d年月日]", text)
    if bad or not 2 <= len(text) <= LONGEST_HEADING:
        return 0
    rank = ranks.get(round(line.size * 2) / 2, 0)
    stands_out = rank or (weight and line.bold and not line.full and not re.search("[，：:]", text))
    if depth is None:
        return rank or 4 * bool(stands_out)
    bare = _NUMBERING[depth].sub("", text, count=1)
    short = depth < 3 and 0 < len(bare) <= 24 and not re.search(r"\d|\s", bare) and not line.full
    return 4 + (text.count(".") if depth == 0 else depth) if stands_out or short else 0


def _continues(line: PrintedLine, following: PrintedLine) -> bool:
    """Whether a line was broken only because it was full."""
    if not line.full or following.opens or not line.text or not following.text:
        return False
    if _ENDED.search(line.text) or _ITEM.match(following.text) or LEADER.search(line.text):
        return False
    return not (_HANGUL.match(line.text[-1]) or _HANGUL.match(following.text))


def unspaced(line: str) -> str:
    """The line without the spaces between Chinese characters, if most of them are letter-spaced."""
    spaced = len(_SPACED.findall(line))
    return _SPACED.sub("", line) if spaced > 2 * len(_TOUCHING.findall(line)) + 1 else line


def blocks(items: Iterable[Item]) -> Iterator[Block]:
    """The text of all items, with marks for pages and headings."""
    items = list(items)
    words = {
        word.casefold()
        for item in items
        if isinstance(item, PrintedLine)
        for word in _WORD.findall(item.text)
    }
    page = 0
    lines: list[PrintedLine] = []
    notes: list[PrintedLine] = []

    def flush() -> Iterator[Block]:
        nonlocal page
        for group in (lines, notes):  # notes follow the paragraph that they stand in
            if group:
                yield _paragraph(group, page, words)
                page = group[-1].page
        lines.clear()
        notes.clear()

    for item in items:
        if isinstance(item, PrintedLine) and item.note:
            notes.append(item)
            continue
        if lines and isinstance(item, PrintedLine):  # whether a block begins after the last line or the notes
            apart = notes or lines[-1].page != item.page
            begins = item.level or (not _flows(lines[-1], item) if apart else item.opens)
            if begins:
                yield from flush()
        if isinstance(item, PdfTable):
            yield from flush()
            yield from _table(item, page)
            page = item.pages[-1]
        elif item.level:
            mark = heading(item.text, item.level)
            yield Block(mark.text, (*_turn(page, item.page), *mark.marks))
            page = item.page
        else:
            lines.append(item)
    yield from flush()


def _flows(line: PrintedLine, following: PrintedLine) -> bool:
    """Whether a paragraph goes on in the next column or page; its first line has no place there."""
    if line.page == following.page:
        return _continues(line, following)
    at_top = PrintedLine(following.text, following.page, following.runs)
    broken = len(line.text) > 15 and bool(_COMMA.search(line.text))  # a page may end in mid-line
    before = replace(line, full=line.full or broken)
    return _continues(before, at_top) and abs(line.size - following.size) < 0.1 * line.size


def _turn(page: int, new: int) -> tuple[Mark, ...]:
    return (Mark(0, "page", f"p. {new}"),) if new != page else ()


def _paragraph(lines: Sequence[PrintedLine], page: int, words: Collection[str]) -> Block:
    """Lines that belong together; those are joined that were broken because they were full. A word that
    a hyphen divides is written without it if it is so among the document's `words`."""
    parts = [lines[0].text]  # lines, and what stands between them
    marks = list(_turn(page, lines[0].page))
    for before, line in pairwise(lines):
        last, between = parts[-1], "\n"
        if _flows(before, line):
            broken, rest = _BROKEN_WORD.search(last), _WORD.match(line.text)
            if broken and rest:
                between = ""
                parts[-1] = last[:-1] if (broken[1] + rest[0]).casefold() in words else last
            else:
                between = join_lines((last, line.text))[len(last) : -len(line.text)]
        parts.append(between)
        if line.page != before.page:
            marks.append(Mark(sum(map(len, parts)), "page", f"p. {line.page}"))
        parts.append(line.text)
    return Block("".join(parts), tuple(marks))


def _table(item: PdfTable, page: int) -> Iterator[Block]:
    """The table's captions and rows, with a mark at each row that begins a page."""
    for caption in item.captions:
        yield Block(caption, _turn(page, item.pages[0]))
        page = item.pages[0]
    top, rest = item.rows[: item.header], item.rows[item.header :]
    header = [" ".join(dict.fromkeys(filter(None, column))) for column in zip(*top, strict=True)]
    if not rest:
        text = " ".join(filter(None, header))
        yield Block(text, _turn(page, item.pages[0]))
        return
    rows = [(header, item.pages[0]), *zip(rest, item.pages[item.header :], strict=True)]
    rows = [pair for pair in rows if any(pair[0])]
    written = list(table([row for row, _ in rows]))
    for block, (_, new) in zip(written, [rows[0], rows[0], *rows[1:]], strict=True):
        yield Block(block.text, _turn(page, new), block.tight)
        page = new


def join_tables(items: Sequence[Item]) -> list[Item]:
    """The items, with the rows of a table that continues on the next page under its first header, and
    with tables that stand side by side one after the other."""
    joined: list[Item] = []
    for item in items:
        last = joined[-1] if joined else None
        if not (isinstance(item, PdfTable) and isinstance(last, PdfTable) and _goes_on(last, item)):
            joined.append(item)
    return [one for item in joined for one in (side_by_side(item) if isinstance(item, PdfTable) else [item])]


def _goes_on(table: PdfTable, item: PdfTable) -> bool:
    """Append the rows of `item` to the table of the page before if it has the same columns."""
    if item.captions or table.pages[-1] + 1 != item.pages[0] or len(table.edges) != len(item.edges):
        return False
    start = table.header if item.rows[0] == table.rows[0] else 0
    apart = max(abs(a - b) for a, b in zip(table.edges, item.edges, strict=True))
    if apart > 12 or (not start and item.header > 1):
        return False
    for row in item.rows[start:]:  # the row's name stands on the page before
        if row[0]:
            break
        row[0] = table.rows[-1][0]
    table.rows += item.rows[start:]
    table.pages += item.pages[start:]
    return True
