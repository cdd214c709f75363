"""The documents that a question is asked of: by file or folder, format and date."""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from difflib import get_close_matches
from pathlib import PurePosixPath

from ingest.errors import UserError
from ingest.store import Store
from ingest.types import Document

_DATE = re.compile(  # 20240531, or a year with or without a month and a day
    r"(?<!\d)((?:19|20)\d\d)(?:(\d\d)(\d\d)(?!\d)"
    r"|(?!\d)(?:\s*[-_./年]\s*(\d{1,2})(?!\d)(?:\s*[-_./月]\s*(\d{1,2})(?!\d))?)?)"
)
_NUMERALS = str.maketrans("〇○零一二三四五六七八九", "000123456789")
_TENS = re.compile(r"(\d?)十(\d?)")

Period = tuple[str, str]
"""The first and the last day, in ISO's form."""


class EmptyScope(UserError):
    """No document is in the scope that was asked for."""


@dataclass(frozen=True, slots=True)
class Scope:
    """A document is in scope if it meets each field that is set; without any, all documents are.

    `places` are files or folders, also as patterns with `*`, `?` and `[…]`, from any folder on: `2024/*.pdf`.
    `formats` are extensions. `since` and `until` are days, months or years (`2024`, `2024-05`, `2024-05-31`);
    a document without a date is in no such scope. Raises `UserError` for a date that is none, and
    `EmptyScope` if no day is in the range.
    """

    places: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    since: str = ""
    until: str = ""

    def __post_init__(self) -> None:
        first, last = self._range
        if first > last:
            raise EmptyScope(
                "no day is since {since} and until {until}; exchange them", since=self.since, until=self.until
            )

    @property
    def _range(self) -> Period:
        return _days(self.since)[0] if self.since else "0", _days(self.until)[1] if self.until else "9"

    def within(self, store: Store) -> tuple[str, ...]:
        """The ids of the documents in scope.

        Raises `EmptyScope`, which names the nearest file or what there is, if no document is in scope.
        """
        documents = list(store.documents())
        if not documents:
            return ()  # an empty knowledge base is refused as such
        for place in self.places:
            if not any(_stands_in(document, place) for document in documents):
                raise _no_such_place(place, documents)
        kept = [
            each for each in documents if not self.places or any(_stands_in(each, p) for p in self.places)
        ]
        kept = [each for each in kept if not self.formats or _formats(each) & set(_plain(self.formats))]
        if not kept:
            there = sorted({each.report.format for each in documents})
            raise EmptyScope(
                "no document there is of the format {formats:or}; the knowledge base has {there}",
                formats=list(self.formats), there=there,
            )  # fmt: skip
        if self.since or self.until:
            first, last = self._range
            dated = [(each, period) for each in kept if (period := period_of(each, store))]
            asked = len(kept)
            kept = [each for each, (begin, end) in dated if begin <= last and first <= end]
            if not kept:
                raise EmptyScope(
                    "no document has a date in {since}–{until}; {dated} of {documents} have one at all, in their "
                    "first lines or in their path",
                    since=self.since, until=self.until, dated=len(dated), documents=asked,
                )  # fmt: skip
        return tuple(each.id for each in kept)


def period_of(document: Document, store: Store) -> Period | None:
    """The day, month or year that the document's first lines give as its date, or else its path."""
    texts = (store.text(document.id, f.start, f.end) for f in document.report.facts if f.kind == "date")
    path = PurePosixPath(document.source)
    names = (part for part in (path.name, *reversed(path.parent.parts)))
    return next((period for text in (*texts, *names) if (period := _period(text))), None)


def _period(text: str) -> Period | None:
    digits = _TENS.sub(lambda ten: f"{ten[1] or 1}{ten[2] or 0}", text.translate(_NUMERALS))
    for found in _DATE.finditer(digits):
        parts = [part for part in found.groups() if part]
        for length in range(len(parts), 0, -1):
            with suppress(UserError):
                return _days("-".join(parts[:length]))
    return None


def _days(text: str) -> Period:
    """The first and the last day of a day, month or year. A month may end on a day that it lacks."""
    try:
        if not re.fullmatch(r"\d{4}(-\d{1,2}){0,2}", text):
            raise ValueError
        year, month, day = (*map(int, text.split("-")), 0, 0)[:3]
        first = date(year, month or 1, day or 1).isoformat()
    except ValueError:
        raise UserError("{text!r} is no date; write 2024, 2024-05 or 2024-05-31", text=text) from None
    return first, first if day else f"{first[:7] if month else f'{first[:4]}-12'}-31"


def _stands_in(document: Document, place: str) -> bool:
    """Whether the pattern names the file or a folder that it is in."""
    path, pattern = PurePosixPath(document.source), str(PurePosixPath(place))
    return pattern != "." and any(each.match(pattern) for each in (path, *path.parents[:-1]))


def _formats(document: Document) -> set[str]:
    return {document.report.format, *_plain([PurePosixPath(document.source).suffix])}


def _plain(formats: Iterable[str]) -> list[str]:
    return [each.lower().lstrip(".") for each in formats]


def _no_such_place(place: str, documents: list[Document]) -> EmptyScope:
    # Files only: a server's folders are not for its clients.
    names = dict.fromkeys(PurePosixPath(document.source).name for document in documents)
    near = get_close_matches(place, names, n=3, cutoff=0.4) or [*names][:3]
    return EmptyScope(
        "no document is in {place}; there are, for example, {near}; a pattern needs no path before it",
        place=place,
        near=near,
    )
