"""Headings and numbered articles -> what stands below them."""

import re
from collections.abc import Iterator
from itertools import pairwise

from finetune.synth.pair import Pair, Section, stands_alone
from ingest.headings import heading
from ingest.sentences import paragraphs, sentences
from rag.layout import one_line

LONGEST = {"han": 200, "latin": 500}
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
        or heading(title)
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
            if "\n" in between or whole > LONGEST[section.script or "han"] or leads:
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
        if not lines or not answer.endswith("。") or len(answer) > LONGEST["han"]:
            continue
        question = f"{section.named}{match['number']}是怎么规定的"
        if stands_alone(question):
            reply = one_line(section.text[slice(*place)])
            yield from section.pair("article", question, answer, reply, place)
