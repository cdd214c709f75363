"""Document text -> passages, which a reader sees, and chunks, which fit the encoder's window."""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from ingest.errors import UserError
from ingest.types import Chunk, Document, Mark, Passage, Place, Segment

# Tables in a document's text: rows `| a | b |` below a header row and a rule, as `ingest.parse` writes them.
# A row reads as words with the names of its columns.

# Header row, rule, rows. Group 1 is the header.
_TABLE = re.compile(r"(?m)^(\|.*\|)[ \t]*\n\|(?:\s*:?-+:?\s*\|)+[ \t]*(?:\n|$)(?:\|.*(?:\n|$))*")
_TABLE_ROWS = re.compile(r"(?:\|.*(?:\n|$))+")
_TABLE_ROW = re.compile(r"\|.*\|\s*")
_TABLE_RULE = re.compile(r"\|[\s|:-]+\|\s*")
_TABLE_LINE = re.compile(r"(?m)^\|.*\|[ \t]*$")


@dataclass(frozen=True, slots=True)
class Table:
    """The span of a table in a text, and the header row that belongs before each of its rows."""

    start: int
    end: int
    header: str


def tables(text: str, header: str = "") -> list[Table]:
    """The tables of `text`; `header` is that of a table that continues here from the text before."""
    rows = _TABLE_ROWS.match(text) if header else None
    first = [Table(-1, rows.end(), header)] if rows else []
    start = rows.end() if rows else 0
    return first + [Table(m.start(), m.end(), m[1]) for m in _TABLE.finditer(text, start)]


def is_row(line: str) -> bool:
    return bool(_TABLE_ROW.fullmatch(line)) and not _TABLE_RULE.fullmatch(line)


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def in_words(names: Sequence[str], row: Sequence[str]) -> str:
    """`姓名：张三；年龄：30`; if the first column has no name, `营业收入：本期 12；上期 10`."""
    pairs = [(name, cell) for name, cell in zip(names, row, strict=True) if cell]
    if pairs and row[0] and not names[0] and any(name for name, _ in pairs):
        rest = (f"{name} {cell}".strip() for name, cell in pairs[1:])
        return f"{row[0]}：{'；'.join(rest)}".strip("：")
    return "；".join(f"{name}：{cell}" if name and name != cell else cell for name, cell in pairs)


def text_in_words(text: str, header: str = "") -> str:
    """`text` with the rows of its tables in words, below their header; `header` is that of a table that
    began earlier."""
    spans = tables(text, header)

    def words(line: re.Match[str]) -> str:
        table = next((t for t in spans if t.start <= line.start() < t.end), None)
        if not table or line.start() == table.start or not is_row(line[0]):
            return line[0]
        names, row = cells(table.header), cells(line[0])
        return in_words(names, row) if len(names) == len(row) else line[0]

    return _TABLE_LINE.sub(words, text)


class Places:
    """Names places by the marks before them: `p. 3 · 第二章 合同 › 第一节`."""

    def __init__(self) -> None:
        self._kinds: dict[str, Mark] = {}
        self._headings: list[Mark] = []
        self._starts: list[int] = [0]
        self._names: list[tuple[str, str]] = [("", "")]  # (whole label, headings alone)

    def extend(self, marks: Iterable[Mark], offset: int) -> None:
        """Add the marks of the next segment, which begins at `offset`; forget those that ended."""
        self._starts, self._names = [offset], [self._name()]
        for mark in sorted(marks, key=lambda mark: mark.start):
            if mark.kind == "heading":
                self._headings = [h for h in self._headings if h.level < mark.level] + [mark]
            else:
                self._kinds[mark.kind] = mark
            if mark.kind == "sheet":
                self._kinds.pop("row", None)
            self._starts.append(offset + mark.start)
            self._names.append(self._name())

    def _name(self) -> tuple[str, str]:
        headings = " › ".join(heading.label for heading in self._headings)
        labels = [mark.label for mark in self._kinds.values()]
        below = " › ".join(h.label for h in self._headings if h.label not in labels)  # not a sheet
        return " · ".join(filter(None, [*labels, below])), headings

    def at(self, offset: int) -> str:
        return self._names[bisect_right(self._starts, offset) - 1][0]

    def headings(self, offset: int) -> str:
        return self._names[bisect_right(self._starts, offset) - 1][1]

    def within(self, start: int, end: int) -> tuple[Place, ...]:
        """The place of `start` and every place that begins before `end`; () if none has a name."""
        first, last = bisect_right(self._starts, start), bisect_right(self._starts, end - 1)
        places = [(start, self._names[first - 1][0])]
        for position in range(first, last):
            name = self._names[position][0]
            if places[-1][0] == self._starts[position]:
                places[-1] = (places[-1][0], name)
            elif name != places[-1][1]:
                places.append((self._starts[position], name))
        return tuple(place for place in places if place[1])


Span = tuple[int, int]

# The start of a heading, article, list item, table row or indented paragraph.
_ITEM = (
    r"#{1,6}\s|第[一二三四五六七八九十百千零〇两\d]+[编篇章节条款]|[（(][一二三四五六七八九十\d]+[）)]"
    r"|[一二三四五六七八九十]+[、．]|\d+[.、．)）](?!\d)|[-*+•●◆■]\s|\||>|　　|```"
    r"|[\u3400-\u9fff][^\s：:，。；、！？,.;]{1,11}[：:](?!\d)"  # a label with its value
)
_CLOSERS = r"[”’」』）》】\)\]\"']*"
_PARAGRAPH = re.compile(
    rf"\n(?=\s*\n)|(?<=[。！？；：!?;:|])\n|(?<=[。！？!?.][”’」』）\"'])\n|(?<=\.)\n(?=[A-Z])|\n(?=\s*(?:{_ITEM}))"
)
# A Latin full stop ends a sentence only before space and a capital, digit or CJK character, and
# not after a single capital (an initial) or a title.
_SENTENCE = re.compile(
    rf"[。！？!?]+{_CLOSERS}|…{{2,}}{_CLOSERS}"
    rf"|(?<![A-Z]\.)(?<!\b[A-Z])(?<!\bDr|\bMr|\bMs|\bSt|\bNo|\bvs)\.{_CLOSERS}(?=\s+[A-Z\d\"“‘(\u4e00-\u9fff])|\n(?=\n)"
)


def paragraphs(text: str) -> list[Span]:
    """The paragraphs of `text`, with the blank lines after them; their line ends are no boundaries."""
    return _tile(text, [match.end() for match in _PARAGRAPH.finditer(text)])


def sentences(text: str) -> list[Span]:
    """The sentences of `text`; closing quotes and trailing space belong to the sentence before them."""
    inner = [match.end() for match in _SENTENCE.finditer(text)]
    return _tile(text, sorted({*inner, *(start for start, _ in paragraphs(text))}))


def _tile(text: str, cuts: list[int]) -> list[Span]:
    """Spans between cuts; leading space belongs to the span before it, so that no span is blank."""
    bounds, last = [0], len(text.rstrip())
    for cut in cuts:
        while cut < len(text) and text[cut] in " \t\n":
            cut += 1
        if bounds[-1] < cut < last and not text[bounds[-1] : cut].isspace():
            bounds.append(cut)
    return list(pairwise([*bounds, len(text)])) if text else []


Count = Callable[[Sequence[str]], Sequence[int]]

# Patterns for the parts of a sentence that is too long; each tiles any text.
_LINE = re.compile(r"\n+|[^\n]+")
_CELL = re.compile(r"[^|]+\|?\s*|\|\s*")
_CLAUSE = re.compile(r"(?:[^.．!?。！？]|\.(?=\w)|．(?=\d))*[.．!?。！？]*[\[\]()（）“”\"'’]*\s*")
_HAN = r"\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"(?P<han>[{_HAN}]+)|[^\W{_HAN}]+(?:[.,:'’][^\W{_HAN}]+)*|.", re.DOTALL)
# A number, date, time or code, which is never cut: `-4,755.11%`, `2026年06月12日10:00`, `GB/T 4754-1994`.
_TOKEN = re.compile(
    rf"[-+−△]?[^\W_{_HAN}]+(?:(?:[年月日时分点][ \u3000]?|[-.,:/_~．，：－—–]){{1,2}}[^\W_{_HAN}]+)*[年月日时分秒%％‰℃]?"
)
_LONGEST_TOKEN = 40  # characters; what is longer is an address or encoded data


@dataclass(frozen=True, slots=True)
class ChunkOptions:
    """Sizes in the encoder's own tokens."""

    chunk_tokens: int = 192
    """A chunk's text has at most this many tokens (fewer if the encoder's window is smaller)."""
    passage_tokens: int = 448
    """A passage, the text that a reader gets, has at most this many tokens."""
    context_tokens: int = 48
    """Title, headings and table header before a chunk have at most this many tokens."""

    def __post_init__(self) -> None:
        if not 16 <= self.chunk_tokens <= self.passage_tokens:
            raise UserError(
                "[chunk] chunk_tokens is {chunk} and passage_tokens {passage}; need 16 <= chunk_tokens <= "
                "passage_tokens",
                chunk=self.chunk_tokens,
                passage=self.passage_tokens,
            )
        if self.context_tokens < 0:
            tokens = self.context_tokens
            raise UserError("[chunk] context_tokens is {tokens}; need 0 or more", tokens=tokens)


@dataclass(frozen=True, slots=True)
class SegmentContext:
    """Where a segment stands in its document."""

    document: Document
    offset: int
    places: Places
    tables: list[Table]


@dataclass(frozen=True, slots=True)
class Chunker:
    """Cuts documents for one encoder, which takes `window` of the tokens that `count` counts."""

    count: Count
    window: int
    options: ChunkOptions = ChunkOptions()

    def __post_init__(self) -> None:
        if self.window < self.options.context_tokens + 16:
            raise UserError(
                "[chunk] context_tokens is {context}, but the encoder's window holds {window} tokens; lower "
                "[chunk] context_tokens to leave at least 16 for text",
                context=self.options.context_tokens,
                window=self.window,
            )

    def split(
        self, document: Document, segments: Iterable[Segment]
    ) -> Iterator[tuple[list[Passage], list[Chunk]]]:
        """Passages, which tile the text, and chunks, which tile the passages, of each segment."""
        offset, places, header = 0, Places(), ""
        for segment in segments:
            places.extend(segment.marks, offset)
            found = tables(segment.text, header)
            around = SegmentContext(document, offset, places, found)
            passages = list(self._passages(around, segment))
            yield passages, [chunk for each in passages for chunk in self._chunks(around, each)]
            offset += len(segment.text)
            header = found[-1].header if found and found[-1].end == len(segment.text) else ""

    def _passages(self, around: SegmentContext, segment: Segment) -> Iterator[Passage]:
        limit, least = self.options.passage_tokens, self.options.chunk_tokens // 2
        headings = sorted(mark.start for mark in segment.marks if mark.kind == "heading")
        for a, b in _pack(*self._units(segment.text, limit), limit, headings, least):
            start, end = around.offset + a, around.offset + b
            label = around.places.at(start)
            yield Passage(around.document.id, start, end, segment.text[a:b], label)

    def _chunks(self, around: SegmentContext, passage: Passage) -> Iterator[Chunk]:
        limit = min(self.options.chunk_tokens, self.window - self.options.context_tokens)
        units, sizes = self._units(passage.text, limit)
        share = -(-sum(sizes) // max(1, -(-sum(sizes) // limit)))  # even parts: no tiny last chunk
        for start, end in _pack(units, sizes, min(limit, share + max(sizes) // 2)):
            yield from self._fit(around, passage, start, end)

    def _fit(self, around: SegmentContext, passage: Passage, start: int, end: int) -> Iterator[Chunk]:
        """The chunk of a span, or several if joined units need more tokens than each alone."""
        text = passage.text[start:end]
        size = self.count([text])[0]
        if size > self.window and end - start > 1:
            middle = before_token(passage.text, (start + end) // 2, start)
            yield from self._fit(around, passage, start, middle)
            yield from self._fit(around, passage, middle, end)
            return
        first, last, document = passage.start + start, passage.start + end, around.document
        row = first - around.offset
        header = next((t.header for t in around.tables if t.start < row < t.end), "")
        lines = [document.title, around.places.headings(first)]
        if header and passage.text[start - 1 : start] not in ("", "\n"):  # the rest of a long row
            line = passage.text[passage.text.rfind("\n", 0, start) + 1 : start]
            lines.append(cells(line)[0])
        places, context = around.places.within(first, last), self._context(lines, header, text, size)
        head, span = (document.id, document.source, document.title), (passage.start, passage.end)
        yield Chunk(*head, places, context, first, last, text, span)

    def _context(self, lines: list[str], header: str, text: str, size: int) -> str:
        """The `lines` that fit, the nearest first; and a table's header, of cells cut to fit."""
        context = [self._shorten(header, self.window - size - 1)] if header else []
        room = self.options.context_tokens + (self.count(context)[0] if context else 0)
        for line in reversed([line for line in dict.fromkeys(lines) if line]):
            longer = "\n".join([line, *context])
            alone, whole = self.count([longer, f"{longer}\n{text}"])
            if alone <= room and max(whole, alone + size) <= self.window:
                context.insert(0, line)
        return "\n".join(context)

    def _shorten(self, header: str, room: int) -> str:
        cells = [cell.strip() for cell in header.strip("|").split("|")]
        longest = max(map(len, cells))
        while self.count([header])[0] > room and longest > 1:
            longest -= 1
            header = "| " + " | ".join(cell[:longest] for cell in cells) + " |"
        return header if self.count([header])[0] <= room else ""

    def _units(self, text: str, limit: int) -> tuple[list[Span], list[int]]:
        """Paragraphs, or their sentences, or pieces of those; they tile `text`. And their tokens."""
        spans = paragraphs(text)
        sizes = list(self.count([text[start:end] for start, end in spans]))
        for finer in (sentences, lambda part: self._pieces(part, limit)):
            spans = [
                (start + a, start + b)
                for (start, end), size in zip(spans, sizes, strict=True)
                for a, b in (finer(text[start:end]) if size > limit else [(0, end - start)])
            ]
            sizes = list(self.count([text[start:end] for start, end in spans]))
        return _joined(text, spans, sizes, limit)

    def _pieces(self, sentence: str, limit: int) -> list[Span]:
        """A sentence longer than `limit`, cut into as few pieces as its lines and words allow."""
        pieces: list[Span] = []
        start = 0
        while start < len(sentence):
            # Of a text of megabytes, only this many characters are looked at.
            size = limit
            while size < len(sentence) - start and (self.count([sentence[start : start + size]])[0] <= limit):
                size *= 2
            if before_token(sentence, start + size, start) != start + size:
                size += _LONGEST_TOKEN
            end = start + self._fitting(sentence[start : start + size], limit)
            pieces.append((start, end))
            start = end
        return pieces

    def _fitting(self, text: str, limit: int) -> int:
        """How many characters from the start of `text` form a piece of at most `limit` tokens.
        Whole lines; if the first is too long, whole clauses, else words, else characters."""
        for parts in (_LINE.findall, _CELL.findall, _CLAUSE.findall, _words, list):
            ends = list(accumulate(map(len, parts(text))))
            fits = bisect_right(ends, limit, key=lambda end: self.count([text[:end]])[0])
            if fits:
                return ends[fits - 1]
        return 1


def _words(text: str) -> Iterator[str]:
    """The words of `text`, no number or code cut; Chinese ones by rjieba's dictionary."""
    from rjieba import cut

    end = 0
    for first, last in _tokens(text):
        yield from _plain_words(text[end:first], cut)
        yield text[first:last]
        end = last
    yield from _plain_words(text[end:], cut)


def _plain_words(text: str, cut: Callable[[str, bool], list[str]]) -> Iterator[str]:
    for run in _WORD.finditer(text):
        yield from cut(run[0], False) if run["han"] else [run[0]]


def before_token(text: str, cut: int, floor: int) -> int:
    """`cut`, or the start of the number or code that it would cut, if that is beyond `floor`."""
    base = max(0, cut - _LONGEST_TOKEN)
    around = text[base : cut + _LONGEST_TOKEN]
    within = (base + first for first, last in _tokens(around) if first < cut - base < last)
    return next((start for start in within if start > floor), cut)


def _tokens(text: str) -> Iterator[Span]:
    """The spans of the numbers, dates, times and codes in `text`."""
    for token in _TOKEN.finditer(text):
        if len(token[0]) <= _LONGEST_TOKEN and any(map(str.isdigit, token[0])):
            yield token.span()


# What belongs to what follows it: a header and its rule, a question, a line that ends in a colon.
_OPEN = re.compile(r"\|[\s|:-]+\|\s*|[\s\S]*[：:？?][*”」』]*\s*")


def _joined(text: str, spans: list[Span], sizes: list[int], limit: int) -> tuple[list[Span], list[int]]:
    """Spans joined with the next if that belongs to them, while they have at most `limit` tokens."""
    joined: list[Span] = []
    totals: list[int] = []
    for (start, end), size in zip(spans, sizes, strict=True):
        last = text[slice(*joined[-1])] if joined else ""
        line = last.rstrip().rsplit("\n", 1)[-1]
        header = is_row(line) and text.startswith("|", start) and not is_row(text[start:end])
        if joined and totals[-1] + size <= limit and (header or _OPEN.fullmatch(line)):
            joined[-1], totals[-1] = (joined[-1][0], end), totals[-1] + size
        else:
            joined.append((start, end))
            totals.append(size)
    return joined, totals


def _pack(
    units: list[Span], sizes: Sequence[int], limit: int, breaks: Sequence[int] = (), least: int = 0
) -> list[Span]:
    """Neighbouring units joined while they have at most `limit` tokens.

    A join does not cross a position in `breaks`, unless the part before it has fewer than `least`
    tokens (a heading alone, a section of one line).
    """
    packed: list[Span] = []
    size = 0
    for (start, end), tokens in zip(units, sizes, strict=True):
        crosses = bool(packed) and bisect_right(breaks, start) > bisect_right(breaks, packed[-1][0])
        if packed and size + tokens <= limit and not (crosses and size >= least):
            packed[-1] = (packed[-1][0], end)
            size += tokens
        else:
            packed.append((start, end))
            size = tokens
    return packed


LONGEST_SENTENCE = 300
"""Characters of a sentence; longer ones (tables, lists without stops) are cut at a clause."""
LONGEST_ROW = 2000
"""Characters of a table row, which is one sentence; longer ones are cut at a cell."""
_LETTER = re.compile(r"\w")  # a sentence without any is a rule or a bullet
_RULE = re.compile(r"\s*\n\|[\s|:-]+\|")  # follows the header of a table, which is not a sentence
CLAUSE = re.compile(
    r"(?:[；;、\n|]|[，：](?!\d)|(?<!\d)[，：]|[,:](?![0-9A-Za-z]| \d{4}(?!\d))|(?<![0-9A-Za-z])[,:])+[”’」』）)\"']*\s*"
)


def short_sentences(text: str) -> list[Span]:
    """Sentences and table rows without surrounding space, none too long and none blank."""
    spans = []
    for first, last in paragraphs(text):
        row = is_row(text[first:last])
        longest = LONGEST_ROW if row else LONGEST_SENTENCE
        parts = [(0, last - first)] if row else sentences(text[first:last])
        for start, end in ((first + a, first + b) for a, b in parts):
            while end - start > longest:
                most = start + longest
                cuts = [m.end() for m in CLAUSE.finditer(text, start, min(end, most + 9)) if m.end() <= most]
                cut = cuts[-1] if cuts else before_token(text, most, start)
                spans.append((start, cut))
                start = cut
            spans.append((start, end))
    trimmed = [trim(text, *span) for span in spans]
    return [s for s in trimmed if _LETTER.search(text, *s) and not _RULE.match(text, s[1])]


def trim(text: str, start: int, end: int) -> Span:
    """The span without the space at its ends."""
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    return start, max(start, end - len(piece) + len(piece.rstrip()))
