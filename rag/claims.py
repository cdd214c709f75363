"""What of a sentence must be right to the letter: its numbers, its negation, its bounds.

All read normalized text (`ingest.normalize.normalize`).
"""

import re

_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "○": 0}
_UNITS = {"十": 10, "百": 100, "千": 1000}
_MYRIADS = {"万": 10**4, "亿": 10**8}
_TO_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)
_TENS = {
    "thirty": 30,
    "forty": 40,
    "fifty": 50,
    "sixty": 60,
    "seventy": 70,
    "eighty": 80,
    "ninety": 90,
}
_ENGLISH = {word: value for value, word in enumerate(_TO_TWENTY.split())} | _TENS

_HAN = "零〇○一二两三四五六七八九十百千万亿"
_NUMBER = re.compile(
    rf"(?P<arabic>\d+(?:,\d{{3}})*(?:\.\d+)?)\s*(?P<scale>[百千万亿]+)?"
    rf"|百分之(?P<percent>[{_HAN}]+)|(?P<han>[{_HAN}]+)(?:点(?P<rest>[{_HAN}]+))?"
    r"|\b(?P<english>[a-z]+(?:-[a-z]+)?)\b"
)
_NO_NUMBER = re.compile(
    rf"(?<![\d{_HAN}])(?:一(?:般|些|样|定|致|起|直|旦|边|切|律|方面|共|并|同|次性|经|贯|系列|种"
    r"|个(?!月|[小工]|星|学|自然|年))|(?<=[同另任某每这那哪唯统])一|万一|十分(?!之|钟)|千万(?!元|人|[吨名个])|百姓|万物)"
    rf"(?![\d{_HAN}])"
)
"""Words with a numeral in them that count nothing."""

_BOUND = re.compile(
    r"(?P<le>(?:不|未)(?:得|能|可|应|会|准|许|允许)?(?:超过|多于|高于|大于|晚于|长于)|最[多长高大晚迟]|至多|上限|以内|以下"
    r"|\b(?:no (?:more|later|longer|higher|greater) than|not (?:to )?exceed|at most|up to|within|maximum)\b)"
    r"|(?P<ge>(?:不|未)(?:得|能|可|应|会)?(?:少于|低于|小于|早于|短于)|不足|至少|最[少低短小早]|下限|以上"
    r"|\b(?:no (?:less|fewer|earlier) than|at least|minimum)\b)"
    r"|(?P<gt>超过|多于|高于|大于|\b(?:more|longer|higher|greater|later) than|exceeds?\b)"
    r"|(?P<lt>少于|低于|小于|\b(?:less|fewer|lower|earlier) than\b|\bbelow\b)"
)
_OPPOSITE = {("le", "gt"), ("gt", "le"), ("ge", "lt"), ("lt", "ge"), ("le", "ge"), ("ge", "le")}

_NEGATION = re.compile(
    r"不(?!仅|但|过|同|断|久|管|论|错|光|只|妨|惜|料|禁|动产|锈|良|可抗力)|(?<!沉|淹|埋|出|吞)没(?!收|落)|未(?!来|婚|成年)"
    r"|无(?=权|须|需|法(?!律)|效|罪|责|关|意|力|可|从|人)|毫无|(?<=[并绝决而])非|勿|莫(?!斯|名)|禁止|严禁|免于"
    r"|\b(?:not?|never|none|neither|nor|without|cannot)\b|n't\b|n’t\b"
)


def numbers(text: str) -> frozenset[str]:
    """The values that a normalized text names: `六个月`, `6 months` and `six` all give 6."""
    found = set()
    for match in _NUMBER.finditer(_NO_NUMBER.sub("·", text)):
        if match["arabic"]:
            value = float(match["arabic"].replace(",", ""))
            for unit in match["scale"] or "":
                value *= _UNITS.get(unit, _MYRIADS.get(unit, 1))
            found.add(_shown(value))
        elif match["english"]:
            parts = [_ENGLISH.get(part) for part in match["english"].split("-")]
            if None not in parts and match["english"] != "one":  # "no one", "one of them"
                found.add(_shown(sum(part or 0 for part in parts)))
        elif match["percent"]:
            found.add(_shown(_chinese(match["percent"])))
        else:
            rest = "".join(str(_DIGITS.get(c, "")) for c in match["rest"] or "")
            found.add(_shown(float(f"{_chinese(match['han'])}.{rest or 0}")))
    return frozenset(found)


def plain(text: str) -> str:
    """A normalized text with a space for each number and bound, which are compared as such."""
    return _NUMBER.sub(lambda found: found[0] if found["english"] else " ", _BOUND.sub(" ", text))


def negated(text: str) -> bool:
    """Whether a normalized clause denies something; bounds (`不得超过`) and double negation do not."""
    return len(_NEGATION.findall(_BOUND.sub("·", text))) % 2 == 1


def bounds(text: str) -> frozenset[str]:
    """Which ways a normalized clause bounds a quantity: le, ge, gt, lt."""
    return frozenset(kind for match in _BOUND.finditer(text) if (kind := match.lastgroup))


def contradict(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether two sets of `bounds` point in opposite directions and share none."""
    return not one & other and any((a, b) in _OPPOSITE for a in one for b in other)


def _chinese(numeral: str) -> int:
    """`一千八百六十七` -> 1867, `二〇二三` -> 2023, `三万五` -> 30005 (written speech is left out)."""
    if not set(numeral) & (_UNITS.keys() | _MYRIADS.keys()):
        return int("".join(str(_DIGITS[c]) for c in numeral))
    total = section = digit = 0
    for c in numeral:
        if c in _DIGITS:
            digit = _DIGITS[c]
            continue
        if c in _UNITS:
            section += (digit or 1) * _UNITS[c]
        elif c == "万":
            total += (section + digit or 1) * 10**4
        else:
            total = (total + section + digit or 1) * 10**8
        section, digit = (section, 0) if c in _UNITS else (0, 0)
    return total + section + digit


def _shown(value: float) -> str:
    return f"{value:.10g}"
