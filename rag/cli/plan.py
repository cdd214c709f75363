"""`rag plan`: memory, disk, time and machines of a knowledge base, predicted from measured constants.

docs/scale.md says what the model assumes, `sizing.toml` where figures come from that were not measured.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from math import ceil, inf
from pathlib import Path
from typing import Any, NamedTuple

from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.cli.console import out_json, out_message, say, table
from rag.cli.options import JSON, option, with_options

FORMAT = "chatglm-rag constants 2"
GB, DAY = 2**30, 86_400
UTILIZATION = 0.7  # of a process or core, so that questions rarely queue
PROCESS_CORES = 2  # used by a process of `rag serve`, its encoder included
WORD_FIELDS = 2  # words and bigrams
MAXIMUM = 1e12  # of all numbers
SIZING = tomllib.loads(files("rag").joinpath("sizing.toml").read_text("utf-8"))
GPUS = SIZING["gpus"]
ENGINES = {
    "local": Translatable("local store"), "replicas": Translatable("replicas"), "milvus": "Milvus"
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class MachineSize:
    cores: int
    memory: float  # bytes


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
            formats = {name: FormatCosts(**row) for name, row in value["formats"].items()}
            rows = [value["machine"], value["costs"], *value["formats"].values()]
            positive = all(0 < number < inf for row in rows for number in row.values())
            if value["format"] != FORMAT or not formats or not positive:
                raise UserError("it needs the format {format!r}, documents, numbers above 0", format=FORMAT)
            machine, costs = MachineSize(**value["machine"]), Costs(**value["costs"])
            return cls(value["cpu"], value["date"], machine, formats, costs)
        except (UserError, OSError, ValueError, TypeError, KeyError, AttributeError) as problem:
            raise UserError(
                "{path} is not a valid file of constants ({problem}); write one: benchmarks/plan.py",
                path=path, problem=getattr(problem, "message", problem),
            ) from problem  # fmt: skip


def billions(model: str) -> float | None:
    """The number that is typed for --model, with or without a B; None for `none`."""
    try:
        return None if model == "none" else float(model.lower().removesuffix("b"))
    except ValueError:
        raise UserError(
            "--model is {model}; need none, or billions of parameters such as 6 or 9", model=model
        ) from None


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Documents and requirements. Raises `UserError` if a number is not in (0, `MAXIMUM`], a name is
    unknown, or two options contradict each other."""

    documents: int = option("--documents N", "Number of documents.", default=...)
    qps: float = option("--qps Q", "Questions per second.", default=1.0)
    chunks_per_document: float | None = option(
        "--chunks-per-document X", "Chunks per document; default: as measured."
    )
    megabytes: float | None = option(
        "--megabytes MB", "Total size of all files, instead of --chunks-per-document."
    )
    kind: str | None = option(
        "--kind KIND", "Kind of the documents, such as pdf or pdf+ocr; default: a mixture, as measured."
    )
    engine: str | None = option("--engine local|replicas|milvus", "Show only this engine.")
    model: float | None = option(
        "--model none|BILLIONS", "Billions of parameters of the answering model.", typed="none", read=billions
    )
    gpu: str = option("--gpu a100|h200", "GPU of the language model.", default="a100")
    cores: int | None = option("--cores N", "Cores per machine; needs --memory.")
    memory: float | None = option("--memory GB", "Memory per machine; needs --cores.")
    latency: float = option(
        "--latency S", "Maximum seconds per question, not counting the language model.", default=0.5
    )
    days: float = option("--days D", "Maximum number of days to ingest all documents.", default=7.0)
    constants: Path | None = option(
        "--constants FILE", "Constants of another machine, written by benchmarks/plan.py."
    )

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, (int, float)) and not 0 < value <= MAXIMUM:
                raise UserError(
                    "{option} is {value:g}; need more than 0 and at most {most:g}",
                    option=f"--{name.replace('_', '-')}", value=value, most=MAXIMUM,
                )  # fmt: skip
        for flag, value, known in (("--gpu", self.gpu, GPUS), ("--engine", self.engine, ENGINES)):
            if value not in (None, *known):
                names = ", ".join(known)
                raise UserError("{name} is {value}; need one of {names}", name=flag, value=value, names=names)
        if (self.cores is None) != (self.memory is None):
            raise UserError("--cores and --memory describe a machine together; give both")
        if self.chunks_per_document is not None and self.megabytes is not None:
            raise UserError("--chunks-per-document and --megabytes contradict each other; give one of them")


class GenerationPlan(NamedTuple):
    seconds: float  # of an answer alone
    memory: float  # bytes of weights
    gpus: int  # 0: the processor of the machine that answers


def generation_plan(costs: Costs, billions: float, gpu: str, qps: float) -> GenerationPlan:
    """An int4 model on the measured processor, one answer at a time, if that is fast enough;
    otherwise a 16-bit model in a batching engine, on as many GPUs as `qps` needs."""
    answer, card = SIZING["answer"], GPUS[gpu]
    if costs.int4_flops and costs.int4_bandwidth:
        weights = billions * 1e9 * answer["int4"]
        prompt = answer["prompt"] * 2e9 * billions / costs.int4_flops
        seconds = prompt + answer["length"] * weights / costs.int4_bandwidth
        if 1 / seconds >= qps:
            return GenerationPlan(seconds, weights, 0)
    weights = 2e9 * billions
    shards = ceil(weights / (0.8 * card["memory"]))  # tensor parallel: the rest is for the KV cache
    flops, bandwidth = (shards * answer["gpu_share"] * card[rate] for rate in ("flops", "bandwidth"))
    prompt = answer["prompt"] * weights / flops
    context = (answer["prompt"] + answer["length"] / 2) * answer["kv_cache"] * billions
    batch = max(1, min(answer["batch"], int((shards * 0.9 * card["memory"] - weights) / context)))
    step = max((weights + batch * context) / bandwidth, batch * weights / flops)
    rate = 1 / (prompt + answer["length"] * step / batch)
    alone = prompt + answer["length"] * (weights + context) / bandwidth
    return GenerationPlan(alone, weights, shards * ceil(qps / (UTILIZATION * rate)))


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """The requirements of one engine, in bytes and seconds; it suffices without `shortfalls`."""

    engine: str
    machines: int
    size: MachineSize  # of each machine
    processes: int  # that answer questions
    memory: float  # of all machines together, as is `disk`
    disk: float
    ingest_time: float  # of all documents; a cluster parses and embeds while it writes
    latency: float  # of one question alone, without a language model
    capacity: float  # questions/s
    ingest_machines: int = 0  # additional ones, only during ingestion
    shortfalls: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """What is needed, and what is available, by the name and in the unit of an option."""


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
        cores, memory = options.cores, options.memory
        self.machine = MachineSize(cores, memory * GB) if cores and memory else None
        model = options.model
        self.generation = generation_plan(self.costs, model, options.gpu, options.qps) if model else None

    def plans(self) -> tuple[EnginePlan, ...]:
        """The plans, from the smallest engine to the largest."""
        costs, machine = self.costs, self.machine or self.constants.machine
        largest = self.machine or MachineSize(64, 512 * GB)  # one that can be rented everywhere
        rate = UTILIZATION * costs.parallel / sum(self.question().values())
        processes = max(2, ceil(self.options.qps / rate))
        embed = self.chunks * costs.embed / costs.scaling
        left = self.options.days * DAY - self.parse - self.chunks * costs.write
        cores = min(ceil(embed / left), largest.cores) if left > 0 else largest.cores
        return (
            self._single("local", 1, machine.cores, machine),
            self._single("replicas", processes, max(PROCESS_CORES * processes, cores), largest),
            self._milvus(),
        )

    def question(self) -> dict[str, float]:
        """Seconds of each stage of a question with the local store."""
        from ingest.store.word_index import POSTINGS

        costs, chunks = self.costs, self.chunks
        words = costs.words + costs.posting * min(costs.postings * chunks, WORD_FIELDS * POSTINGS)
        return {
            "embed": costs.embed_question, "vectors": costs.vectors + costs.scan * chunks,
            "words": words, "fuse": costs.fuse, "extract": costs.extract,
        }  # fmt: skip

    def _single(self, engine: str, processes: int, cores: int, largest: MachineSize) -> EnginePlan:
        costs, chunks = self.costs, self.chunks
        disk = chunks * (costs.sqlite + 2 * (costs.word_index + costs.vector_index))  # 2: a rebuild
        memory = processes * (costs.process + costs.vector_index * chunks)
        memory += chunks * (costs.sqlite + costs.word_index)
        if self.generation and not self.generation.gpus:
            memory += self.generation.memory
        embed = chunks * costs.embed / (cores * costs.scaling)
        latency = sum(self.question().values())
        plan = EnginePlan(
            engine, 1, largest if engine == "local" else MachineSize(cores, memory), processes,
            memory, disk, self.parse + embed + chunks * costs.write, latency,
            UTILIZATION * processes * costs.parallel / latency,
        )  # fmt: skip
        return self._with_shortfalls(plan, largest)

    def _milvus(self) -> EnginePlan:
        costs, chunks, qps = self.costs, self.chunks, self.options.qps
        node = self.machine or MachineSize(16, 64 * GB)
        milvus: dict[str, Any] = SIZING["milvus"]
        terms, text = costs.terms * milvus["posting"], costs.text * milvus["copies"] + milvus["row"]
        index = chunks * (milvus["index"] + terms) + milvus["segments"]
        loaded = (index * milvus["spare"] + chunks * text * milvus["offloaded"]) / GB
        cores, memory, *workers = next(row[1:] for row in milvus["nodes"] if loaded < row[0])
        count = ceil(loaded / memory)
        search = milvus["search"] * chunks  # core seconds a question; segments lie on all nodes
        replicas = max(1, ceil(qps * search / (UTILIZATION * cores * count)))
        disk = chunks * (milvus["raw"] + text + terms + milvus["index"]) + replicas * chunks * text
        nodes, units = replicas * count, ceil(replicas * count * cores / 16)
        streams = 2 * units if units < 3 else 8 * ceil(units / 4)  # cores of the streaming nodes
        storage = milvus["storage" if milvus["raw"] * chunks < milvus["many"] else "large_storage"]
        local = costs.embed_question + costs.fuse + costs.extract
        processes = ceil(qps * local / (UTILIZATION * costs.parallel))
        total = nodes * cores + streams + workers[0] + storage[0] + processes * PROCESS_CORES
        memory = (nodes * memory + 4 * streams + workers[1] + storage[1]) * GB + processes * costs.process
        machines = max(milvus["machines"], ceil(total / node.cores), ceil(memory / node.memory))
        speed, ingestion = node.cores * costs.scaling, self.parse + chunks * costs.embed
        readers = ceil(ingestion / (speed * self.options.days * DAY))
        write = chunks * costs.write  # assumed: one process writes, as fast as into the local store
        plan = EnginePlan(
            "milvus", machines, node, processes, memory, disk, max(ingestion / (readers * speed), write),
            local + search / (cores * count) + milvus["overhead"],
            UTILIZATION * min(nodes * cores / search, processes * costs.parallel / local), readers,
        )  # fmt: skip
        return self._with_shortfalls(plan, MachineSize(node.cores, inf))

    def _with_shortfalls(self, plan: EnginePlan, largest: MachineSize) -> EnginePlan:
        pairs = {
            "memory": (plan.memory / GB, largest.memory / GB), "cores": (plan.size.cores, largest.cores),
            "qps": (self.options.qps, plan.capacity), "latency": (plan.latency, self.options.latency),
            "days": (plan.ingest_time / DAY, self.options.days * 1.001),
        }  # fmt: skip
        short = {name: pair for name, pair in pairs.items() if pair[0] > pair[1]}
        return replace(plan, shortfalls=short)


@with_options("Estimate memory, disk, time and machines for a number of documents and questions, per engine.")
def plan(*, options: PlanOptions, as_json: bool = JSON) -> None:
    constants = Constants.read(options.constants)
    predictor = Predictor(constants, options)
    plans, generation = predictor.plans(), predictor.generation
    smallest = next((each.engine for each in plans if not each.shortfalls), None)
    shown = [each for each in plans if options.engine in (None, each.engine)]
    if as_json:
        workload = {"chunks": predictor.chunks, "parse": predictor.parse} | asdict(options)
        host = {"cpu": constants.cpu, "date": constants.date, **asdict(constants.machine)}
        host["file"] = (file := workload.pop("constants")) and str(file)
        model = generation and generation._asdict()
        rows = [{**asdict(plan), "generation": model, "simulated": plan.engine == "milvus"} for plan in shown]
        out_json({"constants": host, "workload": workload, "plans": rows, "smallest": smallest})
        return
    out_message(
        "{documents:,} documents, {chunks:,} chunks, {qps:,g} questions/s; constants: {source}, measured on {machine}",
        documents=options.documents, chunks=predictor.chunks, qps=options.qps,
        source=options.constants or Translatable("shipped (--constants FILE for others)"),
        machine=f"{constants.machine.cores} × {constants.cpu}, {size(constants.machine.memory)}, {constants.date}",
    )  # fmt: skip
    titles = (
        "", say("machines"), say("answering processes"), say("memory"), say("disk"), say("ingesting all"),
        say("a question"), say("questions/s, up to"),
    )  # fmt: skip
    head, *rows = zip(titles, *map(_cells, shown), strict=True)
    table("", head, rows)
    for each in shown:
        for name, (needed, available) in each.shortfalls.items():
            out_message(
                "{engine} falls short: --{name} {needed:,.3g} > {available:,.3g}",
                engine=ENGINES[each.engine], name=name, needed=needed, available=available,
            )  # fmt: skip
    if generation:
        gpus = f"{generation.gpus:,} × {GPUS[options.gpu]['name']} *"
        out_message(
            "language model: {seconds} s an answer, on {processor}", seconds=digits(generation.seconds),
            processor=gpus if generation.gpus else Translatable("the processor, in int4"),
        )  # fmt: skip
    out_message("* simulated from what the makers publish, not measured")
    title = ENGINES[smallest] if smallest else Translatable("none")
    out_message("smallest that suffices: {title}", title=title)


def _cells(plan: EnginePlan) -> list[str]:
    """The column of a plan."""
    machines = say(
        "{machines:,} × {cores:,} cores, {memory}",
        machines=plan.machines, cores=plan.size.cores, memory=size(plan.size.memory),
    )  # fmt: skip
    if plan.ingest_machines:
        machines += say("; {count:,} more to ingest", count=plan.ingest_machines)
    return [
        say(ENGINES[plan.engine]) + (" *" if plan.engine == "milvus" else ""), machines, f"{plan.processes:,}",
        size(plan.memory), size(plan.disk), say("{hours} h", hours=digits(plan.ingest_time / 3600)),
        f"{digits(plan.latency)} s", f"{plan.capacity:,.2g}",
    ]  # fmt: skip


def size(count: float) -> str:
    """`3.1 GB`, of 2^30 bytes; two digits."""
    return f"{digits(count / GB)} GB"


def digits(number: float) -> str:
    """Two digits of a number, more of one above 100: 0.36, 3.1, 47, 1,234."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
