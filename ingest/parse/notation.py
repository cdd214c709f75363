"""Equations (OMML), superscripts and symbol fonts as plain text: (a+b)/2, 10^24, √(x), ☑."""

import re
import tomllib
from collections.abc import Iterable
from functools import cache
from itertools import groupby
from pathlib import Path
from xml.etree.ElementTree import Element

from ingest.parse.opc import local

_TOKEN = re.compile(r"[-+−±]?[\w.]+'?")
_EXPONENT = re.compile(r"(?!(?:st|nd|rd|th|er|re|o)$)(?!.*[\u4e00-\u9fff])[+−-]?[\w(].*")
_FORMULA = re.compile(r"[A-Z][a-z]?$|[)\]]$")  # what a digit below the line follows in H2O and Ca(OH)2
_ROOTS = {"": "√", "2": "√", "3": "∛", "4": "∜"}


def superscript(text: str) -> str:
    """`24` is ^24, `n+1` is ^(n+1); ordinals, note marks and words in Chinese stay as they are."""
    return f"^{_group(text)}" if _EXPONENT.fullmatch(text.strip()) else text


def subscript(text: str, before: str) -> str:
    """`2` stays 2 after `H`; `max` after `x` is _max."""
    plain = re.fullmatch(r"[\d.]+", text) and _FORMULA.search(before[-2:])
    return text if plain or not re.search(r"\w", text) else f"_{_group(text)}"


def scripts(pieces: Iterable[tuple[str, str]]) -> str:
    """Joins `(alignment, text)` as Word's `w:vertAlign` names it; equal neighbours are one script."""
    joined = ""
    for align, group in groupby(pieces, key=lambda piece: piece[0]):
        text = "".join(part for _, part in group)
        if align == "superscript":
            text = superscript(text)
        elif align == "subscript":
            text = subscript(text, joined)
        joined += text
    return joined


def _group(text: str) -> str:
    text = text.strip()
    closed = text.startswith("(") and text.find(")") == len(text) - 1
    return text if closed or _TOKEN.fullmatch(text) else f"({text})"


def equation(element: Element) -> str:
    """An OMML element on one line."""
    name = local(element)
    if name == "t":
        return element.text or ""

    def part(key: str) -> str:
        return next((equation(child) for child in element if local(child) == key), "")

    def grouped(key: str, sign: str = "") -> str:
        text = part(key)
        return sign + _group(text) if text else ""

    def parts(key: str) -> list[str]:
        return [equation(child) for child in element if local(child) == key]

    match name:
        case "f":
            return f"{grouped('num')}/{grouped('den')}"
        case "sSup" | "sSub" | "sSubSup":
            return f"{grouped('e')}{grouped('sub', '_')}{grouped('sup', '^')}"
        case "nary":
            sign = _property(element, "chr", "∫")
            return f"{sign}{grouped('sub', '_')}{grouped('sup', '^')} {part('e')}"
        case "rad":
            degree = part("deg")
            return f"{_ROOTS.get(degree) or f'^{_group(degree)}√'}({part('e')})"
        case "d":
            begin, end = _property(element, "begChr", "("), _property(element, "endChr", ")")
            return begin + _property(element, "sepChr", "|").join(parts("e")) + end
        case "func":
            return f"{part('fName')} {part('e')}"
        case "limLow" | "limUpp":
            return part("e") + grouped("lim", "_" if name == "limLow" else "^")
        case "m":
            return f"[{'; '.join(parts('mr'))}]"
        case "mr":
            return ", ".join(parts("e"))
        case "eqArr":
            return "; ".join(parts("e"))
        case _:
            return "".join(equation(child) for child in element if not local(child).endswith("Pr"))


def _property(element: Element, name: str, default: str) -> str:
    """The `m:val` of a child of the element's properties; an empty one means no sign."""
    for child in (c for group in element if local(group).endswith("Pr") for c in group):
        if local(child) == name:
            return next((v for k, v in child.attrib.items() if k.endswith("val")), default)
    return default


@cache
def _fonts() -> dict[str, dict[int, str]]:
    """The characters of each symbol font by their code."""
    table = tomllib.loads(Path(__file__).with_name("symbols.toml").read_text("utf-8"))
    return {
        font: {int(first, 16) + at: sign for first, signs in own.items() for at, sign in enumerate(signs)}
        for font, own in table.items()
    }


def symbol(font: str, code: int) -> str:
    """A character of a symbol font, which files write at U+F020 to U+F0FF; • for one not listed."""
    return _fonts().get(font.lower(), {}).get(code & 0xFF, "•")
