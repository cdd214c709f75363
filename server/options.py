"""What the operator decides: where things lie, what may be used, how much is too much."""

import os
from dataclasses import dataclass
from pathlib import Path

from ingest.embed import BUNDLED
from ingest.errors import UserError
from ingest.store import parse_address
from rag.generate import GenerateOptions

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
                raise UserError(
                    f"{name} is {value}; need 1 or more", zh=f"{name} 为 {value}；须不小于 1"
                )
        if not 0 <= self.port <= 65535:
            raise UserError(
                f"port is {self.port}; need 0 (any free one) to 65535",
                zh=f"port 为 {self.port}；须在 0（任选空闲端口）到 65535 之间",
            )

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
            f"store is {url}; need milvus://HOST:19530 or milvus://HOST:19530/DATABASE",
            zh=f"store 为 {url}；应为 milvus://主机:19530 或 milvus://主机:19530/数据库",
        ) from problem
