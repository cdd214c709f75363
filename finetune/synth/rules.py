"""Questions that a passage answers, made from its headings, definitions, lists, tables and figures."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from finetune.synth.pair import (
    LONGEST_QUESTION,
    Kind,
    Maker,
    Pair,
    Section,
    Statement,
    ended,
    stands_alone,
)
from ingest.chunk import Span, paragraphs, sentences
from ingest.parse.blocks import chinese_heading
from rag.render import one_line
from rag.score_norm import script_of

_N = r"[零〇一二两三四五六七八九十百千万亿半]+"
_ANY = rf"(?:\d[\d,]*(?:\.\d+)?\s?[百千万亿]*|{_N})"
_LASTING = (
    r"个(?:工作日|小时|星期|月)|(?:工作)?日(?![本常期益])|天|小时|分钟|秒|周(?![岁年期围])"
    r"|年(?![度满龄级代终初底末纪])"
)
_MEASURE = r"公里|千米|毫米|厘米|米(?!兰)|公斤|千克|毫升|升(?![级职])|吨|亩|平方米"
# What stands in the sentence and what asks for it, the unit (group 1) added; the first that fits a
# place is taken.
_ASKED: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(r"(?<![第每\d.零〇一二两三四五六七八九十百千万亿])" + pattern), asks)
    for pattern, asks in (
        (rf"(?:\d{{4}}|[一二]{_N})\s?年\s?{_ANY}\s?月\s?{_ANY}\s?日", "哪一天"),
        (rf"{_ANY}\s?月\s?{_ANY}\s?日", "哪一天"),
        (r"(?:1[5-9]|20)\d\d\s?年(?!\s?\d|[版以])", "哪一年"),
        (rf"百分之(?:{_N}|\d+)", "百分之多少"),
        (r"\d+(?:\.\d+)?\s?[%％]", "百分之多少"),
        (rf"{_ANY}\s?(周?岁)", "多少"),
        (rf"{_ANY}\s?(?:{_LASTING})", "多长时间"),
        (rf"{_ANY}\s?((?:美|日|港|欧)?元)(?![素件])", "多少"),
        (rf"{_ANY}\s?({_MEASURE})", "多少"),
        (rf"{_ANY}(倍)(?!增)", "几"),
        (rf"(?<!前){_ANY}\s?(名)(?![称义])", "多少"),
        (r"(?<![同这那某任另哪该唯之])(?:[两二三四五六七八九十]|\d+)([种类项])", "几"),
    )
)
_IN_A_RUN = re.compile(r"[、至到~—-]\s?$"), re.compile(r"^\s?[、至到~—-]")
"""Before and after a number that is one of several."""
_BY = re.compile(
    r"^(?P<what>[^，。；：]{2,30}?)(?:(?<=办法)，)?由(?P<who>[^，。；：]{2,40}?)"
    r"(?P<does>(?:统一|共同|负责|分别|组织|依法|另行)*(?:制定|规定|制作|发放|批准|审批|审核|公布|签发|承担|主持"
    r"|行使|编制|监制|组织|管理|负责|认定|处罚|决定|任命|选举|享有|实施)[^，。；：]{0,12})[。；]"
)
_BY_NOBODY = re.compile(
    r"^(?:具体|有关|相关)|应当|可以|按照|依照|根据|通过|是|以|规定$|[和与及的]$"
)
_VERSE = re.compile(r"^(?:.{5}，.{5}|.{7}，.{7})[。？！；]$")
_CALLED = re.compile(r"(?<=[^\w`])《[^》]{2,30}》(?=[，。；])")
_CODE = re.compile(
    r"`[^`\s][^`]{0,30}`\s?(命令|方法|函数|关键字|类型|宏|参数|文件|目录|模块|选项|工具)"
)
_SAYS = re.compile(  # a clause that states something, so that a question may end with it
    r"应当|不得|可以|必须|处(?!理)|发给|支付|给予|不(?:超|少|低|高)|责令|计[算入]|设(?!立|施)|需|达|占|为(?!了|支持)"
    r"|是(?!否)|(?<![持具拥享所负含没])有(?![关限权效期])|包括|分为|通过|生效|施行|称为|属于|等于|增长|下降|发布|成立|使用|停止"
)
_NO_START = re.compile(r"^(?:对|违反|经(?!营)|自(?=应当)|为了|逾期|凡|在(?!中国)|按照|依照|根据)")
_OPEN_END = re.compile(r"[的时后前内起下者中上]$|[（(][^）)]*$|^(?:如果|若|当|由于|因为)")
_NOT_ALONE = re.compile(r"[百千万亿\d.]$|约定$")
_RULE_WORDS = re.compile(
    r"(?:法|条例|办法|规定|细则|规则|章程|制度|通知|合同|协议|标准|规范|公约|手册|指南)$"
)
_VAGUE = 24
"""Characters of a question that hardly says what it is about."""


def clozes(section: Section) -> Iterator[Pair]:
    for statement in section.statements:
        yield from _of(section, statement)


def _of(section: Section, said: Statement) -> Iterator[Pair]:
    line = said.line
    if _VERSE.match(line):
        return
    by = _BY.match(line)
    if by and not any(_BY_NOBODY.search(by[part]) for part in ("what", "who")):
        question = _named(f"{by['what']}由谁{by['does']}", section)
        yield from section.pair("cloze", question, by["who"], line, said.place)
    for (start, end), asks in _blanks(line):
        if question := _in_place(line, start, end, asks):
            answer = line[start:end].strip()
            yield from section.pair("cloze", _named(question, section), answer, line, said.place)


def _blanks(line: str) -> Iterator[tuple[Span, str]]:
    """Places that can be asked for, and the words that ask."""
    taken: list[Span] = []
    before, after = _IN_A_RUN
    for pattern, asks in _ASKED:
        for found in pattern.finditer(line):
            if any(a < found.end() and found.start() < b for a, b in taken):
                continue
            taken.append(found.span())
            head, tail = line[: found.start()], line[found.end() :]
            if not (_NOT_ALONE.search(head) or before.search(head) or after.search(tail)):
                yield found.span(), asks + "".join(filter(None, found.groups()))
    for found in _CALLED.finditer(line):
        if not before.search(line[: found.start()]):
            yield found.span(), "什么"
    for found in _CODE.finditer(line):
        yield found.span(), f"哪个{found[1]}"


def _in_place(line: str, start: int, end: int, asks: str) -> str:
    """The sentence as a question, cut where its statement ends; "" where it states nothing."""
    first = max(line.rfind(stop, 0, start) for stop in "；。！？") + 1
    stop = min((at for mark in "；。！？" if (at := line.find(mark, end)) >= 0), default=len(line))
    head, tail = line[first:start].strip(), line[end:stop]
    own = head.rfind("，") + 1
    for cut in [*(found.start() for found in re.finditer("[，：]", tail)), len(tail)]:
        question = f"{head}{asks}{tail[:cut]}"
        if not _whole(head, tail[:cut]):
            continue
        last = question[max(own, question.rfind("，") + 1) :]
        if cut == len(tail) or (_SAYS.search(last) and not _NO_START.search(last)):
            return question if len(question) <= LONGEST_QUESTION["han"] else ""
    return ""


def _whole(head: str, tail: str) -> bool:
    """Whether what stands around a blank is a statement that says enough to ask about."""
    said = re.sub(r"[\W\d_]", "", head + tail)
    return bool(head) and len(said) >= 8 and not _OPEN_END.search(tail.rstrip() or head)


def _named(question: str, section: Section) -> str:
    """With what it is about, where it says little by itself: others may say the same of others."""
    question = re.sub(r"本(?:法|条例|办法|规定|细则|规则)", section.named or r"\g<0>", question)
    vague = len(question) < _VAGUE or question.partition("，")[0].endswith("的")
    if not vague or not section.named or section.subject.strip("《》") in question:
        return question
    if _RULE_WORDS.search(section.subject):
        return f"根据{section.named}，{question}"
    return f"{section.named}中，{question}"


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


_LONGEST_LINE = LONGEST_QUESTION["latin"] - 60
FEWEST = 8
"""Words of a sentence that is worth completing."""

_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_SUBJECT = r"(?P<subject>(?:The |An? )?[A-Z][\w'’-]*(?: (?!(?:is|are|was|were|can|must|may|will|should|has|have|had|that|which|who)\b)[\w'’-]+){0,7})"
_NUMERALS = "two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|thirty"
_BE = re.compile(rf"^{_SUBJECT} (?P<verb>is|are|was|were) (?P<rest>.+)$")
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
_A_NUMBER = re.compile(
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
    if not (found := _BE.match(line)):
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
    found = _A_NUMBER.search(line)
    if not found or len(line) > _LONGEST_LINE or not _PLAIN.match(line) or _POINTS.match(line):
        return None
    start, end = found.span("blank")
    if _REFERS.search(line[:start]) or len(re.findall(r"[A-Za-z]{2,}", line)) < FEWEST:
        return None
    kind = "year" if re.fullmatch(r"(?:1[5-9]|20)\d\d", found["blank"]) else "number"
    gap = f"{line[:start]}___{line[end:]}".rstrip(".;")
    return f"Which {kind} completes the sentence: “{gap}”", found["blank"]


def _lower(subject: str) -> str:
    return re.sub(r"^(?:The|An?)\b", lambda word: word[0].lower(), subject)


_LONGEST_ANSWER = {"han": 200, "latin": 500}
"""Characters of the sentences below a heading that answer for it."""

_ARTICLE = re.compile(
    r"(?m)^[ \u3000]*(?P<number>第[零〇一二三四五六七八九十百千\d]+条(?:之[一二三四五六七八九十]+)?)[ \u3000]*(?=\S)"
)
_ASKS = re.compile(
    r"[？?]$|什么|如何|怎样|怎么|为什么|为何|哪|^(?:what|why|how|when|where|which|who)\b", re.I
)
_DOES = re.compile(
    r"^(?:使用|创建|新建|访问|安装|更新|配置|运行|构建|编译|发布|修复|定义|处理|响应|调用|编写|打开|设置|启动|升级|卸载|管理|申请|办理|查询|添加|删除|修改|选择|检查|测试|部署|获取|通过)(?!.*(?:条款|说明|手册|指南|场景|案例|原则|规范|教程|流程|示例)$)(?!者|率|性|法|人|费|权|量)\S"
)
_GENERIC = re.compile(
    r"^(?:总\s*则|附\s*则|前\s*言|序\s*言?|目\s*录|摘\s*要|介绍|简介|概述|说明|总结|小结|结论|注意|参考文献|致谢|版权|附录|正文|引言"
    r"|introduction|abstract|summary|overview|conclusions?|references|contents|appendix|acknowledge?ments?|notes?|imprint|preface)\W*$"
    r"|^\W*\d[\d.]*\W*$",
    re.IGNORECASE,
)
_NUMBERED = re.compile(
    r"^(?:\d+(?:\.\d+)*[.、)]?|[一二三四五六七八九十]+、|[（(][一二三四五六七八九十\d]+[）)])\s*"
)
_ANCHOR = re.compile(r"\s*\{[#/][^}]*\}\s*$")
_LEADS_ON = re.compile(
    r"^(?:因此|所以|但|然而|不过|而|此外|另外|同时|接下来|现在|首先|其次|最后|第一步|本书|让我们|我们|如[图表]|如下|例如|比如|回到|还记得|到目前为止|这|那|它|其|该|上述)"
    r"|[：:]$|如下|下面|以下|如图|所示|本[章节附]|我们将"
    r"|^(?:However|Therefore|Thus|But|So|This|That|These|Those|It|They|He|She|We|Next|Now|Finally|Then|Also|Moreover|Here|For example|Let)\b"
    r"|\b(?:as follows|the following|shown (?:above|below)|see (?:figure|table))\b",
    re.IGNORECASE,
)


def headings(section: Section) -> Iterator[Pair]:
    starts = [start - section.start for start, _ in section.places] + [len(section.text)]
    for (offset, path), end in zip(section.places, starts[1:], strict=True):
        title = _ANCHOR.sub("", path.rpartition(" › ")[2]).replace("`", "").strip()
        start = offset - section.start
        # Where the passage only goes on under a heading, its beginning answers nothing.
        if start >= 0 and one_line(section.text[start:end]).replace("`", "").startswith(title):
            yield from _below(section, title, start, end)


def _below(section: Section, title: str, start: int, end: int) -> Iterator[Pair]:
    """What the first paragraph of whole sentences below a heading says."""
    title = _NUMBERED.sub("", title)
    if (
        not re.match(r"[\w“\"《]{2}", title)
        or _GENERIC.match(title)
        or chinese_heading(title)
        or not section.script
    ):
        return
    span = _opening(section, start, end)
    if not span or not (question := _question(section, title)):
        return
    answer = section.text[slice(*span)]
    if "\n" in answer and section.script == "latin" and len(answer) < 60 * answer.count("\n"):
        return  # verse
    yield from section.pair("heading", question, answer, one_line(answer), span)


def _question(section: Section, title: str) -> str:
    if _ASKS.search(title):
        return title
    if section.script == "latin":
        if not section.named and " " not in title:
            return ""
        about = f"What does {section.named} say about" if section.named else "What is said about"
        return f"{about} “{title}”" if section.subject != title else ""
    if _DOES.match(title):
        return f"怎样{title}"
    if section.subject == title:
        return ""
    return f"关于“{title}”，{section.named or '资料'}中是怎么说的"


def _opening(section: Section, start: int, end: int) -> tuple[int, int] | None:
    statements = [s for s in section.statements if start < s.start < end]
    for first, _ in paragraphs(section.text[start:end])[:4]:
        inside = [s for s in statements if s.start >= start + first]
        if not inside or section.text[start + first : inside[0].start].strip():
            continue
        last = inside[0]
        if _LEADS_ON.search(last.line) or len(last.line) < 12:
            return None
        for after in inside[1:3]:
            between = section.text[last.start + len(last.raw) : after.start]
            whole = after.start + len(after.raw) - inside[0].start
            leads = re.search(r"[：:]$|如下|下面|以下|所示|让我们|本[章节]|示例 ?\d", after.line)
            if "\n" in between or whole > _LONGEST_ANSWER[section.script or "han"] or leads:
                break
            last = after
        return inside[0].start, last.start + len(last.raw)
    return None


def articles(section: Section) -> Iterator[Pair]:
    """`第十条` of a law, where the passage holds the whole of it."""
    if section.script != "han" or not section.named:
        return
    found = list(_ARTICLE.finditer(section.text))
    headed = [offset - section.start for offset, _ in section.places]
    for match, after in pairwise(found):
        stops = [stop for stop in headed if match.start() < stop < after.start()]
        end = min([after.start(), *stops])
        answer = section.text[match.end() : end].rstrip()
        lines = sentences(answer)
        place = (match.start("number"), match.end() + len(answer))
        if not lines or not answer.endswith("。") or len(answer) > _LONGEST_ANSWER["han"]:
            continue
        question = f"{section.named}{match['number']}是怎么规定的"
        if stands_alone(question):
            reply = one_line(section.text[slice(*place)])
            yield from section.pair("article", question, answer, reply, place)


ITEMS = range(2, 16)

_ITEM = r"(?:[-*•●◆■]|\d+[.、)）]|[（(][一二三四五六七八九十\d]+[）)]|[一二三四五六七八九十]+、)[ \t\u3000]*(?=[^\s|])"
_BLOCK = re.compile(
    rf"(?m)^(?P<lead>[^\n|]{{4,160}}[：:])[ \t]*\n+(?P<items>(?:[ \t]*{_ITEM}[^\n]+(?:\n+|\Z)){{2,}})"
)
_BULLET = re.compile(r"(?m)^[ \t]*(?:[-*•●◆■]|\d+[.、)）])[ \t]*")
_NUMBERED_ITEM = re.compile(rf"(?m)^[ \t]*{_ITEM}")
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
    question = (_list_question if section.script == "han" else _list_question_latin)(lead, section)
    if not question or len(_NUMBERED_ITEM.findall(items)) not in ITEMS:
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


def _list_question(lead: str, section: Section) -> str:
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


def _list_question_latin(lead: str, section: Section) -> str:
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


LONGEST_HEADER = 24
LONGEST_KEY = 60
LONGEST_CELL = 160

_ROW = re.compile(r"(?m)^\|.*\|[ \t]*$")
_RULE = re.compile(r"^\|[\s|:-]+\|\s*$")
_NUMBER = re.compile(r"[\s\d.,:%+/\\-]*")
_HEADER = re.compile(r"[^\W\d_]{2}")
_NO_CELL = re.compile(r"https?://|```|\*\*|[:：]$|\\n|Traceback|\[\d|<[a-z/]+>|\.{3}$|…$")
_NO_FACT = re.compile(
    r"^(?:id|no|index|urls?|links?|files?|paths?|序号|链接|网址)$|^是否", re.IGNORECASE
)
_PERSON = re.compile(r"(?:者|负责人|联系人|姓名|经理|主任|导演)$")
_TITLED = re.compile(r"(?:题目|标题|书名|篇名|片名)$")
_COUNTS = re.compile(r"^[+-]?[\d.,]+\s*(?:%|[\u4e00-\u9fff]{1,3}|[A-Za-z]{1,4})?$")


@dataclass(frozen=True, slots=True)
class Row:
    cells: tuple[str, ...]
    place: Span


def tables(section: Section) -> Iterator[Pair]:
    for header, rows in _tables(section):
        key = _key(header, rows)
        if key is not None:
            for row in rows:
                yield from _cells_of(section, header, key, row)


def _tables(section: Section) -> Iterator[tuple[tuple[str, ...], list[Row]]]:
    """Headers and the rows under each, a table that began before the passage first."""
    lines = list(_ROW.finditer(section.text))
    header = _split(section.header) if section.header else ()
    rows: list[Row] = []
    for at, line in enumerate(lines):
        if _RULE.match(line[0]):
            continue
        if at + 1 < len(lines) and _RULE.match(lines[at + 1][0]):
            yield header, rows
            header, rows = _split(line[0]), []
            continue
        cells = _split(line[0])
        if len(cells) == len(header):
            rows.append(Row(cells, line.span()))
    yield header, rows


def _split(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.strip().strip("|").split("|"))


def _key(header: Sequence[str], rows: Sequence[Row]) -> int | None:
    """The first column that names what its row is about: words, none of them twice."""
    for column, name in enumerate(header):
        cells = [row.cells[column] for row in rows]
        if (
            rows
            and _usable_header(name)
            and all(0 < len(cell) <= LONGEST_KEY for cell in cells)
            and len(set(cells)) == len(cells)
            and not any(_NUMBER.fullmatch(cell) or _NO_CELL.search(cell) for cell in cells)
        ):
            return column
    return None


def _usable_header(header: str) -> bool:
    bare = header.strip(" :：")
    return (
        bare == header
        and len(header) <= LONGEST_HEADER
        and bool(_HEADER.search(header))
        and not re.search(r"[\d`|]", header)
    )


def _cells_of(section: Section, header: Sequence[str], key: int, row: Row) -> Iterator[Pair]:
    of = row.cells[key]
    for column, (name, cell) in enumerate(zip(header, row.cells, strict=True)):
        if column == key or not _usable_header(name) or not 0 < len(cell) <= LONGEST_CELL:
            continue
        if _NO_FACT.search(name):
            continue
        if _NO_CELL.search(cell) or re.fullmatch(r"[\W_]*", cell):
            continue
        han = script_of(f"{of} {cell}") == "han"
        question = (_cell_question if han else _cell_question_latin)(
            section, header[key], of, name, cell
        )
        colon, between = ("：", "；") if han else (": ", "; ")
        reply = ended(f"{header[key]}{colon}{of}{between}{name}{colon}{cell}")
        yield from section.pair("table", question, cell, reply, row.place)


def _cell_question(section: Section, kind: str, of: str, name: str, cell: str) -> str:
    where = f"{section.named}中，" if section.named else ""
    asks = "是多少" if _COUNTS.match(cell) else "是谁" if _PERSON.search(name) else "是什么"
    if _TITLED.search(kind):
        return f"{where}《{of}》的{name}{asks}"
    # A word of Chinese says itself what it is; `as` and `!=` do not.
    if re.fullmatch(r"[\u4e00-\u9fff·]{2,12}", of):
        return f"{where}{of}的{name}{asks}"
    if len(of) <= 12 and of.isascii():
        return f"{where}{kind} {of} 的{name}{asks}"
    return f"{where}{kind}为“{of}”时，{name}{asks}"


def _cell_question_latin(section: Section, kind: str, of: str, name: str, cell: str) -> str:
    if re.search(r"[?!:]$", of):
        return ""
    name = name.lower() if name.istitle() else name
    where = f"According to {section.named}, what" if section.named else "What"
    return f"{where} is the {name} of {of}"


MAKERS: dict[Kind, Maker] = {
    "definition": definitions,
    "heading": headings,
    "article": articles,
    "list": lists,
    "table": tables,
    "cloze": clozes,
}


def ask(section: Section, kinds: Collection[Kind] = tuple(MAKERS)) -> list[Pair]:
    """The pairs of a passage in the order of its text; none of them asks the same.

    What an article says is asked only where nothing else is asked about it.
    """
    found: dict[str, Pair] = {}
    if section.script:
        for kind in MAKERS:
            if kind in kinds:
                for pair in _maker(kind, section)(section):
                    found.setdefault(pair.question, pair)
    asked = [pair for pair in found.values() if pair.kind != "article"]
    alone = [
        pair
        for pair in found.values()
        if pair.kind == "article"
        and not any(pair.start < other.end and other.start < pair.end for other in asked)
    ]
    return sorted([*asked, *alone], key=lambda pair: (pair.start, pair.end, pair.question))


def _maker(kind: Kind, section: Section) -> Maker:
    return gaps if kind == "cloze" and section.script == "latin" else MAKERS[kind]


__all__ = ["MAKERS", "Kind", "Pair", "Section", "ask"]
