"""The write path on a Ray cluster: workers parse and embed files in parallel, and only this process writes.

A file is one task, whose document comes back part by part, in the order of the files. If its worker
dies, Ray runs the task again.
"""

import os
import secrets
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, chdir, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from tempfile import TemporaryDirectory
from typing import Any

from ingest.chunk import Chunker, ChunkOptions
from ingest.embed import Embedder
from ingest.errors import Mismatch, Unreadable, UserError
from ingest.files import FoundFile
from ingest.pipeline import FileOutcome, Parser, Reading, embed, read, refusal, write
from ingest.store import Store
from ingest.types import Document, DocumentPart

TRIES = 3  # a file is left out after this many deaths of workers
AHEAD = 4  # files for each core that have been started before their turn to be written


@dataclass(frozen=True, slots=True)
class Tools:
    """Functions that open an embedder and a parser on a worker. They are sent pickled."""

    embedder: Callable[[], Embedder] = field(compare=False)
    parser: Callable[[], AbstractContextManager[Parser]] = field(compare=False)
    options: ChunkOptions
    encoder: str  # the name that every worker's embedder must have


@cache
def _opened(tools: Tools) -> tuple[Embedder, Chunker, Parser]:
    """The tools of this worker, which it keeps for all its tasks."""
    embedder = tools.embedder()
    if embedder.name != tools.encoder:
        raise Mismatch(
            "{machine} has the encoder {name}, not {encoder}; install the same on every machine "
            "of the cluster",
            machine=socket.gethostname(), name=embedder.name, encoder=tools.encoder,
        )  # fmt: skip
    chunker = Chunker(embedder.count_many, embedder.max_tokens, tools.options)
    return embedder, chunker, ExitStack().enter_context(tools.parser())


def _task(tools: Tools, file: FoundFile, before: Document | None) -> Iterator[Any]:
    """The outcome for a file, then each part of its document, and how many texts were embedded for it."""
    try:
        file.path.lstat()
    except FileNotFoundError:
        problem = Unreadable(
            "{name} is not on {machine}; workers need the files under the same paths",
            name=file.path.name,
            machine=socket.gethostname(),
        )
        yield refusal(file, before, problem).outcome
        return
    except OSError:  # the file is there, and `read` reports why it can't be opened
        pass
    embedder, chunker, parser = _opened(tools)
    reading = read(file, before, parser, chunker)
    yield reading.outcome
    for part in reading.parts:
        counts: list[int] = []
        yield embed([part], lambda digests: {}, embedder, counts.append)[0], sum(counts)


def ingest_on_ray(
    files: Iterable[FoundFile],
    store: Store,
    tools: Tools,
    *,
    workers: int,
    tick: Callable[[int], None] = lambda chunks: None,
) -> Iterator[FileOutcome]:
    """`Ingestion.run` on the cluster that is connected, on `workers` cores; every text of a changed
    document is embedded.

    Raises `UserError` if a worker can't open its tools or keeps dying; what is written is kept.
    """
    import ray

    task: Any = ray.remote(num_cpus=1, max_retries=TRIES - 1, num_returns="streaming")(_task)

    def started() -> Iterator[Started]:
        for file in files:
            file = replace(file, path=file.path.absolute())  # workers may run in another folder
            before = store.document(file.source)
            yield file, before, task.remote(tools, file, before)

    spare = int(ray.cluster_resources().get("CPU", 1)) > workers  # cores that are not to be used
    tasks = _ahead(started(), workers if spare else AHEAD * workers)
    return write((_reading(*each, tick) for each in tasks), store, lambda parts: parts)


Started = tuple[FoundFile, Document | None, Iterator[Any]]
"""A file, its document in the store, and the references to the results of its task."""


def _ahead(tasks: Iterator[Started], count: int) -> Iterator[Started]:
    """The tasks, each of which is started `count` files before its turn."""
    waiting = deque(islice(tasks, count))
    while waiting:
        yield waiting.popleft()
        waiting.extend(islice(tasks, 1))


def _reading(
    file: FoundFile, before: Document | None, results: Iterator[Any], tick: Callable[[int], None]
) -> Reading:
    from ray.exceptions import OutOfMemoryError, WorkerCrashedError

    try:
        outcome = _result(next(results))
    except (OutOfMemoryError, WorkerCrashedError):
        name = file.path.name
        problem = Unreadable(
            "{name} ended {tries} workers that read it; it is left out", name=name, tries=TRIES
        )
        return refusal(file, before, problem)

    def parts() -> Iterator[DocumentPart]:
        try:
            for part, embedded in map(_result, results):
                tick(embedded)
                yield part
        except (OutOfMemoryError, WorkerCrashedError) as error:
            raise UserError(
                "{tries} workers died while they embedded {source}; with fewer --workers each has "
                "more memory",
                tries=TRIES,
                source=file.source,
            ) from error

    return Reading(outcome, parts())


def _result(reference: Any) -> Any:
    """A result of a task. A worker's `UserError` is raised here as it is; a bug keeps its traceback."""
    import ray
    from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        problem = error.cause
        if not isinstance(problem, UserError):
            raise
        problem.args = (str(problem).partition("\n")[0],)  # Ray has added how to retry
        raise problem from None
    except (OutOfMemoryError, WorkerCrashedError):
        raise
    except RayError as error:
        why = str(error).strip().partition("\n")[0]
        raise UserError(
            "the Ray cluster failed ({why}); what is stored is kept, run it again", why=why
        ) from error


LOCAL = "local"  # the address of a cluster that is started on this machine for the run
STORE_BYTES = 500_000_000  # of memory for objects between workers; beyond it they go to disk
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
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
    with TemporaryDirectory(prefix="rag-") as folder, ExitStack() as stack:
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
        stack.callback(os.environ.update, dict(os.environ))
        stack.callback(os.environ.pop, "TMPDIR", None)  # the folder will be gone
        os.environ.update(environment)
        import ray

        try:
            host, _, port = address.rpartition(":")
            if host and port.isdigit():  # it fails at once; Ray would wait for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            # Workers import from this process's current folder first, which is not to be the user's.
            with chdir(folder):
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
