"""What `rag plan` prints: whose constants, a column for each engine, and which of them suffices."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rag.cli.console import out, say, table

if TYPE_CHECKING:
    from rag.plan.constants import Constants
    from rag.plan.generation import Gpu
    from rag.plan.load import Load
    from rag.plan.model import Plan

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
