"""Automatic numbers of Word paragraphs (第一章, 1.2.3, a), which are not in the text itself."""

import re
from dataclasses import dataclass
from xml.etree.ElementTree import Element

W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_DIGITS = "零一二三四五六七八九"
_UNITS = ((1000, "千"), (100, "百"), (10, "十"))


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a list: number format, pattern such as 第%1章, first number."""

    form: str
    pattern: str
    start: int


class Numbering:
    """Counts the paragraphs of each list as Word does when it draws them."""

    def __init__(self, root: Element | None) -> None:
        self._lists: dict[str, tuple[str, dict[int, Level]]] = {}
        self._counts: dict[str, dict[int, int]] = {}
        if root is None:
            return
        abstract = {
            a.get(W + "abstractNumId", ""): {
                _int(lvl.get(W + "ilvl")): _level(lvl) for lvl in a.iter(W + "lvl")
            }
            for a in root.iter(W + "abstractNum")
        }
        for number in root.iter(W + "num"):
            reference = number.find(W + "abstractNumId")
            key = "" if reference is None else reference.get(W + "val", "")
            own = {_int(lvl.get(W + "ilvl")): _level(lvl) for lvl in number.iter(W + "lvl")}
            self._lists[number.get(W + "numId", "")] = (
                key if not own else number.get(W + "numId", "") + "*",
                abstract.get(key, {}) | own,
            )

    def label(self, place: tuple[str, int]) -> str:
        """The number of the next paragraph at `(list, level)`; - for a bullet, empty for none."""
        key, level = place
        counter, levels = self._lists.get(key, ("", {}))
        if level not in levels:
            return ""
        counts = self._counts.setdefault(counter, {})
        counts[level] = counts.get(level, levels[level].start - 1) + 1
        for deeper in [other for other in counts if other > level]:
            del counts[deeper]
        here = levels[level]
        if here.form == "bullet":
            return "-"
        if here.form == "none":
            return ""

        def number(match: re.Match[str]) -> str:
            at = int(match[1]) - 1
            shown = levels.get(at, here)
            return spell(counts.get(at, shown.start), shown.form)

        return re.sub(r"%([1-9])", number, here.pattern).strip()


def _level(element: Element) -> Level:
    def value(tag: str, otherwise: str) -> str:
        child = element.find(W + tag)
        return otherwise if child is None else child.get(W + "val", otherwise)

    return Level(value("numFmt", "decimal"), value("lvlText", ""), _int(value("start", "1")))


def _int(text: str | None) -> int:
    return int(text) if text and text.isdecimal() and len(text) < 9 else 0


def spell(number: int, form: str) -> str:
    """A number in one of Word's formats; unknown ones are written in digits."""
    if number < 1 or number > 9999:
        return str(number)
    if form in (
        "chineseCounting",
        "chineseCountingThousand",
        "japaneseCounting",
        "taiwaneseCountingThousand",
        "taiwaneseCounting",
    ):
        return _chinese(number)
    if form == "ideographDigital":
        return "".join("〇一二三四五六七八九"[int(digit)] for digit in str(number))
    if form in ("upperLetter", "lowerLetter"):
        letter = chr(ord("A") + (number - 1) % 26) * ((number - 1) // 26 + 1)
        return letter if form == "upperLetter" else letter.lower()
    if form in ("upperRoman", "lowerRoman"):
        return _roman(number) if form == "upperRoman" else _roman(number).lower()
    if form.startswith("decimalEnclosedCircle") and number <= 20:
        return chr(0x2460 + number - 1)
    if form == "ideographTraditional" and number <= 10:
        return "甲乙丙丁戊己庚辛壬癸"[number - 1]
    return str(number)


def _chinese(number: int) -> str:
    """10 is 十, 21 is 二十一, 105 is 一百零五."""
    text = ""
    rest = number
    for unit, word in _UNITS:
        digit, rest = divmod(rest, unit)
        if digit:
            text += _DIGITS[digit] + word
        elif text and rest and not text.endswith("零"):
            text += "零"
    text += _DIGITS[rest] if rest else ""
    return text.removeprefix("一") if text.startswith("一十") else text


def _roman(number: int) -> str:
    text = ""
    for value, letters in zip(
        (1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1),
        ("M", "CM", "D", "CD", "C", "XC", "L", "XL", "X", "IX", "V", "IV", "I"),
        strict=True,
    ):
        text += letters * (number // value)
        number %= value
    return text
