"""`rag plan`: memory, disk, time and machines for a number of documents and questions a second."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.cli.console import out_json, out_message, say, table
from rag.cli.options import JSON, option, with_options

if TYPE_CHECKING:
    from rag.plan import EnginePlan

GB = 2**30
ENGINES = {
    "local": Translatable("local store"),
    "replicas": Translatable("replicas"),
    "milvus": Translatable("Milvus *"),
}
STAGES = {
    "parse": Translatable("parse, chunk"),
    "embed": Translatable("embed"),
    "write": Translatable("write"),
    "vectors": Translatable("search vectors"),
    "words": Translatable("search words"),
    "search": Translatable("search all"),
    "fuse": Translatable("fuse, fetch"),
    "extract": Translatable("pick sentences"),
}
SHORTFALLS = {
    "memory": Translatable("memory (GB)"),
    "cores": Translatable("cores"),
    "qps": Translatable("questions/s"),
    "latency": Translatable("seconds a question"),
    "days": Translatable("days of ingestion"),
}


@dataclass(frozen=True, kw_only=True)
class PlanArguments:
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
    model: str = option(
        "--model none|BILLIONS",
        "Size of the language model that writes the answers, in billions of parameters.",
        default="none",
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


@with_options("Estimate memory, disk, time and machines for a number of documents and questions, per engine.")
def plan(*, arguments: PlanArguments, as_json: bool = JSON) -> None:
    values: dict[str, Any] = vars(arguments) | {"model": _billions(arguments.model)}
    file, engine, gpu = values.pop("constants"), values.pop("engine"), arguments.gpu
    if (arguments.cores is None) != (arguments.memory is None):
        raise UserError("--cores and --memory describe a machine together; give both")
    if arguments.chunks_per_document is not None and arguments.megabytes is not None:
        raise UserError("--chunks-per-document and --megabytes contradict each other; give one of them")
    from rag.plan import GPUS, Constants, PlanOptions, Predictor

    for name, value, known in (("--gpu", gpu, GPUS), ("--engine", engine or "local", ENGINES)):
        if value not in known:
            names = ", ".join(known)
            raise UserError("{name} is {value}; need one of {names}", name=name, value=value, names=names)
    constants = Constants.read(file)
    options = PlanOptions(**values)
    predictor = Predictor(constants, options)
    plans = predictor.plans()
    smallest = next((each.engine for each in plans if not each.shortfalls), None)
    shown = [each for each in plans if engine in (None, each.engine)]
    host = {"cpu": constants.cpu, "date": constants.date} | constants.machine._asdict()
    if as_json:
        workload = {"chunks": predictor.chunks, "parse": predictor.parse} | asdict(options)
        host["file"] = str(file) if file else None
        rows = [_as_json(each) for each in shown]
        out_json({"constants": host, "workload": workload, "plans": rows, "smallest": smallest})
        return
    chunks, total = predictor.chunks, size(constants.machine.memory)
    machine = f"{constants.machine.cores} × {constants.cpu}, {total}, {constants.date}"
    out_message(
        "{documents:,} documents, {chunks:,} chunks, {qps:,g} questions/s",
        documents=options.documents,
        chunks=chunks,
        qps=options.qps,
    )
    source = file or say("shipped (--constants FILE for others)")
    out_message("constants: {source}, measured on {machine}", source=source, machine=machine)
    table("", ["", *(say(ENGINES[each.engine]) for each in shown)], _rows(shown, GPUS[gpu][0]))
    _footnotes(shown, GPUS[gpu][0])
    if smallest is None:
        out_message("none of the engines suffices")
    else:
        title = say(ENGINES[smallest]).removesuffix(" *")
        out_message("smallest that suffices: {title}", title=title)


def _billions(model: str) -> float | None:
    if model == "none":
        return None
    try:
        return float(model.lower().removesuffix("b"))
    except ValueError:
        raise UserError(
            "--model is {model}; need none, or billions of parameters such as 6 or 9", model=model
        ) from None


def _as_json(plan: "EnginePlan") -> dict[str, Any]:
    generation = plan.generation._asdict() if plan.generation else None
    parts = {"size": plan.size._asdict(), "generation": generation}
    return asdict(plan) | parts | {"simulated": plan.engine == "milvus"}


def _rows(shown: "Sequence[EnginePlan]", gpu: str) -> list[list[str]]:
    """A row for each quantity, a cell for each engine."""

    def row(title: Translatable, cell: "Callable[[EnginePlan], str]") -> list[str]:
        return [say(title), *map(cell, shown)]

    def stages(times: Sequence[Mapping[str, float]]) -> list[list[str]]:
        return [
            [f"  {say(title)}"] + [duration(each[name]) if name in each else "" for each in times]
            for name, title in STAGES.items()
            if any(name in each for each in times)
        ]

    rows = [
        row(Translatable("machines"), _machines),
        row(Translatable("answering processes"), lambda plan: f"{plan.processes:,}"),
        row(Translatable("memory"), lambda plan: size(plan.memory)),
        row(Translatable("disk"), lambda plan: size(sum(plan.disk.values()))),
        row(Translatable("ingesting all"), lambda plan: duration(plan.ingest_time)),
        *stages([plan.ingestion for plan in shown]),
        row(Translatable("a question"), lambda plan: duration(plan.latency)),
        *stages([plan.question for plan in shown]),
        row(Translatable("questions/s, up to"), lambda plan: f"{plan.capacity:,.2g}"),
    ]
    if any(plan.generation for plan in shown):
        rows.append(row(Translatable("language model"), lambda plan: _generation(plan, gpu)))
    return [*rows, row(Translatable("suffices"), _sufficiency)]


def _machines(plan: "EnginePlan") -> str:
    cores, memory = plan.size.cores, size(plan.size.memory)
    text = say(
        "{machines:,} × {cores:,} cores, {memory}",
        machines=plan.machines, cores=cores, memory=memory,
    )  # fmt: skip
    count = plan.ingest_machines
    return text + say("; {count:,} more to ingest", count=count) if count else text


def _generation(plan: "EnginePlan", gpu: str) -> str:
    """How long an answer takes, and on what."""
    if plan.generation is None:
        return ""
    seconds, gpus = duration(plan.generation.seconds), plan.generation.gpus
    if gpus:
        return say("{gpus:,} × {gpu} *, {seconds}", gpus=gpus, gpu=gpu, seconds=seconds)
    return say("int4 on the processor, {seconds}", seconds=seconds)


def _sufficiency(plan: "EnginePlan") -> str:
    if not plan.shortfalls:
        return say("yes")
    reasons = []
    for name, (needed, available) in plan.shortfalls.items():
        unit = GB if name == "memory" else 1
        comparison = f"{needed / unit:,.3g} > {available / unit:,.3g}"
        reasons.append(f"{say(SHORTFALLS[name])} {comparison}")
    return say("no: {reasons}", reasons=reasons)


def _footnotes(shown: "Sequence[EnginePlan]", gpu: str) -> None:
    for plan in shown:
        if plan.pods:
            each = (f"{p.count} {p.name} × {p.cores:g}, {p.memory:g} GB" for p in plan.pods)
            out_message(
                "* simulated from Milvus' published sizing, not measured; pods: {pods}", pods="; ".join(each)
            )
    if any(plan.generation and plan.generation.gpus for plan in shown):
        out_message("* {gpu}: simulated, at half of its data sheet's rates", gpu=gpu)


def size(count: float) -> str:
    """`3.1 GB`, of 2^30 bytes; two digits."""
    for unit, factor in (("PB", 2**50), ("TB", 2**40), ("GB", GB)):
        if count >= factor:
            return f"{digits(count / factor)} {unit}"
    return f"{digits(count / 2**20)} MB"


def duration(seconds: float) -> str:
    """`36 ms`, `1.5 h`; two digits."""
    day = 86_400
    for least, unit, factor in (
        (365 * day, Translatable("years"), 365 * day),
        (2 * day, Translatable("days"), day),
        (7200, Translatable("h"), 3600),
        (120, Translatable("min"), 60),
        (1, Translatable("s"), 1),
    ):
        if seconds >= least:
            return f"{digits(seconds / factor)} {say(unit)}"
    return say("{seconds} ms", seconds=digits(seconds * 1000))


def digits(number: float) -> str:
    """Two digits of a number, more of one above 100: 0.36, 3.1, 47, 1,234."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
