"""Plain text and Markdown, read piece by piece so that a file of any size fits."""

import html
import re
from collections.abc import Iterable, Iterator

from ingest.parse.blocks import SEGMENT, chinese_heading
from ingest.parse.html import html_blocks
from ingest.types import Mark, Segment

_FENCE = re.compile(r"\s{0,3}(```+|~~~+)")
_ATX = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t#]*")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*")
_CODE_SPAN = re.compile(r"(`+)(.+?)\1(?!`)")
_IMAGE = re.compile(r"!\[([^\]\n]*)\]\([^()\n]*(?:\([^()\n]*\)[^()\n]*)*\)")
_LINK = re.compile(r"(?<!!)\[([^\[\]\n]+)\]\(<?[^()\s]*(?:\([^()\s]*\)[^()\s]*)*>?(?:\s+\"[^\"\n]*\")?\)")
_STRONG = re.compile(r"(\*\*|__)(?=\S)([^*_\n]+?)(?<=\S)\1")
_EMPHASIS = re.compile(r"(?<![*A-Za-z0-9_(\\])\*(?=[^\s*])([^*\n]+?)(?<=[^\s*\\])\*(?![*A-Za-z0-9_])")
_ESCAPE = re.compile(  # outside of a Windows path, which is a word of its own
    r"(?P<path>(?<![A-Za-z])[A-Za-z]:\\[^\s\u3000-\u303f\uff00-\uffef]*)|\\(?P<sign>[!-/:-@\[-`{-~])"
)
_TAG = re.compile(
    r"</?(?:a|abbr|b|big|blockquote|br|center|code|dd|del|details|div|dl|dt|em|figcaption|figure|font"
    r"|h[1-6]|hr|i|img|ins|kbd|li|mark|ol|p|picture|pre|s|small|source|span|strike|strong|sub|summary"
    r"|sup|table|tbody|td|tfoot|th|thead|tr|tt|u|ul|video)(?:\s[^<>\n]*)?/?>",
    re.IGNORECASE,
)
_LETTER = re.compile(r"<([abisu])>", re.IGNORECASE)  # a type as in List<s>, unless it is closed
_FRONT = re.compile(r"\A---\n(.*?\n)(?:---|\.\.\.)\n", re.DOTALL)
_TITLE = re.compile(r"^title:[ \t]*[\"']?(.*?)[\"']?[ \t]*\n", re.MULTILINE)
_COMMENT = re.compile(r"<!--.*?-->")
_OPEN = re.compile(  # not in a code span
    r"^ {0,3}(?P<fence>```+|~~~+)|(?<!`)(?P<comment><!--)|(?<!`)(?P<table>(?:<html>\s*<body>\s*)?<table\b)",
    re.IGNORECASE | re.MULTILINE,
)
_TABLE_END = re.compile(r"</table\s*>(?:\s*</body>\s*</html>)?", re.IGNORECASE)
_COMMENT_END = re.compile("-->")


def text_segments(pieces: Iterable[str]) -> Iterator[Segment]:
    """The text as it is, with marks at Chinese chapter headings."""
    for text in _whole_lines(pieces):
        marks, start = [], 0
        for line in text.splitlines(keepends=True):
            if len(line) < 200 and (found := chinese_heading(line)):
                indent = len(line) - len(line.lstrip())
                marks.append(Mark(start + indent, "heading", *found))
            start += len(line)
        yield Segment(text, tuple(marks))


def markdown_segments(pieces: Iterable[str]) -> Iterator[Segment]:
    """Markdown as its reader sees it: headings marked and without #, no emphasis, links and images
    replaced by their text. Code stays as it is."""
    fence = ""
    for number, text in enumerate(_whole_lines(pieces)):
        text = text if number else _front_matter(text)
        text = text if fence else _plain_elements(text)
        parts: list[str] = []
        marks: list[Mark] = []
        start = 0
        lines = text.split("\n")
        for at, line in enumerate(lines):
            found = None
            if match := _FENCE.match(line):
                fence = "" if fence and match[1].startswith(fence) else fence or match[1]
            elif not fence:
                line, found = _line(line, lines[at + 1] if at + 1 < len(lines) else "")
            if found:
                marks.append(Mark(start, "heading", *found))
            parts.append(line)
            start += len(line) + 1
        yield Segment("\n".join(parts), tuple(marks))


def _plain_elements(text: str) -> str:
    """The text without comments of several lines, and with HTML tables as Markdown; code stays."""
    parts: list[str] = []
    done = skip = 0
    unclosed: set[str] = set()
    for match in _OPEN.finditer(text):
        kind, start = match.lastgroup or "", match.start()
        if start < skip or kind in unclosed:
            continue
        end = _COMMENT_END if kind == "comment" else _TABLE_END
        end = re.compile(rf"^ {{0,3}}{match['fence']}", re.MULTILINE) if kind == "fence" else end
        found = end.search(text, match.end())
        if not found and kind == "fence":
            break
        if not found:
            unclosed.add(kind)
            continue
        skip = found.end()
        element = text[start:skip]
        if kind == "table" or (kind == "comment" and "\n" in element):
            parts += [text[done:start], _table(element) if kind == "table" else ""]
            done = skip
    return "".join(parts) + text[done:]


def _table(element: str) -> str:
    blocks = html_blocks([element])
    return "".join(f"{'' if b.tight else chr(10)}\n{b.text}" for b in blocks if b.text) + "\n\n"


def _line(line: str, below: str) -> tuple[str, tuple[str, int] | None]:
    """A line of prose without its markup, and its heading (text and level) if it is one."""
    if match := _ATX.fullmatch(line):
        text = inline(match[2])
        return text, ((text, len(match[1])) if text else None)
    if line.lstrip().startswith("|"):
        line = line.replace("\\|", "｜")  # as in all tables
    text = inline(line)
    underline = _UNDERLINE.fullmatch(below)
    if underline and text.strip() and not text.lstrip().startswith(("|", "-", ">", "*")):
        return text, (text.strip(), 1 if underline[1][0] == "=" else 2)
    return ("", None) if _UNDERLINE.fullmatch(line) else (text, chinese_heading(text))


def _front_matter(text: str) -> str:
    """The first lines of a file, with the title of the front matter (if it has any) as a heading."""
    front = _FRONT.match(text)
    if not front:
        return text
    title = _TITLE.search(front[1])
    rest = _TITLE.sub("", front[1], count=1)
    return (f"# {title[1]}\n\n" if title else "") + rest + "\n" + text[front.end() :]


def inline(text: str) -> str:
    """A line without emphasis, escapes, link targets and comments; code spans are kept."""
    parts: list[str] = []
    at = 0
    for code in _CODE_SPAN.finditer(text):
        parts += [_prose(text[at : code.start()]), code[0]]
        at = code.end()
    return "".join(parts) + _prose(text[at:])


def _prose(text: str) -> str:
    for pattern, words in (
        (_COMMENT, ""), (_IMAGE, r"\1"), (_LINK, r"\1"), (_STRONG, r"\2"), (_EMPHASIS, r"\1"),
        (_ESCAPE, r"\g<path>\g<sign>"),
    ):  # fmt: skip
        text = pattern.sub(words, text)
    return html.unescape(_untagged(text)) if "<" in text or "&" in text else text


def _untagged(text: str) -> str:
    lower = text.lower()
    closed = {letter for letter in "abisu" if f"</{letter}>" in lower}

    def replacement(tag: re.Match[str]) -> str:
        letter = _LETTER.fullmatch(tag[0])
        return tag[0] if letter and letter[1].lower() not in closed else ""

    return _TAG.sub(replacement, text)


def _whole_lines(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces joined and cut again, at line ends or at most about `SEGMENT` characters long."""
    rest: list[str] = []
    size = 0
    for piece in (p[i : i + SEGMENT] for p in pieces for i in range(0, len(p), SEGMENT)):
        rest.append(piece)
        size += len(piece)
        if size < SEGMENT:
            continue
        text = "".join(rest)
        cut = text.rfind("\n") + 1 or len(text)
        yield text[:cut]
        rest, size = [text[cut:]], len(text) - cut
    if size:
        yield "".join(rest)
