"""HTML as a reader of the page sees it, without navigation, cookie bars, sidebars and footers.

Built on the standard library's tokenizer, which keeps no tree: nesting of any depth costs nothing.
"""

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

from ingest import encoding
from ingest.files import damaged
from ingest.i18n import Translatable
from ingest.parse.blocks import SEGMENT, Block, chinese_heading, clean, heading, mark
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
_NAME = re.compile(
    r"(?:(?!has|with|without|no|show|hide|open)[a-z]+[-_])?(?:left|right|top|main|sub|foot|bottom|head|bread)?"
    r"(?:cookies?|consent|gdpr|(?:side|nav)-?bar|navi?|navigation|menu|crumbs?|footer|pagination|pager|share"
    r"|sharing|social|related|recommend(?:ed|ations?)?|advert(?:isement)?|ads?|popup|modal|newsletter"
    r"|friend-?links?|copyright|toolbar|skip-?link|comments|respond|disqus_thread|rail)"
    r"(?:[-_](?:list|links?|buttons?|box|bar|banner|wrap|wrapper|container|area|section|block|posts?|articles?"
    r"|news|items?|widget|icons?|notice|consent|inner|content|top|left|right|bottom|menu|nav|form|thread|\d+))?",
    re.IGNORECASE,
)
_CONTENT = re.compile(  # names of the element around an article's text
    r"(?:[a-z]+[-_]+)*(?:article|post|entry|story|news|blog|single)[-_]*(?:body|content|text|detail)s?"
    r"(?:[-_]+(?:[a-z]+|\d+))*",
    re.IGNORECASE,
)
_LEAST = 300  # characters outside links, and half of the page's: then such an element is the content
_BYLINE = 500  # characters between the page's heading and such an element that belong to the content
_RULE = re.compile(r"([^{}@;]*)\{([^{}]*)\}|[^{}]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}")  # an @media is one
_SELECTOR = re.compile(r"[a-z]*([.#][\w-]+)")
_ROLES = {"navigation", "banner", "contentinfo", "complementary", "search", "dialog", "alertdialog"}
_PROSE = 3000  # characters outside of links; a margin with more of them is content


class _Element(NamedTuple):
    """An open element. `kinds` are those of the elements around it that may be the content, `margin` is the
    number of the margin that it is in, which began when `tables` tables were open."""

    tag: str
    unseen: bool = False
    kinds: int = 0
    margin: int = 0
    tables: int = 0


class _Piece(NamedTuple):
    """A block, where it stands, and its characters outside of links."""

    block: Block
    place: _Element
    prose: int


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
    """Feed it text; `take()` returns the blocks that are complete. With `whole` margins are content."""

    def __init__(self, *, whole: bool = False) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self.titled = True  # False while inside <title>
        self.left_out = 0  # characters beside the content
        self._whole = whole
        self._pieces: list[_Piece] = []
        self._words: list[str] = []
        self._linked = 0  # of their characters
        self._open = [_Element("")]
        self._invisible: set[str] = set()  # `.name` and `#id` that a style sheet hides
        self._count: Counter[str] = Counter()  # of the open elements by tag
        self._margins: list[str] = [""]  # their tags; a part of the page that seems to be beside its content
        self._needed: set[int] = {0}  # margins with the page's main element or, in a header, its heading
        self._main = self._links = self._pre = self._rank = 0
        self._scripts: list[int] = []  # where the open <sup> and <sub> begin in `_words`
        self._bullet = ""
        self._lists: list[int] = []  # next number of each open ordered list, 0 for a bulleted one
        self._tables: list[_Table] = []

    def take(self, *, ended: bool = False) -> list[Block]:
        """The blocks that are complete: those of a page with margins when it has ended or is long."""
        if not (ended or self._whole) and _size(self._pieces) < SEGMENT:
            return []
        pieces, self._pieces = self._pieces, []
        content = self._content(pieces)
        self.left_out += _size(pieces) - _size(content)
        return [piece.block for piece in content]

    def _content(self, pieces: list[_Piece]) -> list[_Piece]:
        """The pieces without margins; a long one is content unless the page says where its content is.
        The margins are read if they hold more prose than the page, so that no page is lost by its names."""
        sure = [piece for piece in pieces if piece.place.margin in self._needed]
        inside = _inside(sure)
        if inside is not sure:
            return inside
        prose: Counter[int] = Counter()
        for piece in pieces:
            prose[piece.place.margin] += piece.prose
        shown = self._needed | {margin for margin, size in prose.items() if size >= _PROSE}
        content = [piece for piece in pieces if piece.place.margin in shown]
        beside = sum(size for margin, size in prose.items() if margin not in shown)
        main = any(piece.place.kinds & 1 for piece in content)
        return pieces if beside > _size(content) and not main else content

    @property
    def _unseen(self) -> bool:
        return self._open[-1].unseen

    @property
    def _cell(self) -> _Table | None:
        """The table to whose current cell the text belongs."""
        around = self._open[-1].tables
        open_table = len(self._tables) > around and self._tables[-1].rows and self._tables[-1].rows[-1].cells
        return self._tables[-1] if open_table else None

    def _add(self, blocks: Iterable[Block]) -> None:
        """Add blocks, of whose characters `_linked` are inside links."""
        self._pieces += (_Piece(block, self._open[-1], len(block.text) - self._linked) for block in blocks)

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
            self._add(html_blocks([values["srcdoc"]], whole=True))
        if tag not in _VOID:
            _, _, kinds, margin, tables = self._open[-1]
            if not unseen and self._beside(tag, values):
                self._flush()
                margin, tables = len(self._margins), len(self._tables)
                self._margins.append(tag)
            self._open.append(_Element(tag, unseen, kinds | _container(tag, values), margin, tables))
            self._count[tag] += 1
            self._main += tag in ("main", "article")
        if unseen:
            return
        if tag == "main" or (tag == "h1" and self._margins[self._open[-1].margin] == "header"):
            self._needed.add(self._open[-1].margin)
        if tag == "br":
            self._words.append("\n")
        elif tag in ("sup", "sub"):
            self._scripts.append(len(self._words))
        elif tag in ("img", "input") and not self._count["noscript"]:  # which repeats a picture
            self._words.append(_value(tag, values))
        elif tag == "a":
            self._links += 1
        elif tag in ("td", "th"):
            self._flush()
            if self._tables:
                columns, rows = _span(values.get("colspan"), 50), _span(values.get("rowspan"), 1000)
                self._tables[-1].begin_cell(columns=columns, rows=rows)
        elif tag not in _INLINE:
            self._flush()
            self._begin(tag)

    def _hidden(self, tag: str, values: dict[str, str]) -> bool:
        style = "".join(values.get("style", "").split())
        return (
            values.get("hidden", "until-found") != "until-found"
            or (tag == "dialog" and "open" not in values)
            or _UNSEEN.search(style) is not None
            or ((self._whole or tag in _INLINE) and self._folded(values))
        )

    def _folded(self, values: dict[str, str]) -> bool:
        """Whether a style sheet hides the element, perhaps only until its reader unfolds it."""
        names = [*(f".{name}" for name in values.get("class", "").split()), f"#{values.get('id')}"]
        return not self._invisible.isdisjoint(names)

    def _beside(self, tag: str, values: dict[str, str]) -> bool:
        """Whether an element is a margin by its tag, role, class or id."""
        if self._whole or tag in ("html", "body", "main", "article", *_INLINE, *_RANKS):
            return False
        return (
            tag == "nav"
            or (tag in ("header", "footer", "aside") and not self._main)
            or values.get("role") in _ROLES
            or _named(_NAME, values)
            or self._folded(values)
        )

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
        elif tag == "a":
            self._links = max(0, self._links - 1)
        elif tag in _RANKS:
            self._rank = 0
        elif tag == "pre":
            self._pre = max(0, self._pre - 1)
        elif tag in ("ul", "ol") and self._lists:
            self._lists.pop()
        elif tag == "table" and self._tables:
            self._close_table()

    def _pop(self) -> None:
        """Close the innermost element, and the margin that it is."""
        place = self._open[-1]
        if place.margin != self._open[-2].margin:
            self._flush()
            while len(self._tables) > place.tables:
                self._close_table()
        self._open.pop()
        self._count[place.tag] -= 1
        self._main -= place.tag in ("main", "article")

    def handle_data(self, data: str) -> None:
        if not self.titled:
            self.title += data
        elif not self._unseen:
            self._words.append(data if self._pre else _running(data))
            self._linked += len(data.strip()) if self._links else 0
        elif self._open[-1].tag == "style":
            for selectors, declarations in _RULE.findall(data):
                if "display:none" in "".join(declarations.split()).lower():
                    found = map(_SELECTOR.fullmatch, map(str.strip, selectors.split(",")))
                    self._invisible |= {match[1] for match in found if match}

    def close(self) -> None:
        super().close()
        self._flush()
        while len(self._open) > 1:
            self._pop()
        while self._tables:
            self._close_table()

    def _flush(self) -> None:
        """End the current paragraph."""
        text = clean("".join(self._words))
        self._words, self._scripts = [], []
        if not self._pre:
            text = "\n".join(" ".join(line.split()) for line in text.split("\n"))
        if text.strip():
            if cell := self._cell:
                cell.add([text])
            elif found := (text, self._rank) if self._rank else chinese_heading(text):
                self._add([heading(*found)])
            else:
                self._add([Block(self._bullet + text, (), bool(self._bullet))])
            self._bullet = ""
        self._linked = 0

    def _close_table(self) -> None:
        """A table of one column, one row or long cells is only layout and becomes paragraphs. A table
        inside a cell joins the cell's text."""
        table = self._tables.pop().rows
        rows = [[*filter(None, row.cells.values())] for row in table if any(row.cells.values())]
        if cell := self._cell:
            cell.add("  ".join(row) for row in rows)
        elif len(rows) < 2 or max(map(len, rows)) < 2 or max(len(c) for r in rows for c in r) > _CELL:
            self._add(Block(clean(text)) for row in rows for text in row)
        else:
            self._add(text_table(table))


def _size(pieces: Iterable[_Piece]) -> int:
    return sum(len(piece.block.text) for piece in pieces)


def _named(pattern: re.Pattern[str], values: dict[str, str]) -> bool:
    """Whether a class or the id of an element is such a name."""
    names = f"{values.get('class', '')} {values.get('id', '')}".split()
    return any(map(pattern.fullmatch, names))


def _container(tag: str, values: dict[str, str]) -> int:
    """The kinds of element around the content that this is, as a sum."""
    kinds = {
        1: tag == "main" or values.get("role") == "main",
        2: tag == "article",
        4: values.get("itemprop") == "articleBody",
        8: _named(_CONTENT, values),
    }
    return sum(kind for kind, true in kinds.items() if true)


def _inside(pieces: list[_Piece]) -> list[_Piece]:
    """What stands inside the element around the content, with the page's heading and the lines below
    it; all if no such element has most of the text."""
    for kind in (1, 2, 4, 8):  # from the outside in
        inside = [piece for piece in pieces if piece.place.kinds & kind]
        prose = sum(piece.prose for piece in inside)
        if prose < _LEAST or 2 * prose < sum(piece.prose for piece in pieces):
            continue
        first = pieces.index(inside[0])
        above = range(first - 1, -1, -1)
        title = next((at for at in above if any(m.level == 1 for m in pieces[at].block.marks)), first)
        byline = pieces[title:first]
        pieces = (byline if _size(byline) < _BYLINE else byline[:1]) + inside
    return pieces


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
    pieces: Iterable[str],
    *,
    set_title: SetTitle = lambda title: None,
    whole: bool = False,
    warn: list[str] | None = None,
) -> Iterator[Block]:
    """The blocks of a page without its margins, or with them if `whole`, as in a mail or a book;
    `set_title` is called with its title once that is known."""
    page = Page(whole=whole)
    for piece in pieces:
        page.feed(piece)
        if page.title and page.titled:
            set_title(" ".join(page.title.split()))
        yield from page.take()
    page.close()
    set_title(" ".join(page.title.split()))
    yield from page.take(ended=True)
    if page.left_out and warn is not None:
        warn.append(
            Translatable(
                "left out as navigation or margin of the page: {count} characters", count=page.left_out
            )
        )


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
    blocks = list(html_blocks(encoding.decode(content, detected), whole=True))
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
