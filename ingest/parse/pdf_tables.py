"""Tables of a page: cells between ruled lines, or columns of text with free space between them."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, pairwise

import numpy as np

from ingest.parse.pdf_page import (
    PageContent,
    PdfTable,
    Rule,
    Run,
    cell_text,
    has_value,
    is_number,
    join_lines,
    parts,
    visual_rows,
    width,
)

SNAP = 3.0  # points; lines nearer than that are one line
MOST_SLOTS = 60_000  # rows times columns of one table
MOST_CROSSINGS = 30_000_000  # pairs of lines of one page that are compared
HEADER_ROWS = 4  # at most


def tables(page: PageContent) -> tuple[list[PdfTable], list[Run], bool]:
    """The tables of a page, the runs outside, and whether a table was too large to be read as one."""
    across, down = _merged(page.across), _merged(page.down)
    found: list[PdfTable] = []
    runs, large = page.runs, False
    if len(across) * len(down) > MOST_CROSSINGS:
        return [], runs, True
    for rows, columns in _grids(across, down):
        if len(rows) * len(columns) > MOST_SLOTS:
            large = True
            continue
        own, runs = _ruled(rows, columns, runs)
        found += own
    free, runs = _unruled(runs)
    return found + free, runs, large


def _merged(rules: Sequence[Rule]) -> list[Rule]:
    """Rules with those joined that lie on one line and touch."""
    merged: list[Rule] = []
    place = float("-inf")
    snapped: list[Rule] = []
    for rule in sorted(rules, key=lambda rule: rule.at):
        place = rule.at if rule.at - place > SNAP else place
        snapped.append(replace(rule, at=place))
    for rule in sorted(snapped, key=lambda rule: (rule.at, rule.start)):
        last = merged[-1] if merged else None
        if last and last.at == rule.at and rule.start <= last.end + SNAP:
            merged[-1] = replace(last, end=max(last.end, rule.end))
        else:
            merged.append(rule)
    return [rule for rule in merged if rule.end - rule.start > 2 * SNAP]


def _grids(across: list[Rule], down: list[Rule]) -> list[tuple[list[Rule], list[Rule]]]:
    """Groups of rules that cross one another, with at least two of each direction."""
    if len(across) < 2 or len(down) < 2:
        return []
    y, left, right = np.array([(r.at, r.start, r.end) for r in across]).T
    x, top, bottom = np.array([(r.at, r.start, r.end) for r in down]).T
    meets = (left[:, None] - SNAP <= x) & (x <= right[:, None] + SNAP)
    meets &= (top - SNAP <= y[:, None]) & (y[:, None] <= bottom + SNAP)
    grids = []
    rest = np.ones(len(across), bool)
    while rest.any():
        rows = np.zeros(len(across), bool)
        rows[rest.argmax()] = True
        while True:
            columns = meets[rows].any(axis=0)
            more = meets[:, columns].any(axis=1) | rows
            if (more == rows).all():
                break
            rows = more
        rest &= ~rows
        if rows.sum() >= 2 and columns.sum() >= 2:
            grids.append(([across[i] for i in rows.nonzero()[0]], [down[i] for i in columns.nonzero()[0]]))
    return grids


def _places(own: list[Rule], other: list[Rule]) -> list[float]:
    """Where the rows or columns of a grid begin and end; a side without a rule is open."""
    places = sorted({rule.at for rule in own})
    first, last = min(rule.start for rule in other), max(rule.end for rule in other)
    before = [first] if first < places[0] - 3 * SNAP else []
    return before + places + ([last] if last > places[-1] + 3 * SNAP else [])


def _ruled(across: list[Rule], down: list[Rule], runs: list[Run]) -> tuple[list[PdfTable], list[Run]]:
    """The tables of a grid and the runs outside; no table if the rules are only decoration."""
    ys, xs = _places(across, down), _places(down, across)
    height, width = len(ys) - 1, len(xs) - 1
    area = _areas(across, down, ys, xs)
    frames = _frames(area)
    inside: dict[int, list[Run]] = {}
    rest: list[Run] = []
    for run in runs:
        row = bisect_right(ys, run.middle) - 1
        if not (0 <= row < height) or run.right < xs[0] or run.left > xs[-1]:
            rest.append(run)
            continue
        pieces = _pieces(run, xs, area[row])
        if all(int(area[row][column]) in frames for _, column in pieces):
            rest.append(run)
            continue
        for piece, column in pieces:
            inside.setdefault(int(area[row][column]), []).append(piece)
    counts = [sum(len(run.text) for run in pieces) for pieces in inside.values()]
    if len(counts) < 3 or max(counts) > 0.85 * sum(counts) or max(counts) > 3000:
        return [], runs
    margins = {int(area[0, c]) for c in range(width) if (area[:, c] == area[0, c]).all()}
    margins -= set(inside)
    found: list[PdfTable] = []
    for first, last in _stretches([bool(np.isin(row, list(frames)).all()) for row in area]):
        block = area[first:last]
        # Rows and columns without cells of their own are doubled lines and margins.
        lines = [r for r in range(len(block)) if r == 0 or (block[r] != block[r - 1]).any()]
        columns = [
            c
            for c in range(width)
            if not np.isin(block[:, c], list(frames | margins)).all()
            and (c == 0 or (block[:, c] != block[:, c - 1]).any())
        ]
        if len(columns) > 1:
            last_column = block[:, columns[-1]]
            wide = [c for c in range(width) if (block[:, c] == last_column).all()]
            edges = [xs[c] for c in columns] + [xs[wide[-1] + 1]]
            tops = [ys[first + r] for r in lines] + [ys[last]]
            found += _cut(block[np.ix_(lines, columns)], edges, tops, inside)
    return (found, rest) if found else ([], runs)


def _stretches(breaks: list[bool]) -> list[tuple[int, int]]:
    """First and last place of each run without a break."""
    groups = [list(group) for _, group in groupby(range(len(breaks)), key=lambda at: breaks[at])]
    return [(group[0], group[-1] + 1) for group in groups if not breaks[group[0]]]


def _cut(
    grid: np.ndarray, edges: list[float], tops: list[float], inside: dict[int, list[Run]]
) -> list[PdfTable]:
    """The tables of a grid of cells, which names of sections over its whole width divide."""
    found = []
    for first, last, captions in _sections(grid):
        piece = grid[first:last]
        keep = [0]
        keep += [c for c in range(1, grid.shape[1]) if (piece[:, c] != piece[:, c - 1]).any()]
        piece = piece[:, keep]
        table = PdfTable(edges[0], tops[first], edges[-1], tops[last], [], _header_rows(piece), [])
        table.captions = [text for key in captions if (text := cell_text(inside.get(key, [])))]
        table.edges = [edges[c] for c in keep] + [edges[-1]]
        header = table.header
        for at, row in enumerate(piece):
            cells = [
                inside.get(int(key), []) if at < header or c == 0 or key != row[c - 1] else []
                for c, key in enumerate(row)
            ]
            texts = [list(map(cell_text, cells))] if at < header else _split_lines(cells)
            table.header += len(texts) - 1 if at < header else 0
            table.rows += texts
        if any(map(any, table.rows)):
            found += _second_headers(table)
    return found


def _second_headers(table: PdfTable) -> list[PdfTable]:
    """The table, cut before each row that names other columns: no label, no number, numbers below."""
    rows = table.rows
    cuts = [
        at
        for at in range(table.header + 1, len(rows) - 1)
        if not rows[at][0]
        and len(rows[at]) > 2
        and all(rows[at][1:])
        and not any(map(is_number, rows[at]))
        and rows[at + 1][0]
        and all(map(is_number, rows[at + 1][1:]))
    ]
    parts = []
    for first, last in pairwise([0, *cuts, len(rows)]):
        captions, header = (table.captions, table.header) if first == 0 else ([], 1)
        parts.append(replace(table, rows=rows[first:last], captions=captions, header=header))
    return parts


def _frames(area: np.ndarray) -> set[int]:
    """The cells that surround others: frames of the page, which belong to no table."""
    numbers, counts = np.unique(area, return_counts=True)
    frames = set()
    for number, count in zip(numbers, counts, strict=True):
        rows, columns = (area == number).nonzero() if count > 1 else ((), ())
        if count > 1 and (np.ptp(rows) + 1) * (np.ptp(columns) + 1) > count:
            frames.add(int(number))
    return frames


def _sections(grid: np.ndarray) -> list[tuple[int, int, list[int]]]:
    """First and last row of each table in a grid, and the cells of its captions.

    A cell over the whole width is a caption if a header of several rows or other columns follow."""
    whole = [bool((row == row[0]).all()) for row in grid]
    sections: list[tuple[int, int, list[int]]] = []
    first, captions = 0, []
    for at, row in enumerate(grid):
        if not whole[at]:
            continue
        below = grid[at + 1 :]
        if at == first and len(below):
            captions.append(int(row[0]))
            first = at + 1
        elif (
            len(below) > 1
            and not whole[at + 1]
            and (_header_rows(below) > 1 or _shape(grid[at - 1]) != _shape(below[0]))
        ):
            sections.append((first, at, captions))
            first, captions = at + 1, [int(row[0])]
    if first < len(grid):
        sections.append((first, len(grid), captions))
    return sections


def _shape(row: np.ndarray) -> list[bool]:
    return [bool(a != b) for a, b in pairwise(row)]


def _split_lines(cells: list[list[Run]]) -> list[list[str]]:
    """The texts of a row; of several rows if no rule divides its lines of numbers."""
    lines = [visual_rows(cell) for cell in cells]
    counts = [len(rows) if all(has_value(cell_text(row)) for row in rows) else 0 for rows in lines]
    depth = max(counts)
    if depth < 2 or counts.count(depth) < 2:
        return [list(map(cell_text, cells))]
    tops = [min(run.top for run in row) - SNAP for row in lines[counts.index(depth)]]
    rows = [[list[Run]() for _ in cells] for _ in tops]
    for column, cell in enumerate(cells):
        for run in cell:
            rows[max(0, bisect_right(tops, run.top) - 1)][column].append(run)
    return [list(map(cell_text, row)) for row in rows]


def _areas(across: list[Rule], down: list[Rule], ys: list[float], xs: list[float]) -> np.ndarray:
    """(rows, columns): the number of the cell that a slot of the grid belongs to."""
    floors, walls = _borders(across, ys, xs), _borders(down, xs, ys)
    area = np.arange((len(ys) - 1) * (len(xs) - 1)).reshape(len(ys) - 1, len(xs) - 1)
    while True:  # the smallest number spreads through every gap between two slots
        before = area.copy()
        for slots, borders in ((area.T, walls), (area, floors)):
            for at in range(1, len(slots)):
                gaps = ~borders[at]
                low = np.minimum(slots[at - 1], slots[at])[gaps]
                slots[at - 1, gaps] = slots[at, gaps] = low
        if (area == before).all():
            return area


def _borders(rules: list[Rule], places: list[float], across: list[float]) -> np.ndarray:
    """(places, slots): whether a rule runs there."""
    borders = np.zeros((len(places), len(across) - 1), bool)
    middles = [(a + b) / 2 for a, b in pairwise(across)]
    for rule in rules:
        first, last = bisect_right(middles, rule.start), bisect_right(middles, rule.end)
        borders[bisect_right(places, rule.at) - 1, first:last] = True
    return borders


def _pieces(run: Run, xs: list[float], row: np.ndarray) -> list[tuple[Run, int]]:
    """The run, cut at the walls between its characters, and the column of each piece."""
    last = len(xs) - 2

    def column(place: float) -> int:
        return max(0, min(last, bisect_right(xs, place) - 1))

    inset = min(2.0, (run.right - run.left) / 4)
    first = column(run.left + inset)
    if row[first] == row[column(run.right - inset)] or not run.words:
        return [(run, first)]
    places: list[float] = []  # the middle of each character
    for left, right, count in run.words:
        step = (right - left) / count
        places += [left] * bool(places) + [left + step * (at + 0.5) for at in range(count)]
    columns = list(map(column, places))
    pieces, at = [], 0
    for _, group in groupby(columns, key=lambda column: row[column]):
        end = at + len(list(group))
        if text := run.text[at:end].strip():
            piece = replace(run, text=text, left=places[at], right=places[end - 1], words=[])
            pieces.append((piece, columns[at]))
        at = end
    return pieces


def _header_rows(area: np.ndarray) -> int:
    """Rows of the header: as deep as the deepest cell of the first row, if another one is split."""
    depth = 1
    first = area[0]
    for row in area[1:HEADER_ROWS]:
        deeper = (row == first).any()
        split = any(first[c] == first[c - 1] and row[c] != row[c - 1] for c in range(1, len(first)))
        if not (deeper and split):
            break
        depth += 1
    return depth if depth < len(area) else 1


def side_by_side(table: PdfTable) -> list[PdfTable]:
    """The table, or its halves if the header's cells are there twice or only over the left half."""
    header, width = table.rows[0], len(table.rows[0])
    for size in range(2, width // 2 + 1):
        parts = [header[at : at + size] for at in range(0, width, size)]
        if len(set(parts[0])) == size and all(part == parts[0] for part in parts):
            return [_columns(table, at, at + size) for at in range(0, width, size)]
    named = next((at for at, cell in enumerate(header) if is_number(cell) or not cell), width)
    if 2 <= named < width <= 2 * named and all(header[named:]):
        kinds = [[is_number(row[c]) for row in table.rows[1:] if row[c]] for c in range(width)]
        most = [2 * sum(kind) > len(kind) for kind in kinds]
        if most[named:] == most[: width - named] and any(most):
            right = _columns(table, named, width)
            right.rows, right.pages = [header[: width - named], *right.rows], [table.pages[0], *table.pages]
            return [_columns(table, 0, named), right]
    return [table]


def _columns(table: PdfTable, first: int, last: int) -> PdfTable:
    rows = [row[first:last] for row in table.rows]
    return replace(table, rows=rows, captions=[] if first else table.captions)


def _unruled(runs: list[Run]) -> tuple[list[PdfTable], list[Run]]:
    """Tables among runs without rules: at least three rows in a row with aligned pieces."""
    blocks: list[list[list[Run]]] = [[]]
    for row in visual_rows(runs):
        block = blocks[-1]
        gap = (row[0].top - block[-1][0].bottom) / max(row[0].size, 1) if block else 9
        # A line under a cell of the row above continues that cell.
        below = gap < 0.35 and row[0].left > min(above[0].left for above in block) + row[0].size
        single = len(parts(row, 0.9)) < 2 and not below
        if single or gap >= 1.5:
            blocks.append([])
        blocks[-1].append(row)
        if single:
            blocks.append([])
    found: list[PdfTable] = []
    rest: list[Run] = []
    for block in blocks:
        inside = [run for row in block for run in row]
        if table := _aligned(inside) if len(block) >= 3 else None:
            found.append(table)
        else:
            rest += inside
    return found, rest


def _aligned(runs: list[Run]) -> PdfTable | None:
    """The table that these runs form by the free columns between them, or None."""
    rows = [parts(row, 0.9) for row in visual_rows(runs)]
    most = max(map(len, rows))
    full = [row for row in rows if len(row) >= max(2, 0.6 * most)]
    edges = _gutters(full) if len(full) >= 3 else []
    if len(edges) < 3:
        return None
    cells = [_cells(row, edges) for row in rows]
    filled = [cell for row in cells for cell in row if cell]
    typical = sorted(map(width, filled))[len(filled) // 2]
    if typical > 16 or sum(map(has_value, filled)) < 0.25 * len(filled):
        return None  # columns of prose
    if len(filled) < len(cells) * (len(edges) - 1) / 3:
        return None
    values = (at for at, row in enumerate(cells[: HEADER_ROWS + 1]) if at and any(map(has_value, row[1:])))
    header = next(values, 1)
    top, bottom = min(run.top for run in runs), max(run.bottom for run in runs)
    body = _whole_rows([_cells(row, edges, fill=False) for row in rows[header:]], rows[header:])
    return PdfTable(edges[0], top, edges[-1], bottom, cells[:header] + body, header, edges)


def _gutters(rows: list[list[list[Run]]]) -> list[float]:
    """The edges of the columns: places that hardly any row covers."""
    spans = [(part[0].left, part[-1].right) for row in rows for part in row]
    left, right = min(start for start, _ in spans), max(end for _, end in spans)
    cover = np.zeros(int(right - left) + 3)
    for start, end in spans:
        cover[int(start - left) : int(end - left) + 1] += 1
    free = cover <= 0.05 * len(rows)
    edges = [left]
    for is_free, group in groupby(range(len(free)), key=lambda x: bool(free[x])):
        places = list(group)
        if is_free and places[0] > 0 and places[-1] < len(free) - 2 and len(places) >= 3:
            edges.append(left + (places[0] + places[-1]) / 2)
    return [*edges, right]


def _cells(row: list[list[Run]], edges: list[float], *, fill: bool = True) -> list[str]:
    """The texts of a row's columns; a piece over several columns stands in the first, or in all."""
    cells: list[list[Run]] = [[] for _ in edges[1:]]
    for part in row:
        first = bisect_right(edges, part[0].left + 1) - 1
        last = bisect_right(edges, part[-1].right - 1) - 1
        last = min(last, len(cells) - 1) if fill else max(0, first)
        for column in range(max(0, first), last + 1):
            cells[column] += part
    return [cell_text(cell) for cell in cells]


def _whole_rows(cells: list[list[str]], rows: list[list[list[Run]]]) -> list[list[str]]:
    """Rows with those joined that continue the row above: near to it, without a first cell."""
    whole: list[list[str]] = []
    bottom = 0.0
    for row, pieces in zip(cells, rows, strict=True):
        near = pieces[0][0].top - bottom < 0.35 * pieces[0][0].size
        numbers = any(map(has_value, row))
        if whole and near and not row[0] and not numbers:
            whole[-1] = [join_lines(pair) for pair in zip(whole[-1], row, strict=True)]
        else:
            whole.append(row)
        bottom = max(part[-1].bottom for part in pieces)
    return whole
