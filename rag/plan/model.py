"""From constants and a load to what each engine takes, and the first that suffices.

The local store: its files are linear in the chunks (fixed bytes a row). A search by vectors looks at
every code, so it is linear too; one by words reads postings, of which no more than `POSTINGS` a
field. Each process holds the codes; files are shared through the page cache, and should fit there:
otherwise questions wait for the disk. One process answers about as many questions as two cores can;
more are more processes on the same machine, for SQLite's lock is one machine's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Literal

from ingest.errors import UserError
from ingest.store.word_index import POSTINGS
from rag.plan import milvus
from rag.plan.constants import Constants, Costs
from rag.plan.generation import Gpu, Writing, on_gpus, on_processor
from rag.plan.load import Load

Engine = Literal["local", "replicas", "milvus"]
ENGINES: tuple[Engine, ...] = ("local", "replicas", "milvus")

BUSY = 0.7  # of what a process or core can do, so that questions seldom queue
PROCESS_CORES = 2  # that a process of `rag serve` uses (its encoder takes as many)
FIELDS = 2  # words and bigrams
GB = 2**30
LEAST_NODES = 3  # of a cluster: etcd wants a majority


@dataclass(frozen=True, slots=True)
class Size:
    """A machine; `memory` in bytes."""

    cores: int
    memory: float


LARGEST = Size(64, 512 * GB)  # one machine that can be rented everywhere
NODE = Size(16, 64 * GB)


@dataclass(frozen=True, slots=True)
class Limits:
    """What suffices: `latency` in seconds until the sources are there, `days` until all is read.

    `size` is the machine to be had: the local store's, the largest of one with replicas, a node of a
    cluster. None: the measured one, `LARGEST`, `NODE`.
    """

    latency: float = 0.5
    days: float = 7.0
    size: Size | None = None

    def __post_init__(self) -> None:
        for name, value, unit in (
            ("--latency", self.latency, "s"), ("--days", self.days, "d")
        ):  # fmt: skip
            if not 0 < value <= 36_500:
                raise UserError(
                    f"{name} is {value:g} {unit}; need more than 0 and at most 36500",
                    zh=f"{name} 为 {value:g} {unit}；须大于 0 且不超过 36500",
                )
        if self.size and not 1 <= self.size.cores <= 4096:
            cores = self.size.cores
            raise UserError(
                f"--cores is {cores}; need 1 to 4096", zh=f"--cores 为 {cores}；须为 1 到 4096"
            )
        if self.size and not GB <= self.size.memory <= 2**16 * GB:
            memory = f"{self.size.memory / GB:g} GB"
            raise UserError(
                f"--memory is {memory}; need 1 to 65536 GB",
                zh=f"--memory 为 {memory}；须为 1 到 65536 GB",
            )


@dataclass(frozen=True, slots=True)
class Why:
    """A reason, in both languages."""

    en: str
    zh: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What one engine takes; bytes and seconds. `memory` and `disk` are of all machines together."""

    engine: Engine
    machines: int
    size: Size
    """Of each machine: what is given, or with replicas what it takes."""
    processes: int
    """That answer questions."""
    memory: float
    disk: Mapping[str, float]
    reading: Mapping[str, float]
    """All documents, by stage: parse, embed, write."""
    question: Mapping[str, float]
    """By stage, alone on the machine: question, vectors, words, rank, answer."""
    capacity: float
    """Questions a second."""
    readers: int = 0
    """More machines, only while documents are read."""
    pods: tuple[milvus.Pods, ...] = ()
    writing: Writing | None = None
    problems: tuple[Why, ...] = field(default=())
    """Why it does not suffice; empty where it does."""

    @property
    def simulated(self) -> bool:
        """Whether published figures, not measured ones, make it up."""
        return self.engine == "milvus"

    @property
    def latency(self) -> float:
        """Seconds of a question, alone, without a language model."""
        return sum(self.question.values())

    @property
    def read_in(self) -> float:
        """Seconds until all documents are read; a cluster's readers work beside the one who writes."""
        if not self.readers:
            return sum(self.reading.values())
        return max(self.reading["parse"] + self.reading["embed"], self.reading["write"])


def plans(constants: Constants, load: Load, limits: Limits, *, gpu: Gpu) -> dict[Engine, Plan]:
    """Every engine's plan for the load, the smallest engine first."""
    costs = constants.costs
    writing = on_processor(costs, load.model) if load.model else None
    if load.model and (writing is None or writing.rate < load.qps):
        writing = on_gpus(gpu, load.model, load.qps, busy=BUSY)
    return {
        "local": _local(constants, load, limits, writing),
        "replicas": _replicas(constants, load, limits, writing),
        "milvus": _milvus(constants, load, limits, writing),
    }


def first(made: Mapping[Engine, Plan]) -> Plan:
    """The first that suffices; the last where none does."""
    return next((plan for plan in made.values() if not plan.problems), made["milvus"])


def _local(constants: Constants, load: Load, limits: Limits, writing: Writing | None) -> Plan:
    machine = constants.machine
    size = limits.size or Size(machine.cores, machine.memory)
    plan = _one_machine("local", constants, load, 1, size.cores, writing)
    return _judged(replace(plan, size=size), load, limits, most=size)


def _replicas(constants: Constants, load: Load, limits: Limits, writing: Writing | None) -> Plan:
    most, costs = limits.size or LARGEST, constants.costs
    rate = costs.parallel / sum(questions(costs, load.chunks).values())
    processes = max(2, ceil(load.qps / (BUSY * rate)))
    left = limits.days * 86_400 - load.parse - load.chunks * costs.write
    embedding = load.chunks * costs.embed / constants.cores_speedup
    reading = ceil(embedding / left) if left > 0 else most.cores
    cores = max(PROCESS_CORES * processes, min(reading, most.cores))
    plan = _one_machine("replicas", constants, load, processes, cores, writing)
    return _judged(plan, load, limits, most=most)


def _one_machine(
    engine: Engine,
    constants: Constants,
    load: Load,
    processes: int,
    cores: int,
    writing: Writing | None,
) -> Plan:
    costs, question = constants.costs, questions(constants.costs, load.chunks)
    memory = held(costs, load.chunks, processes)
    capacity = BUSY * processes * costs.parallel / sum(question.values())
    if writing and not writing.gpus:
        memory += writing.memory
    reading = {
        "parse": load.parse,
        "embed": load.chunks * costs.embed / (cores * constants.cores_speedup),
        "write": load.chunks * costs.write,
    }
    return Plan(
        engine,
        1,
        Size(cores, memory),
        processes,
        memory,
        files(costs, load.chunks),
        reading,
        question,
        capacity,
        writing=writing,
    )


def _milvus(constants: Constants, load: Load, limits: Limits, writing: Writing | None) -> Plan:
    costs, node = constants.costs, limits.size or NODE
    cluster = milvus.cluster(costs, load.chunks, load.qps, busy=BUSY)
    small = {"question": costs.question, "rank": costs.rank, "answer": costs.answer}
    rate = costs.parallel / sum(small.values())
    processes = ceil(load.qps / (BUSY * rate))
    cores = cluster.cores + processes * PROCESS_CORES
    memory = cluster.memory + processes * costs.process
    machines = max(LEAST_NODES, ceil(cores / node.cores), ceil(memory / node.memory))
    work = load.parse + load.chunks * costs.embed  # seconds of one core
    each = node.cores * constants.cores_speedup
    readers = ceil(work / (each * limits.days * 86_400))
    reading = {
        "parse": load.parse / (readers * each),
        "embed": load.chunks * costs.embed / (readers * each),
        "write": load.chunks * costs.write,  # assumed: one process writes, as fast as the local one
    }
    question = {
        "question": costs.question,
        "search": cluster.seconds,
        "rank": costs.rank,
        "answer": costs.answer,
    }
    plan = Plan(
        "milvus",
        machines,
        node,
        processes,
        memory,
        {"cluster": cluster.disk},
        reading,
        question,
        BUSY * min(cluster.capacity, processes * rate),
        readers,
        cluster.pods,
        writing,
    )
    return _judged(plan, load, limits)


def files(costs: Costs, chunks: int) -> dict[str, float]:
    """Bytes of the local store's parts. `spare`: rebuilding makes both indexes beside the old ones."""
    codes, words = costs.codes * chunks, costs.words * chunks
    return {"truth": costs.truth * chunks, "codes": codes, "words": words, "spare": codes + words}


def held(costs: Costs, chunks: int, processes: int) -> float:
    """Bytes of memory: each process and its codes, and the files that all of them read."""
    return processes * (costs.process + costs.codes * chunks) + (costs.truth + costs.words) * chunks


def questions(costs: Costs, chunks: int) -> dict[str, float]:
    """Seconds of a question's stages with the local store."""
    postings = min(costs.read_share * chunks, FIELDS * POSTINGS)
    return {
        "question": costs.question,
        "vectors": costs.vectors + costs.scan * chunks,
        "words": costs.lookup + costs.posting * postings,
        "rank": costs.rank,
        "answer": costs.answer,
    }


def _judged(plan: Plan, load: Load, limits: Limits, *, most: Size | None = None) -> Plan:
    """The plan with what is wrong with it; `most` is the machine that one would have to do."""
    problems: list[Why] = []
    days = plan.read_in / 86_400
    if most and plan.memory > most.memory:
        sizes = f"{plan.memory / GB:,.3g} > {most.memory / GB:,.3g} GB"
        problems.append(Why(f"memory {sizes}", f"内存 {sizes}"))
    if most and plan.size.cores > most.cores:
        counts = f"{plan.size.cores:,} > {most.cores:,}"
        problems.append(Why(f"cores {counts}", f"核数 {counts}"))
    if plan.capacity < load.qps:
        rates = f"{plan.capacity:,.3g} < {load.qps:,.3g}"
        problems.append(Why(f"questions/s {rates}", f"每秒问题 {rates}"))
    if plan.latency > limits.latency:
        seconds = f"{plan.latency:,.3g} > {limits.latency:g}"
        problems.append(Why(f"seconds a question {seconds}", f"每个问题秒数 {seconds}"))
    if days > 1.001 * limits.days:
        told = f"{days:,.3g} > {limits.days:g}"
        problems.append(Why(f"days of reading {told}", f"读入天数 {told}"))
    return replace(plan, problems=tuple(problems))
