"""The layout of sheets and tables. A sheet is cut at empty rows, and at empty columns between two blocks;
each block becomes a table under one row of column names, with its title as a heading."""

import re
from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, groupby, islice, pairwise

from ingest.i18n import Translatable
from ingest.parse.blocks import Block, comment, heading, mark, row_block, table
from ingest.types import Mark

CELLS = 1000  # columns read of one row; no table for people has more
_SAMPLE = 200  # rows by which a block is judged
_HEADERS = 5  # rows of column names
_TITLE = 60  # characters; a longer text is a paragraph
_REPEATED = 50  # times the characters of a table that the texts of its merged cells may take
_VALUE = re.compile(
    r"(?=.*\d)[\d\s.,:/%‰()（）¥￥$€£年月日时分秒上下午AMPE+—–−-]+|[-—–−/]+|#[A-Z/0!?]+|TRUE|FALSE"
)
# A year, month or day may be a name of a column.
_PERIOD = re.compile(r"(?:19|20)\d\d(?:年度?|[年.-]?(?:\d{1,2}|[Qq][1-4])月?份?)?|\d{1,2}[月日]份?")
_NOTE = re.compile(
    r"[(（【]?(?:注|备注|附注|说明|资料来源|数据来源|来源|填表说明)[\d一二三]?[)）】]?\s*[:：、.．]|[*＊※]|[(（]\w{1,2}[)）]\s?\S"
    r"|(?:notes?|sources?)\b",
    re.IGNORECASE,
)
_QUESTION = {"问题", "问", "提问", "标准问题", "常见问题", "标准问", "疑问", "question", "questions", "q"}
_ANSWER = {"答案", "答", "回答", "解答", "答复", "回复", "标准答案", "answer", "answers", "a"}
_UNNAMED = re.compile(r"(?:sheet|工作表|表格?|table)\s*\d*", re.IGNORECASE)

LEFT_OUT = Translatable("merged cells are too large: in some rows their text is left out")

Notes = Mapping[int, Mapping[int, str]]
"""Row -> column -> comment on the cell."""


@dataclass(slots=True)
class Row:
    """A row of a sheet: text by column, from 0. `spans` are the merged cells that begin here: first and
    last column, last row. A hidden row counts as a row, and is left out."""

    number: int
    cells: dict[int, str]
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    hidden: bool = False
    gap: bool = False
    """An empty row lies above it."""

    def lone(self) -> bool:
        """One text, in one cell or in one merged cell."""
        first, last = min(self.cells, default=0), max(self.cells, default=-1)
        return first == last or any(a <= first and last <= b for a, b, _ in self.spans)

    def text(self) -> str:
        return " ".join(dict.fromkeys(self.cells.values()))

    def wide(self) -> bool:
        """A merged cell takes several of its columns, but not all."""
        return any(left < right for left, right, _ in self.spans) and not self.lone()

    def values(self) -> bool:
        """Whether it holds numbers, other than years and months, which may be names of columns."""
        texts = self.cells.values()
        return any(_VALUE.fullmatch(text) and not _PERIOD.fullmatch(text) for text in texts)

    def within(self, left: int, right: int) -> "Row":
        """The part of the row in these columns."""
        cells = {column: text for column, text in self.cells.items() if left <= column <= right}
        return replace(self, cells=cells, spans=[s for s in self.spans if left <= s[0] <= right])


def filled(
    rows: Iterable[Row], hidden_columns: Container[int] = (), warn: list[str] | None = None
) -> Iterator[Row]:
    """The rows that show something, with the text of merged cells in each of their columns and rows, as
    far as that does not make a table many times as long."""
    below: dict[int, tuple[int, str]] = {}  # column -> last row and text of a cell above
    last, spare = 0, _REPEATED
    for row in rows:
        reach = max((bottom for bottom, _ in below.values()), default=0)
        below = {at: cell for at, cell in below.items() if cell[0] >= row.number}
        own = any(row.cells.values())
        inherited = {at: text for at, (_, text) in below.items() if text and at not in row.cells}
        cells = {**row.cells, **inherited}
        for left, right, bottom in row.spans:
            text = row.cells.get(left, "")
            columns = range(left, min(right, CELLS - 1) + 1)
            cells |= dict.fromkeys(columns, text) if text else {}
            if bottom > row.number:
                below |= dict.fromkeys(columns, (bottom, text))
        sizes = [sum(map(len, texts.values())) for texts in (row.cells, cells)]
        spare += _REPEATED * sizes[0] - sizes[1]
        if spare <= 0 and sizes[0] != sizes[1]:
            cells = row.cells
            if warn is not None and LEFT_OUT not in warn:
                warn.append(LEFT_OUT)
        gap = row.number > max(last, reach) + 1
        if own or row.hidden:
            last = row.number
        if own and not row.hidden:
            cells = {
                at: text for at in sorted(cells) if at not in hidden_columns and (text := cells[at].strip())
            }
            if cells:
                yield replace(row, cells=cells, gap=gap)


def sheet_blocks(name: str, rows: Iterable[Row], notes: Notes | None = None) -> Iterator[Block]:
    """The blocks of a sheet from its rows, with the comments on its cells."""
    yield mark("sheet", name)
    if not _UNNAMED.fullmatch(name):
        yield heading(name, 2)
    yield from SheetLayout({} if notes is None else notes).blocks(rows)


def text_table(rows: Iterable[Row], warn: list[str] | None = None) -> Iterator[Block]:
    """A table in a text. Its titles are no headings, and empty rows do not cut it."""
    whole = (replace(row, gap=False) for row in filled(rows, (), warn))
    for block in SheetLayout(in_text=True).blocks(whole):
        yield replace(block, marks=())


class Lookahead(Iterator[Row]):
    """Rows, of which the next ones can be seen before they are taken."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows, self._ahead = iter(rows), deque[Row]()

    def __next__(self) -> Row:
        return self._ahead.popleft() if self._ahead else next(self._rows)

    def peek(self, count: int) -> list[Row]:
        self._ahead.extend(islice(self._rows, count - len(self._ahead)))
        return list(self._ahead)


@dataclass(slots=True)
class SheetLayout:
    """Finds the blocks of one sheet."""

    notes: Notes = field(default_factory=dict)
    header: dict[int, str] = field(default_factory=dict)
    """Column -> name in the table before; a table may go on after an empty row."""
    header_number: int = 0
    in_text: bool = False

    def blocks(self, rows: Iterable[Row]) -> Iterator[Block]:
        above: list[Row] = []  # rows that may be the title or the header of what follows
        for band in _bands(rows):
            head = list(islice(band, _SAMPLE))
            starts = not head[0].values() or (len(head) == 1 and head[0].lone())
            if above and starts and not all(row.lone() for row in above):
                yield from self._block(iter(above))
                above = []
            if len(head) < _SAMPLE and _introduces(head):
                if len(above) + len(head) > 2 * _HEADERS:
                    yield from (_paragraph(row) for row in above if row.lone())
                    above = [row for row in above if not row.lone()]
                above += head
                continue
            head, above = above + head, []
            parts = _side_by_side(head)
            if len(parts) == 1:
                yield from self._block(chain(head, band))
                continue
            whole = head + list(band)
            for left, right in parts:
                inside = (row.within(left, right) for row in whole)
                yield from replace(self, header={}).blocks(filled(inside))
        if above:
            yield from self._block(iter(above))

    def _block(self, rows: Iterator[Row]) -> Iterator[Block]:
        """Titles, then one table; or paragraphs if there is only one column."""
        head = list(islice(rows, _SAMPLE))
        width = len({column for row in head for column in row.cells})
        lone = next((at for at, row in enumerate(head) if not (row.lone() or _labels(row, width))), None)
        if lone is None:
            yield from chain(map(_paragraph, head), map(_paragraph, rows))
            yield from self._comments(head, [0, CELLS], {})
            return
        titles, head = head[:lone], head[lone:]
        orphans: list[str] = []
        pairs = self.in_text and titles and width == 2 and not any(row.values() for row in head)
        count = 0 if pairs else _header_rows(head)
        if not count and self.header and not titles and set(head[0].cells) <= self.header.keys():
            names, number = self.header, self.header_number
        elif not count and len(head) == 1:
            yield from map(_paragraph, titles + head)
            yield from self._comments(titles + head, [0, CELLS], {})
            return
        else:
            names, orphans = _names(head[:count], head[count:])
            number = head[0].number
        yield from _title_blocks(titles, orphans)
        self.header, self.header_number = names, number
        columns = sorted({column for row in head for column in row.cells} | names.keys())
        data = chain(head[count:], rows)
        labels = [names.get(column, "") for column in columns]
        yield from self._comments(titles + head[:count], columns, {})
        period = _period(labels)
        if period == len(labels):
            yield from self._table(columns, names, number, data)
            return
        whole = list(data)
        for at in range(0, len(labels), period):
            yield from self._table(columns[at : at + period], names, number, iter(whole))

    def _table(
        self, columns: list[int], names: dict[int, str], number: int, rows: Iterator[Row]
    ) -> Iterator[Block]:
        labels = [names.get(column, "") for column in columns]
        last = columns[-1] if names.keys() <= set(columns) else CELLS
        faq = None if self.in_text else faq_columns(labels)
        comments: list[Block] = []
        is_open = noted = False
        read = 0
        numeric: set[int] = set()
        rows = Lookahead(rows)
        for row in rows:
            cells = [row.cells.get(column, "") for column in columns]
            cells += [text for column, text in row.cells.items() if column > last]
            text = row.text() if row.lone() and cells[0] else ""
            comments += self._comments([row], columns, names)
            if not any(cells):
                continue
            if faq and cells[faq[0]] and cells[faq[1]]:
                yield from faq_blocks(labels, cells, faq, row.number)
                read += 1
            elif text and len(columns) > 1 and (noted or _NOTE.match(text) or len(text) > _TITLE):
                is_open, noted = False, True
                yield _paragraph(row)
            elif text.endswith((":", "：")) or (text and 2 * len(row.cells) > max(2, len(columns))):
                is_open = False
                if _new_names(rows.peek(2), numeric):
                    yield from comments
                    yield from self._block(chain([row], rows))
                    return
                yield heading(text, 5)
            elif is_open:
                yield row_block(cells, row.number)
            else:
                is_open, noted = True, False
                yield from table([labels, cells], numbers=[number, row.number], empty_header=True)
            if is_open and read < _SAMPLE:
                numeric |= {at for at, cell in row.cells.items() if _VALUE.fullmatch(cell)}
                read += 1
        if not read:
            yield from table([labels], numbers=[number])
        yield from comments

    def _comments(
        self, rows: Iterable[Row], columns: Sequence[int], names: Mapping[int, str]
    ) -> Iterator[Block]:
        """The comments on the cells of these rows, named as such so that nobody takes them for the text."""
        for row in rows if self.notes else ():
            for column, text in self.notes.get(row.number, {}).items():
                if columns[0] <= column <= columns[-1]:
                    label = (next(iter(row.cells.values()), ""), names.get(column, ""))
                    place = " · ".join(dict.fromkeys(filter(None, label)))
                    words = comment(place, " ".join(text.split()), sample=text + place)
                    yield Block(words, (Mark(0, "row", f"row {row.number}"),))


def faq_blocks(
    names: Sequence[str], cells: Sequence[str], faq: tuple[int, int], number: int
) -> Iterator[Block]:
    """A question as a heading above its answer, and the other columns below them."""
    question, answer = faq
    marks = (Mark(0, "row", f"row {number}"), *heading(cells[question], 4).marks)
    yield replace(heading(cells[question], 4), marks=marks)
    yield Block(cells[answer])
    rest = [
        f"{name}：{cell}" if name else cell
        for at, (name, cell) in enumerate(zip(names, cells, strict=False))
        if cell and at not in faq
    ]
    if rest:
        yield Block("；".join(rest), (), True)


def faq_columns(names: Sequence[str]) -> tuple[int, int] | None:
    """The places of the columns of questions and answers."""
    plain = [name.strip().casefold() for name in names]
    question = next((at for at, name in enumerate(plain) if name in _QUESTION), None)
    answer = next((at for at, name in enumerate(plain) if name in _ANSWER), None)
    return None if question is None or answer is None else (question, answer)


def _bands(rows: Iterable[Row]) -> Iterator[Iterator[Row]]:
    """The rows between empty rows; each band must be read before the next."""
    gaps = 0

    def band(row: Row) -> int:
        nonlocal gaps
        gaps += row.gap
        return gaps

    return (rows for _, rows in groupby(rows, band))


def _title_blocks(titles: Sequence[Row], orphans: Sequence[str]) -> Iterator[Block]:
    """The short lines above a table as one heading, the others as paragraphs; what stands above empty
    columns, as `2023` above the right end, as a heading below it."""
    short = [t for t in (row.text() for row in titles) if len(t) <= _TITLE and not _NOTE.match(t)]
    joined = " ".join(dict.fromkeys(short)) if sum(map(len, short)) <= 2 * _TITLE else ""
    yield heading(joined, 3)
    yield from (_paragraph(row) for row in titles if row.text() not in joined)
    yield heading(" ".join(orphans), 4)


def _paragraph(row: Row) -> Block:
    return Block(row.text(), (Mark(0, "row", f"row {row.number}"),))


def _labels(row: Row, width: int) -> bool:
    """`制表人：张三  日期：5月1日` above a table."""
    texts = row.cells.values()
    return len(row.cells) < width and not row.values() and all(re.search("[:：]", t) for t in texts)


def _introduces(head: Sequence[Row]) -> bool:
    """Whether rows with an empty row below may be the title or the header of what follows."""
    plain = [row for row in head if not row.lone()]
    if any(row.values() or len(row.text()) > 10 * _TITLE for row in plain) or len(plain) > 3:
        return False
    lone = [row.text() for row in head if row.lone()]
    return len(lone) <= _HEADERS and all(len(t) <= _TITLE and not _NOTE.match(t) for t in lone)


def _side_by_side(head: Sequence[Row]) -> list[tuple[int, int]]:
    """First and last column of each block; blocks have an empty column between them, two columns or
    more, and names of their own."""
    rows = [row for row in head if len(row.cells) > 1 and not row.lone()]
    used = sorted({column for row in rows for column in row.cells})
    starts = [0]
    for before, column in pairwise(used):
        right = [c for c in used if c >= column]
        left = [c for c in used if starts[-1] <= c < column]
        first = next((row for row in rows if column in row.cells), None)
        if column - before < 2 or len(right) < 2 or len(left) < 2 or first is None:
            continue
        own = [row.cells[column] for row in rows if column in row.cells][1:]
        names = [text for c, text in first.cells.items() if c >= column]
        text = sum(not _VALUE.fullmatch(cell) for cell in own)
        if text * 2 > len(own) > 0 and not any(_VALUE.fullmatch(name) for name in names):
            starts.append(column)
    return [(a, b - 1) for a, b in zip(starts, [*starts[1:], CELLS], strict=True)]


def _header_rows(rows: Sequence[Row]) -> int:
    """How many of the first rows are column names; 0 if already the first holds data."""
    count = 1
    reach = 0
    while count < min(len(rows), _HEADERS):
        here, below = rows[count - 1], rows[count]
        reach = max([reach, *(bottom for *_, bottom in here.spans)])
        grouped = any(row.wide() for row in rows[:count]) and below.number <= reach
        group = grouped or _continues(here, below) or _is_group(here, below, rows[count + 1 :])
        if not group or below.values():
            break
        count += 1
    if count == len(rows):  # names of columns without a row, or a row without names
        return 0 if any(row.values() for row in rows) else count
    return count if count > 1 or _has_names(rows[0], rows[1:]) else 0


def _continues(here: Row, below: Row) -> bool:
    """Whether a row below wide cells says something only below them, or what is said above."""
    wide = {column for left, right, _ in here.spans for column in range(left, right + 1) if left < right}
    new = (column for column, text in below.cells.items() if here.cells.get(column, text) != text)
    return here.wide() and wide.issuperset(new)


def _is_group(here: Row, below: Row, data: Sequence[Row]) -> bool:
    """Whether a row without values, with empty places, stands above another row of names."""
    fresh = below.cells.keys() - here.cells.keys()
    return bool(fresh) and not here.values() and any(row.values() for row in data[:3])


def _has_names(first: Row, data: Sequence[Row]) -> bool:
    """Whether the first row names the columns: its cells are of another kind than those below."""
    evidence = 0
    data = [row for row in data if row.cells != first.cells]  # a header may stand on each page
    for column, text in first.cells.items():
        below = [row.cells[column] for row in data if column in row.cells]
        values = sum(bool(_VALUE.fullmatch(cell)) for cell in below)
        if _VALUE.fullmatch(text):
            same = sum(_shape(cell) == _shape(text) for cell in below)
            evidence += not _PERIOD.fullmatch(text) and same * 2 > len(below) > 0
        elif values * 5 >= 4 * len(below) > 0:
            return True
        else:
            evidence += text in below and column not in {left for left, *_ in first.spans}
    return not evidence


def _new_names(rows: Sequence[Row], numeric: set[int]) -> bool:
    """Whether names stand where numbers stood above, and stand below again."""
    named = len(rows) == 2 and numeric and numeric <= rows[0].cells.keys()
    return bool(named) and not rows[0].values() and rows[1].values()


def _shape(text: str) -> str:
    return re.sub(r"[\d,.]+", "9", text)


def _names(header: Sequence[Row], data: Sequence[Row]) -> tuple[dict[int, str], list[str]]:
    """Column -> its names from top to bottom; and texts above columns that are empty."""
    used = {column for row in (*header[-1:], *data) for column in row.cells}
    names: dict[int, list[str]] = {column: [] for column in sorted(used)}
    orphans: list[str] = []
    for at, row in enumerate(header):
        cells = dict(row.cells)
        labels = [column for column in cells if column != min(names)]
        if at + 1 < len(header) and len(labels) == 1 and len(names) > 3 and not row.spans:
            orphans.append(cells.pop(labels[0]))  # it is about the whole table
        elif at + 1 < len(header) and not row.wide():
            for group in _groups(header[at + 1].cells):
                inside = [cells[column] for column in group if column in cells]
                text = inside[0] if len(inside) == 1 and min(names) not in group else ""
                for column in group:
                    text = cells.get(column, text)
                    if text:
                        cells[column] = text
        for column, text in cells.items():
            if column not in names:
                orphans += [text] if text not in orphans else []
            elif text not in names[column]:
                names[column].append(text)
    return {column: " ".join(texts) for column, texts in names.items()}, orphans


def _groups(columns: Iterable[int]) -> list[list[int]]:
    """The columns in runs without a gap."""
    runs = groupby(enumerate(sorted(columns)), key=lambda pair: pair[1] - pair[0])
    return [[column for _, column in run] for _, run in runs]


def _period(names: Sequence[str]) -> int:
    """After how many columns the names begin again: two halves of a table side by side."""
    for parts in range(2, 7):
        size = len(names) // parts
        distinct = size > 1 and all(names) and len(set(names)) == size
        if distinct and list(names) == list(names[:size]) * parts:
            return size
    return max(1, len(names))
