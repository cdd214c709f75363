"""Where knowledge bases and built models live on this machine."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ingest.errors import UserError

if TYPE_CHECKING:
    from rag.config import Config, Place


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


def kb_place(name: str) -> "Place":
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
