"""A knowledge base's folder -> its store, encoder, chunker and pipeline, as its settings say."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.chunk import Chunker, ChunkOptions
from ingest.embed import BUNDLED, Embedder, open_embedder
from ingest.errors import Mismatch
from ingest.store import Identity, LocalStore, open_store
from rag.config import read
from rag.language import Speaker

if TYPE_CHECKING:
    from rag.pipeline import Pipeline

SETTINGS = "rag.toml"


@dataclass(frozen=True, slots=True)
class Writer:
    """All that an ingestion needs of one knowledge base."""

    store: LocalStore
    embedder: Embedder
    chunker: Chunker


def open_writer(path: Path, *, embedder: str | None, cache: Path) -> Writer:
    """Open `path` to write, or make it with `embedder` (the bundled one if None).

    Raises `Mismatch` where the knowledge base was made by another embedder or with other chunks.
    """
    options: ChunkOptions = _settings(path)["chunk"]
    if not (path / "kb.sqlite").is_file():
        encoder = open_embedder(embedder or BUNDLED, cache=cache)
        chunker = Chunker(encoder.count_many, encoder.max_tokens, options)
        made = {"embedder": embedder or BUNDLED, "chunk": asdict(options)}
        identity = Identity(encoder.name, encoder.dim, made)
        return Writer(open_store(path, create=identity), encoder, chunker)
    store = open_store(path)
    recorded = store.identity.options
    name = str(recorded["embedder"])
    if embedder not in (None, name):
        raise Mismatch(
            f"{path} was made with the encoder {name}, not {embedder}; leave --embedder out, "
            "or make a new knowledge base with --kb",
            zh=f"{path} 由编码器 {name} 建立，不是 {embedder}；请去掉 --embedder，或用 --kb 另建知识库",
        )
    if recorded["chunk"] != asdict(options):
        raise Mismatch(
            f"{path} was made with [chunk] {recorded['chunk']}, but {SETTINGS} says "
            f"{asdict(options)}; put the old values back, or make a new knowledge base with --kb",
            zh=f"{path} 建立时的 [chunk] 为 {recorded['chunk']}，而 {SETTINGS} 为 {asdict(options)}；"
            "请改回原值，或用 --kb 另建知识库",
        )
    encoder = _encoder(store, path, cache)
    return Writer(store, encoder, Chunker(encoder.count_many, encoder.max_tokens, options))


def _encoder(store: LocalStore, path: Path, cache: Path) -> Embedder:
    encoder = open_embedder(str(store.identity.options["embedder"]), cache=cache)
    if (encoder.name, encoder.dim) != (store.identity.name, store.identity.dim):
        raise Mismatch(
            f"{path} holds vectors of {store.identity.name} ({store.identity.dim}-d), but this "
            f"encoder is {encoder.name} ({encoder.dim}-d); install the former, or ingest again "
            "into a new knowledge base with --kb",
            zh=f"{path} 存有 {store.identity.name}（{store.identity.dim} 维）的向量，而当前编码器为 "
            f"{encoder.name}（{encoder.dim} 维）；请安装前者，或用 --kb 重新入库",
        )
    return encoder
