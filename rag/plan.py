"""Predict the memory, disk, time and machines of a knowledge base from measured constants.

Local store: the sizes of files are linear in the chunks. A vector search scans every code; a word
search reads at most `POSTINGS` postings per field. Each process has the codes in memory, and the files
should fit into the page cache. Replicas are processes on one machine, because SQLite's lock belongs to
one machine.

Milvus: simulated from its published sizing, not measured. SIZING is the source of the sizing tool
(milvus-io/milvus.io, src/utils/sizingTool.ts). REPORT is the Milvus 2.1 benchmark report: HNSW,
1,000,000 vectors of 128 dimensions, 12 cores, ef 64: 6,904 questions/s. AUTOINDEX on a CPU is
HNSW_SQ, 4-bit codes refined by 16-bit vectors (milvus#47386).

Generation (roofline): a token takes the time to read the weights, a prompt the time to multiply with
them. The processor's rates are measured; a GPU is assumed to reach a `GPU_SHARE` of its data sheet.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from math import ceil, inf
from pathlib import Path
from typing import Any, NamedTuple

from ingest.errors import UserError
from ingest.store.word_index import POSTINGS

FORMAT = "chatglm-rag constants 2"
GB, DAY = 2**30, 86_400
UTILIZATION = 0.7  # of a process or core, so that questions rarely queue
PROCESS_CORES = 2  # used by a process of `rag serve`, its encoder included
WORD_FIELDS = 2  # words and bigrams
MIN_MACHINES = 3  # of a cluster: etcd needs a majority
DIM = 384
# SIZING: query nodes for less than this many GB: cores and GB of each
QUERY_NODES = ((8, 2, 8), (96, 4, 16), (512, 8, 32), (2048, 16, 64), (inf, 32, 128))
RAW = 4 * DIM  # bytes of a vector in a request
INDEX = DIM / 2 + 2 * DIM + 8 * 16  # AUTOINDEX: codes, 16-bit vectors; SIZING: a graph of M = 16
SEGMENT = 2**30  # SIZING: two segments are in memory beside the index
SPARE, OFFLOADED = 1.15, 0.1  # SIZING: of fields mapped from disk, a tenth is in memory
POSTING, ROW = 8, 400  # assumed: bytes of a term in the index; of a chunk's names and numbers
COPIES = 4  # of a chunk's text: its own, its passage's, and one for each of two analyzers
SEARCH = 12 / 6904 * (DIM / 128) * (100 / 64) / 1e6  # REPORT: core seconds a vector, with ef 100
SEARCHES = 3  # vectors, words, bigrams; assumed: a word search costs as much as a vector search
OVERHEAD = 0.01  # assumed: seconds in the proxy and between nodes

PROMPT, ANSWER = 1_500, 200  # tokens: five passages of about 250 and the rest; a paragraph
BATCH = 256  # concurrent answers of an engine (default of vLLM's max_num_seqs)
KV_CACHE = 4_600  # bytes a token and billion parameters: ChatGLM3-6B's 28 x 2 x 256 x 2
INT4 = 0.5 + 4 / 128  # bytes a weight: its code, and a float32 scale for 128
GPU_SHARE = 0.5
GPUS = {  # by NVIDIA's data sheet: name, dense 16-bit operations/s, bytes/s, bytes of memory
    "a100": ("A100 80 GB", 312e12, 2.0e12, 80e9),
    "h200": ("H200 141 GB", 989e12, 4.8e12, 141e9),
}
MAXIMUM = {
    "documents": 1e12, "qps": 1e6, "chunks_per_document": 1e9, "megabytes": 1e12, "model": 1000,
    "cores": 4096, "memory": 65_536, "latency": 36_500, "days": 36_500,
}  # fmt: skip


class MachineSize(NamedTuple):
    cores: int
    memory: float  # bytes


LARGEST = MachineSize(64, 512 * GB)  # one machine that can be rented everywhere
NODE = MachineSize(16, 64 * GB)


class FormatCosts(NamedTuple):
    files: int
    size: int  # bytes of all files
    chunks: int
    seconds: float  # of one core, to parse and chunk them


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs of the local store and the bundled encoder, in seconds of one core and bytes."""

    embed: float  # seconds per chunk on a single core
    scaling: float  # speed of each core while all embed, relative to a single one
    write: float  # seconds per chunk, by the only writer
    sqlite: float  # bytes per chunk in kb.sqlite
    vector_index: float  # bytes of a chunk's code, on disk and in each process
    word_index: float  # bytes per chunk
    text: float  # UTF-8 bytes of a chunk's text
    terms: float  # distinct terms of a chunk in both fields of the word index
    process: float  # resident bytes of a process that answers from a small knowledge base
    embed_question: float  # seconds
    scan: float  # seconds per code in a vector search
    vectors: float  # seconds of the rest of that search: reading and scoring candidates
    posting: float  # seconds per posting in both word searches
    words: float  # seconds of the rest of those searches
    postings: float  # that a question reads per chunk of the knowledge base, without the limit
    fuse: float  # seconds of fusing the searches and fetching passages
    extract: float  # seconds of extracting the sentences of an answer
    parallel: float  # cores that one process uses, by its rate of answers
    int4_flops: float | None = None  # operations/s of int4 products with many rows, all cores
    int4_bandwidth: float | None = None  # bytes/s of int4 weights in products with one row


@dataclass(frozen=True, slots=True)
class Constants:
    """The measured constants of a machine; benchmarks/plan.py writes them."""

    cpu: str
    date: str  # ISO
    machine: MachineSize
    formats: Mapping[str, FormatCosts]  # by name, with `+ocr` if OCR read the pages
    costs: Costs

    def documents(self, kind: str | None = None) -> FormatCosts:
        """The measured documents of one format, or of all. Raises `UserError` if there are none."""
        if kind is not None and kind not in self.formats:
            known = ", ".join(self.formats)
            raise UserError(
                "--kind is {kind}; measured: {known}; for others run benchmarks/plan.py",
                kind=kind, known=known,
            )  # fmt: skip
        rows = [row for name, row in self.formats.items() if kind in (None, name)]
        return FormatCosts(*map(sum, zip(*rows, strict=True)))

    @classmethod
    def read(cls, path: Path | None = None) -> "Constants":
        """The constants in the file, or the shipped ones. Raises `UserError` if one is not valid."""
        try:
            value = json.loads((path or files("rag").joinpath("plan.json")).read_bytes())
            if value["format"] != FORMAT or not value["formats"]:
                raise UserError("it needs the format {format!r} and documents", format=FORMAT)
            formats = {name: _positive(FormatCosts, row) for name, row in value["formats"].items()}
            machine = _positive(MachineSize, value["machine"])
            costs = _positive(Costs, value["costs"])
            return cls(str(value["cpu"]), str(value["date"]), machine, formats, costs)
        except (UserError, OSError, ValueError, TypeError, KeyError, AttributeError) as problem:
            raise UserError(
                "{path} is not a valid file of constants ({problem}); write one: benchmarks/plan.py",
                path=path, problem=getattr(problem, "message", problem),
            ) from problem  # fmt: skip


def _positive(kind: type, row: Mapping[str, float]) -> Any:
    """The row as a `kind`. Raises TypeError or `UserError` if a number is missing or not above 0."""
    for name, number in row.items():
        if not 0 < number < inf:
            raise UserError("{name} is {number}", name=name, number=number)
    return kind(**row)


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """Documents and requirements. Raises `UserError` if a number is not in (0, `MAXIMUM`]."""

    documents: int
    qps: float = 1.0
    chunks_per_document: float | None = None  # None: as measured
    megabytes: float | None = None  # of all files, 10^6 bytes; None: as measured
    kind: str | None = None  # the measured format of the documents; None: a mix of all
    model: float | None = None  # billions of parameters; None: answers are extracts
    gpu: str = "a100"
    cores: int | None = None  # of the local machine (else the measured one), of the largest for
    memory: float | None = None  # replicas (`LARGEST`), of one of a cluster (`NODE`); in GB
    latency: float = 0.5  # seconds until the sources of an answer are found
    days: float = 7.0  # until all documents are ingested

    def __post_init__(self) -> None:
        for name, most in MAXIMUM.items():
            value, option = getattr(self, name), f"--{name.replace('_', '-')}"
            if value is not None and not 0 < value <= most:
                raise UserError(
                    "{option} is {value:g}; need more than 0 and at most {most:g}",
                    option=option, value=value, most=most,
                )  # fmt: skip


class GenerationPlan(NamedTuple):
    seconds: float  # of an answer alone
    rate: float  # answers/s of the processor or a GPU
    memory: float  # bytes of weights
    gpus: int  # 0: the processor of the machine that answers


def generation_plan(costs: Costs, billions: float, gpu: str, qps: float) -> GenerationPlan:
    """An int4 model on the measured processor, one answer at a time, if that is fast enough;
    otherwise a 16-bit model in a batching engine, on as many GPUs as `qps` needs."""
    if costs.int4_flops and costs.int4_bandwidth:
        weights = billions * 1e9 * INT4
        prompt = PROMPT * 2e9 * billions / costs.int4_flops
        seconds = prompt + ANSWER * weights / costs.int4_bandwidth
        if 1 / seconds >= qps:
            return GenerationPlan(seconds, 1 / seconds, weights, 0)
    _, flops, bandwidth, memory = GPUS[gpu]
    weights = 2e9 * billions
    shards = ceil(weights / (0.8 * memory))  # tensor parallel: the rest is for the KV cache
    flops, bandwidth = shards * GPU_SHARE * flops, shards * GPU_SHARE * bandwidth
    prompt = PROMPT * weights / flops
    context = (PROMPT + ANSWER / 2) * KV_CACHE * billions
    batch = max(1, min(BATCH, int((shards * 0.9 * memory - weights) / context)))
    step = max((weights + batch * context) / bandwidth, batch * weights / flops)
    rate = 1 / (prompt + ANSWER * step / batch)
    alone = prompt + ANSWER * (weights + context) / bandwidth
    return GenerationPlan(alone, rate / shards, weights, shards * ceil(qps / (UTILIZATION * rate)))


@dataclass(frozen=True, slots=True)
class Pods:
    name: str
    count: int
    cores: float
    memory: float  # GB


def other_pods(query_cores: float, memory: float, chunks: int) -> tuple[Pods, ...]:
    """SIZING: the streaming nodes depend on the query nodes' cores, the index builders on the GB of a
    replica, and etcd, object storage and log on the vectors."""
    units, few = ceil(query_cores / 16), {1: (1, 2, 8), 2: (1, 4, 16), 3: (2, 4, 16), 4: (2, 4, 16)}
    size = (1, 4) if memory < 8 else (2, 8) if memory < 96 else (8, 32)
    builders = next(n for below, n in ((16, 1), (64, 2), (96, 4), (inf, 8)) if memory < below)
    builder = (2, 8) if memory < 8 else (4, 16) if memory < 96 else (8, 16)
    large = RAW * chunks >= 100e6 * 768 * 4
    return (
        Pods("stream node", *few.get(units, (max(2, ceil(units * 2 / 8)), 8, 32))),
        Pods("proxy", 1, *size), Pods("coordinator", 1, *size), Pods("data node", builders, *builder),
        Pods("etcd", 3, 1, 8 if large else 4), Pods("minio", 4, 1, 8),
        Pods("pulsar bookie", 3, *((2, 16) if large else (1, 8))),
        Pods("pulsar broker", 2, *((2, 8) if large else (1, 4))),
        Pods("pulsar proxy", 2, 1 if large else 0.5, 4), Pods("zookeeper", 3, 0.5, 4 if large else 2),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """The requirements of one engine, in bytes and seconds; it suffices without `shortfalls`."""

    engine: str
    machines: int
    size: MachineSize  # of each machine
    processes: int  # that answer questions
    memory: float  # of all machines together, as is `disk`
    disk: Mapping[str, float]
    ingestion: Mapping[str, float]  # of all documents, by stage
    ingest_time: float  # in total; a cluster parses and embeds while it writes
    question: Mapping[str, float]  # of one question alone, by stage, without a language model
    latency: float
    capacity: float  # questions/s
    generation: GenerationPlan | None
    ingest_machines: int = 0  # additional ones, only during ingestion
    pods: tuple[Pods, ...] = ()
    shortfalls: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # needed, available


class Predictor:
    """The plan of each engine for `chunks` chunks, which take `parse` core seconds to parse."""

    def __init__(self, constants: Constants, options: PlanOptions) -> None:
        self.constants, self.options, self.costs = constants, options, constants.costs
        sample = constants.documents(options.kind)
        chunks = options.documents * (options.chunks_per_document or sample.chunks / sample.files)
        if options.megabytes:
            chunks = options.megabytes * 1e6 * sample.chunks / sample.size
        self.chunks = max(1, round(chunks))
        self.parse = self.chunks * sample.seconds / sample.chunks
        self.machine, self.generation = None, None
        if options.cores and options.memory:
            self.machine = MachineSize(options.cores, options.memory * GB)
        if options.model:
            self.generation = generation_plan(self.costs, options.model, options.gpu, options.qps)

    def plans(self) -> tuple[EnginePlan, ...]:
        """The plans, from the smallest engine to the largest."""
        machine = self.machine or self.constants.machine
        local = self._single("local", 1, machine.cores, machine)
        return local, self._replicas(), self._milvus()

    def question(self) -> dict[str, float]:
        """Seconds of each stage of a question with the local store."""
        costs, chunks = self.costs, self.chunks
        words = costs.words + costs.posting * min(costs.postings * chunks, WORD_FIELDS * POSTINGS)
        return {
            "embed": costs.embed_question, "vectors": costs.vectors + costs.scan * chunks,
            "words": words, "fuse": costs.fuse, "extract": costs.extract,
        }  # fmt: skip

    def _replicas(self) -> EnginePlan:
        largest, costs = self.machine or LARGEST, self.costs
        rate = costs.parallel / sum(self.question().values())
        processes = max(2, ceil(self.options.qps / (UTILIZATION * rate)))
        left = self.options.days * DAY - self.parse - self.chunks * costs.write
        embed = self.chunks * costs.embed / costs.scaling
        cores = min(ceil(embed / left), largest.cores) if left > 0 else largest.cores
        return self._single("replicas", processes, max(PROCESS_CORES * processes, cores), largest)

    def _single(self, engine: str, processes: int, cores: int, largest: MachineSize) -> EnginePlan:
        costs, chunks, question = self.costs, self.chunks, self.question()
        sqlite, words = costs.sqlite * chunks, costs.word_index * chunks
        vectors = costs.vector_index * chunks
        disk = {"sqlite": sqlite, "vectors": vectors, "words": words, "rebuild": vectors + words}
        memory = processes * (costs.process + vectors) + sqlite + words
        if self.generation and not self.generation.gpus:
            memory += self.generation.memory
        embed = chunks * costs.embed / (cores * costs.scaling)
        times = {"parse": self.parse, "embed": embed, "write": chunks * costs.write}
        latency = sum(question.values())
        plan = EnginePlan(
            engine, 1, largest if engine == "local" else MachineSize(cores, memory), processes,
            memory, disk, times, sum(times.values()), question, latency,
            UTILIZATION * processes * costs.parallel / latency, self.generation,
        )  # fmt: skip
        return self._with_shortfalls(plan, largest)

    def _milvus(self) -> EnginePlan:
        costs, chunks, qps, node = self.costs, self.chunks, self.options.qps, self.machine or NODE
        terms, text = costs.terms * POSTING, costs.text * COPIES + ROW
        loaded = (chunks * (INDEX + terms) + 2 * SEGMENT) * SPARE + chunks * text * OFFLOADED
        _, cores, size = next(row for row in QUERY_NODES if loaded / GB < row[0])
        count = ceil(loaded / GB / size)
        search = SEARCHES * SEARCH * chunks  # core seconds a question; segments lie on all nodes
        replicas = max(1, ceil(qps * search / (UTILIZATION * cores * count)))
        query = Pods("query node", replicas * count, cores, size)
        pods = (query, *other_pods(query.cores * query.count, loaded / GB, chunks))
        disk = chunks * (RAW + text + terms + INDEX) + replicas * chunks * text  # SIZING
        question = {"embed": costs.embed_question, "fuse": costs.fuse, "extract": costs.extract}
        rate = costs.parallel / sum(question.values())
        processes = ceil(qps / (UTILIZATION * rate))
        question["search"] = search / (cores * count) + OVERHEAD
        total = sum(each.count * each.cores for each in pods) + processes * PROCESS_CORES
        memory = sum(each.count * each.memory for each in pods) * GB + processes * costs.process
        machines = max(MIN_MACHINES, ceil(total / node.cores), ceil(memory / node.memory))
        speed, embed = node.cores * costs.scaling, chunks * costs.embed
        readers = ceil((self.parse + embed) / (speed * self.options.days * DAY))
        parse, embed = self.parse / (readers * speed), embed / (readers * speed)
        write = chunks * costs.write  # assumed: one process writes, as fast as into the local store
        plan = EnginePlan(
            "milvus", machines, node, processes, memory, {"cluster": disk},
            {"parse": parse, "embed": embed, "write": write}, max(parse + embed, write),
            question, sum(question.values()),
            UTILIZATION * min(query.cores * query.count / search, processes * rate),
            self.generation, readers, pods,
        )  # fmt: skip
        return self._with_shortfalls(plan, MachineSize(node.cores, inf))

    def _with_shortfalls(self, plan: EnginePlan, largest: MachineSize) -> EnginePlan:
        pairs = {
            "memory": (plan.memory, largest.memory), "cores": (plan.size.cores, largest.cores),
            "qps": (self.options.qps, plan.capacity), "latency": (plan.latency, self.options.latency),
            "days": (plan.ingest_time / DAY, self.options.days * 1.001),
        }  # fmt: skip
        short = {name: pair for name, pair in pairs.items() if pair[0] > pair[1]}
        return replace(plan, shortfalls=short)
