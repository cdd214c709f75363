"""English sentences that state a number or a date -> the question for it.

Asked with the subject turned round where that is plain, else to complete the sentence.
"""

import re
from collections.abc import Iterator

from finetune.synth.pair import LONGEST_QUESTION, Pair, Section

LONGEST = LONGEST_QUESTION["latin"] - 60
FEWEST = 8
"""Words of a sentence that is worth completing."""

_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_SUBJECT = r"(?P<subject>(?:The |An? )?[A-Z][\w'’-]*(?: (?!(?:is|are|was|were|can|must|may|will|should|has|have|had|that|which|who)\b)[\w'’-]+){0,7})"
_NUMERALS = "two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|thirty"
_IS = re.compile(rf"^{_SUBJECT} (?P<verb>is|are|was|were) (?P<rest>.+)$")
_HAS = re.compile(
    rf"^{_SUBJECT} (?P<verb>has|have|contains?|includes?|provides?|offers?|requires?|supports?|employs?) "
    rf"(?:about |over |more than |approximately )?(?P<blank>\d[\d,]*|{_NUMERALS}) "
    r"(?P<noun>(?!(?:to|of|or|and)\b)[A-Za-z][\w-]*(?: (?!(?:that|which|to|for|in|on|of|and|with|from|as)\b)[\w-]+){0,3})\b"
)
_MUCH = re.compile(
    r"^(?:about |around |approximately |roughly |only )?"
    r"(?P<blank>[$€£]?\d[\d,]*(?:\.\d+)?\s?(?:%|percent|[a-zA-Z/²³°]{0,8})?)(?=[.;]?$)"
)
_WHEN = re.compile(
    rf"\b(?:(?P<year>(?:in|since) (?:1[5-9]|20)\d\d)|on (?P<day>(?:\d{{1,2}} )?(?:{_MONTHS}) \d{{1,2}}?,? ?\d{{4}}))$"
)
_NUMBER = re.compile(
    rf"(?<![\w.$€£-])(?P<blank>[$€£]?\d+(?:,\d{{3}})*(?:\.\d+)?%?|(?<=\s)(?:{_NUMERALS})(?=\s))(?![\w-]|\.\d)"
)
_REFERS = re.compile(
    rf"\b(?:{_MONTHS}|figures?|tables?|chapters?|sections?|pages?|version|step|listing|example|appendix"
    r"|no\.?|number|code|v|\d{1,2},?)\s*$",
    re.IGNORECASE,
)
_PLAIN = re.compile(r"^[A-Z][^()\[\]\"“”:]*\.$")
_POINTS = re.compile(
    r"^(?:This|That|These|Those|It|They|He|She|We|You|However|But|And|So|Then|Also|There)\b"
)


def gaps(section: Section) -> Iterator[Pair]:
    for statement in section.statements:
        if asked := _turned(statement.line) or _gap(statement.line):
            yield from section.pair("cloze", *asked, statement.line, statement.place)


def _turned(line: str) -> tuple[str, str] | None:
    """A question with its subject turned round, and the answer."""
    if found := _HAS.match(line):
        one = found["verb"] == "has" or found["verb"].endswith("s")
        verb = "have" if found["verb"] in ("has", "have") else found["verb"].removesuffix("s")
        do = "does" if one else "do"
        return f"How many {found['noun']} {do} {_lower(found['subject'])} {verb}", found["blank"]
    if not (found := _IS.match(line)):
        return None
    subject, verb, rest = _lower(found["subject"]), found["verb"], found["rest"].rstrip(".;")
    if much := _MUCH.match(rest):
        return f"What {verb} {subject}", much["blank"].strip()
    if (when := _WHEN.search(rest)) and "," not in rest[: when.start()]:
        said = rest[: when.start()].strip()
        if when["day"]:
            return f"On which day {verb} {subject} {said}", when["day"]
        word, _, year = when["year"].partition(" ")
        return f"{word.capitalize()} which year {verb} {subject} {said}", year
    return None


def _gap(line: str) -> tuple[str, str] | None:
    """A question to complete the sentence, and what is missing."""
    found = _NUMBER.search(line)
    if not found or len(line) > LONGEST or not _PLAIN.match(line) or _POINTS.match(line):
        return None
    start, end = found.span("blank")
    if _REFERS.search(line[:start]) or len(re.findall(r"[A-Za-z]{2,}", line)) < FEWEST:
        return None
    kind = "year" if re.fullmatch(r"(?:1[5-9]|20)\d\d", found["blank"]) else "number"
    gap = f"{line[:start]}___{line[end:]}".rstrip(".;")
    return f"Which {kind} completes the sentence: “{gap}”", found["blank"]


def _lower(subject: str) -> str:
    return re.sub(r"^(?:The|An?)\b", lambda word: word[0].lower(), subject)
