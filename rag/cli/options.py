"""Options of the command line and the places that they name. An option is defined once, as a field of a dataclass or as a parameter's default.

    @dataclass(frozen=True)
    class PageOptions:
        limit: int = option("--limit -n", "Passages.", default=5, least=1)

    @with_options("Show the passages that a question finds.")
    def search(question: str = argument("", "The question."), *, page: PageOptions) -> None: ...

The command gets an instance of the dataclass, whose `__post_init__` checks the values.
"""

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import partial, wraps
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, LiteralString, get_args, get_origin

import typer

from ingest.errors import UserError
from ingest.i18n import Translatable

if TYPE_CHECKING:
    from rag.config import Config, Location
    from rag.scope import Scope

INFO, HELP, TYPED, READ = "info", "help", "typed", "read"
"""Keys of a field's metadata: typer's description, which lacks the help, the help in English, the
default as it is typed, and what reads a value. Modules of the library define options too; therefore
only `with_options` translates the help."""


def option(
    names: str,
    text: LiteralString | Translatable,
    *,
    default: Any = None,
    least: float | None = None,
    most: float | None = None,
    env: str | None = None,
    typed: Any = MISSING,
    read: Callable[[Any], Any] | None = None,
    shown: bool = True,
) -> Any:
    """`names` are all spellings and, last, what stands for the value in the help.

    `default=...` makes the option required. If the value on the command line differs from the field's
    value, `typed` is the default as it is typed, and `read` turns what is typed into the value. `shown`:
    the help shows the default.
    """
    words = names.split()
    flags = [word for word in words if word.startswith("-")]
    info = partial(
        typer.Option,
        *flags,
        metavar=" ".join(words[len(flags) :]) or None,
        min=least,
        max=most,
        envvar=env,
        show_default=shown,
    )
    form = {} if typed is MISSING else {TYPED: typed}
    return _field(info, text, default, {READ: read, **form})


def argument(metavar: str, text: LiteralString | Translatable, *, default: Any = ...) -> Any:
    """An argument by position. `metavar` stands for it in the help; "": its parameter's name."""
    return _field(partial(typer.Argument, metavar=metavar or None), text, default, {})


def _field(info: Any, text: str, default: Any, more: Mapping[str, Any]) -> Any:
    metadata = {INFO: info, HELP: text, **more}
    return field(default=MISSING if default is ... else default, metadata=metadata)


KB = option(
    "--kb",
    "Knowledge base: a name, a folder if it has a slash, or milvus://HOST:19530/NAME.",
    default="default",
    env="RAG_KB",
)
KB_ARGUMENT = argument("KB", "The knowledge base, as for --kb.", default=None)
"""The same, for commands about one knowledge base."""
JSON = option("--json", "Print one JSON value.", default=False)
MODEL = argument("MODEL", "ChatGLM folder, or its name on a hub.")
NEW_FOLDER = argument("FOLDER", "New folder.")
ALPHA = option("--lora-alpha N", "Alpha of the adapter, if it has no adapter_config.json.")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The language model of a command that answers; None: as the knowledge base's settings have it."""

    model: str | None = option(
        "--model MODEL",
        "Write the answer with this ChatGLM (folder, or name on a hub), or any model served at "
        "http://host:port/v1#name; '' for none.",
    )
    quant: str | None = option(
        "--quant auto|none|int8|int4|nf4", "Precision of the weights in memory; auto: the best that fits."
    )
    adapter: str | None = option("--adapter DIR", "LoRA or P-Tuning adapter for the model.")
    max_new_tokens: int | None = option("--max-new-tokens N", "Maximum length of the answer in tokens.")
    temperature: float | None = option(
        "--temperature T", "Sampling temperature; 0 always picks the most likely token."
    )
    top_p: float | None = option(
        "--top-p P", "Sample only from the most likely tokens, up to this total probability."
    )
    seed: int | None = option("--seed N", "The same seed gives the same answer.")

    @property
    def values(self) -> dict[str, Any]:
        """The fields of `GenerateOptions` that are not None."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class ScopeOptions:
    """The documents that are asked; without options: all of the knowledge base."""

    places: tuple[str, ...] = option(
        "--in PATTERN", "Ask only this file or folder, or those that match: '2024/*.pdf'. Can be repeated.",
        default=(),
    )  # fmt: skip
    formats: tuple[str, ...] = option(
        "--format EXT", "Ask only files of this format: pdf. Can be repeated.", default=()
    )
    since: str = option("--since DATE", "Ask only documents from this day, month or year on.", default="")
    until: str = option("--until DATE", "Ask only documents up to this day, month or year.", default="")

    @property
    def scope(self) -> "Scope | None":
        from rag.scope import Scope

        return Scope(**vars(self)) if any(vars(self).values()) else None


def with_options(text: LiteralString) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command whose help is `text`: each parameter that is a dataclass stands for its options.

    `Annotated[Kind, ("a", "b")]` takes only these fields. The command may also be called with the
    options' values by name.
    """

    from rag.cli.console import say

    def parameter_of(name: str, kind: Any, field: Field[Any], position: Any) -> Parameter:
        default, metadata = field.default, field.metadata
        if TYPED in metadata:
            default = metadata[TYPED]
            kind = type(default)
        elif get_origin(kind) is tuple:  # an option that can be repeated
            kind, default = list[get_args(kind)[0]] | None, None
        elif get_origin(kind) is Literal:
            kind = str  # the dataclass checks it
        annotation = Annotated[kind, metadata[INFO](help=say(metadata[HELP]))]
        default = Parameter.empty if default is MISSING else default
        return Parameter(name, position, default=default, annotation=annotation)

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        groups: dict[str, tuple[type, list[Field[Any]]]] = {}
        parameters: list[Parameter] = []
        for parameter in inspect.signature(function).parameters.values():
            kind, only = parameter.annotation, None
            if get_origin(kind) is Annotated:
                kind, only = get_args(kind)
            if isinstance(parameter.default, Field):
                parameters.append(parameter_of(parameter.name, kind, parameter.default, parameter.kind))
            elif isinstance(kind, type) and is_dataclass(kind):
                chosen = [
                    each
                    for each in fields(kind)
                    if INFO in each.metadata and (only is None or each.name in only)
                ]
                groups[parameter.name] = kind, chosen
                parameters += [
                    parameter_of(each.name, each.type, each, Parameter.KEYWORD_ONLY) for each in chosen
                ]
            else:
                parameters.append(parameter)
        signature = inspect.Signature(sorted(parameters, key=lambda parameter: parameter.kind))

        @wraps(function)
        def command(*values: Any, **options: Any) -> None:
            bound = signature.bind(*values, **options)
            bound.apply_defaults()
            arguments = bound.arguments
            instances = {name: kind(**_values(chosen, arguments)) for name, (kind, chosen) in groups.items()}
            function(**arguments, **instances)

        command.__doc__ = say(text)
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        return command

    return decorate


def _values(chosen: list[Field[Any]], arguments: dict[str, Any]) -> dict[str, Any]:
    """The values of these fields, taken out of `arguments`; not those that were left out."""
    values = {}
    for each in chosen:
        value = arguments.pop(each.name)
        if read := each.metadata.get(READ):
            value = read(value)
        elif get_origin(each.type) is tuple:  # an option that can be repeated
            if not value:
                continue
            value = tuple(value)
        values[each.name] = value
    return values


# Where knowledge bases and built models live on this machine
def chosen_kb(context: typer.Context, base: str | None, kb: str) -> str:
    """The knowledge base that is typed as KB or with --kb; RAG_KB counts if neither is typed."""
    source = context.get_parameter_source("kb")
    if base is not None and source is not None and source.name == "COMMANDLINE" and base != kb:
        raise UserError("KB is {base} and --kb is {kb}; give one of them", base=base, kb=kb)
    return kb if base is None else base


def data_home() -> Path:
    """Named knowledge bases (XDG base directory specification)."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "chatglm-rag"


def cache_home() -> Path:
    """What can be built or downloaded again: encoders and models."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chatglm-rag"


def fetch_model(name: str, *, weights: bool = True) -> Path:
    """A model's folder; one that is named as on a hub is fetched first."""
    from rag.chatglm.hub import fetch

    return fetch(name, cache=cache_home() / "models", weights=weights)


def kb_place(name: str) -> "Location":
    """A knowledge base given by name, by path or by its address on a server."""
    if "://" in name:
        from ingest.store import parse_address

        return parse_address(name)
    return kb_path(name)


def kb_path(name: str) -> Path:
    """The folder of a knowledge base given by name or by path; `UserError` for an address."""
    if "://" in name:
        raise UserError(
            "this needs a knowledge base with a folder, not {name}; make a folder with a "
            'rag.toml that says [store] url = "{name}", and name the folder',
            name=name,
        )
    if os.sep in name or name in (".", ".."):
        return Path(name).expanduser()
    if not name or name.startswith(".") or "\0" in name:
        raise UserError(
            "{name!r} is not a valid name for a knowledge base; use letters, digits and -", name=name
        )
    return data_home() / name


def kb_config(name: str) -> "Config":
    """The settings of a knowledge base, which need not exist yet; see `kb_place`."""
    from rag.config import read_config

    return read_config(kb_place(name))


def existing_kb(name: str) -> "Config":
    """As `kb_config`, for a knowledge base that must exist; a server is not asked yet."""
    config = kb_config(name)
    if not config.exists:
        raise UserError(
            "there is no knowledge base {name!r} at {place}; make it with: rag ingest FOLDER --kb {name}",
            name=name,
            place=config.place,
        )
    return config


def existing_folder(name: str) -> Path:
    """As `existing_kb`, for what only a knowledge base in a folder can do."""
    place = existing_kb(name).location
    if not isinstance(place, Path):
        raise UserError(
            "{name} is on a server, which has backups of its own (milvus-backup); a snapshot is "
            "of a knowledge base in a folder",
            name=name,
        )
    return place
