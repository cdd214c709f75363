"""Text of a document as a line of an answer."""

import re

_WRAP_IN_CHINESE = re.compile(r"(?<=[\u3000-\uffef])\s*\n\s*(?=[\u3000-\uffef])")
_HEADER = re.compile(r"^(\|.*\|)[ \t]*\n\|[\s|:-]+\|[ \t]*$", re.MULTILINE)


def one_line(text: str) -> str:
    """`text` without line breaks; words that have spaces between them keep one."""
    return " ".join(_WRAP_IN_CHINESE.sub("", text).split())


def row_in_words(row: str, above: str, context: str) -> str:
    """A table row as `姓名：张三；年龄：30`.

    Its header is the last one, with its rule, in the text `above` it; where there is none, the last
    line of the chunk's `context`. What is no row, or has no header of as many cells, comes back as
    it is.
    """
    headers = _HEADER.findall(above) or context.split("\n")[-1:]
    names, cells = _cells(headers[-1]), _cells(row)
    if not row.startswith("|") or not headers[-1].startswith("|") or len(names) != len(cells):
        return row
    pairs = zip(names, cells, strict=True)
    return "；".join(f"{name}：{cell}" if name else cell for name, cell in pairs if cell)


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]
