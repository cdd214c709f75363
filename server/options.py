"""What the operator decides: where things lie, what may be used, how much is too much."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit

from ingest.embed import BUNDLED
from ingest.errors import UserError
from ingest.store import parse_address
from ingest.store.atomic import write_whole
from rag.config import SETTINGS
from rag.endpoint import Address, no_adapter
from rag.generate import GenerateOptions
from server import schemas
from server.errors import Conflict, Unknown

CORES = len(os.sched_getaffinity(0))
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Settings of one server; all that belongs to it lies in `data`, what can be made again in
    `cache`."""

    data: Path
    cache: Path
    host: str = LOOPBACK[0]
    port: int = 8765
    hosts: tuple[str, ...] = ()
    """Names under which a browser may reach it without keys, beside the loopback's."""
    embedders: tuple[str, ...] = (BUNDLED,)
    """Encoders that a new knowledge base may choose; the first is the usual one."""
    adapters: Path | None = None
    """A folder whose folders are adapters that a knowledge base may choose."""
    store: str = ""
    """Where new knowledge bases are kept: `milvus://HOST:19530[/DATABASE]`; empty: in their folders."""
    generate: GenerateOptions | None = None
    """The language model of knowledge bases whose own settings name none."""
    slots: int = 2 * CORES
    """Questions that are worked on at one time, so that no core waits while one is passed on; a
    language model answers one."""
    queue: int = 64
    """Questions that wait; one more is told to come again."""
    rate: int = 600
    """Requests a minute for each key; without keys there is no limit."""
    largest_upload: int = 200_000_000
    """Bytes of one file."""
    largest_batch: int = 1_000_000_000
    """Bytes of one upload."""
    most_files: int = 500
    """Files of one upload."""
    patience: float = 30.0
    """Seconds that a client may take to send or to take the next piece."""
    traces: int = 10_000
    """Answers that can be traced; the oldest go."""
    ocr: bool = True

    def __post_init__(self) -> None:
        if self.store:
            _check_store(self.store)
        for name in ("slots", "queue", "largest_upload", "largest_batch", "most_files", "traces"):
            value = getattr(self, name)
            if value < 1:
                raise UserError("{name} is {value}; need 1 or more", name=name, value=value)
        if not 0 <= self.port <= 65535:
            raise UserError("port is {port}; need 0 (any free one) to 65535", port=self.port)

    @property
    def home(self) -> Path:
        """The server's own files. No knowledge base has this name: theirs begin with no dot."""
        return self.data / ".server"

    @property
    def on_loopback(self) -> bool:
        return self.host in LOOPBACK


def _check_store(url: str) -> None:
    """Raises `UserError` unless names of knowledge bases can follow `url`."""
    try:
        parse_address(f"{url}/kb")
    except UserError as problem:
        raise UserError(
            "store is {url}; need milvus://HOST:19530 or milvus://HOST:19530/DATABASE", url=url
        ) from problem


def offered(adapters: Path | None) -> list[str]:
    """Names of the adapters in a folder."""
    if adapters is None or not adapters.is_dir():
        return []
    return sorted(
        path.name for path in adapters.iterdir() if (path / "adapter_config.json").is_file()
    )


def check_choice(what: str, wanted: str, choices: Sequence[str]) -> None:
    """Raises `Unknown` for what is not offered."""
    if wanted not in choices:
        listed = ", ".join(choices) or "none"
        raise Unknown(
            "there is no {what} {wanted}; this server offers: {listed}",
            what=what,
            wanted=wanted[:80],
            listed=listed,
        )


def write_choices(
    path: Path,
    wanted: schemas.NewKnowledgeBase | schemas.KnowledgeBaseChange,
    options: ServerOptions,
    generate: GenerateOptions,
) -> None:
    """Put what is not None into the knowledge base's `rag.toml`, whose other lines stay as they are.

    `generate` is what holds for it now. An adapter is written with the model that it is for.
    """
    file = path / SETTINGS
    said = tomlkit.parse(file.read_text("utf-8-sig") if file.exists() else "")
    if wanted.instruction is not None and (wanted.instruction or "prompt" in said):
        said.setdefault("prompt", tomlkit.table())["instruction"] = wanted.instruction
    if wanted.adapter:
        check_choice("adapter", wanted.adapter, offered(options.adapters))
        if not generate.model:
            raise Conflict("an adapter needs a language model; start the server with --model")
        if generate.served:
            raise no_adapter(Address.parse(generate.model), wanted.adapter)
        assert options.adapters
        section: Any = said.setdefault("generate", tomlkit.table())
        section["model"], section["quant"] = generate.model, generate.quant
        section["adapter"] = str(options.adapters.resolve() / wanted.adapter)
    elif wanted.adapter is not None and "generate" in said:
        _without_adapter(said["generate"], options.generate)
    if text := tomlkit.dumps(said):
        write_whole(file, text.encode())


def _without_adapter(said: Any, usual: GenerateOptions | None) -> None:
    """Take the adapter off a [generate] section, and with it the server's own model, which came with
    the adapter: the next server may have another."""
    said["adapter"] = ""
    if usual and (said.get("model"), said.get("quant")) == (usual.model, usual.quant):
        del said["model"], said["quant"]
