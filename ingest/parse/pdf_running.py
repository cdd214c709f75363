"""Running headers and footers, page numbers, printed addresses and watermarks."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from ingest.parse.pdf_page import PageContent, Run, row_text, stretches, visual_rows

EDGE = 0.2  # of a page's height; running lines stand no deeper
DEEPEST = 8  # running lines at one edge, at most
_DIGITS = re.compile(r"\d+")


def running_lines(pages: Sequence[PageContent], deepest: int = DEEPEST) -> Counter[str]:
    """Take the lines that repeat at the edge of pages, and watermarks, out of the pages' runs.

    Returns their texts, and on how many pages each stands. A line of a table is no running line, and
    neither is anything if that would be half of the text.
    """
    places: dict[tuple[str, int], list[tuple[int, str]]] = defaultdict(list)
    sides: list[tuple[PageContent, list[list[Run]]]] = []
    for page in pages:
        rows = visual_rows(page.runs)
        middle = sorted(run.size for run in page.runs)[len(page.runs) // 2] if rows else 0
        top, bottom = (_edge(page, part[:deepest], middle) for part in (rows, rows[::-1]))
        stamps = [row for row in rows if row[0].size > 2 * middle]
        sides += [(page, top), (page, bottom), *((page, [row]) for row in stamps)]
        for row in {id(row[0]): row for row in [*top, *bottom, *stamps]}.values():
            places[_form(row)].append((page.number, row_text(row)))
    least = 2 if len(pages) < 8 else 3
    known = {
        form
        for form, found in places.items()
        if len({number for number, _ in found}) >= least and _repeats(form[0], found)
    }
    names = {text for text, _ in known if re.search(r"[^\W\d_]", text)}
    running: dict[int, tuple[PageContent, list[Run]]] = {}
    for page, rows in sides:
        for row in rows:
            text, place = _form(row)
            if text not in names and not {(text, place + by) for by in (-1, 0, 1)} & known:
                break
            running[id(row[0])] = page, row
    count = sum(len(row_text(row)) for _, row in running.values())
    if 2 * count > sum(len(run.text) for page in pages for run in page.runs):
        return running_lines(pages, 1) if deepest > 1 else Counter()
    texts: Counter[str] = Counter()
    for page, row in running.values():
        texts[_DIGITS.sub("#", row_text(row))] += 1
        page.running.append(row_text(row))
    taken = {id(run) for _, row in running.values() for run in row}
    slanted = Counter(text for page in pages for text in set(page.slanted))
    for page in pages:
        page.runs = [run for run in page.runs if id(run) not in taken]
        stamps = [text for text in page.slanted if slanted[text] >= 2]
        page.slanted = [text for text in page.slanted if slanted[text] < 2]
        page.running += stamps
        texts.update(stamps)
    return texts


def _form(row: list[Run]) -> tuple[str, int]:
    return _DIGITS.sub("#", "".join(row_text(row).split())), round(row[0].bottom / 6)


def _edge(page: PageContent, rows: list[list[Run]], middle: float) -> list[list[Run]]:
    """The rows from one edge inward that may be running lines."""
    edge: list[list[Run]] = []
    for row in rows:
        place = row[0].middle
        inside = any(rule.start < place < rule.end for rule in page.down if rule.at < row[0].left)
        large = row[0].size > 1.3 * middle or (len(stretches(row)) > 3 and not _DIGITS.search(row_text(row)))
        if inside or large or min(place, page.height - place) > EDGE * page.height:
            break
        edge.append(row)
    return edge


def _repeats(form: str, found: Sequence[tuple[int, str]]) -> bool:
    """Whether the texts are the same, or differ only by a number that counts the pages."""
    if "#" not in form or len({text for _, text in found}) == 1:
        return True
    numbers = [(page, [int(digits[:9]) for digits in _DIGITS.findall(text)]) for page, text in found]
    steps = zip(*([number - page for number in own] for page, own in numbers), strict=True)
    return any(len(set(step)) <= 1 + len(numbers) // 10 for step in steps)
