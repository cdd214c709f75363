"""HTML as a reader of the page sees it, without navigation, cookie bars, sidebars and footers.

Built on the standard library's tokenizer, which keeps no tree: nesting of any depth costs nothing.
"""

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from ingest import encoding
from ingest.files import damaged
from ingest.i18n import Translatable
from ingest.parse.blocks import Block, chinese_heading, clean, heading, mark
from ingest.parse.notation import subscript, superscript
from ingest.parse.opc import Package, local, open_package, resolve
from ingest.parse.sheet import Row, text_table

_HIDDEN = {"script", "style", "template", "svg", "head", "iframe", "del", "s", "strike"}
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


_ENDS = {  # an element -> those that end it though it is not closed
    **{"p": _PARAGRAPHS | _RANKS.keys() | {"pre"}, "li": {"li"}, "option": {"option"}},
    **{"tr": {"tr"}, "td": {"td", "th", "tr"}, "th": {"td", "th", "tr"}},
    **{"dt": {"dt", "dd"}, "dd": {"dt", "dd"}},
}
_NEAR = 500  # open elements among which an end tag looks for its start
_UNSEEN = re.compile(
    r"display:none|visibility:hidden|text-decoration(-line|-color)?:[^;]*line-through", re.IGNORECASE
)
_RULE = re.compile(r"([^{}@;]*)\{([^{}]*)\}|[^{}]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}")  # an @media is one
_SELECTOR = re.compile(r"[a-z]*([.#][\w-]+)")
_CONTAINERS = (  # elements around an article, from the outside in
    *("main, [role=main]", "article", "[itemprop=articleBody]"),
    "[class*=article i][class*=body i], [class*=article i][class*=content i], [class*=post i][class*=content i],"
    "[class*=entry i][class*=content i], [class*=story i][class*=body i]",
)
_LONGEST = 2_000_000  # characters of a page whose main content is looked for
_DEEPEST = 500  # elements inside one another on such a page
_SHORT = 300  # characters of a page that is content as a whole
_LEAST = 0.1  # of the page's text; less is not its main content


class _Element(NamedTuple):
    """An open element."""

    tag: str
    unseen: bool = False


@dataclass
class _Table:
    """A table that is being read, up to the current cell."""

    rows: list[Row] = field(default_factory=list)
    _at: int = 0  # column of the current cell
    _next: int = 0
    _tall: dict[int, int] = field(default_factory=dict)  # column -> last row of a cell above

    def begin_row(self) -> None:
        self.rows.append(Row(len(self.rows) + 1, {}))
        self._next = 0

    def begin_cell(self, *, columns: int, rows: int) -> None:
        if not self.rows:
            self.begin_row()
        row = self.rows[-1]
        while self._tall.get(self._next, 0) >= row.number:
            self._next += 1
        self._at, self._next = self._next, self._next + columns
        row.cells[self._at] = ""
        bottom = row.number + rows - 1
        self._tall |= dict.fromkeys(range(self._at, self._next), bottom)
        row.spans += [(self._at, self._next - 1, bottom)] if columns * rows > 1 else []

    def add(self, texts: Iterable[str]) -> None:
        cells = self.rows[-1].cells
        cells[self._at] = "\n".join([cells[self._at], *texts]).strip()


class Page(HTMLParser):
    """Feed it text; `take()` returns the blocks that are complete. Without `navigation`, that is left out;
    if it is `unfolded`, what a style sheet hides is read."""

    def __init__(self, *, navigation: bool = True, unfolded: bool = False) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self.titled = True  # False while inside <title>
        self.left_out = 0  # characters of navigation
        self.folds = False  # whether a style sheet hides an element
        self.depth = 0  # of the deepest element
        self.warnings: list[str] = []
        self._navigation, self._unfolded = navigation, unfolded
        self._blocks: list[Block] = []
        self._words: list[str] = []
        self._open = [_Element("")]
        self._invisible: set[str] = set()  # `.name` and `#id` that a style sheet hides
        self._count: Counter[str] = Counter()  # of the open elements by tag
        self._pre = self._rank = 0
        self._scripts: list[int] = []  # where the open <sup> and <sub> begin in `_words`
        self._bullet = ""
        self._lists: list[int] = []  # next number of each open ordered list, 0 for a bulleted one
        self._tables: list[_Table] = []

    def take(self) -> list[Block]:
        blocks, self._blocks = self._blocks, []
        return blocks

    @property
    def _unseen(self) -> bool:
        return self._open[-1].unseen

    @property
    def _cell(self) -> _Table | None:
        """The table to whose current cell the text belongs."""
        open_table = self._tables and self._tables[-1].rows and self._tables[-1].rows[-1].cells
        return self._tables[-1] if open_table else None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "title" and not self.title:
            self.titled = False
        if self._open[-1].tag == "head" and (tag in _PARAGRAPHS or tag in _RANKS):
            self._pop()  # a page without </head> must not vanish
        while tag in _ENDS.get(self._open[-1].tag, ()):
            self._pop()
        values = {name: value or "" for name, value in attrs}
        unseen = self._unseen or tag in _HIDDEN or self._hidden(tag, values)
        if tag == "iframe" and "srcdoc" in values and not self._unseen:
            self._blocks += html_blocks([values["srcdoc"]])
        if tag not in _VOID:
            self._open.append(_Element(tag, unseen))
            self._count[tag] += 1
            self.depth = max(self.depth, len(self._open))
        if unseen:
            return
        if tag == "br":
            self._words.append("\n")
        elif tag in ("sup", "sub"):
            self._scripts.append(len(self._words))
        elif tag in ("img", "input") and not self._count["noscript"]:  # which repeats a picture
            self._words.append(_value(tag, values))
        elif tag in ("td", "th"):
            self._flush()
            if self._tables:
                columns, rows = _span(values.get("colspan"), 50), _span(values.get("rowspan"), 1000)
                self._tables[-1].begin_cell(columns=columns, rows=rows)
        elif tag not in _INLINE:
            self._flush()
            self._begin(tag)

    def _hidden(self, tag: str, values: dict[str, str]) -> bool:
        if (tag == "dialog" and "open" not in values) or (tag == "nav" and not self._navigation):
            return True
        return bool(values) and (
            values.get("hidden", "until-found") != "until-found"
            or _UNSEEN.search("".join(values.get("style", "").split())) is not None
            or self._folded(values)
        )

    def _folded(self, values: dict[str, str]) -> bool:
        """Whether a style sheet hides the element, perhaps only until its reader unfolds it."""
        names = [*(f".{name}" for name in values.get("class", "").split()), f"#{values.get('id')}"]
        folded = not self._invisible.isdisjoint(names)
        self.folds = self.folds or folded
        return folded and not self._unfolded

    def _begin(self, tag: str) -> None:
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
            self._tables[-1].begin_row()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID or tag in _PARAGRAPHS:
            self.handle_starttag(tag, attrs)
            if tag not in _VOID:
                self._pop()
        elif tag not in _INLINE:
            self._flush()

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self.titled = True
        near = range(len(self._open) - 1, max(0, len(self._open) - 1 - _NEAR), -1)
        depth = next((at for at in near if self._open[at].tag == tag), None) if self._count[tag] else None
        unseen = self._unseen if depth is None else self._open[depth].unseen
        if not unseen:
            self._end(tag)
        while depth is not None and len(self._open) > depth:
            self._pop()

    def _end(self, tag: str) -> None:
        if tag not in _INLINE:
            self._flush()
        if tag in ("sup", "sub") and self._scripts:
            at = self._scripts.pop()
            text, before = "".join(self._words[at:]), "".join(self._words[:at][-2:])
            self._words[at:] = [superscript(text) if tag == "sup" else subscript(text, before)]
        elif tag in _RANKS:
            self._rank = 0
        elif tag == "pre":
            self._pre = max(0, self._pre - 1)
        elif tag in ("ul", "ol") and self._lists:
            self._lists.pop()
        elif tag == "table" and self._tables:
            self._close_table()

    def _pop(self) -> None:
        self._count[self._open.pop().tag] -= 1

    def handle_data(self, data: str) -> None:
        if not self.titled:
            self.title += data
        elif not self._unseen:
            self._words.append(data if self._pre else _running(data))
        elif self._open[-1].tag == "style":
            for selectors, declarations in _RULE.findall(data):
                if _UNSEEN.search("".join(declarations.split())):
                    found = map(_SELECTOR.fullmatch, map(str.strip, selectors.split(",")))
                    self._invisible |= {match[1] for match in found if match}
        elif self._count["nav"]:
            self.left_out += len(data.strip())

    def close(self) -> None:
        super().close()
        self._flush()
        while len(self._open) > 1:
            self._pop()
        while self._tables:
            self._close_table()

    def _flush(self) -> None:
        """End the current paragraph."""
        if not self._words:
            return
        text = clean("".join(self._words))
        self._words, self._scripts = [], []
        if not self._pre:
            text = "\n".join(" ".join(line.split()) for line in text.split("\n"))
        if text.strip():
            if cell := self._cell:
                cell.add([text])
            elif found := (text, self._rank) if self._rank else chinese_heading(text):
                self._blocks.append(heading(*found))
            else:
                self._blocks.append(Block(self._bullet + text, (), bool(self._bullet)))
            self._bullet = ""

    def _close_table(self) -> None:
        """A table of one column, one row or long cells is only layout and becomes paragraphs. A table
        inside a cell joins the cell's text."""
        table = self._tables.pop().rows
        rows = [[*filter(None, row.cells.values())] for row in table if any(row.cells.values())]
        if cell := self._cell:
            cell.add("  ".join(row) for row in rows)
        elif len(rows) < 2 or max(map(len, rows)) < 2 or max(len(c) for r in rows for c in r) > _CELL:
            self._blocks += (Block(clean(text)) for row in rows for text in row)
        else:
            self._blocks += text_table(table, self.warnings)


_BUTTONS = {"hidden", "password", "submit", "button", "reset", "image", "file"}


def _value(tag: str, values: dict[str, str]) -> str:
    """What a picture or a field says: its alternative text, its value, ☑ or ☐."""
    kind = values.get("type", "").lower()
    if kind in ("checkbox", "radio"):
        return "☑" if "checked" in values else "☐"
    text = values.get("alt", "") if tag == "img" else "" if kind in _BUTTONS else values.get("value", "")
    return f" {_running(text)} " if text else ""


def _span(value: str | None, most: int) -> int:
    return max(1, min(int(value[:6]), most)) if value and value.isdecimal() else 1


def _running(data: str) -> str:
    """White space as a browser shows it; a line end between Chinese characters is dropped."""
    return " ".join(f"|{_BROKEN.sub('', data)}|".split())[1:-1]


SetTitle = Callable[[str], None]


def html_blocks(
    pieces: Iterable[str], *, set_title: SetTitle = lambda title: None, page: Page | None = None
) -> Iterator[Block]:
    """All blocks of an HTML text; `set_title` is called with its title once that is known."""
    page = page or Page()
    for piece in pieces:
        page.feed(piece)
        if page.title and page.titled:
            set_title(" ".join(page.title.split()))
        yield from page.take()
    page.close()
    set_title(" ".join(page.title.split()))
    yield from page.take()


def page_blocks(
    pieces: Iterable[str], *, warn: list[str], set_title: SetTitle = lambda title: None
) -> Iterator[Block]:
    """The main content of a page of the web; all but the navigation if it is very long or nested deeply."""
    pieces, text = iter(pieces), ""
    for piece in pieces:
        text += piece
        if len(text) > _LONGEST:
            break
    page = Page(navigation=False)
    blocks = html_blocks(chain([text], pieces), set_title=set_title, page=page)
    if len(text) <= _LONGEST:
        blocks = list(blocks)
        whole = list(html_blocks([text], page=Page(unfolded=True))) if page.folds else []
        if 2 * _size(blocks) < _size(whole):
            blocks = whole  # a page of answers that a click unfolds
        elif page.depth <= _DEEPEST and _size(blocks) > _SHORT:
            content = _main_content(blocks, text)
            page.left_out += _size(blocks) - _size(content)
            blocks = content
    yield from blocks
    warn += page.warnings
    if page.left_out:
        count = page.left_out
        warn.append(
            Translatable("left out as navigation or margin of the page: {count} characters", count=count)
        )


def _main_content(blocks: list[Block], page: str) -> list[Block]:
    """The blocks from the first to the last of which a line stands in the page's main content, as resiliparse
    finds it, and the page's heading. What it leaves out between them stays: that may be content."""
    from resiliparse.parse.html import HTMLTree

    tree = HTMLTree.parse(page)
    lines = _lines(tree, main_content=True)
    for selector in _CONTAINERS:
        container = tree.document.query_selector(selector) if tree.document else None
        own = lines & _lines(container.html) if container else set[str]()
        if 2 * sum(map(len, own)) >= sum(map(len, lines)):
            lines = own
    known = [not lines.isdisjoint(map(_letters, block.text.split("\n"))) for block in blocks]
    if not any(known):
        return blocks
    first = known.index(True)
    content = blocks[first : len(known) - known[::-1].index(True)]
    if _size(content) < _LEAST * _size(blocks):
        return blocks
    above = (at for at in range(first, -1, -1) if any(mark.level == 1 for mark in blocks[at].marks))
    title = next(above, first)
    return blocks[title : min(title + 1, first)] + content


def _lines(page: Any, *, main_content: bool = False) -> set[str]:
    """The letters of each line of a page or of its tree."""
    from resiliparse.extract.html2text import extract_plain_text

    seen = dict.fromkeys(("alt_texts", "form_fields", "noscript", "post_meta"), True)
    text = extract_plain_text(page, main_content=main_content, **seen)
    return set(map(_letters, text.split("\n"))) - {""}


def _letters(text: str) -> str:
    return re.sub(r"\W+", "", text)


def _size(blocks: Iterable[Block]) -> int:
    return sum(len(block.text) for block in blocks)


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
