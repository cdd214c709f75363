"""Questions that a passage answers, built by rules from its sentences, articles, lists and tables."""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import pairwise

from finetune.synth.pair import (
    LONGEST_REPLY,
    QuestionAnswer,
    QuestionKind,
    TitledPassage,
    is_self_contained,
)
from ingest.chunk import Span, sentences
from rag.question import script_of
from rag.render import one_line

Pairs = Iterator[QuestionAnswer]

_FENCED = re.compile(r"(?ms)^[ \t>]*(`{3,}|~{3,}).*?(?:^[ \t>]*\1|\Z)")
_ARTICLE = r"第[零〇一二三四五六七八九十百千\d]+条(?:之[一二三四五六七八九十]+)?"
_ARTICLE_LABEL = re.compile(rf"{_ARTICLE}[ \u3000]+")
_WHOLE = re.compile(r"[。！？；!?.][”’」』）)\"'`]*$")
_MARKUP = re.compile(  # of Markdown and HTML, of lists and tables, of a page's foot
    r"\]\(|\]\[|\*\*|</|<[a-z]+>|https?://|\{/|(?<!\w)_\w|\\_|&[a-z]+;|\.\.\.|…|— \d+ —"
    r"|^\s*(?:[>#|*•●◆■·-]|\d+[.、)）]\s?|[（(][一二三四五六七八九十\d]+[）)]|[一二三四五六七八九十]+、)"
)
_RULE_WORDS = re.compile(
    r"(?:法|条例|办法|规定|细则|规则|章程|制度|通知|合同|协议|标准|规范|公约|手册|指南)$"
)
_VAGUE = 24
"""A shorter question hardly names its topic; it gets the title of the document."""


def statements(passage: TitledPassage) -> Iterator[tuple[str, Span]]:
    """The whole sentences of prose that are not too long for a reply: each on one line, without its
    article's number, and its place in the passage."""
    code = [match.span() for match in _FENCED.finditer(passage.text)]
    for start, end in sentences(passage.text):
        piece = passage.text[start:end]
        start += len(piece) - len(piece.lstrip())
        raw = piece.strip()
        if len(raw) > LONGEST_REPLY[passage.script or "latin"]:
            continue
        if any(a < start + len(raw) and start < b for a, b in code):
            continue
        if (label := _ARTICLE_LABEL.match(raw)) and label.end() < len(raw):
            start, raw = start + label.end(), raw[label.end() :]
        if _WHOLE.search(raw) and not _MARKUP.search(raw):
            yield one_line(raw), (start, start + len(raw))


def _with_title(question: str, passage: TitledPassage) -> str:
    """With the title if the question is vague: other documents may say the same of other things."""
    question, title = _named_law(question, passage), passage.quoted_title
    vague = len(question) < _VAGUE or question.partition("，")[0].endswith("的")
    if not vague or not title or passage.title.strip("《》") in question:
        return question
    return (f"根据{title}，" if _RULE_WORDS.search(passage.title) else f"{title}中，") + question


def _named_law(text: str, passage: TitledPassage) -> str:
    """`本法` by its name."""
    return re.sub(r"本(?:法|条例|办法|规定|细则|规则)", passage.quoted_title or r"\g<0>", text)


_N = r"[零〇一二两三四五六七八九十百千万亿半]+"
_NUMBER = rf"(?:\d[\d,]*(?:\.\d+)?\s?[百千万亿]*|{_N})"
_LASTING = (
    r"个(?:工作日|小时|星期|月)|(?:工作)?日(?![本常期益])|天|小时|分钟|秒|周(?![岁年期围])"
    r"|年(?![度满龄级代终初底末纪])"
)
_MEASURE = r"公里|千米|毫米|厘米|米(?!兰)|公斤|千克|毫升|升(?![级职])|吨|亩|平方米"
# A figure and the words that ask for it; the unit (group `unit`) follows them.
_FIGURES = tuple(
    (
        re.compile(
            r"(?:^|(?<=[；。]))(?P<head>[^；。]{6,70}?(?:提前|不(?:得)?(?:超过|少于|低于|高于)|应当在|之日起"
            rf"|为|约|有效期|最多|至少|发给|于))(?P<figure>{figure})(?![、至到~—-])"
            r"(?P<tail>[^，。；：、]{0,30}(?<![的时后前内起下者中上]))(?=[。；])"
        ),
        words,
    )
    for figure, words in (
        (rf"(?:\d{{4}}|[一二]{_N})\s?年\s?{_NUMBER}\s?月\s?{_NUMBER}\s?日", "哪一天"),
        (rf"(?:百分之(?:{_N}|\d+)|\d+(?:\.\d+)?\s?[%％])", "百分之多少"),
        (rf"{_NUMBER}\s?(?:{_LASTING})", "多长时间"),
        (rf"{_NUMBER}\s?(?P<unit>周?岁|(?:美|日|港|欧)?元(?![素件])|{_MEASURE})", "多少"),
    )
)
_BY = re.compile(
    r"^(?P<what>[^，。；：]{2,30}?)(?:(?<=办法)，)?由(?P<who>[^，。；：]{2,40}?)"
    r"(?P<does>(?:统一|共同|负责|分别|组织|依法|另行)*(?:制定|规定|制作|发放|批准|审批|审核|公布|签发|承担|主持"
    r"|行使|编制|监制|组织|管理|负责|认定|处罚|决定|任命|选举|享有|实施)[^，。；：]{0,12})[。；]"
)
_BY_NOBODY = re.compile(
    r"^(?:具体|有关|相关)|应当|可以|按照|依照|根据|通过|是|以|规定$|[和与及的]$"
)


def clozes(passage: TitledPassage) -> Pairs:
    """Who does something, and figures."""
    for line, span in statements(passage) if passage.script == "han" else ():
        by = _BY.match(line)
        if by and not any(_BY_NOBODY.search(by[part]) for part in ("what", "who")):
            question = _with_title(f"{by['what']}由谁{by['does']}", passage)
            yield from passage.pair("cloze", question, by["who"], line, span)
        found: dict[int, tuple[str, str]] = {}
        for pattern, words in _FIGURES:
            for match in pattern.finditer(line):
                unit = match.groupdict().get("unit") or ""
                question = f"{match['head'].strip()}{words}{unit}{match['tail']}"
                found.setdefault(match.start("figure"), (question, match["figure"].strip()))
        for question, figure in found.values():
            yield from passage.pair("cloze", _with_title(question, passage), figure, line, span)


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


_ENGLISH_IS = re.compile(
    r"(?P<term>(?:The |An? )?[A-Z`][\w`+#./-]*(?: [\w`+#./()'-]+){0,5}?) (?P<verb>is|are|refers to|means|stands for) "
    r"(?P<what>(?:an?|the|any|one of) .{8,}|.{12,})"
)
_ENGLISH_NO_TERM = re.compile(
    r"^(?:It|This|That|These|Those|There|Here|He|She|They|We|You|I|What|Which|Who|Where|When|Why|How|If|As"
    r"|Since|Because|While|Although|Some|One|Another|Each|Every|All|Most|Many|Both|Only|But|And|So|Or|Also|Now"
    r"|Then|Thus|In|On|At|For|To|From|With|By|After|Before|Note|Our|Your|My|Their|His|Its|Her|Such|Other|Once)\b"
    r"|\b(?:that|which|who|is|are|was|were|has|have|can|must|will|would|should|may|and|or|of the following|goal|reason|purpose|problem|idea|result|way|difference|key|best|first|last|next)\b"
)


def definitions(passage: TitledPassage) -> Pairs:
    define = _chinese_definitions if passage.script == "han" else _english_definitions
    for line, span in statements(passage):
        for question, answer in define(line, passage.quoted_title):
            yield from passage.pair("definition", question, answer, line, span)


def _chinese_definitions(line: str, title: str) -> Iterator[tuple[str, str]]:
    """Questions and answers."""
    if match := _PURPOSE.match(line):
        if title:
            yield f"制定{title}的目的是什么", match["what"]
        return
    if match := _MEANS.match(line):
        term = match["term"].strip("“”‘’ ")
        scoped = match["scope"] and title
        if not _NO_TERM.search(term):
            question = f"{title}所称的“{term}”是指什么" if scoped else f"{term}是指什么"
            yield question, match["what"].strip().rstrip("。；;")
    elif match := _IS.match(line):
        term = match["term"].strip()
        space = " " if term[-1].isascii() else ""
        if not _NO_TERM.search(term) and not _NO_WHAT.search(match["what"]):
            yield f"{term}{space}是什么", match["what"].strip().rstrip("。；;")
    for match in _SHORT.finditer(line) if title else ():
        yield f"{title}所说的“{match['term']}”指的是什么", match["what"]


def _english_definitions(line: str, title: str) -> Iterator[tuple[str, str]]:
    match = _ENGLISH_IS.match(line)
    if not match or _ENGLISH_NO_TERM.search(match["term"]):
        return
    verb, what = match["verb"], match["what"].rstrip(".;")
    term = re.sub(r"^(The|An?)\b", lambda article: article[0].lower(), match["term"])
    if verb not in ("is", "are"):
        yield f"What does {term} {'stand for' if 'stand' in verb else 'mean'}", what
    elif re.match(r"(?:an?|the|any|one of) \w", what):
        yield f"What {verb} {term}", what


_LONGEST_ARTICLE = 200
_ARTICLE_LINE = re.compile(rf"(?m)^[ \u3000]*(?P<number>{_ARTICLE})[ \u3000]*(?=\S)")


def articles(passage: TitledPassage) -> Pairs:
    """`第十条` of a law, if the passage holds the whole of it."""
    if passage.script != "han" or not passage.title:
        return
    headings = [offset - passage.start for offset, _ in passage.places]
    for match, after in pairwise(_ARTICLE_LINE.finditer(passage.text)):
        stops = [stop for stop in headings if match.start() < stop < after.start()]
        answer = passage.text[match.end() : min([after.start(), *stops])].rstrip()
        span = (match.start("number"), match.end() + len(answer))
        question = f"{passage.quoted_title}{match['number']}是怎么规定的"
        whole = answer.endswith("。") and len(answer) <= _LONGEST_ARTICLE
        if whole and is_self_contained(question):
            reply = one_line(passage.text[slice(*span)])
            yield from passage.pair("article", question, answer, reply, span)


_ITEM = r"(?:[-*•●◆■]|\d+[.、)）]|[（(][一二三四五六七八九十\d]+[）)]|[一二三四五六七八九十]+、)[ \t\u3000]*(?=[^\s|])"
_BLOCK = re.compile(
    rf"(?m)^(?P<lead>[^\n|]{{4,160}}[：:])[ \t]*\n+(?P<items>(?:[ \t]*{_ITEM}[^\n]+(?:\n+|\Z)){{2,}})"
)
_BULLET = re.compile(r"(?m)^[ \t]*(?:[-*•●◆■]|\d+[.、)）])[ \t]*")
_ITEM_START = re.compile(rf"(?m)^[ \t]*{_ITEM}")
_LEAD_LABEL = re.compile(rf"^[ \u3000]*(?:{_ARTICLE}[ \u3000]*|[#>]+\s*)")
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


def lists(passage: TitledPassage) -> Pairs:
    if passage.script != "han":
        return
    code = [match.span() for match in _FENCED.finditer(passage.text)]
    for match in _BLOCK.finditer(passage.text):
        if not any(a < match.end() and match.start() < b for a, b in code):
            yield from _block(passage, match)
    for line, span in statements(passage):
        for question, items in _inline(_named_law(line, passage)):
            yield from passage.pair("list", question, items, line, span)


def _block(passage: TitledPassage, match: re.Match[str]) -> Pairs:
    """Items on lines of their own."""
    start = match.start() + (label.end() if (label := _LEAD_LABEL.match(match["lead"])) else 0)
    lead = one_line(passage.text[start : match.end("lead")])
    items = match["items"].rstrip()
    # A passage may end within a list: the last item of a numbered one says whether it is whole.
    goes_on = items[-1] in "；;，,、" or not passage.text[match.end() :].strip()
    question = _list_question(_named_law(lead.rstrip("：: ").rpartition("。")[2], passage))
    if (goes_on and items[-1] not in "。.") or not 2 <= len(_ITEM_START.findall(items)) < 16:
        return
    reply = one_line(f"{lead}\n{_joined(items)}").rstrip("；;，,、：: ")
    span = (start, match.start("items") + len(items))
    yield from passage.pair("list", question, items.strip(), _full_stop(reply), span)


def _joined(items: str) -> str:
    """Bullets as a sentence: `Nightly、Beta、Stable`; numbered items as they are."""
    if not _BULLET.search(items):
        return items
    parts = [one_line(part).rstrip("；;，,。.") for part in _BULLET.split(items) if part.strip()]
    long = any(len(part) > 24 or re.search(r"[，,：:]", part) for part in parts)
    return ("；" if long else "、").join(parts)


def _list_question(lead: str) -> str:
    """The lead of a list as a question, or "" if it can't be turned into one."""
    lead = re.sub(r"(所称的?[^，]+)，是指.*?(?=包括)", r"\1", lead)
    if re.search(r"用语的?含义|^(?:下列|以下|如下)是", lead):
        return ""
    if found := _NAMED.search(lead):
        before, after = lead[: found.start()], lead[found.end() :]
        if re.match(r"(?:情形|行为|条件)之一的?[，,]?", after):
            noun, rest = after[:2], re.sub(r"^之一的?[，,]?", "，", after[2:]).rstrip("，")
            rest = rest.partition("；")[0]
            ruling = _RULES.search(rest)  # what applies then, up to its first clause
            return f"{before}哪些{noun}时{rest[: ruling.end()] if ruling else rest}" if rest else ""
        if after:
            return f"{before}哪些{re.sub(r'^各?项', '', after)}"
        return f"{before.rstrip('，,')}有哪些" if found[0].startswith("如下") else ""
    if found := _COUNTED.search(lead):
        return f"{lead[: found.end('verb')]}哪{lead[found.end('verb') :]}"
    if lead.endswith(("包括", "包含", "分为")):
        return f"{lead}哪些"
    return f"{lead}哪些情形" if lead.endswith("不适用于") else ""


def _inline(line: str) -> Iterator[tuple[str, str]]:
    """Questions and the items within a sentence that answer them."""
    if found := _PRINCIPLES.match(line):
        head = found["head"].replace("，", "", 1) if len(found["head"]) < 16 else found["head"]
        yield f"{head}哪些{found['noun']}", found["items"]
    elif (found := _INLINE.match(line)) and found["items"].count("、") < 14:
        verb = found["verb"]
        if (verb == "由") == (found["tail"] in ("组成", "构成")):
            yield f"{found['head']}{verb}哪些" + "部分组成" * (verb == "由"), found["items"]


_LONGEST_HEADER, _LONGEST_KEY, _LONGEST_CELL = 24, 60, 160
_ROW = re.compile(r"(?m)^\|.*\|[ \t]*$")
_RULER = re.compile(r"^\|[\s|:-]+\|\s*$")
_NUMERIC = re.compile(r"[\s\d.,:%+/\\-]*")
_HEADER = re.compile(r"[^\W\d_]{2}")
_NO_CELL = re.compile(r"https?://|```|\*\*|[:：]$|\\n|Traceback|\[\d|<[a-z/]+>|\.{3}$|…$")
_NO_FACT = re.compile(
    r"^(?:id|no|index|urls?|links?|files?|paths?|序号|链接|网址)$|^是否", re.IGNORECASE
)
_PERSON = re.compile(r"(?:者|负责人|联系人|姓名|经理|主任|导演)$")
_TITLED = re.compile(r"(?:题目|标题|书名|篇名|片名)$")
_COUNTS = re.compile(r"^[+-]?[\d.,]+\s*(?:%|[\u4e00-\u9fff]{1,3}|[A-Za-z]{1,4})?$")


Cells = tuple[str, ...]


def tables(passage: TitledPassage) -> Pairs:
    for header, rows in _tables(passage):
        if (key := _key_column(header, [cells for cells, _ in rows])) is None:
            continue
        for cells, span in rows:
            for column, (name, cell) in enumerate(zip(header, cells, strict=True)):
                if column != key and _is_header(name) and _is_fact(name, cell):
                    yield from _cell(passage, (header[key], cells[key]), (name, cell), span)


def _tables(passage: TitledPassage) -> Iterator[tuple[Cells, list[tuple[Cells, Span]]]]:
    """Headers and the rows under each, a table that began before the passage first."""
    lines = list(_ROW.finditer(passage.text))
    header = _split(passage.header) if passage.header else ()
    rows: list[tuple[Cells, Span]] = []
    for at, line in enumerate(lines):
        if _RULER.match(line[0]):
            continue
        cells = _split(line[0])
        if at + 1 < len(lines) and _RULER.match(lines[at + 1][0]):
            yield header, rows
            header, rows = cells, []
        elif len(cells) == len(header):
            rows.append((cells, line.span()))
    yield header, rows


def _split(line: str) -> Cells:
    return tuple(cell.strip() for cell in line.strip().strip("|").split("|"))


def _key_column(header: Cells, rows: Sequence[Cells]) -> int | None:
    """The first column that names what its row is about: words, none of them twice."""
    for column, cells in enumerate(zip(*rows, strict=True)):
        names_rows = len(set(cells)) == len(cells) and all(
            0 < len(cell) <= _LONGEST_KEY
            and not _NUMERIC.fullmatch(cell)
            and not _NO_CELL.search(cell)
            for cell in cells
        )
        if _is_header(header[column]) and names_rows:
            return column
    return None


def _is_header(name: str) -> bool:
    short = name == name.strip(" :：") and len(name) <= _LONGEST_HEADER
    return short and bool(_HEADER.search(name)) and not re.search(r"[\d`|]", name)


def _is_fact(name: str, cell: str) -> bool:
    plain = not _NO_FACT.search(name) and not _NO_CELL.search(cell)
    return plain and 0 < len(cell) <= _LONGEST_CELL and not re.fullmatch(r"[\W_]*", cell)


def _cell(
    passage: TitledPassage, key: tuple[str, str], value: tuple[str, str], span: Span
) -> Pairs:
    """A question about a cell; `key` and `value` are each a header and a cell of the row."""
    (kind, of), (name, cell) = key, value
    if script_of(f"{of} {cell}") == "han":
        question = _cell_question(passage, kind, of, name, cell)
        reply = f"{kind}：{of}；{name}：{cell}"
    elif of[-1] in "?!:":
        return
    else:
        asks = f"According to {passage.quoted_title}, what" if passage.title else "What"
        question = f"{asks} is the {name.lower() if name.istitle() else name} of {of}"
        reply = f"{kind}: {of}; {name}: {cell}"
    yield from passage.pair("table", question, cell, _full_stop(reply), span)


def _cell_question(passage: TitledPassage, kind: str, of: str, name: str, cell: str) -> str:
    title = f"{passage.quoted_title}中，" if passage.title else ""
    asks = "是多少" if _COUNTS.match(cell) else "是谁" if _PERSON.search(name) else "是什么"
    if _TITLED.search(kind):
        return f"{title}《{of}》的{name}{asks}"
    # A Chinese word says by itself what it is; `as` and `!=` do not.
    if re.fullmatch(r"[\u4e00-\u9fff·]{2,12}", of):
        return f"{title}{of}的{name}{asks}"
    if len(of) <= 12 and of.isascii():
        return f"{title}{kind} {of} 的{name}{asks}"
    return f"{title}{kind}为“{of}”时，{name}{asks}"


def _full_stop(reply: str) -> str:
    """The reply with a full stop instead of the mark of a list."""
    bare = reply.strip().rstrip("；;，,、：: ")
    if bare and bare[-1] in "。！？!?.…":
        return bare
    return f"{bare}。" if script_of(bare) == "han" else f"{bare}."


RULES: dict[QuestionKind, Callable[[TitledPassage], Pairs]] = {
    "definition": definitions, "article": articles, "list": lists, "table": tables, "cloze": clozes,
}  # fmt: skip


def pairs_by_rule(
    passage: TitledPassage, kinds: Collection[QuestionKind] = tuple(RULES)
) -> list[QuestionAnswer]:
    """The pairs of a passage in the order of its text, each question once.

    An article is asked for by its number only if nothing else is asked about it.
    """
    found: dict[str, QuestionAnswer] = {}
    for kind in RULES if passage.script else ():
        for pair in RULES[kind](passage) if kind in kinds else ():
            found.setdefault(pair.question, pair)
    pairs = [pair for pair in found.values() if pair.kind != "article"]
    for article in (pair for pair in found.values() if pair.kind == "article"):
        if not any(article.start < pair.end and pair.start < article.end for pair in pairs):
            pairs.append(article)
    return sorted(pairs, key=lambda pair: (pair.start, pair.end, pair.question))
