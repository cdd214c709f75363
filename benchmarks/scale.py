"""The cost curve of docs/scale.md: measured up to 1,000,000 chunks, simulated beyond.

    python benchmarks/scale.py

Writes the tables of docs/scale.md and docs/scale.zh-CN.md and their pictures from rag/plan.json, which
benchmarks/plan.py measures.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingest.i18n import Language
from rag.cli.plan import GB, Constants, EnginePlan, PlanOptions, Predictor, digits
from rag.plot import check_picture, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
MEASURED: dict[str, Any] = json.loads((ROOT / "rag/plan.json").read_bytes())
POINTS: list[dict[str, float]] = MEASURED["synthetic"]
PAGES: dict[str, Language] = {"scale.md": "en", "scale.zh-CN.md": "zh"}
PICTURES: dict[str, Language] = {"scale.svg": "en", "scale.zh-CN.svg": "zh"}
TITLES = {
    "local": ("local store", "本地库"),
    "replicas": ("replicas", "多副本"),
    "milvus": ("Milvus", "Milvus"),
    "measured": ("measured, synthetic chunks", "实测（合成块）"),
}
COLOURS = {"local": "#2f9e60", "replicas": "#3b82f6", "milvus": "#d9822b"}
INK = "#7a7f87"
"""A grey that is legible on white and on black, because the picture has no background."""
INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
STYLE: dict[Any, Any] = dict.fromkeys(INKED, INK)
STYLE |= {"savefig.transparent": True, "axes.titlesize": 10, "font.size": 9}
RATES = (1.0, 5.0, 20.0, 100.0)
ENGINES = ("local", "replicas", "milvus")
SIZES = tuple(10**power for power in range(4, 10))
QPS = 5.0
Say = Callable[[str, str], str]
"""The first text in English, or the second in Chinese."""
Of = Callable[[EnginePlan], float]


def at(constants: Constants, chunks: int, *, qps: float = QPS) -> dict[str, EnginePlan]:
    """Every engine's plan for so many chunks of documents like the measured ones."""
    options = PlanOptions(documents=1, chunks_per_document=chunks, qps=qps)
    return {plan.engine: plan for plan in Predictor(constants, options).plans()}


def smallest(plans: Mapping[str, EnginePlan]) -> EnginePlan:
    """The first engine that suffices; the last if none does."""
    return next((plan for plan in plans.values() if not plan.shortfalls), plans["milvus"])


def takeovers(constants: Constants, *, qps: float = QPS) -> Mapping[str, int]:
    """The fewest chunks between the first and the last of `SIZES` at which each engine is the smallest
    that suffices; without those that never are. Bisection: what is too much for an engine stays so for
    more chunks.
    """

    def order(chunks: int) -> int:
        return ENGINES.index(smallest(at(constants, chunks, qps=qps)).engine)

    found: dict[str, int] = {}
    for wanted, engine in enumerate(ENGINES):
        low, high = SIZES[0] - 1, SIZES[-1]
        if order(high) < wanted:
            break
        while low + 1 < high:
            middle = (low + high) // 2
            low, high = (low, middle) if order(middle) >= wanted else (middle, high)
        if order(high) == wanted:
            found[engine] = high
    return found


def pick(language: Language) -> Say:
    return (lambda en, zh: zh) if language == "zh" else (lambda en, zh: en)


def main() -> None:
    constants = Constants.read()
    for page, language in PAGES.items():
        file = ROOT / "docs" / page
        file.write_text(filled(file.read_text("utf-8"), constants, language), "utf-8")
    for picture, language in PICTURES.items():
        draw(constants, ROOT / "docs" / picture, pick(language))


def filled(text: str, constants: Constants, language: Language) -> str:
    """The page with its generated parts written again: `<!-- name -->` to `<!-- /name -->`."""
    say = pick(language)
    parts = {
        "machine": machine(constants, say),
        "measured": table(*measured_rows(constants, say)),
        "curve": table(*curve_rows(constants, say)),
        "takeovers": table(*takeover_rows(constants, say)),
    }
    for name, part in parts.items():
        marks = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text, count = re.subn(marks, lambda m, new=part: m[1] + new + "\n" + m[2], text, flags=re.DOTALL)
        assert count == 1, name
    return text


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def machine(constants: Constants, say: Say) -> str:
    there, costs, like = constants.machine, constants.costs, constants.documents()
    memory, speed = there.memory / GB, MEASURED["chunk"]["flops"] / costs.embed / 1e9
    return say(
        f"Measured on {there.cores} cores of an {constants.cpu} with {memory:.1f} GB, {constants.date}: "
        f"{like.files} documents with {like.chunks:,} chunks, of which a core embeds {1 / costs.embed:.0f} a second "
        f"({speed:.0f} GFLOP/s); a chunk takes {costs.sqlite:,.0f} bytes in `kb.sqlite`, "
        f"{costs.word_index:,.0f} in the word index and {costs.vector_index:.0f} as a code.",
        f"测于 {there.cores} 核 {constants.cpu}、{memory:.1f} GB 内存，{constants.date}：{like.files} 个文档共 "
        f"{like.chunks:,} 块，单核每秒向量化 {1 / costs.embed:.0f} 块（{speed:.0f} GFLOP/s）；"
        f"每块在 `kb.sqlite` 中占 {costs.sqlite:,.0f} 字节，词索引 {costs.word_index:,.0f} 字节，编码 {costs.vector_index:.0f} 字节。",
    )


def measured_rows(constants: Constants, say: Say) -> tuple[list[str], list[list[str]]]:
    head = [
        say("chunks", "块数"),
        say("written in", "写入用时"),
        say("disk", "磁盘"),
        say("memory of a process", "单进程内存"),
        say("searches p50 / p95", "检索 p50 / p95"),
        say("the model's", "模型值"),
        say("searches/s", "每秒检索"),
    ]
    return head, [
        [
            f"{point['chunks']:,}",
            f"{point['build']:,.0f} s",
            f"{(point['sqlite'] + point['vector_index'] + point['word_index']) / GB:.2f} GB",
            f"{point['resident'] / GB:.2f} GB",
            f"{1000 * point['p50']:.1f} / {1000 * point['p95']:.1f} ms",
            f"{1000 * searches(constants, round(point['chunks'])):.1f} ms",
            f"{point['rate']:,.0f}",
        ]
        for point in POINTS
    ]


def searches(constants: Constants, chunks: int) -> float:
    options = PlanOptions(documents=1, chunks_per_document=chunks)
    stages = Predictor(constants, options).question()
    return stages["vectors"] + stages["words"] + stages["fuse"]


def curve_rows(constants: Constants, say: Say) -> tuple[list[str], list[list[str]]]:
    head = [
        say("chunks", "块数"),
        say("engine", "引擎"),
        say("machines", "机器"),
        say("memory", "内存"),
        say("disk", "磁盘"),
        say("core hours of ingestion", "入库的核时"),
        say("ingested in", "入库用时"),
        say("a question", "一个问题"),
        "",
    ]
    rows = []
    largest = max(point["chunks"] for point in POINTS)
    for chunks in SIZES:
        plan = smallest(at(constants, chunks))
        work = constants.costs.embed * chunks / 3600
        days = plan.ingest_time / 86_400
        size = say(f"{plan.size.cores} cores", f"{plan.size.cores} 核")
        more = (
            say(f", {plan.ingest_machines} to ingest", f"，入库 {plan.ingest_machines}")
            if plan.ingest_machines
            else ""
        )
        rows.append(
            [
                f"{chunks:,}",
                say(*TITLES[plan.engine]),
                f"{plan.machines:,} × {size}{more}",
                f"{digits(plan.memory / GB)} GB",
                f"{digits(plan.disk / GB)} GB",
                digits(work),
                say(f"{digits(days)} days", f"{digits(days)} 天"),
                f"{plan.latency:.2f} s",
                say("measured constants", "实测常数") if chunks <= largest else say("simulated", "推算"),
            ]
        )
    return head, rows


def takeover_rows(constants: Constants, say: Say) -> tuple[list[str], list[list[str]]]:
    head = [say("questions/s", "每秒问题"), *(say(*TITLES[engine]) for engine in ENGINES)]
    rows = []
    for rate in RATES:
        found = takeovers(constants, qps=rate)
        cells = [
            say(f"from {rounded(found[engine])}", f"{rounded(found[engine])} 块起")
            if engine in found
            else "–"
            for engine in ENGINES
        ]
        rows.append([f"{rate:g}", *cells])
    return head, rows


def rounded(chunks: int) -> str:
    """Two digits: more would promise too much."""
    return f"{float(f'{chunks:.1e}'):,.0f}"


def draw(constants: Constants, path: Path, say: Say) -> None:
    """Four panels over the chunks: bytes, bytes, seconds, cores. Readable on light and on dark."""
    from matplotlib import rc_context

    sizes = sorted({round(10 ** (4 + step / 8)) for step in range(41)})
    planned = {size: at(constants, size) for size in sizes}
    costs, changes = constants.costs, takeovers(constants)
    panels: list[tuple[str, Of, Callable[[Mapping[str, float]], float] | None]] = [
        (
            say("memory, GB", "内存（GB）"),
            lambda plan: plan.memory / GB,
            lambda p: (p["resident"] + p["sqlite"] + p["word_index"]) / GB,
        ),
        (
            say("disk, GB", "磁盘（GB）"),
            lambda plan: plan.disk / GB,
            lambda p: (p["sqlite"] + 2 * (p["vector_index"] + p["word_index"])) / GB,
        ),
        (
            say("a question, seconds", "一个问题（秒）"),
            lambda plan: plan.latency,
            lambda p: costs.embed_question + p["p50"] + costs.extract,
        ),
        (
            say("cores, those for ingestion too", "核数（含入库）"),
            lambda plan: (plan.machines + plan.ingest_machines) * plan.size.cores,
            None,
        ),
    ]

    def panels_on(canvas: "Figure") -> None:
        for axes, (title, of, measured) in zip(canvas.subplots(2, 2).flat, panels, strict=True):
            draw_panel(axes, title, say("chunks", "块数"), planned, of)
            if measured:
                xs = [point["chunks"] for point in POINTS]
                ys = [measured(point) for point in POINTS]
                axes.plot(xs, ys, "o", color=INK, markersize=5, label="measured", zorder=3)
            mark(axes, changes, say)
        handles, labels = canvas.axes[0].get_legend_handles_labels()
        names = [say(*TITLES[label]) for label in labels]
        canvas.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)

    kind = check_picture(path)
    with rc_context(STYLE):
        path.write_bytes(render(panels_on, kind, size=(10, 7)))


def draw_panel(
    axes: "Axes", title: str, xlabel: str, planned: Mapping[int, Mapping[str, EnginePlan]], of: Of
) -> None:
    """A line an engine: strong where it suffices, faint where it does not."""
    for engine in ENGINES:
        plans: list[tuple[int, EnginePlan]] = [(size, found[engine]) for size, found in planned.items()]
        xs, ys = [size for size, _ in plans], [of(plan) for _, plan in plans]
        strong = [y if not plan.shortfalls else float("nan") for y, (_, plan) in zip(ys, plans, strict=True)]
        axes.plot(xs, ys, color=COLOURS[engine], alpha=0.7, linewidth=1, linestyle=":")
        axes.plot(xs, strong, color=COLOURS[engine], linewidth=2, label=engine)
    axes.set_title(title, loc="left")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set_xlabel(xlabel)
    axes.grid(alpha=0.2, color=INK)
    axes.spines[["top", "right"]].set_visible(False)


def mark(axes: "Axes", changes: Mapping[str, int], say: Say) -> None:
    """Where measuring ends, and where each engine takes over."""
    largest = max(point["chunks"] for point in POINTS)
    axes.set_xlim(SIZES[0], SIZES[-1])
    axes.axvspan(SIZES[0], largest, color=INK, alpha=0.12, linewidth=0)
    low, high = axes.get_ylim()
    axes.text(SIZES[0] * 1.3, high, say("measured to here", "实测范围"), va="top", fontsize=8)
    for engine, chunks in changes.items():
        if chunks > SIZES[0]:
            axes.axvline(chunks, color=COLOURS[engine], linewidth=1, linestyle="--")
            axes.text(chunks, low, f" {rounded(chunks)}", color=COLOURS[engine], fontsize=8, va="bottom")


if __name__ == "__main__":
    main()
