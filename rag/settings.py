"""Where a knowledge base is, and what the `rag.toml` in its folder says."""

from dataclasses import dataclass, replace
from os import devnull
from pathlib import Path
from typing import Any

from ingest.chunk import ChunkOptions
from ingest.embed import Backend
from ingest.store import Address, Identity, Store, open_store, parse_address
from rag.config import read
from rag.generate import GenerateOptions
from rag.prompt import PromptOptions
from rag.read import ReadOptions
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
