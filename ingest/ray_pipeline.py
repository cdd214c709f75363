"""The write path on a Ray cluster: workers read and embed side by side, this process alone writes.

Files go to a pool of readers, the parts of their documents to a pool of encoders, and they come
back in the order of the files: the knowledge base is the one that a run without a cluster makes.
Where a worker dies, its task is done again; what is written is written here, once, in order.
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
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ingest.chunk import Chunker, ChunkOptions
from ingest.embed import Embedder, Vectors
from ingest.errors import Mismatch, Unreadable, UserError
from ingest.files import Found
from ingest.pipeline import Outcome, Parser, Part, Reading, embed, read, refusal, write
from ingest.store import Store
from ingest.types import Document

TASK_FILES = 8  # that a reader is given at a time: what a death costs, and what Ray keeps count of
BLOCK_BYTES = 500_000  # of parts, some 250 chunks, that go from worker to worker at a time
TRIES = 3  # deaths of workers on one file, before it is left out

Known = tuple[Found, Document | None]
"""A file, and what the store holds of it."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What workers need, as functions that make it where it is needed. They are sent pickled.

    `encoder` is the name that every worker's embedder must have.
    """

    store: Callable[[], Store]
    embedder: Callable[[], Embedder]
    parser: Callable[[], AbstractContextManager[Parser]]
    options: ChunkOptions
    encoder: str

    def own_embedder(self) -> Embedder:
        """This worker's; `Mismatch` where it is another than the knowledge base's."""
        embedder = self.embedder()
        if embedder.name != self.encoder:
            machine = socket.gethostname()
            raise Mismatch(
                "{machine} has the encoder {name}, not {encoder}; install the same on every machine "
                "of the cluster",
                machine=machine,
                name=embedder.name,
                encoder=self.encoder,
            )
        return embedder


@dataclass(frozen=True, slots=True)
class Sent:
    """What workers send: a file's outcome, alone or with one part of its document.

    `embedded` counts the texts that were embedded for it and for what was sent with it.
    """

    outcome: Outcome
    part: Part | None = None
    embedded: int = 0


def spread(
    files: Iterable[Found],
    store: Store,
    tools: Tools,
    *,
    workers: int,
    tick: Callable[[int], None] = lambda chunks: None,
) -> Iterator[Outcome]:
    """`Ingestion.run` on the cluster that is connected: the same outcomes, in the same order.

    `workers` readers and as many encoders share as many cores. Raises `UserError` where a worker
    can't make its tools or can't live; what was written until then stays.
    """
    # Workers may be in another folder.
    there = (replace(file, path=file.path.absolute()) for file in files)
    known = [(file, store.document(file.source)) for file in there]
    back = _back(known, tools, workers) if known else ()
    files_back = groupby(back, lambda sent: sent.outcome.source)
    readings = (_reading(sent, tick) for _, sent in files_back)
    return write(readings, store, lambda parts: parts)


def _reading(sent: Iterator[Sent], tick: Callable[[int], None]) -> Reading:
    first = next(sent)

    def parts() -> Iterator[Part]:
        for one in chain([first], sent):
            tick(one.embedded)
            if one.part:
                yield one.part

    return Reading(first.outcome, parts())


def _back(known: Sequence[Known], tools: Tools, workers: int) -> Iterator[Sent]:
    """What the workers make of the files, in their order."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.target_max_block_size = BLOCK_BYTES
    context.execution_no_progress_timeout_s = -1  # a scanned book takes as long as it takes
    context.raise_original_map_exception = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what ends the run is raised

    pool, given = ray.data.ActorPoolStrategy, (tools, _ledger(tools))
    tasks = max(min(len(known), 4 * workers), len(known) // TASK_FILES)
    readers, encoders = pool(size=min(workers, tasks)), pool(size=workers)
    rows = (
        ray.data.from_items([{"known": one} for one in known], override_num_blocks=tasks)
        .flat_map(Reader, fn_constructor_args=given, compute=readers, num_cpus=0.25)
        .map_batches(
            Encoder, fn_constructor_args=given, compute=encoders, num_cpus=0.75, batch_size=None
        )
    )
    with _failures():
        for row in rows.iter_rows():
            yield row["sent"]


def _ledger(tools: Tools) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote(Ledger)
    lasting = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    return remote.options(scheduling_strategy=here, **lasting).remote(tools)


class Ledger:
    """What workers share, on the machine that writes: the store's vectors, and their own deaths."""

    def __init__(self, tools: Tools) -> None:
        self._store = tools.store()
        self._begun: Counter[str] = Counter()

    def recall(self, digests: Sequence[bytes]) -> dict[bytes, Vectors]:
        """`Store.known_vectors`."""
        return self._store.known_vectors(digests)

    def begin(self, task: str) -> int:
        """How many workers began this before and did not end it: they died of it."""
        self._begun[task] += 1
        return self._begun[task] - 1

    def end(self, task: str) -> None:
        del self._begun[task]


def _ask(promised: Any) -> Any:
    import ray

    return ray.get(promised)


class Reader:
    """Reads files and cuts them into chunks."""

    def __init__(self, tools: Tools, ledger: Any) -> None:
        self._tools, self._ledger = tools, ledger

    @cached_property
    def _chunker(self) -> Chunker:
        embedder = self._tools.own_embedder()
        return Chunker(embedder.count_many, embedder.max_tokens, self._tools.options)

    @cached_property
    def _parser(self) -> Parser:
        return ExitStack().enter_context(self._tools.parser())

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Sent]]:
        file, before = row["known"]
        reading = self._read(file, before)
        yield {"sent": Sent(reading.outcome)}
        for part in reading.parts:
            yield {"sent": Sent(reading.outcome, part)}
        self._ledger.end.remote(file.source)

    def _read(self, file: Found, before: Document | None) -> Reading:
        name, machine = file.path.name, socket.gethostname()
        if _ask(self._ledger.begin.remote(file.source)) >= TRIES:
            problem = Unreadable(
                "{name} ended {tries} workers that read it; it is left out", name=name, tries=TRIES
            )
        elif _absent(file.path):
            problem = Unreadable(
                "{name} is not on {machine}; workers need the files where this command sees them",
                name=name,
                machine=machine,
            )
        else:
            return read(file, before, self._parser, self._chunker)
        return refusal(file, before, problem)


def _absent(path: Path) -> bool:
    """Whether there is nothing of that name; what can't be opened for another reason is there."""
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


class Encoder:
    """Embeds the parts of a block together."""

    def __init__(self, tools: Tools, ledger: Any) -> None:
        self._tools, self._ledger = tools, ledger

    @cached_property
    def _embedder(self) -> Embedder:
        return self._tools.own_embedder()

    def __call__(self, block: dict[str, Any]) -> dict[str, list[Sent]]:
        sent: list[Sent] = list(block["sent"])
        parts = [one.part for one in sent if one.part]
        fresh: list[int] = []
        done = iter(self._embed(parts, fresh.append) if parts else ())
        sent = [replace(one, part=next(done)) if one.part else one for one in sent]
        sent[0] = replace(sent[0], embedded=sum(fresh))
        return {"sent": sent}

    def _embed(self, parts: list[Part], tick: Callable[[int], None]) -> list[Part]:
        task, source = parts[0].chunks[0].id, parts[0].document.source
        if _ask(self._ledger.begin.remote(task)) >= TRIES:
            raise UserError(
                "{tries} workers died while they embedded {source}; with fewer --workers each has "
                "more memory",
                tries=TRIES,
                source=source,
            )
        embedded = embed(parts, self._recall, self._embedder, tick)
        self._ledger.end.remote(task)
        return embedded

    def _recall(self, digests: Sequence[bytes]) -> dict[bytes, Vectors]:
        return _ask(self._ledger.recall.remote(digests))


@contextmanager
def _failures() -> Iterator[None]:
    """What a worker raises for a person comes out as it was; a bug keeps its traceback."""
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayTaskError as error:
        problem = error.cause
        if not isinstance(problem, UserError):
            raise
        problem.args = (str(problem).partition("\n")[0],)  # below, Ray has written how to retry
        raise problem from None
    except RayError as error:
        why = str(error).strip().partition("\n")[0]
        raise UserError(
            "the Ray cluster failed ({why}); what is stored stays, run it again", why=why
        ) from error


LOCAL = "local"
"""The address of a cluster that is started for the run, on this machine."""

STORE_BYTES = 500_000_000  # of memory for objects on their way; what is more goes to disk
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # of what it writes to our standard output
}


@contextmanager
def cluster(address: str = LOCAL, *, workers: int | None = None) -> Iterator[int]:
    """Connects to the cluster at `address`, or starts one; gives how many workers it has room for.

    There is room for one on every core; `workers` is how many are wanted at most. Raises `UserError`
    where no cluster answers.
    """
    if "://" in address:
        raise UserError(
            "RAY_ADDRESS is {address}, a client's; run this on a machine of the cluster, with "
            "RAY_ADDRESS=auto",
            address=address,
        )
    with TemporaryDirectory(prefix="rag-") as folder:
        told: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        if address == LOCAL:
            told |= {"num_cpus": workers or len(os.sched_getaffinity(0)), "_temp_dir": folder}
            told |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
        with _environment(_alone(folder) if address == LOCAL else QUIET):
            import ray

            try:
                _reach(address)
                # Workers import from this process's current folder first: not from the user's.
                with _silence(), chdir(folder):
                    ray.init(address, **told)
            except (OSError, RuntimeError, ValueError) as error:
                why = str(error).strip().partition("\n")[0]
                raise UserError(
                    "no Ray cluster answers at {address} ({why}); check RAY_ADDRESS, or unset it to use "
                    "this machine alone",
                    address=address,
                    why=why,
                ) from error
            try:
                room = int(ray.cluster_resources().get("CPU", 1))
                yield max(1, min(room, workers or room))
            finally:
                ray.shutdown()


def _reach(address: str) -> None:
    """Raises `OSError` at once where nobody listens, for which Ray would wait minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        with socket.create_connection((host, int(port)), timeout=10):
            pass


def _alone(folder: str) -> dict[str, str]:
    """What Ray takes from the environment only, for a cluster of this machine in `folder`."""
    return QUIET | {
        # It listens on the loopback where it knows no other machines; 127.0.0.1 itself it replaces.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "TMPDIR": folder,  # workers are killed at the end, and leave their folders
    }


@contextmanager
def _environment(told: dict[str, str]) -> Iterator[None]:
    """`told` in the environment of this process and of those it starts, until the end."""
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing on standard error: Ray's first line there says that it is going to be quiet."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
