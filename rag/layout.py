"""Text of a document as a line of an answer."""

import re

_WRAP_IN_CHINESE = re.compile(r"(?<=[\u3000-\uffef])\s*\n\s*(?=[\u3000-\uffef])")
_HEADER = re.compile(r"^(\|.*\|)[ \t]*(?:\n\|[\s|:-]+\||\Z)", re.MULTILINE)


def one_line(text: str) -> str:
    """`text` without line breaks; words that have spaces between them keep one."""
    return " ".join(_WRAP_IN_CHINESE.sub("", text).split())


def row_in_words(row: str, above: str) -> str:
    """A table row as `姓名：张三；年龄：30`, by the last header in the text `above` it.

    What is no row, or has no header of as many cells, comes back as it is.
    """
    headers = _HEADER.findall(above)
    cells = _cells(row)
    if not row.startswith("|") or not headers or len(_cells(headers[-1])) != len(cells):
        return row
    pairs = zip(_cells(headers[-1]), cells, strict=True)
    return "；".join(f"{name}：{cell}" if name else cell for name, cell in pairs if cell)


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]
