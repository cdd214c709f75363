"""Sentences that define something -> what it is, what it means, what a law is for."""

import re
from collections.abc import Iterator

from finetune.synth.pair import Pair, Section, Statement

_SCOPE = r"(?:本|这|该)(?:法|条例|办法|规定|细则|规则|章程|制度|合同|协议)所称的?"
_MEANS = re.compile(
    rf"(?P<scope>{_SCOPE})?(?P<term>[^，。；：,;:]{{2,24}})[，,]?(?:是指|系指|指的是)(?P<what>.{{6,}})"
)
_IS = re.compile(
    r"(?P<term>[^，。；：,;:、]{2,24}?)"
    r"(?<![则不就都也只而正还便仍总或可但凡若即既要算能该更才又最谁别乃倒像于他她])"
    r"\s?是(?=\s?(?:一[种个组类门项套份台位名部本条款家座款]|[^否由因为在从对被按以要会能不这那此和与及，、\s]))\s?(?P<what>[^，。；]{5,}.*)"
)
_SHORT = re.compile(
    r"(?:^|[，。；])(?P<what>[^，。；（）应由向对与将可为在]{5,40})（以下(?:简)?称(?:为)?[“‘]?(?P<term>[^（）”’]{2,16})[”’]?）"
)
_PURPOSE = re.compile(
    r"(?P<what>为了?.{6,160}?)，(?:根据[^，]{2,40}，)?(?:特)?制定本[法条例办规定章制]{1,2}"
)
_NO_TERM = re.compile(  # no name of a thing
    r"^(?:[一二三两几每某另第]|[\u3400-\u9fff]{1,2}$|默认|主要|一般|目的|原因|结果|问题|关键|重点|好消息|事实|方法|原则|这|那|它|其|此|该|本|我|你|他|她|如|若|当|在|对|从|为|如果|因为|虽然|但|而|并|也|即|所有|大部分|有时|注意|记住|最|只|不)"
    r"|[的地得着了过们里上下中时后前都]$|[“”‘’\"（(]$|是|有|可以|应当|必须|如何|什么|不|我们"
)
_NO_WHAT = re.compile(
    r"^(?:一样|相同|必须|可以|很|非常|十分|什么|怎|如何|多少|真|假|对的|错|如此|这|那|它|我|你)|的[。；]?$"
)
_LATIN_IS = re.compile(
    r"(?P<term>(?:The |An? )?[A-Z`][\w`+#./-]*(?: [\w`+#./()'-]+){0,5}?) (?P<verb>is|are|refers to|means|stands for) "
    r"(?P<what>(?:an?|the|any|one of) .{8,}|.{12,})"
)
_LATIN_NO_TERM = re.compile(
    r"^(?:It|This|That|These|Those|There|Here|He|She|They|We|You|I|What|Which|Who|Where|When|Why|How|If|As"
    r"|Since|Because|While|Although|Some|One|Another|Each|Every|All|Most|Many|Both|Only|But|And|So|Or|Also|Now"
    r"|Then|Thus|In|On|At|For|To|From|With|By|After|Before|Note|Our|Your|My|Their|His|Its|Her|Such|Other|Once)\b"
    r"|\b(?:that|which|who|is|are|was|were|has|have|can|must|will|would|should|may|and|or|of the following|goal|reason|purpose|problem|idea|result|way|difference|key|best|first|last|next)\b"
)
_LATIN_DEFINES = re.compile(r"(?:an?|the|any|one of) \w")


def definitions(section: Section) -> Iterator[Pair]:
    make = _chinese if section.script == "han" else _english
    for statement in section.statements:
        yield from make(section, statement)


def _chinese(section: Section, said: Statement) -> Iterator[Pair]:
    line = said.line
    if match := _PURPOSE.match(line):
        if section.named:
            question = f"制定{section.named}的目的是什么"
            yield from section.pair("definition", question, match["what"], line, said.place)
        return
    if match := _MEANS.match(line):
        term = match["term"].strip("“”‘’ ")
        if match["scope"] and section.named:
            question = f"{section.named}所称的“{term}”是指什么"
        else:
            question = f"{term}是指什么"
        if not _NO_TERM.search(term):
            yield from _told(section, said, question, match["what"])
    elif match := _IS.match(line):
        term = match["term"].strip()
        space = " " if term[-1].isascii() else ""
        if not _NO_TERM.search(term) and not _NO_WHAT.search(match["what"]):
            yield from _told(section, said, f"{term}{space}是什么", match["what"])
    if section.named:
        for match in _SHORT.finditer(line):
            question = f"{section.named}所说的“{match['term']}”指的是什么"
            yield from section.pair("definition", question, match["what"], line, said.place)


def _told(section: Section, said: Statement, question: str, what: str) -> Iterator[Pair]:
    answer = what.strip().rstrip("。；;")
    yield from section.pair("definition", question, answer, said.line, said.place)


def _english(section: Section, said: Statement) -> Iterator[Pair]:
    match = _LATIN_IS.match(said.line)
    if not match or _LATIN_NO_TERM.search(match["term"]):
        return
    verb, term, what = match["verb"], match["term"], match["what"].rstrip(".;")
    if verb in ("is", "are") and not _LATIN_DEFINES.match(what):
        return
    term = re.sub(r"^(The|An?)\b", lambda found: found[0].lower(), term)
    asked = {"is": f"What is {term}", "are": f"What are {term}"}
    question = asked.get(verb) or f"What does {term} {'stand for' if 'stand' in verb else 'mean'}"
    yield from section.pair("definition", question, what, said.line, said.place)
