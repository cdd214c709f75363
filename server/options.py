"""The operator's settings, and those of a knowledge base that clients may change."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.cli.options import cache_home, data_home, option

if TYPE_CHECKING:
    from rag.generate import GenerateOptions
    from server import schemas

CORES = len(os.sched_getaffinity(0))
LOOPBACK = ("127.0.0.1", "::1", "localhost")
BUNDLED = "multilingual-e5-small"  # as ingest.embed names it, which loads numpy
MB = 1_000_000


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Settings of one server; all that belongs to it lies in `data`, what can be built again in
    `cache`. The options of `rag serve` are fields of it."""

    data: Path = field(default_factory=data_home)
    cache: Path = field(default_factory=cache_home)
    host: str = option(
        "--host", "Address to listen on; any but the loopback address needs a key.",
        default=LOOPBACK[0],
    )  # fmt: skip
    port: int = option("--port", "Port to listen on; 0: any free port.", default=8765)
    adapters: Path | None = option("--adapters DIR", "Folder of adapters that knowledge bases may use.")
    embedders: tuple[str, ...] = option(
        "--embedder NAME",
        "Encoder that new knowledge bases may use; can be repeated, the first is the default.",
        default=(BUNDLED,),
    )
    store: str = option(
        "--store URL",
        "Keep new knowledge bases at milvus://HOST:19530[/DATABASE], not in their folders.",
        default="",
    )
    hosts: tuple[str, ...] = option(
        "--allow-host NAME",
        "Host name that clients may use while there are no keys; can be repeated.",
        default=(),
    )
    origins: tuple[str, ...] = option(
        "--allow-origin URL",
        "Web site whose pages may use the API (CORS), as https://example.org; can be repeated.",
        default=(),
    )
    generate: "GenerateOptions | None" = None
    """The language model of knowledge bases whose own settings name none."""
    slots: int = option(
        "--slots", "Questions processed at the same time; default: two per core.",
        default=2 * CORES, shown=False,
    )  # fmt: skip
    """So many that no core waits while a question is passed on; a language model answers one."""
    queue: int = option(
        "--queue", "Maximum number of queued questions; further ones get status 429.", default=64
    )
    rate: int = option("--rate", "Requests per minute for each key; 0: no limit.", default=600)
    largest_upload: int = option(
        "--max-file-mb", "Maximum size of an uploaded file, in MB.",
        default=200 * MB, typed=200, read=lambda megabytes: megabytes * MB,
    )  # fmt: skip
    """Bytes."""
    largest_batch: int = 1_000 * MB
    """Bytes of one upload."""
    most_files: int = option("--max-files", "Maximum number of files in an upload.", default=500)
    patience: float = 30.0
    """Seconds that a client may take to send or to receive the next piece."""
    traces: int = 10_000
    """Traces that are kept; the oldest are deleted."""
    ocr: bool = option("--ocr/--no-ocr", "Run OCR on pages and images without text.", default=True)

    def __post_init__(self) -> None:
        if self.store:  # names of knowledge bases must be able to follow it
            from ingest.store import parse_address

            try:
                parse_address(f"{self.store}/kb")
            except UserError as problem:
                raise UserError(
                    "store is {url}; need milvus://HOST:19530 or milvus://HOST:19530/DATABASE", url=self.store
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
    return sorted(path.name for path in adapters.iterdir() if (path / "adapter_config.json").is_file())


def check_choice(kind: str, name: str, choices: Sequence[str]) -> None:
    """Raises `NotFound` unless `name` is one of `choices`."""
    from server.errors import NotFound

    if name not in choices:
        raise NotFound(
            "there is no {kind} {name}; this server offers: {choices}",
            kind=kind, name=name[:80], choices=list(choices) or Translatable("none"),
        )  # fmt: skip


def write_settings(
    path: Path,
    request: "schemas.CreateKnowledgeBaseRequest | schemas.ChangeKnowledgeBaseRequest",
    options: ServerOptions,
    generate: "GenerateOptions",
) -> None:
    """Write what is not None into the knowledge base's `rag.toml`; all else in it stays.

    `generate` are its present options. An adapter is written together with its model.
    """
    from rag.config import SETTINGS, change_settings
    from rag.endpoint import Address, no_adapter
    from server.errors import Conflict

    changes: dict[str, dict[str, str | None]] = {}
    if request.instruction is not None:
        changes["prompt"] = {"instruction": request.instruction or None}
    if request.adapter:
        check_choice("adapter", request.adapter, adapter_names(options.adapters))
        if not generate.model:
            raise Conflict("an adapter needs a language model; start the server with --model")
        if generate.served:
            raise no_adapter(Address.parse(generate.model), request.adapter)
        assert options.adapters
        adapter = str(options.adapters.resolve() / request.adapter)
        changes["generate"] = {"model": generate.model, "quant": generate.quant, "adapter": adapter}
    elif request.adapter is not None and generate.adapter:
        changes["generate"] = {"adapter": None}
        # The server's own model came with the adapter; the next server may have another one.
        default = options.generate
        if default and (generate.model, generate.quant) == (default.model, default.quant):
            changes["generate"] |= {"model": None, "quant": None}
    if not change_settings(path / SETTINGS, changes):
        raise Conflict(
            "{file} can't be changed; write its sections as [generate] and [prompt]", file=path / SETTINGS
        )
