"""Headings of Chinese prose that has no markup: numbered parts, chapters and sections.

Articles (第十条) are not headings here: they are paragraphs that begin with their number.
"""

import re

_NUMBER = "[0-9０-９零〇一二三四五六七八九十百千两]+"
_PART = re.compile(rf"第\s*{_NUMBER}\s*([编編篇部卷章节節])(?![的是中里内內])\s*[：:、.．]?\s*(.*)")
_WHOLE = re.compile(
    r"(目录|目錄|前言|序言|附则|附則|附录[一二三四五六七八九十0-9]*|参考文献|致谢|摘要)"
)
_RANK = {"编": 1, "編": 1, "篇": 1, "部": 1, "卷": 1, "章": 2, "节": 3, "節": 3}
_LONGEST = 40  # characters of a heading; longer lines are sentences that mention a chapter
_SENTENCE = re.compile(r"[。！？；，,;!?]|\.{3}|…")


def heading(line: str) -> tuple[str, int] | None:
    """`("第二章 合同的订立", 2)` when the line is a heading by its numbering, else None.

    Ranks: 编 1, 章 2, 节 3. Whitespace inside is reduced to single spaces.
    """
    text = " ".join(line.split())
    if not 2 <= len(text) <= _LONGEST or _SENTENCE.search(text):
        return None
    if match := _PART.fullmatch(text):
        return (text, _RANK[match[1]]) if len(match[2]) <= 30 else None
    return (text, 2) if _WHOLE.fullmatch(text.replace(" ", "")) else None
