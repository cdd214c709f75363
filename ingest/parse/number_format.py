"""Numbers of a spreadsheet, shown by Excel's format codes (`0.856` with `0.0%` is `85.6%`), and formulas."""

import ast
import contextlib
import operator
import re
import tomllib
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from functools import cache, lru_cache
from math import fsum, inf, nextafter
from pathlib import Path

_TABLE = Path(__file__).with_name("number_formats.toml").read_text("utf-8")
BUILTIN = {int(number): code for number, code in tomllib.loads(_TABLE).items()}
"""The codes that files name by number only. Those that a machine's language decides are ISO dates."""

_TOKEN = re.compile(
    r'"(?P<quoted>[^"]*)"?|[\\!](?P<escaped>.)|[_*].|\[(?P<bracket>[^\]]*)\]|(?P<noon>AM/PM|A/P|上午/下午)'
    r"|(?P<general>General|G/通用格式|@)|(?P<date>y+|m+|d+|h+|s+(?:\.0+)?|e(?![+-])|a{3,4})"
    r"|(?P<digits>[#0?.,]+|E[+-]0+)|(?P<percent>%)|(?P<other>.)",
    re.IGNORECASE | re.DOTALL,
)
_CONDITION = re.compile(r"(<=|>=|<>|<|>|=)(-?[\d.]+)")
_SECTION = re.compile(r'(?:"[^"]*"?|[\\!].|\[[^\]]*\]|[^;"\\!\[])+', re.DOTALL)
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
_DAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
_EPOCH = datetime(1899, 12, 30)
_LAST = 2958466  # days to the year 10000

Token = tuple[str, str]  # kind, text
Render = Callable[[float], str]


@lru_cache(10_000)
def show(value: float, code: str = "General", *, date1904: bool = False) -> str:
    """The number as a cell of this format shows it; a date out of Excel's calendar as a number."""
    for low, high, render in _sections(code, date1904):
        if low <= value < high:
            return render(value)
    return general(value)


def general(value: float) -> str:
    """All digits of the number, without an exponent up to 20 digits."""
    if abs(value) < 1e20 and value == int(value):
        return str(int(value))
    text = f"{value:.15g}"
    return format(Decimal(text), "f") if 1e-9 < abs(value) < 1e20 else text.upper()


@cache
def _sections(code: str, date1904: bool) -> list[tuple[float, float, Render]]:
    """The sections of a format: each with the least value that it shows, the bound above, the text."""
    tokens = [_tokens(part) for part in _SECTION.findall(code[:500])[:3]]
    tiny = 5e-324
    limits = [
        [(-inf, inf)], [(0, inf), (-inf, inf)], [(tiny, inf), (-inf, 0), (-inf, inf)]
    ][max(len(tokens), 1) - 1]  # fmt: skip
    found = []
    for at, (limit, section) in enumerate(zip(limits, tokens, strict=False)):
        test = next((m for k, t in section if k == "bracket" and (m := _CONDITION.match(t))), None)
        if test:
            bound = float(test[2])
            above = nextafter(bound, inf)
            limit = {
                "<": (-inf, bound), "<=": (-inf, above), ">": (above, inf), ">=": (bound, inf)
            }.get(test[1], (bound, above))  # fmt: skip
        found.append((*limit, _render(section, at == 1 and not test, date1904)))
    return found


def _tokens(section: str) -> list[Token]:
    tokens: list[Token] = []
    for match in _TOKEN.finditer(section):
        kind = match.lastgroup or "blank"
        text = match[kind] if match.lastgroup else ""
        if kind == "bracket" and re.fullmatch("h+|m+|s+", text, re.IGNORECASE):
            kind = "elapsed"
        elif kind == "bracket" and text.startswith("$"):
            kind, text = "quoted", text[1:].partition("-")[0]
        tokens.append((kind, text.lower() if kind in ("date", "elapsed") else text))
    return tokens


def _render(tokens: list[Token], absolute: bool, date1904: bool) -> Render:
    kinds = {kind for kind, _ in tokens}
    if kinds & {"date", "elapsed"}:
        start = 1462 if date1904 and "elapsed" not in kinds else 0
        return lambda v: _date(tokens, v + start) if 0 <= v < _LAST else general(v)
    if "general" in kinds:
        return lambda v: "".join(general(v) if k == "general" else t for k, t in tokens)
    return general if ("other", "/") in tokens else _number(tokens, absolute)  # no fractions


def _date(tokens: Sequence[Token], value: float) -> str:
    marks = [text for kind, text in tokens if kind in ("date", "elapsed")]
    decimals = max(len(mark.partition(".")[2]) for mark in marks)
    seconds = round(value * 86400, decimals)
    moment = _EPOCH + timedelta(seconds=seconds, days=seconds < 60 * 86400)
    half = any(kind == "noon" for kind, _ in tokens)
    out, at = [], 0
    for kind, text in tokens:
        if kind == "elapsed":
            out.append(str(int(seconds // {"h": 3600, "m": 60, "s": 1}[text[0]])).zfill(len(text)))
        elif kind == "noon":
            out.append((("上午", "下午") if "上" in text else text.split("/"))[moment.hour >= 12])
        elif kind == "date":
            hours = at > 0 and marks[at - 1][0] == "h"
            minutes = hours or (at + 1 < len(marks) and marks[at + 1][0] == "s")
            out.append(_part(text, moment, minutes=minutes, half=half, decimals=decimals))
        elif kind != "bracket":
            out.append(text)
        at += kind in ("date", "elapsed")
    return "".join(out).strip()


def _part(text: str, moment: datetime, *, minutes: bool, half: bool, decimals: int) -> str:
    letter, width = text[0], len(text.partition(".")[0])
    if letter in "ye":
        return f"{moment.year % 100:02}" if letter == "y" and width < 3 else str(moment.year)
    if letter == "a":
        return ("星期" if width > 3 else "") + "一二三四五六日"[moment.weekday()]
    if letter == "d" and width > 2:
        return _DAYS[moment.weekday()]
    if letter == "m" and not minutes and width > 2:
        return _MONTHS[moment.month - 1]
    hour = (moment.hour + 11) % 12 + 1 if half else moment.hour
    month = moment.minute if minutes else moment.month
    number = {"m": month, "d": moment.day, "h": hour, "s": moment.second}[letter]
    fraction = f"{moment.microsecond / 1e6:.{decimals}f}"[1:] if "." in text else ""
    return str(number).zfill(width) + fraction


def _number(tokens: list[Token], absolute: bool) -> Render:
    """The first place of the format takes all digits, unless there are more places as in 000-0000."""
    places = [text for kind, text in tokens if kind == "digits"]
    pattern = "".join(places)
    whole, _, decimals = pattern.partition("E")[0].partition(".")
    percent = sum(kind == "percent" for kind, _ in tokens)
    scale = len(pattern) - len(pattern.rstrip(","))
    factor = Decimal(100) ** percent / Decimal(1000) ** scale
    after, least = len(re.findall("[#0?]", decimals)), decimals.rfind("0") + 1
    unit, comma, zeros = Decimal(1).scaleb(-after), "," in whole.rstrip(","), whole.count("0")

    spread = "." not in pattern and "E" not in pattern

    def digits(number: Decimal) -> str:
        if "E" in pattern:
            mantissa, _, power = f"{number:.{after}E}".partition("E")
            return f"{mantissa}E{power[0]}{power[1:].zfill(pattern.rpartition('E')[2].count('0'))}"
        left, _, right = f"{number.quantize(unit, ROUND_HALF_UP):f}".partition(".")
        right = right[:least] + right[least:].rstrip("0")
        left = ("" if left == "0" else left).zfill(zeros)
        left = f"{int(left):,}".zfill(zeros) if comma and left else left
        return f"{left}.{right}" if right else left

    def render(value: float) -> str:
        if abs(value) >= 1e20:
            return general(value)
        left = digits(abs(Decimal(repr(float(value)))) * factor) if places else ""
        sign = "-" if value < 0 and not absolute and left.strip("0.,") else ""
        out, rest = "", len(places)
        for kind, text in reversed(tokens):
            if kind == "digits":
                rest -= 1
                size = len(re.findall("[#0?]", text)) * spread if rest else len(left)
                taken, left = left[max(0, len(left) - size) :], left[: max(0, len(left) - size)]
                out = taken + out
            elif kind != "bracket":
                out = ("%" if kind == "percent" else text) + out
        return sign + out.strip()

    return render


_OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv
}  # fmt: skip
_REFERENCE = re.compile(r"(?<![\w!.])\$?([A-Z]{1,3})\$?(\d{1,7})(?::\$?([A-Z]{1,3})\$?(\d{1,7}))?(?![\w!(])")
_FUNCTION = re.compile(r"\b(SUM|AVERAGE)\(([A-Z\d:$, ]+)\)")
_MOST_CELLS = 10_000  # of a range in a formula


@cache
def column(letters: str) -> int:
    """A is 0, AA is 26."""
    number = 0
    for letter in letters[:4]:
        number = number * 26 + ord(letter) - 64
    return number - 1


class Formulas:
    """Computes sums, averages and arithmetic from the cells of the sheet that come before."""

    def __init__(self) -> None:
        self.computed = 0
        self._values: dict[tuple[int, int], float | None] = {}  # None for a text

    def value(self, place: tuple[int, int], kind: str, value: str, formula: str) -> str:
        """The stored value of a cell, or the one of its formula, or an empty one."""
        if formula and not value and kind == "n":
            try:
                text = _REFERENCE.sub(self._number, _FUNCTION.sub(self._total, formula[:500]))
                value = repr(_result(ast.parse(text.strip(), mode="eval").body))
                self.computed += 1
            except (ArithmeticError, LookupError, ValueError, SyntaxError, RecursionError, MemoryError):
                value = ""
        if value or formula or kind != "n":
            self._values[place] = None
            with contextlib.suppress(ValueError):
                self._values[place] = float(value or "nan") if kind == "n" else None
        return value

    def _total(self, match: re.Match[str]) -> str:
        numbers: list[float] = []
        for found in _REFERENCE.finditer(match[2]):
            rows = range(int(found[2]), int(found[4] or found[2]) + 1)
            columns = range(column(found[1]), column(found[3] or found[1]) + 1)
            if len(rows) * len(columns) > _MOST_CELLS:
                raise ValueError
            cells = (self._values.get((row, at)) for row in rows for at in columns)
            numbers += (cell for cell in cells if cell is not None)
        return f"({fsum(numbers) / (1 if match[1] == 'SUM' else len(numbers))!r})"

    def _number(self, match: re.Match[str]) -> str:
        return "range" if match[3] else f"({self._values.get((int(match[2]), column(match[1])), 0.0)!r})"


def _result(node: ast.expr) -> float:
    match node:
        case ast.Constant(int() | float() as number):
            return float(number)
        case ast.UnaryOp(ast.USub(), below):
            return -_result(below)
        case ast.BinOp(left, sign, right):
            return _OPERATORS[type(sign)](_result(left), _result(right))
    raise ValueError
