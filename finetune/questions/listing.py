"""Lists with a line that leads to them -> which items there are."""

import re
from collections.abc import Iterator

from finetune.synth.pair import Pair, Section, ended
from rag.layout import one_line

ITEMS = range(2, 16)

_ITEM = r"(?:[-*•●◆■]|\d+[.、)）]|[（(][一二三四五六七八九十\d]+[）)]|[一二三四五六七八九十]+、)[ \t\u3000]*(?=[^\s|])"
_BLOCK = re.compile(
    rf"(?m)^(?P<lead>[^\n|]{{4,160}}[：:])[ \t]*\n+(?P<items>(?:[ \t]*{_ITEM}[^\n]+(?:\n+|\Z)){{2,}})"
)
_BULLET = re.compile(r"(?m)^[ \t]*(?:[-*•●◆■]|\d+[.、)）])[ \t]*")
_NUMBERED = re.compile(rf"(?m)^[ \t]*{_ITEM}")
_LABEL = re.compile(
    r"^[ \u3000]*(?:第[零〇一二三四五六七八九十百千\d]+条(?:之[一二三四五六七八九十]+)?[ \u3000]*|[#>]+\s*)"
)
_COUNTED = re.compile(
    r"(?P<verb>有|分为|包括|提供|分成|包含)(?P<count>[两二三四五六七八九十\d]+)(?P<unit>[个种类项条点部步])"
)
_NAMED = re.compile(r"(?:下列|以下|如下)(?:的)?(?:[两二三四五六七八九十\d]+[个种类项条点部])?")
_RULES = re.compile(r"(?:应当|可以|不得|必须|方可|禁止|视为|适用|责令|免[予征除]|[，由]处)[^，]*")
_INLINE = re.compile(
    r"(?P<head>(?!按照|根据|依据|可以|应当|主要|其中)[^。；：]{2,50}?)(?P<verb>(?<!所)包括|(?<!所)包含|分为|由)(?P<items>[^、，。；：（）]{1,20}(?:、[^、，。；：（）]{1,24})+(?:[和及以与]及?[^，。；：]{1,24})?(?:，[^，。；]{1,12})?)(?P<tail>组成|构成|等)?[。；]"
)
_PRINCIPLES = re.compile(
    r"(?P<head>.{2,60}?(?:遵循|坚持|遵守))(?P<items>[^、，。；：]{2,12}(?:、[^、，。；：]{2,12})+(?:[和与及][^，。；：]{2,12})?)的(?P<noun>原则|方针)"
)
_LATIN_LEAD = re.compile(
    r"^(?P<subject>(?:The |An? )?[A-Z][\w' -]{1,60}?) (?P<aux>must|may|can|should|will|shall) "
    r"(?P<verb>\w+(?: \w+){0,6}?) (?:the )?following (?P<noun>\w+(?: \w+)?):$"
)
_LATIN_HAS = re.compile(
    r"^(?P<subject>(?:The |An? )?[A-Z][\w' -]{1,60}?) (?P<verb>includes?|contains?|comprises?)(?: the following(?: \w+)?)?:$"
)
_LATIN_ARE = re.compile(
    r"^(?:There are|The) (?P<noun>(?:\w+ ){0,3}\w+(?: (?:of|for|in) [\w ]{2,40})?)(?: are)?(?: as follows)?:$"
)


def lists(section: Section) -> Iterator[Pair]:
    for match in _BLOCK.finditer(section.text):
        yield from _block(section, match)
    if section.script == "han":
        yield from _within_sentences(section)


def _block(section: Section, match: re.Match[str]) -> Iterator[Pair]:
    start = match.start() + (label.end() if (label := _LABEL.match(match["lead"])) else 0)
    lead = one_line(section.text[start : match.end("lead")])
    items = match["items"].rstrip()
    last = items.rpartition("\n")[2]
    bulleted = bool(_BULLET.search(items))
    # A passage may end within a list: the last item of a numbered one says whether it is whole.
    goes_on = last.rstrip()[-1:] in "；;，,、" or not section.text[match.end() :].strip()
    if (goes_on and last.rstrip()[-1:] not in "。.") or not _alone(section, match):
        return
    question = (_asked if section.script == "han" else _asked_latin)(lead, section)
    if not question or len(_NUMBERED.findall(items)) not in ITEMS:
        return
    joined = _joined(items, section) if bulleted else items
    reply = ended(one_line(f"{lead}\n{joined}"))
    place = (start, match.start("items") + len(items))
    yield from section.pair("list", question, items.strip(), reply, place)


def _alone(section: Section, match: re.Match[str]) -> bool:
    return not any(a < match.end() and match.start() < b for a, b in section.code)


def _joined(items: str, section: Section) -> str:
    """Bullets as a sentence: `Nightly、Beta、Stable`."""
    parts = [one_line(part).rstrip("；;，,。.") for part in _BULLET.split(items) if part.strip()]
    long = any(len(part) > 24 or re.search(r"[，,：:]", part) for part in parts)
    if section.script == "han":
        return ("；" if long else "、").join(parts)
    return ("; " if long else ", ").join(parts)


def _asked(lead: str, section: Section) -> str:
    """The lead of a list as a question, or "" where it can't be turned into one."""
    lead = lead.rstrip("：: ").rpartition("。")[2]
    lead = _own(lead, section)
    lead = re.sub(r"(所称的?[^，]+)，是指.*?(?=包括)", r"\1", lead)
    if re.search(r"用语的?含义|^(?:下列|以下|如下)是", lead):
        return ""
    if found := _NAMED.search(lead):
        before, after = lead[: found.start()], lead[found.end() :]
        if re.match(r"(?:情形|行为|条件)之一的?[，,]?", after):
            noun, rest = after[:2], re.sub(r"^之一的?[，,]?", "，", after[2:]).rstrip("，")
            return f"{before}哪些{noun}时{_ruling(rest)}" if rest else ""
        if after:
            return f"{before}哪些{re.sub(r'^各?项', '', after)}"
        return f"{before.rstrip('，,')}有哪些" if found[0].startswith("如下") else ""
    if found := _COUNTED.search(lead):
        return f"{lead[: found.end('verb')]}哪{lead[found.end('verb') :]}"
    if lead.endswith(("包括", "包含", "分为")):
        return f"{lead}哪些"
    return f"{lead}哪些情形" if lead.endswith("不适用于") else ""


def _ruling(rest: str) -> str:
    """`rest` up to the first clause that says what holds then."""
    rest = rest.partition("；")[0]
    ends = (found.end() for found in _RULES.finditer(rest))
    return rest[: next(ends, len(rest))]


def _own(lead: str, section: Section) -> str:
    """`本法` by its name."""
    return re.sub(r"本(?:法|条例|办法|规定|细则|规则)", section.named or r"\g<0>", lead)


def _asked_latin(lead: str, section: Section) -> str:
    if found := _LATIN_LEAD.match(lead):
        subject = re.sub(r"^(?:The|An?)\b", lambda word: word[0].lower(), found["subject"])
        return f"Which {found['noun']} {found['aux']} {subject} {found['verb']}"
    if found := _LATIN_HAS.match(lead):
        subject = re.sub(r"^(?:The|An?)\b", lambda word: word[0].lower(), found["subject"])
        one = found["verb"].endswith("s")
        return f"What {'does' if one else 'do'} {subject} {found['verb'].removesuffix('s')}"
    found = _LATIN_ARE.match(lead)
    return f"What are the {found['noun']}" if found else ""


def _within_sentences(section: Section) -> Iterator[Pair]:
    for said in section.statements:
        line = _own(said.line, section)
        if found := _PRINCIPLES.search(line):
            head = found["head"].replace("，", "", 1) if len(found["head"]) < 16 else found["head"]
            question = f"{head}哪些{found['noun']}"
            if found.start() == 0:
                yield from section.pair("list", question, found["items"], said.line, said.place)
        elif (found := _INLINE.match(line)) and found["items"].count("、") + 2 in ITEMS:
            verb, tail = found["verb"], found["tail"] or ""
            if (verb == "由") != (tail in ("组成", "构成")):
                continue
            question = f"{found['head']}{verb}哪些" + ("部分组成" if verb == "由" else "")
            yield from section.pair("list", question, found["items"], said.line, said.place)
