"""`rag.toml`, beside the knowledge base, read into the option dataclasses of the stages.

A section is a dataclass and a key one of its fields; what the file leaves out keeps its default.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ingest.errors import UserError

# What a TOML value is called: in English, in Chinese.
KINDS: dict[type, tuple[str, str]] = {
    bool: ("true or false", "true 或 false"),
    int: ("a whole number", "整数"),
    float: ("a number", "数"),
    str: ("a text", "字符串"),
    list: ("a list", "列表"),
    dict: ("a section", "小节"),
}


def read(path: Path, sections: Mapping[str, type]) -> dict[str, Any]:
    """Section name -> an instance of its dataclass, all defaults where `path` does not exist.

    Fields may be bool, int, float, str, Path, Literal, another dataclass, a tuple of these and
    optional. A `UserError` names the file and the section; for an unknown name the nearest known
    one, for a wrong value both the value and what it must be.
    """
    content = _content(path)
    for name, value in content.items():
        if name not in sections:
            raise _unknown_section(path, name, value, sections)
        if not isinstance(value, dict):
            raise _wrong(
                f"{path}: {name}",
                value,
                f"a section; write [{name}]",
                f"小节，写作 [{name}]",
            )
    return {
        name: _build(options, content.get(name, {}), name, path, sections)
        for name, options in sections.items()
    }


def _content(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))  # Windows editors write a BOM
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}", zh=f"无法读取 {path}：{error.strerror}"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8",
            zh=f"{path} 不是 UTF-8 编码（第 {error.start} 字节）；请存为 UTF-8",
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(
            f"{path} is not TOML: {error}", zh=f"{path} 不是有效的 TOML：{error}"
        ) from None


def _build(
    options: type, values: Mapping[str, Any], section: str, path: Path, sections: Mapping[str, type]
) -> Any:
    """An instance of the dataclass `options`, which checks the values that exclude each other."""
    hints = _hints(options)
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            raise _unknown_key(path, section, key, hints, sections)
        where = f"{path}: [{section}] {key}"
        if is_dataclass(hints[key]) and isinstance(value, dict):
            arguments[key] = _build(hints[key], value, f"{section}.{key}", path, sections)
        else:
            arguments[key] = _value(hints[key], value, where)
    try:
        return options(**arguments)
    except UserError as error:
        raise UserError(f"{path}: {error}", zh=f"{path}：{error.zh}") from None


def _hints(options: type) -> dict[str, Any]:
    hints = get_type_hints(options)
    return {field.name: hints[field.name] for field in fields(options) if field.init}


def _value(hint: Any, value: Any, where: str) -> Any:
    """`value` as what `hint` asks for."""
    origin, choices = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in choices or type(value) not in map(type, choices):
            raise _wrong(where, value, f"one of {_listed(choices)}", f"{_listed(choices)} 之一")
        return value
    if origin in (Union, UnionType):
        (inner,) = (choice for choice in choices if choice is not NoneType)
        return _value(inner, value, where)
    if origin is tuple:
        _check(list, value, where)
        return tuple(_value(choices[0], item, where) for item in value)
    if is_dataclass(hint):
        raise _wrong(where, value, *KINDS[dict])
    if hint is Path:
        return Path(_check(str, value, where))
    return _check(hint, value, where)


def _check(kind: type, value: Any, where: str) -> Any:
    """`value`, which TOML gave as `kind`; a whole number does for a float."""
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:  # bool is a subclass of int
        raise _wrong(where, value, *KINDS[kind])
    return value


def _wrong(where: str, value: Any, wanted: str, wanted_zh: str) -> UserError:
    shown = _listed([value])
    return UserError(
        f"{where} is {shown}; it must be {wanted}", zh=f"{where} 为 {shown}，应为{wanted_zh}"
    )


def _listed(values: Iterable[Any]) -> str:
    """The values as TOML writes them, near enough."""
    texts = {True: "true", False: "false"}
    return ", ".join(
        texts[value] if isinstance(value, bool) else repr(value).replace("'", '"')
        for value in values
    )


def _unknown_section(path: Path, name: str, value: Any, sections: Mapping[str, type]) -> UserError:
    if not isinstance(value, dict):
        homes = [section for section, options in sections.items() if name in _hints(options)]
        if homes:
            return UserError(
                f"{path}: {name} stands in no section; put it below [{homes[0]}]",
                zh=f"{path}：{name} 不在任何小节中；请放到 [{homes[0]}] 之下",
            )
    near = get_close_matches(name, sections, n=1, cutoff=0.5)
    names = ", ".join(f"[{section}]" for section in sections)
    guess, guess_zh = _guess(f"[{near[0]}]" if near else "")
    return UserError(
        f"{path}: unknown section [{name}]{guess}; the sections are {names}",
        zh=f"{path}：未知小节 [{name}]{guess_zh}；可用小节：{names}",
    )


def _unknown_key(
    path: Path, section: str, key: str, known: Iterable[str], sections: Mapping[str, type]
) -> UserError:
    """Looks for the nearest key in this section, then for one in any other."""
    elsewhere = {
        name: f"[{other}] {name}" for other, options in sections.items() for name in _hints(options)
    }
    here = get_close_matches(key, known, n=1, cutoff=0.6)
    there = get_close_matches(key, elsewhere, n=1, cutoff=0.8)
    guess, guess_zh = _guess(here[0] if here else elsewhere[there[0]] if there else "")
    names = ", ".join(known)
    return UserError(
        f"{path}: unknown key {key} in [{section}]{guess}; its keys are {names}",
        zh=f"{path}：[{section}] 中有未知键 {key}{guess_zh}；可用键：{names}",
    )


def _guess(near: str) -> tuple[str, str]:
    return (f" (did you mean {near}?)", f"（是否想写 {near}？）") if near else ("", "")
