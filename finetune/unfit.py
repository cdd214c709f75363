"""Why a row can't be an example: what was found, and what is needed."""

import re
from collections.abc import Mapping
from typing import Any

from finetune.types import Finding, Problem
from ingest.errors import UserError

_KINDS = {
    type(None): ("null", "空值"),
    bool: ("true or false", "布尔值"),
    int: ("a number", "数字"),
    float: ("a number", "数字"),
    str: ("a text", "文本"),
    list: ("a list", "列表"),
    dict: ("an object", "对象"),
}
_BLANK = re.compile(r"[\s\u200b-\u200d\u2060\ufeff]*")
"""What a reader sees nothing of: blanks, and signs without width."""


class Unfit(Exception):
    """A row that can't be an example."""

    def __init__(self, problem: Problem, text: str, zh: str) -> None:
        super().__init__(text)
        self.problem: Problem = problem
        self.text, self.zh = text, zh

    def finding(self, source: str) -> Finding:
        return Finding(source, self.problem, self.text, self.zh, bad=True)


def refused(finding: Finding, skip: str = "") -> UserError:
    """What ends the work at a bad row. `skip` is the option of the command that leaves such rows
    out, where it has one."""
    out, out_zh = "delete it", "将其删去"
    if skip:
        out, out_zh = f"leave bad rows out with {skip}", f"用 {skip} 略过有问题的行"
    return UserError(
        f"{finding.source}: {finding.text}; mend the row, or {out}",
        zh=f"{finding.source}：{finding.zh}；请修正此行，或{out_zh}",
    )


def text_of(row: Mapping[str, Any], name: str) -> str | None:
    """The text of a field; None where it is absent or null; `Unfit` where it is something else."""
    value = row.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise wrong(f'"{name}"', f'"{name}"', value, "a text", "文本")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unfit(
            "encoding",
            f'"{name}" holds half a character (a lone surrogate); write it whole',
            f'"{name}" 含有半个字符（孤立的代理项）；请写完整',
        ) from None
    return value


def said(text: str | None, name: str) -> str:
    """The text itself; `Unfit` where there is none, or nothing but blanks."""
    if text is None:
        raise lacking(name)
    if is_blank(text):
        raise Unfit("empty", f'"{name}" is empty; need a text', f'"{name}" 为空；需要文本')
    return text


def is_blank(text: str) -> bool:
    return _BLANK.fullmatch(text) is not None


def lacking(name: str) -> Unfit:
    return Unfit("missing", f'"{name}" is missing; need a text', f'缺少 "{name}"；需要文本')


def quoted(value: Any) -> str:
    """A value of the data in a message: short, and no sign of it reaches a terminal raw."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def wrong(what: str, what_zh: str, value: Any, need: str, need_zh: str) -> Unfit:
    """`what` is of the kind of `value`, where `need` is needed."""
    kind, kind_zh = _KINDS[type(value)]
    size = f" of {len(value)}" if isinstance(value, list) else ""
    return Unfit(
        "type", f"{what} is {kind}{size}; need {need}", f"{what_zh}是{kind_zh}；需要{need_zh}"
    )
