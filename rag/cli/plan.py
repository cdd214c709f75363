"""`rag plan`: memory, disk, time and machines for a number of documents and questions a second."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingest.errors import UserError
from rag.cli.console import out, out_json, say, table

if TYPE_CHECKING:
    from rag.plan import EnginePlan

GB = 2**30
ENGINES = {
    "local": ("local store", "本地库"),
    "replicas": ("replicas", "多副本"),
    "milvus": ("Milvus *", "Milvus *"),
}
STAGES = {
    "parse": ("parse, cut", "解析、切块"),
    "embed": ("embed", "向量化"),
    "write": ("write", "写入"),
    "vectors": ("search vectors", "向量检索"),
    "words": ("search words", "词检索"),
    "search": ("search all", "全部检索"),
    "fuse": ("fuse, fetch", "融合、取文"),
    "extract": ("pick sentences", "选取句子"),
}
SHORTFALLS = {
    "memory": ("memory (GB)", "内存（GB）"),
    "cores": ("cores", "核数"),
    "qps": ("questions/s", "每秒问题"),
    "latency": ("seconds a question", "每个问题秒数"),
    "days": ("days of ingestion", "入库天数"),
}


def _option(metavar: str, en: str, zh: str) -> Any:
    return typer.Option(metavar=metavar, help=say(en, zh))


def plan(
    documents: Annotated[int, _option("N", "How many documents.", "文档数。")],
    qps: Annotated[float, _option("Q", "Questions a second.", "每秒问题数。")] = 1.0,
    chunks_per_document: Annotated[
        float | None,
        _option("X", "Chunks a document; else as measured.", "每个文档的块数；默认按实测。"),
    ] = None,
    megabytes: Annotated[
        float | None, _option("MB", "Or: the size of all files together.", "或：全部文件的总大小。")
    ] = None,
    kind: Annotated[
        str | None,
        _option(
            "KIND",
            "What they are, such as pdf or pdf+ocr; else a mixture as measured.",
            "文档类型，如 pdf 或 pdf+ocr；默认为实测的混合。",
        ),
    ] = None,
    engine: Annotated[
        str | None, _option("local|replicas|milvus", "Show one engine alone.", "只显示一种引擎。")
    ] = None,
    model: Annotated[
        str,
        _option(
            "none|BILLIONS",
            "A language model that writes the answers, by its billions of parameters.",
            "撰写回答的语言模型，以十亿参数计。",
        ),
    ] = "none",
    gpu: Annotated[str, _option("a100|h200", "Where it runs.", "它所用的显卡。")] = "a100",
    cores: Annotated[
        int | None,
        _option("N", "Cores of a machine, with --memory.", "机器的核数（配合 --memory）。"),
    ] = None,
    memory: Annotated[
        float | None,
        _option("GB", "Memory of a machine, with --cores.", "机器的内存（配合 --cores）。"),
    ] = None,
    latency: Annotated[
        float,
        _option(
            "S",
            "Seconds that a question may take, without a language model.",
            "一个问题可用的秒数（不含语言模型）。",
        ),
    ] = 0.5,
    days: Annotated[
        float,
        _option("D", "Days until all documents are ingested, at most.", "全部文档入库可用的天数。"),
    ] = 7.0,
    constants: Annotated[
        Path | None,
        _option(
            "FILE",
            "Constants of another machine, written by benchmarks/plan.py.",
            "另一台机器的常数文件，由 benchmarks/plan.py 生成。",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help=say("One JSON value.", "输出一个 JSON 值。"))
    ] = False,
) -> None:
    if (cores is None) != (memory is None):
        raise UserError(
            "--cores and --memory describe a machine together; give both",
            zh="--cores 与 --memory 一起描述一台机器；请同时给出",
        )
    if chunks_per_document is not None and megabytes is not None:
        raise UserError(
            "--chunks-per-document and --megabytes contradict each other; give one of them",
            zh="--chunks-per-document 与 --megabytes 互相矛盾；请只给出一个",
        )
    from rag.plan import GPUS, Constants, PlanOptions, Predictor

    for name, value, known in (("--gpu", gpu, GPUS), ("--engine", engine or "local", ENGINES)):
        if value not in known:
            names = ", ".join(known)
            raise UserError(
                f"{name} is {value}; need one of {names}",
                zh=f"{name} 为 {value}；应为以下之一：{names}",
            )
    measured = Constants.read(constants)
    options = PlanOptions(
        documents, qps, chunks_per_document, megabytes, kind, _billions(model), gpu, cores, memory,
        latency, days,
    )  # fmt: skip
    predictor = Predictor(measured, options)
    plans = predictor.plans()
    smallest = next((each.engine for each in plans if not each.shortfalls), None)
    shown = [each for each in plans if engine in (None, each.engine)]
    host = {"cpu": measured.cpu, "date": measured.date} | measured.machine._asdict()
    if as_json:
        workload = {"chunks": predictor.chunks, "parse": predictor.parse} | asdict(options)
        host["file"] = str(constants) if constants else None
        rows = [_as_json(each) for each in shown]
        out_json({"constants": host, "workload": workload, "plans": rows, "smallest": smallest})
        return
    chunks, total = predictor.chunks, size(measured.machine.memory)
    machine = f"{measured.machine.cores} × {measured.cpu}, {total}, {measured.date}"
    out(
        say(
            f"{documents:,} documents, {chunks:,} chunks, {qps:,g} questions/s",
            f"{documents:,} 个文档，{chunks:,} 块，每秒 {qps:,g} 个问题",
        )
    )
    source = constants or say(
        "shipped (--constants FILE for others)", "随程序附带（可用 --constants 文件）"
    )
    out(say(f"constants: {source}, measured on {machine}", f"常数：{source}，测于 {machine}"))
    table("", ["", *(say(*ENGINES[each.engine]) for each in shown)], _rows(shown, GPUS[gpu][0]))
    _footnotes(shown, GPUS[gpu][0])
    if smallest is None:
        out(say("none of the engines suffices", "各引擎都不满足要求"))
    else:
        title = say(*ENGINES[smallest]).removesuffix(" *")
        out(say(f"first that suffices: {title}", f"最小的够用引擎：{title}"))


plan.__doc__ = say(
    "Memory, disk, time and machines for so many documents and questions, engine by engine.",
    "给定文档数和每秒问题数，各引擎所需的内存、磁盘、时间和机器。",
)


def _billions(model: str) -> float | None:
    if model == "none":
        return None
    try:
        return float(model.lower().removesuffix("b"))
    except ValueError:
        raise UserError(
            f"--model is {model}; need none, or billions of parameters such as 6 or 9",
            zh=f"--model 为 {model}；应为 none，或十亿参数数，如 6 或 9",
        ) from None


def _as_json(plan: "EnginePlan") -> dict[str, Any]:
    generation = plan.generation._asdict() if plan.generation else None
    parts = {"size": plan.size._asdict(), "generation": generation}
    return asdict(plan) | parts | {"simulated": plan.engine == "milvus"}


def _rows(shown: "Sequence[EnginePlan]", gpu: str) -> list[list[str]]:
    """A row for each quantity, a cell for each engine."""

    def row(en: str, zh: str, cell: "Callable[[EnginePlan], str]") -> list[str]:
        return [say(en, zh), *map(cell, shown)]

    def stages(times: Sequence[Mapping[str, float]]) -> list[list[str]]:
        names = [name for name in STAGES if any(name in each for each in times)]
        return [
            [f"  {say(*STAGES[name])}"]
            + [duration(each[name]) if name in each else "" for each in times]
            for name in names
        ]

    rows = [
        row("machines", "机器", _machines),
        row("answering processes", "应答进程", lambda plan: f"{plan.processes:,}"),
        row("memory", "内存", lambda plan: size(plan.memory)),
        row("disk", "磁盘", lambda plan: size(sum(plan.disk.values()))),
        row("ingesting all", "全部入库", lambda plan: duration(plan.ingest_time)),
        *stages([plan.ingestion for plan in shown]),
        row("a question", "一个问题", lambda plan: duration(plan.latency)),
        *stages([plan.question for plan in shown]),
        row("questions/s, up to", "每秒问题上限", lambda plan: f"{plan.capacity:,.2g}"),
    ]
    if any(plan.generation for plan in shown):
        rows.append(row("language model", "语言模型", lambda plan: _generation(plan, gpu)))
    return [*rows, row("suffices", "够用", _sufficiency)]


def _machines(plan: "EnginePlan") -> str:
    text = say(
        f"{plan.machines:,} × {plan.size.cores:,} cores, {size(plan.size.memory)}",
        f"{plan.machines:,} × {plan.size.cores:,} 核，{size(plan.size.memory)}",
    )
    if not plan.ingest_machines:
        return text
    count = plan.ingest_machines
    return text + say(f"; {count:,} more to ingest", f"；入库时另加 {count:,}")


def _generation(plan: "EnginePlan", gpu: str) -> str:
    """How long an answer takes, and on what."""
    if plan.generation is None:
        return ""
    seconds, gpus = duration(plan.generation.seconds), plan.generation.gpus
    if gpus:
        return say(f"{gpus:,} × {gpu} *, {seconds}", f"{gpus:,} × {gpu} *，{seconds}")
    return say(f"int4 on the processor, {seconds}", f"处理器上的 int4，{seconds}")


def _sufficiency(plan: "EnginePlan") -> str:
    if not plan.shortfalls:
        return say("yes", "是")
    reasons = []
    for name, (needed, available) in plan.shortfalls.items():
        unit = GB if name == "memory" else 1
        text = f"{needed / unit:,.3g} > {available / unit:,.3g}"
        reasons.append(f"{say(*SHORTFALLS[name])} {text}")
    return say(f"no: {', '.join(reasons)}", f"否：{'，'.join(reasons)}")


def _footnotes(shown: "Sequence[EnginePlan]", gpu: str) -> None:
    for plan in shown:
        if plan.pods:
            pods = "; ".join(
                f"{p.count} {p.name} × {p.cores:g}, {p.memory:g} GB" for p in plan.pods
            )
            out(
                say(
                    f"* simulated from Milvus' published sizing, not measured; pods: {pods}",
                    f"* 由 Milvus 公布的容量公式推算，并非实测；容器：{pods}",
                )
            )
    if any(plan.generation and plan.generation.gpus for plan in shown):
        out(
            say(
                f"* {gpu}: simulated, at half of its data sheet's rates",
                f"* {gpu}：按数据手册速率的一半推算",
            )
        )


def size(count: float) -> str:
    """`3.1 GB`, of 2^30 bytes; two digits."""
    for unit, factor in (("PB", 2**50), ("TB", 2**40), ("GB", GB)):
        if count >= factor:
            return f"{digits(count / factor)} {unit}"
    return f"{digits(count / 2**20)} MB"


def duration(seconds: float) -> str:
    """`36 ms`, `1.5 h`; two digits."""
    day = 86_400
    for least, unit, unit_zh, factor in (
        (365 * day, "years", "年", 365 * day),
        (2 * day, "days", "天", day),
        (7200, "h", "小时", 3600),
        (120, "min", "分钟", 60),
        (1, "s", "秒", 1),
    ):
        if seconds >= least:
            return say(
                f"{digits(seconds / factor)} {unit}", f"{digits(seconds / factor)} {unit_zh}"
            )
    return say(f"{digits(seconds * 1000)} ms", f"{digits(seconds * 1000)} 毫秒")


def digits(number: float) -> str:
    """Two digits of a number, more of one above 100: 0.36, 3.1, 47, 1,234."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
