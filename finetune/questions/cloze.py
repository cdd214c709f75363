"""Chinese sentences that state a number, a date or a name -> the question for it.

The question stands where the answer would: `试用期不得超过多长时间？`
"""

import re
from collections.abc import Iterator

from finetune.synth.pair import LONGEST_QUESTION, Pair, Section, Statement
from ingest.sentences import Span

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
_RULES = re.compile(
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
    if _RULES.search(section.subject):
        return f"根据{section.named}，{question}"
    return f"{section.named}中，{question}"
