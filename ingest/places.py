"""Marks -> the name of the place of any character."""

from bisect import bisect_right
from collections.abc import Iterable

from ingest.types import Mark, Place


class Places:
    """Names places by the marks before them: `p. 3 · 第二章 合同 › 第一节`.

    Marks are added in the order of the text, segment by segment; those no longer in force are
    forgotten with each `extend`.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, Mark] = {}
        self._headings: list[Mark] = []
        self._starts: list[int] = [0]
        self._names: list[tuple[str, str]] = [("", "")]  # (whole label, headings alone)

    def extend(self, marks: Iterable[Mark], offset: int) -> None:
        """Take the marks of the segment that begins at `offset` of the document."""
        self._starts, self._names = [offset], [self._name()]
        for mark in sorted(marks, key=lambda mark: mark.start):
            self._enter(mark)
            self._starts.append(offset + mark.start)
            self._names.append(self._name())

    def _enter(self, mark: Mark) -> None:
        if mark.kind == "heading":
            self._headings = [h for h in self._headings if h.level < mark.level] + [mark]
            return
        self._kinds[mark.kind] = mark
        if mark.kind == "sheet":
            self._kinds.pop("row", None)

    def _name(self) -> tuple[str, str]:
        headings = " › ".join(heading.label for heading in self._headings)
        labels = [mark.label for mark in self._kinds.values()]
        return " · ".join([*labels, *([headings] if headings else [])]), headings

    def at(self, offset: int) -> str:
        return self._names[bisect_right(self._starts, offset) - 1][0]

    def headings(self, offset: int) -> str:
        return self._names[bisect_right(self._starts, offset) - 1][1]

    def within(self, start: int, end: int) -> tuple[Place, ...]:
        """The place of `start` and every place that begins before `end`; () where none is named."""
        first, last = bisect_right(self._starts, start), bisect_right(self._starts, end - 1)
        places = [(start, self._names[first - 1][0])]
        for position in range(first, last):
            name = self._names[position][0]
            if places[-1][0] == self._starts[position]:
                places[-1] = (places[-1][0], name)
            elif name != places[-1][1]:
                places.append((self._starts[position], name))
        return tuple(place for place in places if place[1])
