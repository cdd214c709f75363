"""`rag.toml`, beside the knowledge base, read once into one frozen `Config`.

A section is an options dataclass of a stage and a key one of its fields; what the file leaves out
keeps its default.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ingest.chunk import ChunkOptions
from ingest.embed import Backend
from ingest.errors import UserError
from ingest.i18n import Translatable
from ingest.store import Address, Identity, Store, open_store, parse_address
from rag.extract import ExtractOptions
from rag.generate import GenerateOptions
from rag.prompt import PromptOptions
from rag.refuse import RefuseOptions
from rag.retrieve import RetrieveOptions

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


@dataclass(frozen=True, slots=True)
class Config:
    """A knowledge base and all that its settings say, a field for each section of `rag.toml`."""

    place: Place = Path()
    chunk: ChunkOptions = ChunkOptions()
    retrieve: RetrieveOptions = RetrieveOptions()
    read: ExtractOptions = ExtractOptions()
    refuse: RefuseOptions = RefuseOptions()
    embed: EmbedOptions = EmbedOptions()
    generate: GenerateOptions = GenerateOptions()
    prompt: PromptOptions = PromptOptions()
    store: StoreOptions = StoreOptions()

    @property
    def location(self) -> Place:
        """Where the store is: at an address, or in the folder."""
        return parse_address(self.store.url) if self.store.url else self.place

    @property
    def exists(self) -> bool:
        """Whether there is a knowledge base; a server is not asked."""
        location = self.location
        return isinstance(location, Address) or (location / TRUTH).is_file()

    def open_store(
        self, *, create: Identity | None = None, expect: Identity | None = None
    ) -> Store:
        """The knowledge base's store; as `ingest.store.open_store`."""
        return open_store(self.location, create=create, expect=expect)


def read_config(place: Place, file: Path | None = None) -> Config:
    """The settings of a knowledge base, all defaults without a `rag.toml`; `file` stands for it.

    Folders of models that the file names may be relative to it. Raises `UserError`, which names
    the file, the section and what may stand there.
    """
    if isinstance(place, Address):
        return Config(place)
    hints = get_type_hints(Config)
    sections = {field.name: hints[field.name] for field in fields(Config)[1:]}
    options = read_sections(file or place / SETTINGS, sections)
    if "generate" in options:
        options["generate"] = _beside(place, options["generate"])
    return Config(place, **options)


def _beside(folder: Path, options: GenerateOptions) -> GenerateOptions:
    """The options, whose paths name what lies in `folder` if there is such a thing."""

    def beside(name: str) -> str:
        return str(folder / name) if name and (folder / name).is_dir() else name

    endpoint = replace(options.endpoint, tokenizer=beside(options.endpoint.tokenizer))
    model, adapter = beside(options.model), beside(options.adapter)
    return replace(options, model=model, adapter=adapter, endpoint=endpoint)


def is_base(folder: Path) -> bool:
    """Whether there is a knowledge base in the folder, or its settings name one on a server."""
    if (folder / TRUTH).is_file():
        return True
    return (folder / SETTINGS).is_file() and read_config(folder).exists


# What a TOML value is called: in English, in Chinese.
TOML_TYPES: dict[type, Translatable] = {
    bool: Translatable("true or false"),
    int: Translatable("a whole number"),
    float: Translatable("a number"),
    str: Translatable("a text"),
    list: Translatable("a list"),
    dict: Translatable("a section"),
}


def read_sections(path: Path, sections: Mapping[str, type]) -> dict[str, Any]:
    """Section name -> an instance of its dataclass, for the sections that are in the file.

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
                f"{path}: {name}", value, Translatable("a section; write [{name}]", name=name)
            )
    return {
        name: _build(options, content[name], name, path, sections)
        for name, options in sections.items()
        if name in content
    }


def _content(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))  # Windows editors write a BOM
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(
            "cannot read {path}: {strerror}", path=path, strerror=error.strerror
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(
            "{path} is not UTF-8 (byte {start}); save it as UTF-8", path=path, start=error.start
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise UserError("{path} is not TOML: {error}", path=path, error=error) from None


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
        raise UserError("{path}: {problem}", path=path, problem=error.message) from None


def _hints(options: type) -> dict[str, Any]:
    hints = get_type_hints(options)
    return {field.name: hints[field.name] for field in fields(options) if field.init}


def _value(hint: Any, value: Any, where: str) -> Any:
    """`value` as what `hint` asks for."""
    origin, choices = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in choices or type(value) not in map(type, choices):
            raise _wrong(where, value, Translatable("one of {choices}", choices=_listed(choices)))
        return value
    if origin in (Union, UnionType):
        (inner,) = (choice for choice in choices if choice is not NoneType)
        return _value(inner, value, where)
    if origin is tuple:
        _check(list, value, where)
        return tuple(_value(choices[0], item, where) for item in value)
    if is_dataclass(hint):
        raise _wrong(where, value, TOML_TYPES[dict])
    if hint is Path:
        return Path(_check(str, value, where))
    return _check(hint, value, where)


def _check(kind: type, value: Any, where: str) -> Any:
    """`value`, which TOML gave as `kind`; a whole number does for a float."""
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:  # bool is a subclass of int
        raise _wrong(where, value, TOML_TYPES[kind])
    return value


def _wrong(where: str, value: Any, wanted: Translatable) -> UserError:
    return UserError(
        "{where} is {value}; it must be {wanted}",
        where=where,
        value=_listed([value]),
        wanted=wanted,
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
                "{path}: {name} stands in no section; put it below [{homes}]",
                path=path,
                name=name,
                homes=homes[0],
            )
    near = get_close_matches(name, sections, n=1, cutoff=0.5)
    names = ", ".join(f"[{section}]" for section in sections)
    guess = _guess(f"[{near[0]}]" if near else "")
    return UserError(
        "{path}: unknown section [{name}]{guess}; the sections are {names}",
        path=path,
        name=name,
        guess=guess,
        names=names,
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
    guess = _guess(here[0] if here else elsewhere[there[0]] if there else "")
    names = ", ".join(known)
    return UserError(
        "{path}: unknown key {key} in [{section}]{guess}; its keys are {names}",
        path=path,
        key=key,
        section=section,
        guess=guess,
        names=names,
    )


def _guess(near: str) -> str:
    return Translatable(" (did you mean {near}?)", near=near) if near else ""
