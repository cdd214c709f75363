"""Lines and JSON records of a file, checked; what is wrong is said with `file:line`."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ingest.errors import UserError


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of `path` that are not blank, each with its place, `file:line`."""
    if not path.is_file():
        raise UserError(
            f"{path} is missing; it belongs to an evaluation set",
            zh=f"缺少 {path}；评测集应有此文件",
        )
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise wrong(
                    where,
                    f"not UTF-8 ({error.reason} at byte {error.start})",
                    f"不是 UTF-8 编码（第 {error.start} 字节）",
                ) from None
            if line.strip():
                yield where, line


def records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, line in lines(path):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise wrong(
                where,
                f"no JSON ({error.msg} at column {error.colno})",
                f"不是有效的 JSON（第 {error.colno} 列：{error.msg}）",
            ) from None
        if not isinstance(record, dict):
            raise wrong(
                where,
                f"a {type(record).__name__}; each line is one JSON object",
                f"{type(record).__name__} 不是 JSON 对象；每行应为一个对象",
            )
        yield where, record


def unique(path: Path, *, key: str = "_id") -> Iterator[tuple[str, dict[str, Any]]]:
    seen: set[str] = set()
    for where, record in records(path):
        id = take(record, key, str, where)
        once(id, seen, where)
        seen.add(id)
        yield where, record


def once(id: str, seen: Mapping[str, object] | set[str], where: str) -> None:
    if id in seen:
        raise wrong(where, f"id {id!r} was used before; ids are unique", f"编号 {id!r} 重复")


KINDS = {
    str: ("a text", "文本"),
    int: ("an integer", "整数"),
    bool: ("true or false", "true 或 false"),
    list: ("a list", "列表"),
}
_REQUIRED: Any = object()


def take(
    record: Mapping[str, Any], name: str, kind: type, where: str, *, default: Any = _REQUIRED
) -> Any:
    """`record[name]`, which is of `kind`, one of `KINDS`; `default` where it is absent."""
    value = record.get(name, default)
    if value is _REQUIRED:
        names = ", ".join(record) or "none"
        raise wrong(
            where, f"no field {name!r}; the fields are {names}", f"缺少字段 {name!r}；现有：{names}"
        )
    if not isinstance(value, kind):
        raise wrong(
            where,
            f"{name} is {value!r}; it must be {KINDS[kind][0]}",
            f"{name} 为 {value!r}，应为{KINDS[kind][1]}",
        )
    return value


def strings(record: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    values = take(record, name, list, where, default=[])
    for value in values:
        if not isinstance(value, str) or not value.strip():
            raise wrong(
                where,
                f"{name} holds {value!r}; it must be a list of texts",
                f"{name} 含 {value!r}，应为非空字符串的列表",
            )
    return tuple(values)


def wrong(where: str, problem: str, problem_zh: str) -> UserError:
    """The error that says what is wrong at `where`, in both languages."""
    return UserError(f"{where}: {problem}", zh=f"{where}：{problem_zh}")
