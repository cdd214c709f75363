"""The operator's settings, and those of a knowledge base that clients may change."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit

from ingest.embed import BUNDLED
from ingest.errors import UserError
from ingest.i18n import Translatable
from ingest.store import parse_address
from ingest.store.atomic import write_whole
from rag.config import SETTINGS
from rag.endpoint import Address, no_adapter
from rag.generate import GenerateOptions
from server import schemas
from server.errors import Conflict, NotFound

CORES = len(os.sched_getaffinity(0))
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Settings of one server. `data` must not be lost; `cache` can be deleted."""

    data: Path
    cache: Path
    host: str = LOOPBACK[0]
    port: int = 8765
    hosts: tuple[str, ...] = ()
    """Host names, besides the loopback's, under which browsers may reach it without keys."""
    embedders: tuple[str, ...] = (BUNDLED,)
    """Encoders that a new knowledge base may choose; the first is the default."""
    adapters: Path | None = None
    """A folder of adapters that a knowledge base may choose."""
    store: str = ""
    """Store new knowledge bases at `milvus://HOST:19530[/DATABASE]`; empty: in their folders."""
    generate: GenerateOptions | None = None
    """The language model of knowledge bases whose own settings name none."""
    slots: int = 2 * CORES
    """Questions that run at one time, enough to keep all cores busy. A local language model answers
    one at a time."""
    queue: int = 64
    """Questions that may wait; one more is rejected."""
    rate: int = 600
    """Requests a minute for each key; 0: no limit. Without keys there is no limit."""
    largest_upload: int = 200_000_000
    """Bytes of one file."""
    largest_batch: int = 1_000_000_000
    """Bytes of one upload."""
    most_files: int = 500
    """Files of one upload."""
    patience: float = 30.0
    """Seconds that a client may take to send or to receive the next piece."""
    traces: int = 10_000
    """Traces that are kept; the oldest are deleted."""
    ocr: bool = True

    def __post_init__(self) -> None:
        if self.store:
            try:
                parse_address(f"{self.store}/kb")
            except UserError as problem:
                raise UserError(
                    "store is {url}; it must be milvus://HOST:19530 or "
                    "milvus://HOST:19530/DATABASE",
                    url=self.store,
                ) from problem
        for name in ("slots", "queue", "largest_upload", "largest_batch", "most_files", "traces"):
            value = getattr(self, name)
            if value < 1:
                raise UserError("{name} is {value}; it must be 1 or more", name=name, value=value)
        if not 0 <= self.port <= 65535:
            raise UserError("port is {port}; it must be 0 (any free port) to 65535", port=self.port)

    @property
    def home(self) -> Path:
        """The server's own files. Names of knowledge bases never start with a dot."""
        return self.data / ".server"

    @property
    def on_loopback(self) -> bool:
        return self.host in LOOPBACK


def adapter_names(adapters: Path | None) -> list[str]:
    """Names of the adapters in a folder."""
    if adapters is None or not adapters.is_dir():
        return []
    return sorted(
        path.name for path in adapters.iterdir() if (path / "adapter_config.json").is_file()
    )


def check_choice(kind: str, name: str, choices: Sequence[str]) -> None:
    """Raises `NotFound` unless `name` is one of `choices`."""
    if name not in choices:
        raise NotFound(
            "there is no {kind} {name}; this server offers: {choices}",
            kind=kind,
            name=name[:80],
            choices=list(choices) or Translatable("none"),
        )


def write_settings(
    path: Path,
    request: schemas.CreateKnowledgeBaseRequest | schemas.ChangeKnowledgeBaseRequest,
    options: ServerOptions,
    generate: GenerateOptions,
) -> None:
    """Write what is not None into the knowledge base's `rag.toml`; its other lines stay.

    `generate` are its present options. An adapter is written together with its model.
    """
    file = path / SETTINGS
    toml = tomlkit.parse(file.read_text("utf-8-sig") if file.exists() else "")
    if request.instruction is not None and (request.instruction or "prompt" in toml):
        toml.setdefault("prompt", tomlkit.table())["instruction"] = request.instruction
    if request.adapter:
        check_choice("adapter", request.adapter, adapter_names(options.adapters))
        if not generate.model:
            raise Conflict("an adapter needs a language model; start the server with --model")
        if generate.served:
            raise no_adapter(Address.parse(generate.model), request.adapter)
        assert options.adapters
        section: Any = toml.setdefault("generate", tomlkit.table())
        section["model"], section["quant"] = generate.model, generate.quant
        section["adapter"] = str(options.adapters.resolve() / request.adapter)
    elif request.adapter is not None and "generate" in toml:
        section, default = toml["generate"], options.generate
        section["adapter"] = ""
        # The server's own model came with the adapter; the next server may have another one.
        if default and (section.get("model"), section.get("quant")) == (
            default.model,
            default.quant,
        ):
            del section["model"], section["quant"]
    if text := tomlkit.dumps(toml):
        write_whole(file, text.encode())
