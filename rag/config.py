"""`rag.toml`, beside the knowledge base, read into the option dataclasses of the stages.

A section is a dataclass and a key one of its fields; what the file leaves out keeps its default.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from os import devnull
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ingest.chunk import ChunkOptions
from ingest.embed import Backend
from ingest.errors import UserError
from ingest.store import Address, Identity, Store, open_store, parse_address
from rag.extract import ReadOptions
from rag.generate import GenerateOptions
from rag.prompt import PromptOptions
from rag.refuse import RefuseOptions
from rag.retrieve import RetrieveOptions

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
                f"{path}: {name}", value, f"a section; write [{name}]", f"小节，写作 [{name}]"
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


SETTINGS, TRUTH = "rag.toml", "kb.sqlite"

Place = Path | Address
"""A knowledge base: its folder, or the address of one on a server, which has no settings."""


@dataclass(frozen=True, slots=True)
class EmbedOptions:
    """How the encoder is run."""

    backend: Backend = "torch"
    """What runs a sentence-transformers model: torch, onnx or openvino."""


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Where the knowledge base is kept."""

    url: str = ""
    """Its address on a server, milvus://HOST:19530/NAME; empty: in this folder."""

    def __post_init__(self) -> None:
        if self.url:
            parse_address(self.url)


def settings(file: Path) -> dict[str, Any]:
    """What a `rag.toml` says, as the option dataclass of each section; defaults without one."""
    sections = {"chunk": ChunkOptions, "retrieve": RetrieveOptions, "read": ReadOptions}
    sections |= {"refuse": RefuseOptions, "embed": EmbedOptions, "generate": GenerateOptions}
    sections |= {"prompt": PromptOptions, "store": StoreOptions}
    return read(file, sections)


def settings_of(place: Place) -> dict[str, Any]:
    """The settings of a knowledge base."""
    file = place / SETTINGS if isinstance(place, Path) else Path(devnull)  # which says nothing
    return settings(file)


def store_at(place: Place) -> Place:
    """Where its store is: at an address, or in its folder."""
    if isinstance(place, Address):
        return place
    url = settings_of(place)["store"].url
    return parse_address(url) if url else place


def is_base(folder: Path) -> bool:
    """Whether a knowledge base is in the folder, or said there to be on a server."""
    if (folder / TRUTH).is_file():
        return True
    return (folder / SETTINGS).is_file() and isinstance(store_at(folder), Address)


def open_base(
    place: Place, *, create: Identity | None = None, expect: Identity | None = None
) -> Store:
    """The store of a knowledge base; as `ingest.store.open_store`."""
    return open_store(store_at(place), create=create, expect=expect)


def generation(place: Place) -> GenerateOptions:
    """What the settings say of a language model. Folders that they name may be relative to them."""
    options: GenerateOptions = settings_of(place)["generate"]
    if isinstance(place, Address):
        return options

    def beside(folder: str) -> str:
        return str(place / folder) if folder and (place / folder).is_dir() else folder

    endpoint = replace(options.endpoint, tokenizer=beside(options.endpoint.tokenizer))
    model, adapter = beside(options.model), beside(options.adapter)
    return replace(options, model=model, adapter=adapter, endpoint=endpoint)
