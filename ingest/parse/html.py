"""HTML to blocks: headings, paragraphs, lists, tables, code. Scripts and styles are left out.

Built on the standard library's tokenizer, which keeps no tree: nesting of any depth costs nothing
and nothing is ever fetched.
"""

import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from ingest import encoding
from ingest.files import damaged
from ingest.i18n import Translatable
from ingest.parse.blocks import Block, chinese_heading, clean, heading, mark, table
from ingest.parse.opc import Package, local, open_package, resolve

_HIDDEN = {"script", "style", "template", "noscript", "svg", "head", "iframe"}
_PARAGRAPHS = {
    *("p", "div", "section", "article", "main", "header", "footer", "nav", "aside", "ul", "ol"),
    *("dl", "dt", "dd", "blockquote", "figure", "figcaption", "address", "form", "fieldset"),
    *("table", "caption", "body", "hr", "details", "summary", "li", "tr", "select", "option"),
}
_RANKS = {f"h{rank}": rank for rank in range(1, 7)}
_CELL = 1500  # characters; longer cells are columns of a page laid out by a table
_BROKEN = re.compile(
    r"(?<=[\u2e80-\u9fff\u3000-\u303f\uff00-\uffef])[ \t]*\n\s*(?=[\u2e80-\u9fff\uff00-\uffef])"
)
_VOID = {"br", "hr", "img", "input", "meta", "link", "col", "area", "base", "source", "wbr"}
# Any other tag ends a paragraph, also one unknown to HTML: a field of an XML document.
_INLINE = (_VOID - {"hr"}) | {
    *("a", "abbr", "acronym", "b", "bdi", "bdo", "big", "button", "cite", "code", "data", "del"),
    *("dfn", "em", "font", "i", "ins", "kbd", "label", "map", "mark", "meter", "nobr", "o:p"),
    *("output", "picture", "q", "rb", "rp", "rt", "ruby", "s", "samp", "small", "span", "strike"),
    *("strong", "sub", "sup", "time", "tt", "u", "var", "math", "mfrac", "mi", "mn", "mo"),
    *("mover", "mroot", "mrow", "mspace", "msqrt", "mstyle", "msub", "msubsup", "msup", "mtext"),
    *("munder", "munderover"),
}


@dataclass
class _Table:
    """A table that is being read: the text of its rows' cells."""

    rows: list[list[str]] = field(default_factory=list)
    _wide: int = 0  # further columns that the current cell takes
    _tall: dict[int, int] = field(default_factory=dict)  # column -> rows that a cell above reaches

    @property
    def row(self) -> list[str]:
        """The current row; its last cell is the current cell."""
        return self.rows[-1] if self.rows else []

    def end_row(self) -> None:
        """Fill the row up to the last column that a cell above reaches into."""
        if self.rows:
            self._fill()
            last = max((column for column, left in self._tall.items() if left), default=-1)
            while len(self.row) <= last:
                self.row.append("")
                self._fill()

    def begin_cell(self, *, columns: int, rows: int) -> None:
        if not self.rows:
            self.rows.append([])
        self._fill()
        at = len(self.row)
        self.row.append("")
        self._wide = columns - 1
        self._tall |= dict.fromkeys(range(at, at + columns), rows - 1)

    def _fill(self) -> None:
        """Add the columns before the next cell: empty for a wide cell, repeated for a tall one above."""
        self.row.extend([""] * self._wide)
        self._wide = 0
        while self._tall.get(at := len(self.row), 0):
            self._tall[at] -= 1
            self.row.append(self.rows[-2][at])


class Page(HTMLParser):
    """Feed it text; `take()` returns the blocks that are complete."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self._blocks: list[Block] = []
        self._words: list[str] = []
        self._hidden: list[str] = []
        self._rank = 0
        self._pre = 0
        self._bullet = ""
        self._lists: list[int] = []  # next number of each open ordered list, 0 for a bulleted one
        self._tables: list[_Table] = []
        self.titled = True  # False while inside <title>

    def take(self) -> list[Block]:
        blocks, self._blocks = self._blocks, []
        return blocks

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "title" and not self.title:
            self.titled = False
        if self._hidden == ["head"] and (tag in _PARAGRAPHS or tag in _RANKS):
            self._hidden.clear()  # a page without </head> must not vanish
        if tag in _HIDDEN or self._hidden:
            if tag in _HIDDEN or tag in self._hidden:
                self._hidden.append(tag)
            return
        if tag == "br":
            self._words.append("\n")
        elif tag in ("td", "th"):
            self._flush()
            if self._tables:
                spans = dict(attrs)
                columns, rows = _span(spans.get("colspan"), 50), _span(spans.get("rowspan"), 1000)
                self._tables[-1].begin_cell(columns=columns, rows=rows)
        elif tag not in _INLINE:
            self._flush()
            self._open(tag)

    def _open(self, tag: str) -> None:
        if tag in _RANKS:
            self._rank = _RANKS[tag]
        elif tag == "pre":
            self._pre += 1
        elif tag in ("ul", "ol"):
            self._lists.append(1 if tag == "ol" else 0)
        elif tag == "li":
            number = self._lists[-1] if self._lists else 0
            self._bullet = f"{number}. " if number else "- "
            if number:
                self._lists[-1] += 1
        elif tag == "table":
            self._tables.append(_Table())
        elif tag == "tr" and self._tables:
            self._tables[-1].end_row()
            self._tables[-1].rows.append([])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID or tag in _PARAGRAPHS:
            self.handle_starttag(tag, attrs)
        elif tag not in _INLINE:
            self._flush()

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self.titled = True
        if self._hidden:
            if tag in self._hidden:
                del self._hidden[len(self._hidden) - 1 - self._hidden[::-1].index(tag) :]
            return
        if tag not in _INLINE:
            self._flush()
        if tag in _RANKS:
            self._rank = 0
        elif tag == "pre":
            self._pre = max(0, self._pre - 1)
        elif tag in ("ul", "ol") and self._lists:
            self._lists.pop()
        elif tag == "table" and self._tables:
            self._close_table()

    def handle_data(self, data: str) -> None:
        if not self.titled:
            self.title += data
        elif not self._hidden:
            self._words.append(data if self._pre else _running(data))

    def close(self) -> None:
        super().close()
        self._flush()
        while self._tables:
            self._close_table()

    def _flush(self) -> None:
        """End the current paragraph."""
        text = clean("".join(self._words))
        self._words = []
        if not self._pre:
            text = "\n".join(" ".join(line.split()) for line in text.split("\n"))
        if not text.strip():
            return
        if self._tables and (cell := self._tables[-1].row):
            cell[-1] = f"{cell[-1]}\n{text}".strip()
        elif found := (text, self._rank) if self._rank else chinese_heading(text):
            self._blocks.append(heading(*found))
        else:
            self._blocks.append(Block(self._bullet + text, (), bool(self._bullet)))
        self._bullet = ""

    def _close_table(self) -> None:
        """A table of one column, one row or long cells is only layout and becomes paragraphs. A table
        inside a cell joins the cell's text."""
        closed = self._tables.pop()
        closed.end_row()
        rows = [row for row in closed.rows if any(row)]
        if self._tables and (cell := self._tables[-1].row):
            cell[-1] = "\n".join([cell[-1], *("  ".join(row) for row in rows)]).strip()
        elif len(rows) < 2 or max(map(len, rows)) < 2 or max(len(c) for r in rows for c in r) > _CELL:
            self._blocks += [Block(clean(text)) for row in rows for text in row if text]
        else:
            self._blocks += table(rows)


def _span(value: str | None, most: int) -> int:
    return max(1, min(int(value[:6]), most)) if value and value.isdecimal() else 1


def _running(data: str) -> str:
    """White space as a browser shows it; a line end between Chinese characters is dropped."""
    return " ".join(f"|{_BROKEN.sub('', data)}|".split())[1:-1]


SetTitle = Callable[[str], None]


def html_blocks(pieces: Iterable[str], *, set_title: SetTitle = lambda title: None) -> Iterator[Block]:
    """The blocks of a page; `set_title` is called with its title once that is known."""
    page = Page()
    for piece in pieces:
        page.feed(piece)
        if page.title and page.titled:
            set_title(" ".join(page.title.split()))
        yield from page.take()
    page.close()
    set_title(" ".join(page.title.split()))
    yield from page.take()


def book_blocks(path: Path, *, set_title: SetTitle) -> Iterator[Block]:
    with open_package(path) as package:
        container = package.xml("META-INF/container.xml").iter()
        roots = (each.get("full-path", "") for each in container if local(each) == "rootfile")
        root = next(filter(None, roots), "")
        if not root:
            raise damaged(path.name, Translatable("it names no package file"))
        opf, folder = package.xml(root), posixpath.dirname(root)
        items = {i.get("id", ""): i for i in opf.iter() if local(i) == "item"}
        titles = (element.text or "" for element in opf.iter() if local(element) == "title")
        set_title(" ".join(next(filter(None, titles), "").split()))
        names = _contents(package, folder, list(items.values()))
        spine = [items.get(ref.get("idref", "")) for ref in opf.iter() if local(ref) == "itemref"]
        parts = [resolve(folder, item.get("href", "")) for item in spine if item is not None]
        parts = [part for part in parts if part in package]
        if not parts:
            raise damaged(path.name, Translatable("it has no chapters"))
        for part in parts:
            yield from _chapter(package, part, names.get(part, ""))


def _chapter(package: Package, part: str, name: str) -> Iterator[Block]:
    content = package.read(part)
    detected = encoding.detect(content, name=f"{package.name}: {part}")
    blocks = list(html_blocks(encoding.decode(content, detected)))
    if name and not any(one.kind == "heading" for block in blocks for one in block.marks):
        yield mark("heading", name)
    yield from blocks


def _contents(package: Package, folder: str, items: list) -> dict[str, str]:
    """Chapter part -> its name in the table of contents (EPUB 2: toc.ncx)."""
    names: dict[str, str] = {}
    for item in items:
        part = resolve(folder, item.get("href", ""))
        if item.get("media-type") != "application/x-dtbncx+xml" or part not in package:
            continue
        label = ""
        for element in package.xml(part).iter():
            if local(element) == "text":
                label = " ".join((element.text or "").split())
            elif local(element) == "content":
                names.setdefault(resolve(posixpath.dirname(part), element.get("src", "")), label)
    return names
