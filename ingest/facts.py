"""What a document says about itself: its number, date, issuing body and author.

They stand in its first lines, with a label (`项目编号：…`, `Docket No. …`), or by their form (a line that is
a date, the number of a decree, the code of a company after its name).
"""

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

FactKind = Literal["number", "date", "body", "author"]
OPENING = 3000
"""Characters from the start of a document that are searched for facts."""
_LONGEST = 120  # characters of a line with a fact
_DATE = r"(?:\d{4}|[〇○零一二三四五六七八九]{4})\s*[年/.-]\s*[\d一二三四五六七八九十]{1,3}\s*[月/.-]\s*[\d一二三四五六七八九十]{1,3}\s*日?"
_MONTH = r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_NAMES: dict[FactKind, str] = {
    "number": r"\S{0,6}(?:编号|编码|文号|发文字号|标准号|证券代码|股票代码)|(?:docket|document|reference|report) n(?:o\.?|umber)",
    "date": r"\S{0,4}日期|(?:发布|公布|印发|成文|公告|编制)时间|date(?: of \w+)?|(?:issued|published)(?: on)?",
    "body": r"(?:招标|采购|发布|发文|制定|编制|主办|起草|印发)\S{0,2}(?:人|方|单位|机构|机关|部门)|来源|agency|issued by|publisher",
    "author": r"作者\S{0,2}|撰稿人?|撰写人?|编写人?|authors?|written by",
}
_FORMS: dict[FactKind, str] = {
    "number": r".{0,40}[〔\[（(]\s*\d{4}\s*[〕\]）)]\s*第?\s*\d+\s*号|.{2,30}[令告]\s*第?\s*\d+\s*号|(?:GB|DB|ISO|IEC|[A-Z]{2,3}/T)\S*\s*\d[\d.]*\s*[-—–]\s*\d{4}"
    r"|\[?docket n.{4,}|.{2,30}[（(]\d{4,6}[）)].{0,40}",
    "date": rf"{_DATE}(?:\s+\d\d?:\d\d)?(?:\s*来源.*)?|{_MONTH} \d\d?, \d{{4}}",
    "body": rf"{_DATE}\s+\d\d?:\d\d\s*来源.*",
    "author": r"by [A-Z]\w+(?: [A-Z][\w.]+){1,3}",
}
_FACT: dict[FactKind, re.Pattern[str]] = {
    kind: re.compile(rf"(?:{name})\s*[:：]\s*\S.*|{_FORMS[kind]}", re.IGNORECASE)
    for kind, name in _NAMES.items()
}
_ASKED: dict[FactKind, re.Pattern[str]] = {
    "number": re.compile(
        r"(?:编号|文号|代码|标准号|番号|コード)[^，。]{0,4}(?:什么|多少|几|何|哪|[?？]|$)|第几号|几号令"
        r"|\b(?:docket|document|reference|report) (?:number|no\b)"
    ),
    "date": re.compile(
        r"(?:哪.?[天日年月]|何时|什么时[候间]|几[月号]|日期).*(?:公布|发布|印发|颁布|签发|编制)"
        r"|(?:公布|发布|印发|颁布|签发|成文|编制|出版|文件|落款).{0,6}(?:日期|哪.?[天日年月]|何时|什么时[候间]|几)|\b(?:issued|published|dated)\b"
    ),
    "body": re.compile(
        r"(?:谁|哪个|哪家|什么(?:单位|机构|部门|机关)).{0,4}(?:发布|公布|印发|制定|颁布|招标|编制)"
        r"|(?:招标人|采购人|(?:发布|发文|制定|印发|编制|采购|招标)(?:单位|机构|机关|部门|方))(?:是|为|叫|[?？])|\bwh(?:o|ich agency) (?:issued|published)\b"
    ),
    "author": re.compile(r"作者|谁写|谁撰|\bauthors?\b|\bwho wrote\b"),
}


class Fact(NamedTuple):
    """The line [start, end) of a document that says what a document of this kind says of itself."""

    kind: FactKind
    start: int
    end: int


def facts(text: str) -> Iterator[Fact]:
    """The facts in the beginning of a document."""
    for line in re.finditer(r"[^\n]+", text[:OPENING]):
        bare = line[0].strip()
        if len(bare) <= _LONGEST and not bare.startswith("|"):
            start = line.start() + line[0].index(bare)
            yield from (Fact(kind, start, start + len(bare)) for kind in _FACT if _FACT[kind].fullmatch(bare))


def fact_kinds(question: str) -> frozenset[FactKind]:
    """The kinds of facts that a normalized question asks for."""
    return frozenset(kind for kind, pattern in _ASKED.items() if pattern.search(question))
