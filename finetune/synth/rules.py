"""Questions that a passage answers, built by rules from its sentences, articles, lists and tables."""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import pairwise

from finetune.synth.pair import (
    LONGEST_REPLY,
    PATTERNS,
    QuestionAnswer,
    QuestionKind,
    TitledPassage,
    is_self_contained,
)
from ingest.chunk import Span, sentences
from ingest.normalize import one_line
from rag.question import script_of

Pairs = Iterator[QuestionAnswer]

_FENCED = re.compile(r"(?ms)^[ \t>]*(`{3,}|~{3,}).*?(?:^[ \t>]*\1|\Z)")
_ARTICLE = r"第[零〇一二三四五六七八九十百千\d]+条(?:之[一二三四五六七八九十]+)?"
_ARTICLE_LABEL = re.compile(rf"{_ARTICLE}[ \u3000]+")
_WHOLE = re.compile(r"[。！？；!?.][”’」』）)\"'`]*$")
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
        if _WHOLE.search(raw) and not PATTERNS.markup.search(raw):
            yield one_line(raw), (start, start + len(raw))


def _with_title(question: str, passage: TitledPassage) -> str:
    """With the title if the question is vague: other documents may say the same of other things."""
    question, title = _named_law(question, passage), passage.quoted_title
    vague = len(question) < _VAGUE or question.partition("，")[0].endswith("的")
    if not vague or not title or passage.title.strip("《》") in question:
        return question
    return (f"根据{title}，" if PATTERNS.rule_words.search(passage.title) else f"{title}中，") + question


def _named_law(text: str, passage: TitledPassage) -> str:
    """`本法` by its name."""
    return re.sub(r"本(?:法|条例|办法|规定|细则|规则)", passage.quoted_title or r"\g<0>", text)


# A figure and the words that ask for it; the unit (group `unit`) follows them.
_FIGURES = (
    (PATTERNS.figure_date, "哪一天"),
    (PATTERNS.figure_share, "百分之多少"),
    (PATTERNS.figure_duration, "多长时间"),
    (PATTERNS.figure_amount, "多少"),
)


def clozes(passage: TitledPassage) -> Pairs:
    """Who does something, and figures."""
    for line, span in statements(passage) if passage.script == "han" else ():
        by = PATTERNS.by.match(line)
        if by and not any(PATTERNS.by_nobody.search(by[part]) for part in ("what", "who")):
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


def definitions(passage: TitledPassage) -> Pairs:
    define = _chinese_definitions if passage.script == "han" else _english_definitions
    for line, span in statements(passage):
        for question, answer in define(line, passage.quoted_title):
            yield from passage.pair("definition", question, answer, line, span)


def _chinese_definitions(line: str, title: str) -> Iterator[tuple[str, str]]:
    """Questions and answers."""
    if match := PATTERNS.purpose.match(line):
        if title:
            yield f"制定{title}的目的是什么", match["what"]
        return
    if match := PATTERNS.means.match(line):
        term = match["term"].strip("“”‘’ ")
        scoped = match["scope"] and title
        if not PATTERNS.no_term.search(term):
            question = f"{title}所称的“{term}”是指什么" if scoped else f"{term}是指什么"
            yield question, match["what"].strip().rstrip("。；;")
    elif match := PATTERNS.copula.match(line):
        term = match["term"].strip()
        space = " " if term[-1].isascii() else ""
        if not PATTERNS.no_term.search(term) and not PATTERNS.no_what.search(match["what"]):
            yield f"{term}{space}是什么", match["what"].strip().rstrip("。；;")
    for match in PATTERNS.short.finditer(line) if title else ():
        yield f"{title}所说的“{match['term']}”指的是什么", match["what"]


def _english_definitions(line: str, title: str) -> Iterator[tuple[str, str]]:
    match = PATTERNS.english_copula.match(line)
    if not match or PATTERNS.english_no_term.search(match["term"]):
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
_NAMED = re.compile(r"(?:下列|以下|如下)(?:的)?(?:[两二三四五六七八九十\d]+[个种类项条点部])?")
_RULES = re.compile(r"(?:应当|可以|不得|必须|方可|禁止|视为|适用|责令|免[予征除]|[，由]处)[^，]*")


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
    if found := PATTERNS.counted.search(lead):
        return f"{lead[: found.end('verb')]}哪{lead[found.end('verb') :]}"
    if lead.endswith(("包括", "包含", "分为")):
        return f"{lead}哪些"
    return f"{lead}哪些情形" if lead.endswith("不适用于") else ""


def _inline(line: str) -> Iterator[tuple[str, str]]:
    """Questions and the items within a sentence that answer them."""
    if found := PATTERNS.principles.match(line):
        head = found["head"].replace("，", "", 1) if len(found["head"]) < 16 else found["head"]
        yield f"{head}哪些{found['noun']}", found["items"]
    elif (found := PATTERNS.inline.match(line)) and found["items"].count("、") < 14:
        verb = found["verb"]
        if (verb == "由") == (found["tail"] in ("组成", "构成")):
            yield f"{found['head']}{verb}哪些" + "部分组成" * (verb == "由"), found["items"]


_LONGEST_HEADER, _LONGEST_KEY, _LONGEST_CELL = 24, 60, 160
_ROW = re.compile(r"(?m)^\|.*\|[ \t]*$")
_RULER = re.compile(r"^\|[\s|:-]+\|\s*$")
_NUMERIC = re.compile(r"[\s\d.,:%+/\\-]*")
_HEADER = re.compile(r"[^\W\d_]{2}")
_NO_CELL = re.compile(r"https?://|```|\*\*|[:：]$|\\n|Traceback|\[\d|<[a-z/]+>|\.{3}$|…$")
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
            0 < len(cell) <= _LONGEST_KEY and not _NUMERIC.fullmatch(cell) and not _NO_CELL.search(cell)
            for cell in cells
        )
        if _is_header(header[column]) and names_rows:
            return column
    return None


def _is_header(name: str) -> bool:
    short = name == name.strip(" :：") and len(name) <= _LONGEST_HEADER
    return short and bool(_HEADER.search(name)) and not re.search(r"[\d`|]", name)


def _is_fact(name: str, cell: str) -> bool:
    plain = not PATTERNS.no_fact.search(name) and not _NO_CELL.search(cell)
    return plain and 0 < len(cell) <= _LONGEST_CELL and not re.fullmatch(r"[\W_]*", cell)


def _cell(passage: TitledPassage, key: tuple[str, str], value: tuple[str, str], span: Span) -> Pairs:
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
