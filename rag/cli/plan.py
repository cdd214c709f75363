"""`rag plan`: memory, disk, time and machines for so many documents and questions a second."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ingest.errors import UserError
from rag.cli.console import note, out, out_json, say, table
from rag.cli.paths import cache_home

if TYPE_CHECKING:
    from rag.plan.constants import Constants
    from rag.plan.generation import Gpu
    from rag.plan.load import Load
    from rag.plan.model import Plan


CONSTANTS = "constants.json"
CORPORA = Path(__file__).parents[2] / "corpora"


def plan(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PATH]...",
            help=say(
                "With --measure: documents like those to come; without, the ones of corpora/.",
                "配合 --measure：与将来相似的文档；不给则用自带的 corpora/。",
            ),
        ),
    ] = None,
    documents: Annotated[
        int | None, typer.Option(help=say("How many documents.", "文档数。"), metavar="N")
    ] = None,
    qps: Annotated[
        float, typer.Option(help=say("Questions a second.", "每秒问题数。"), metavar="Q")
    ] = 1.0,
    chunks_per_document: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help=say("Chunks a document; else as measured.", "每个文档的块数；默认按实测。"),
        ),
    ] = None,
    megabytes: Annotated[
        float | None,
        typer.Option(
            metavar="MB", help=say("Or: the size of all files together.", "或：全部文件的总大小。")
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help=say(
                "What they are, such as pdf or pdf+ocr; else a mixture as measured.",
                "文档类型，如 pdf 或 pdf+ocr；默认为实测的混合。",
            ),
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="local|replicas|milvus", help=say("Show one engine alone.", "只显示一种引擎。")
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            metavar="none|BILLIONS",
            help=say(
                "A language model that writes the answers, by its billions of parameters.",
                "撰写回答的语言模型，以十亿参数计。",
            ),
        ),
    ] = "none",
    gpu: Annotated[
        str, typer.Option(metavar="a100|h200", help=say("Where it runs.", "它所用的显卡。"))
    ] = "a100",
    cores: Annotated[
        int | None,
        typer.Option(
            help=say("Cores of a machine, with --memory.", "机器的核数（配合 --memory）。")
        ),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            metavar="GB",
            help=say("Memory of a machine, with --cores.", "机器的内存（配合 --cores）。"),
        ),
    ] = None,
    latency: Annotated[
        float,
        typer.Option(
            metavar="S",
            help=say(
                "Seconds that a question may take, without a language model.",
                "一个问题可用的秒数（不含语言模型）。",
            ),
        ),
    ] = 0.5,
    days: Annotated[
        float,
        typer.Option(
            metavar="D",
            help=say("Days in which the documents are to be read.", "读入全部文档可用的天数。"),
        ),
    ] = 7.0,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help=say(
                "Measure this machine's constants and keep them; best while it does nothing else.",
                "测量本机的常数并保存；最好在机器空闲时进行。",
            ),
        ),
    ] = False,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help=say(
                "With --measure: up to 1,000,000 chunks (4 GB of disk, some 15 minutes).",
                "配合 --measure：直到 1,000,000 块（4 GB 磁盘，约 15 分钟）。",
            ),
        ),
    ] = False,
    constants: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=say(
                "The file of constants to read, or to write with --measure.",
                "要读取的常数文件；配合 --measure 则写入其中。",
            ),
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help=say("One JSON value.", "输出一个 JSON 值。"))
    ] = False,
) -> None:
    kept = cache_home() / CONSTANTS
    if measure:
        _measure(paths, constants or kept, full=full)
        return
    if paths or full:
        raise UserError(
            "documents and --full belong to --measure; a plan wants --documents N --qps Q",
            zh="文档路径和 --full 用于 --measure；规划请用 --documents N --qps Q",
        )
    if documents is None:
        raise UserError(
            "name how many documents: rag plan --documents N --qps Q; or measure: rag plan --measure",
            zh="请给出文档数：rag plan --documents N --qps Q；或测量本机：rag plan --measure",
        )
    from rag.plan.constants import Constants, shipped
    from rag.plan.generation import GPUS
    from rag.plan.load import Load
    from rag.plan.model import ENGINES, GB, Limits, Size, first, plans

    if gpu not in GPUS or engine not in (None, *ENGINES):
        name, value, known = (
            ("--gpu", gpu, GPUS) if gpu not in GPUS else ("--engine", engine, ENGINES)
        )
        raise UserError(
            f"{name} is {value}; need one of {', '.join(known)}",
            zh=f"{name} 为 {value}；应为以下之一：{', '.join(known)}",
        )
    if (cores is None) != (memory is None):
        raise UserError(
            "--cores and --memory describe a machine together; name both",
            zh="--cores 与 --memory 一起描述一台机器；请同时给出",
        )
    own = constants or (kept if kept.exists() else None)
    measured = Constants.read(own) if own else shipped()
    load = Load.of(
        measured,
        documents=documents,
        qps=qps,
        chunks_per_document=chunks_per_document,
        megabytes=megabytes,
        kind=kind,
        model=_billions(model),
    )
    size = Size(cores, memory * GB) if cores is not None and memory is not None else None
    made = plans(measured, load, Limits(latency, days, size), gpu=GPUS[gpu])
    best = first(made)
    shown = [each for name, each in made.items() if engine in (None, name)]
    if as_json:
        out_json(
            {
                "constants": {"file": str(own) if own else None, "date": measured.date}
                | asdict(measured.machine),
                "load": asdict(load),
                "plans": [asdict(each) | {"simulated": each.simulated} for each in shown],
                "first": None if best.problems else best.engine,
            }
        )
        return
    show(load, measured, own, shown, best, GPUS[gpu])


plan.__doc__ = say(
    "Memory, disk, time and machines for so many documents and questions, engine by engine.",
    "给定文档数和每秒问题数，各引擎所需的内存、磁盘、时间和机器。",
)


def _measure(paths: list[Path] | None, file: Path, *, full: bool) -> None:
    from importlib.util import find_spec

    from rag.plan.measure import FULL, QUICK, measure

    found = measure(
        paths or sorted(CORPORA.glob("*/docs")),
        cache=cache_home(),
        tell=lambda en, zh: note(say(en, zh)),
        effort=FULL if full else QUICK,
        ocr=find_spec("rapidocr") is not None,
    )
    found.write(file)
    note(say(f"kept in {file}", f"已保存到 {file}"))
    rows = [
        (name, f"{kind.files}", f"{kind.chunks}", f"{1e6 * kind.seconds / kind.size:.2g}")
        for name, kind in found.kinds.items()
    ]
    head = [say("kind", "类型"), say("files", "文件"), say("chunks", "块"), say("s/MB", "秒/MB")]
    table("", head, rows)
    costs = found.costs
    all_cores = found.machine.cores / costs.embed_all
    out(
        say(
            f"chunks/s: {1 / costs.embed:.0f} embedded on a core ({costs.flops / costs.embed / 1e9:.0f} "
            f"GFLOP/s), {all_cores:.0f} on {found.machine.cores}, {1 / costs.write:,.0f} "
            f"written; bytes a chunk: {costs.truth:,.0f} kb.sqlite, {costs.words:,.0f} words, "
            f"{costs.codes:.0f} codes",
            f"每秒块数：单核向量化 {1 / costs.embed:.0f}（{costs.flops / costs.embed / 1e9:.0f} GFLOP/s），"
            f"{found.machine.cores} 核 {all_cores:.0f}，写入 {1 / costs.write:,.0f}；每块字节："
            f"kb.sqlite {costs.truth:,.0f}，词索引 {costs.words:,.0f}，编码 {costs.codes:.0f}",
        )
    )


def _billions(model: str) -> float:
    if model == "none":
        return 0.0
    try:
        size = float(model.lower().removesuffix("b"))
    except ValueError:
        size = 0.0
    if not size > 0:
        raise UserError(
            f"--model is {model}; need none, or billions of parameters such as 6 or 9",
            zh=f"--model 为 {model}；应为 none，或十亿参数数，如 6 或 9",
        )
    return size


TITLES = {
    "local": ("local store", "本地库"),
    "replicas": ("replicas", "多副本"),
    "milvus": ("Milvus *", "Milvus *"),
}
READING = {
    "parse": ("parse, cut", "解析、切块"),
    "embed": ("embed", "向量化"),
    "write": ("write", "写入"),
}
ASKING = {
    "question": ("its vector", "问题向量"),
    "vectors": ("search vectors", "向量检索"),
    "words": ("search words", "词检索"),
    "search": ("search all", "全部检索"),
    "rank": ("fuse, fetch", "融合、取文"),
    "answer": ("pick sentences", "选取句子"),
}
GB = 2**30


def show(
    load: "Load",
    constants: "Constants",
    own: Path | None,
    shown: "Sequence[Plan]",
    best: "Plan",
    gpu: "Gpu",
) -> None:
    """The load, the plans side by side, and the first that suffices of all."""
    out(
        say(
            f"{load.documents:,} documents, {load.chunks:,} chunks, {load.qps:,g} questions/s",
            f"{load.documents:,} 个文档，{load.chunks:,} 块，每秒 {load.qps:,g} 个问题",
        )
    )
    out(whose(constants, own))
    table("", ["", *(say(*TITLES[plan.engine]) for plan in shown)], rows(shown, gpu))
    if any(plan.simulated for plan in shown):
        out(
            say(
                "* simulated from Milvus' published sizing, not measured; pods: ",
                "* 由 Milvus 公布的容量公式推算，并非实测；容器：",
            )
            + "; ".join(
                f"{pods.count} {pods.name} × {pods.cores:g}, {pods.memory:g} GB"
                for plan in shown
                for pods in plan.pods
            )
        )
    if any(plan.writing and plan.writing.gpus for plan in shown):
        out(
            say(
                f"* {gpu.name}: simulated, at half of its data sheet's rates",
                f"* {gpu.name}：按数据手册速率的一半推算",
            )
        )
    title = say(*TITLES[best.engine]).removesuffix(" *")
    if best.problems:
        out(say("none of the engines suffices", "各引擎都不满足要求"))
    else:
        out(say(f"first that suffices: {title}", f"最小的够用引擎：{title}"))


def whose(constants: "Constants", own: Path | None) -> str:
    """Where and when the constants were measured, and how to get one's own."""
    machine = constants.machine
    there = f"{machine.cores} × {machine.cpu}, {machine.memory / GB:.1f} GB, {constants.date}"
    if own:
        return say(f"constants: {own}, measured on {there}", f"常数：{own}，测于 {there}")
    return say(
        f"constants: those shipped, measured on {there}; your machine's: rag plan --measure",
        f"常数：随程序附带，测于 {there}；测量本机：rag plan --measure",
    )


def rows(shown: "Sequence[Plan]", gpu: "Gpu") -> list[list[str]]:
    """A row a quantity, a cell an engine."""
    found = [
        [say("machines", "机器"), *map(machines, shown)],
        [say("answering processes", "应答进程"), *(f"{plan.processes:,}" for plan in shown)],
        [say("memory", "内存"), *(size(plan.memory) for plan in shown)],
        [say("disk", "磁盘"), *(size(sum(plan.disk.values())) for plan in shown)],
        [say("reading all", "读入全部"), *(duration(plan.read_in) for plan in shown)],
        *_stages(READING, [plan.reading for plan in shown]),
        [say("a question", "一个问题"), *(duration(plan.latency) for plan in shown)],
        *_stages(ASKING, [plan.question for plan in shown]),
        [say("questions/s, up to", "每秒问题上限"), *(f"{plan.capacity:,.2g}" for plan in shown)],
    ]
    if any(plan.writing for plan in shown):
        found.append([say("language model", "语言模型"), *(writing(plan, gpu) for plan in shown)])
    return [*found, [say("suffices", "够用"), *map(verdict, shown)]]


def _stages(
    titles: Mapping[str, tuple[str, str]], found: Sequence[Mapping[str, float]]
) -> list[list[str]]:
    """The stages that any engine has, a little to the right."""
    return [
        [
            f"  {say(*title)}",
            *(duration(stages[name]) if name in stages else "" for stages in found),
        ]
        for name, title in titles.items()
        if any(name in stages for stages in found)
    ]


def machines(plan: "Plan") -> str:
    one = say(
        f"{plan.machines:,} × {plan.size.cores:,} cores, {size(plan.size.memory)}",
        f"{plan.machines:,} × {plan.size.cores:,} 核，{size(plan.size.memory)}",
    )
    if not plan.readers:
        return one
    return one + say(f"; {plan.readers:,} more to read", f"；读入时另加 {plan.readers:,}")


def writing(plan: "Plan", gpu: "Gpu") -> str:
    """How long an answer takes, and on what."""
    made = plan.writing
    if made is None:
        return ""
    seconds = duration(made.seconds)
    if made.gpus:
        return say(
            f"{made.gpus:,} × {gpu.name} *, {seconds}", f"{made.gpus:,} × {gpu.name} *，{seconds}"
        )
    return say(f"int4 on the processor, {seconds}", f"处理器上的 int4，{seconds}")


def verdict(plan: "Plan") -> str:
    if not plan.problems:
        return say("yes", "是")
    why = say(", ".join(p.en for p in plan.problems), "，".join(p.zh for p in plan.problems))
    return say(f"no: {why}", f"否：{why}")


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
