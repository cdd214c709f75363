"""The write path on a Ray cluster: workers parse and embed in parallel, and only this process writes.

Files go to a pool of parse workers, the parts of their documents to a pool of embed workers, and they
come back in the order of the files. If a worker dies, its task runs again.
"""

import logging
import os
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, chdir, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, groupby
from tempfile import TemporaryDirectory
from typing import Any

from ingest.chunk import Chunker, ChunkOptions
from ingest.embed import Embedder, Vectors
from ingest.errors import Mismatch, Unreadable, UserError
from ingest.files import FoundFile
from ingest.pipeline import FileOutcome, Parser, Reading, embed, read, refusal, write
from ingest.store import Store
from ingest.types import Document, DocumentPart

TASK_FILES = 8  # files of one parse task; if its worker dies, they are parsed again
BLOCK_BYTES = 500_000  # of parts (some 250 chunks) that go from worker to worker together
TRIES = 3  # a file is skipped after this many deaths of workers


@dataclass(frozen=True, slots=True)
class Tools:
    """Functions that open a store, an embedder and a parser on a worker. They are sent pickled."""

    store: Callable[[], Store]
    embedder: Callable[[], Embedder]
    parser: Callable[[], AbstractContextManager[Parser]]
    options: ChunkOptions
    encoder: str  # the name that every worker's embedder must have

    def open_embedder(self) -> Embedder:
        embedder = self.embedder()
        if embedder.name != self.encoder:
            raise Mismatch(
                "{machine} has the encoder {name}, not {encoder}; install the same on every machine "
                "of the cluster",
                machine=socket.gethostname(), name=embedder.name, encoder=self.encoder,
            )  # fmt: skip
        return embedder


@dataclass(frozen=True, slots=True)
class WorkerResult:
    """A file's outcome, alone or with one part of its document."""

    outcome: FileOutcome
    part: DocumentPart | None = None
    embedded: int = 0
    """Texts that were embedded for it and for the other results in its block."""


def ingest_on_ray(
    files: Iterable[FoundFile],
    store: Store,
    tools: Tools,
    *,
    workers: int,
    tick: Callable[[int], None] = lambda chunks: None,
) -> Iterator[FileOutcome]:
    """`Ingestion.run` on the cluster that is connected, with `workers` parse and as many embed workers.

    Raises `UserError` if a worker can't open its tools or keeps dying; what is written is kept.
    """
    # Workers may run in another folder.
    absolute = (replace(file, path=file.path.absolute()) for file in files)
    tasks = [(file, store.document(file.source)) for file in absolute]
    results = _results(tasks, tools, workers) if tasks else ()
    by_file = groupby(results, lambda result: result.outcome.source)
    return write((_reading(own, tick) for _, own in by_file), store, lambda parts: parts)


def _reading(results: Iterator[WorkerResult], tick: Callable[[int], None]) -> Reading:
    first = next(results)

    def parts() -> Iterator[DocumentPart]:
        for result in chain([first], results):
            tick(result.embedded)
            if result.part:
                yield result.part

    return Reading(first.outcome, parts())


def _results(
    files: Sequence[tuple[FoundFile, Document | None]], tools: Tools, workers: int
) -> Iterator[WorkerResult]:
    """The results for the files, each with its document in the store, in their order."""
    import ray.data
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.target_max_block_size = BLOCK_BYTES
    context.execution_no_progress_timeout_s = -1  # a scanned book may take very long
    context.raise_original_map_exception = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # an error that ends the run is raised

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    durable = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    remote: Any = ray.remote(Ledger)
    ledger = remote.options(scheduling_strategy=here, **durable).remote(tools)
    pool, arguments = ray.data.ActorPoolStrategy, (tools, ledger)
    tasks = max(min(len(files), 4 * workers), len(files) // TASK_FILES)
    parse = {"compute": pool(size=min(workers, tasks)), "num_cpus": 0.25}
    encode = {"compute": pool(size=workers), "num_cpus": 0.75, "batch_size": None}
    rows = ray.data.from_items([{"file": file} for file in files], override_num_blocks=tasks)
    rows = rows.flat_map(ParseWorker, fn_constructor_args=arguments, **parse)
    rows = rows.map_batches(EmbedWorker, fn_constructor_args=arguments, **encode)
    with _ray_failures():
        for row in rows.iter_rows():
            yield row["result"]


class Ledger:
    """Serves the store's vectors to the workers and counts their deaths, on the machine that writes."""

    def __init__(self, tools: Tools) -> None:
        self._store = tools.store()
        self._starts: Counter[str] = Counter()

    def recall(self, digests: Sequence[bytes]) -> dict[bytes, Vectors]:
        return self._store.known_vectors(digests)

    def begin(self, task: str) -> int:
        """How many workers have started this task and died of it."""
        self._starts[task] += 1
        return self._starts[task] - 1

    def end(self, task: str) -> None:
        del self._starts[task]


class ParseWorker:
    """Parses files and cuts them into chunks."""

    def __init__(self, tools: Tools, ledger: Any) -> None:
        self._tools, self._ledger = tools, ledger

    @cached_property
    def _chunker(self) -> Chunker:
        embedder = self._tools.open_embedder()
        return Chunker(embedder.count_many, embedder.max_tokens, self._tools.options)

    @cached_property
    def _parser(self) -> Parser:
        return ExitStack().enter_context(self._tools.parser())

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, WorkerResult]]:
        file, before = row["file"]
        reading = self._read(file, before)
        for part in chain([None], reading.parts):
            yield {"result": WorkerResult(reading.outcome, part)}
        self._ledger.end.remote(file.source)

    def _read(self, file: FoundFile, before: Document | None) -> Reading:
        import ray

        name = file.path.name
        deaths: Any = ray.get(self._ledger.begin.remote(file.source))
        if deaths >= TRIES:
            problem = Unreadable(
                "{name} ended {tries} workers that read it; it is left out", name=name, tries=TRIES
            )
            return refusal(file, before, problem)
        try:
            file.path.lstat()
        except FileNotFoundError:
            problem = Unreadable(
                "{name} is not on {machine}; workers need the files under the same paths",
                name=name,
                machine=socket.gethostname(),
            )
            return refusal(file, before, problem)
        except OSError:  # the file is there, and `read` reports why it can't be opened
            pass
        return read(file, before, self._parser, self._chunker)


class EmbedWorker:
    """Embeds the parts of a block together."""

    def __init__(self, tools: Tools, ledger: Any) -> None:
        self._tools, self._ledger = tools, ledger

    @cached_property
    def _embedder(self) -> Embedder:
        return self._tools.open_embedder()

    def __call__(self, block: dict[str, Any]) -> dict[str, list[WorkerResult]]:
        parts = [result.part for result in block["result"] if result.part]
        counts: list[int] = []
        embedded = iter(self._embed(parts, counts.append) if parts else ())
        results = [replace(r, part=next(embedded)) if r.part else r for r in block["result"]]
        results[0] = replace(results[0], embedded=sum(counts))
        return {"result": results}

    def _embed(self, parts: list[DocumentPart], tick: Callable[[int], None]) -> list[DocumentPart]:
        import ray

        def recall(digests: Sequence[bytes]) -> dict[bytes, Vectors]:
            return ray.get(self._ledger.recall.remote(digests))

        task, source = parts[0].chunks[0].id, parts[0].document.source
        deaths: Any = ray.get(self._ledger.begin.remote(task))
        if deaths >= TRIES:
            raise UserError(
                "{tries} workers died while they embedded {source}; with fewer --workers each has "
                "more memory",
                tries=TRIES,
                source=source,
            )
        embedded = embed(parts, recall, self._embedder, tick)
        self._ledger.end.remote(task)
        return embedded


@contextmanager
def _ray_failures() -> Iterator[None]:
    """A worker's `UserError` is raised here as it is; a bug keeps its traceback."""
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayTaskError as error:
        problem = error.cause
        if not isinstance(problem, UserError):
            raise
        problem.args = (str(problem).partition("\n")[0],)  # Ray has added how to retry
        raise problem from None
    except RayError as error:
        why = str(error).strip().partition("\n")[0]
        raise UserError(
            "the Ray cluster failed ({why}); what is stored is kept, run it again", why=why
        ) from error


LOCAL = "local"  # the address of a cluster that is started on this machine for the run
STORE_BYTES = 500_000_000  # of memory for objects between workers; beyond it they go to disk
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # of its lines on our standard output
}


@contextmanager
def cluster(address: str = LOCAL, *, workers: int | None = None) -> Iterator[int]:
    """Connects to the cluster at `address`, or starts one; yields for how many workers it has cores,
    at most `workers`. Raises `UserError` if no cluster answers."""
    if "://" in address:
        raise UserError(
            "RAY_ADDRESS is {address}, a Ray client address; run this on a machine of the cluster, with "
            "RAY_ADDRESS=auto",
            address=address,
        )
    with TemporaryDirectory(prefix="rag-") as folder:
        options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        environment = QUIET  # options that Ray reads from there only
        if address == LOCAL:
            options |= {"num_cpus": workers or len(os.sched_getaffinity(0)), "_temp_dir": folder}
            options |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
            environment = QUIET | {
                # Ray then listens on the loopback interface; it would replace the address 127.0.0.1.
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": secrets.token_hex(32),
                "TMPDIR": folder,  # workers are killed at the end and leave their folders behind
            }
        with _environment(environment):
            import ray

            try:
                host, _, port = address.rpartition(":")
                if host and port.isdigit():  # it fails at once; Ray would wait for minutes
                    socket.create_connection((host, int(port)), timeout=10).close()
                # Workers import from this process's current folder first, which is not to be the user's.
                with _silence(), chdir(folder):
                    ray.init(address, **options)
            except (OSError, RuntimeError, ValueError) as error:
                why = str(error).strip().partition("\n")[0]
                raise UserError(
                    "no Ray cluster answers at {address} ({why}); check RAY_ADDRESS, or unset it to use "
                    "this machine alone",
                    address=address,
                    why=why,
                ) from error
            try:
                cores = int(ray.cluster_resources().get("CPU", 1))
                yield max(1, min(cores, workers or cores))
            finally:
                ray.shutdown()


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables of this process and its children, until the end of the block."""
    before = {name: os.environ[name] for name in values if name in os.environ}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _silence() -> Iterator[None]:
    """Write nothing to standard error: Ray prints a first line there even if it is to be quiet."""
    stderr = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
