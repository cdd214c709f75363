"""`rag.toml`, beside the knowledge base, read once into one frozen `Config`.

Each section is the options dataclass of a stage, and each key is one of its fields. Keys that are
missing from the file keep their defaults.
"""

import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ingest.chunk import ChunkOptions
from ingest.embed import Backend
from ingest.errors import UserError
from ingest.i18n import Translatable
from ingest.store import Identity, MilvusAddress, Store, open_store, parse_address
from ingest.store.atomic import write_whole
from rag.extract import ExtractOptions
from rag.generate import GenerateOptions
from rag.prompt import PromptOptions
from rag.retrieve import RetrieveOptions
from rag.score_norm import RefuseOptions

SETTINGS, DATABASE = "rag.toml", "kb.sqlite"

Location = Path | MilvusAddress
"""A knowledge base: a folder, or an address on a server, which has no settings."""


@dataclass(frozen=True, slots=True)
class EmbedOptions:
    """How the encoder is run."""

    backend: Backend = "torch"
    """The runtime of a sentence-transformers model: torch, onnx or openvino."""


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Where the knowledge base is stored."""

    url: str = ""
    """An address on a server, milvus://HOST:19530/NAME; empty: in this folder."""

    def __post_init__(self) -> None:
        if self.url:
            parse_address(self.url)


@dataclass(frozen=True, slots=True)
class Config:
    """A knowledge base and its settings, one field for each section of `rag.toml`."""

    place: Location = Path()
    chunk: ChunkOptions = ChunkOptions()
    retrieve: RetrieveOptions = RetrieveOptions()
    read: ExtractOptions = ExtractOptions()
    refuse: RefuseOptions = RefuseOptions()
    embed: EmbedOptions = EmbedOptions()
    generate: GenerateOptions = GenerateOptions()
    prompt: PromptOptions = PromptOptions()
    store: StoreOptions = StoreOptions()

    @property
    def location(self) -> Location:
        """Where the store is: an address on a server, or the folder."""
        return parse_address(self.store.url) if self.store.url else self.place

    @property
    def exists(self) -> bool:
        """Whether there is a knowledge base. Always true for a server, which is not contacted."""
        location = self.location
        return isinstance(location, MilvusAddress) or (location / DATABASE).is_file()

    def open_store(self, *, create: Identity | None = None) -> Store:
        """The knowledge base's store, as `ingest.store.open_store`."""
        return open_store(self.location, create=create)


def read_config(place: Location, file: Path | None = None) -> Config:
    """The settings of a knowledge base, all defaults without a `rag.toml`.

    `file` is read instead of the knowledge base's own `rag.toml`. Model folders in it may be
    relative to the knowledge base. Raises `UserError`, which names the file, the section and the
    valid values.
    """
    if isinstance(place, MilvusAddress):
        return Config(place)
    hints = get_type_hints(Config)
    sections = {field.name: hints[field.name] for field in fields(Config)[1:]}
    options = read_sections(file or place / SETTINGS, sections)
    if generate := options.get("generate"):
        endpoint = replace(generate.endpoint, tokenizer=_resolve(place, generate.endpoint.tokenizer))
        model, adapter = _resolve(place, generate.model), _resolve(place, generate.adapter)
        options["generate"] = replace(generate, model=model, adapter=adapter, endpoint=endpoint)
    if read := options.get("read"):
        options["read"] = replace(read, reader=_resolve(place, read.reader))
    return Config(place, **options)


def _resolve(folder: Path, name: str) -> str:
    """The path of a model's folder that lies in `folder`, or the name as it is."""
    return str(folder / name) if name and (folder / name).is_dir() else name


def is_knowledge_base(folder: Path) -> bool:
    """Whether the folder holds a knowledge base, or settings that name one on a server."""
    if (folder / DATABASE).is_file():
        return True
    return (folder / SETTINGS).is_file() and read_config(folder).exists


Changes = Mapping[str, Mapping[str, str | None]]
"""Section -> key -> its new value; None deletes the key."""


def change_settings(file: Path, changes: Changes, *, overwrite: bool = True) -> bool:
    """Change a `rag.toml` atomically; all else in it stays as it is, comments too.

    Returns False and changes nothing if the file can't be changed so, or, unless `overwrite`, if it
    has another value for one of the keys.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        text = file.read_bytes().decode() if file.is_file() else ""
        mark = text[: text.startswith("\ufeff")]
        toml = tomlkit.parse(text.removeprefix(mark).replace("\r\n", "\n"))
        expected = toml.unwrap()
        same = all(
            expected.get(name, {}).get(key, value) == value
            for name, values in changes.items()
            for key, value in values.items()
        )
        if not (same or overwrite):
            return False
        _apply(changes, toml, tomlkit.table)
        _apply(changes, expected, dict)
        new = tomlkit.dumps(toml)
        if tomllib.loads(new) != expected:
            return False
    except (ValueError, TOMLKitError, AttributeError, TypeError):  # the last two: a section is a value
        return False
    new = mark + (new.replace("\n", "\r\n") if "\r\n" in text else new)
    if new != text:
        write_whole(file.resolve(), new.encode())
    return True


def _apply(changes: Changes, document: Any, section: Callable[[], Any]) -> None:
    for name, values in changes.items():
        for key, value in values.items():
            if value is None:
                document.get(name, {}).pop(key, None)
            else:
                document.setdefault(name, section())[key] = value


TOML_TYPES: dict[type, Translatable] = {
    bool: Translatable("true or false"),
    int: Translatable("a whole number"),
    float: Translatable("a number"),
    str: Translatable("a text"),
    dict: Translatable("a section"),
}


def read_sections(path: Path, sections: Mapping[str, type]) -> dict[str, Any]:
    """Section name -> an instance of its dataclass, for the sections that are in the file.

    Fields may be bool, int, float, str, Literal, another dataclass, and optional. Raises `UserError`,
    which names the file and the section; for an unknown name also the nearest known one, for an
    invalid value the value and what it must be.
    """
    content = _content(path)
    for name, value in content.items():
        if name not in sections:
            raise _unknown_section(path, name, value, sections)
        if not isinstance(value, dict):
            section = Translatable("a section; write [{name}]", name=name)
            raise _invalid(f"{path}: {name}", value, section)
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
        raise UserError("cannot read {path}: {why}", path=path, why=error.strerror) from None
    except UnicodeDecodeError as error:
        raise UserError(
            "{path} is not UTF-8 (byte {n}); save it as UTF-8", path=path, n=error.start
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise UserError("{path} is not valid TOML: {error}", path=path, error=error) from None


def _build(
    options: type, values: Mapping[str, Any], section: str, path: Path, sections: Mapping[str, type]
) -> Any:
    """An instance of the dataclass `options`, which checks that its values agree."""
    hints = _hints(options)
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            raise _unknown_key(path, section, key, hints, sections)
        if is_dataclass(hints[key]) and isinstance(value, dict):
            arguments[key] = _build(hints[key], value, f"{section}.{key}", path, sections)
        else:
            arguments[key] = _value(hints[key], value, f"{path}: [{section}] {key}")
    try:
        return options(**arguments)
    except UserError as error:
        raise UserError("{path}: {problem}", path=path, problem=error.message) from None


def _hints(options: type) -> dict[str, Any]:
    hints = get_type_hints(options)
    return {field.name: hints[field.name] for field in fields(options) if field.init}


def _value(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`; a whole number is a valid float."""
    origin, choices = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in choices or type(value) not in map(type, choices):
            known = ", ".join(map(_toml, choices))
            raise _invalid(where, value, Translatable("one of {known}", known=known))
        return value
    if origin in (Union, UnionType):
        (inner,) = (choice for choice in choices if choice is not NoneType)
        return _value(inner, value, where)
    if hint is float and type(value) is int:
        return float(value)
    kind = dict if is_dataclass(hint) else hint
    if type(value) is not kind:  # bool is a subclass of int
        raise _invalid(where, value, TOML_TYPES[kind])
    return value


def _invalid(where: str, value: Any, need: Translatable) -> UserError:
    shown = _toml(value)
    return UserError("{where} is {value}; it must be {need}", where=where, value=shown, need=need)


def _toml(value: Any) -> str:
    """The value roughly as TOML writes it."""
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


def _unknown_section(path: Path, name: str, value: Any, sections: Mapping[str, type]) -> UserError:
    home = next((each for each, options in sections.items() if name in _hints(options)), None)
    if home and not isinstance(value, dict):
        return UserError(
            "{path}: {name} is in no section; put it below [{home}]", path=path, name=name, home=home
        )
    near = [f"[{section}]" for section in get_close_matches(name, sections, n=1, cutoff=0.5)]
    return UserError(
        "{path}: unknown section [{name}]{guess}; the sections are {names}",
        path=path, name=name, guess=_guess(near), names=", ".join(f"[{section}]" for section in sections),
    )  # fmt: skip


def _unknown_key(
    path: Path, section: str, key: str, known: Iterable[str], sections: Mapping[str, type]
) -> UserError:
    """Suggests the nearest key of this section, otherwise one of another section."""
    elsewhere = {name: f"[{other}] {name}" for other, options in sections.items() for name in _hints(options)}
    near = get_close_matches(key, known, n=1, cutoff=0.6)
    near += [elsewhere[name] for name in get_close_matches(key, elsewhere, n=1, cutoff=0.8)]
    return UserError(
        "{path}: unknown key {key} in [{section}]{guess}; its keys are {names}",
        path=path, key=key, section=section, guess=_guess(near), names=", ".join(known),
    )  # fmt: skip


def _guess(near: Sequence[str]) -> str:
    return Translatable(" (did you mean {near}?)", near=near[0]) if near else ""
