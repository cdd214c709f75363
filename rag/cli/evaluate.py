"""`rag eval`: figures with intervals on sets of questions, and comparisons."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rag.cli.ask import open_generator, with_model
from rag.cli.console import note, out_json, say, table
from rag.cli.options import ModelOptions, argument, cache_home, option, with_options

if TYPE_CHECKING:
    from rag.evaluate.dataset import Dataset
    from rag.evaluate.report import Difference, EvalReport


@with_options("Measure retrieval, answers, refusals and citations on evaluation sets.")
def evaluate(
    folders: list[Path] = argument(
        "SET",
        "Evaluation sets: folders with corpus.jsonl, queries.jsonl, qrels.tsv; or questions.jsonl and docs/.",
    ),
    sample: int | None = option("--sample", "Maximum number of questions to ask.", least=1),
    embedder: str | None = option("--embedder", "Encoder to evaluate."),
    settings: Path | None = option("--settings", "rag.toml to evaluate."),
    short: int = option("--short", "Maximum number of characters of a short answer.", default=160, least=1),
    save: Path | None = option("--save", "Folder for a report per set."),
    against: Path | None = option("--against", "Folder of reports to compare with."),
    picture: Path | None = option("--picture", "Write a chart of the figures here (PNG or SVG)."),
    as_json: bool = option("--json", "Print one JSON line per set.", default=False),
    *,
    model: ModelOptions,
) -> None:
    from rag.evaluate.dataset import Dataset
    from rag.evaluate.report import EvalReport, compare, draw

    reports: list[EvalReport] = []
    for folder in folders:
        dataset = Dataset.load(folder)
        dataset = dataset.sample(sample) if sample else dataset
        report = _report(dataset, embedder, settings, short, model)
        reports.append(report)
        if as_json:
            figures = {name: asdict(figure) for name, figure in report.figures().items()}
            out_json({"set": report.dataset, "figures": figures})
        else:
            _show(report)
        if save:
            save.mkdir(parents=True, exist_ok=True)
            report.save(save / f"{report.dataset}.json")
        if against:
            before = EvalReport.load(against / f"{report.dataset}.json")
            show_comparison(report.dataset, compare(before, report))
    if picture:
        draw({report.dataset: report.figures() for report in reports}, picture)
        note(str(picture))


def _report(
    dataset: "Dataset", embedder: str | None, settings: Path | None, short: int, model: ModelOptions
) -> "EvalReport":
    """The report; a model of the options or the settings writes the answers, if there is one."""
    from rag.evaluate import run

    home = cache_home()
    with run.prepare(dataset, home / "eval", embedder=embedder, cache=home, settings=settings) as pipeline:
        config = with_model(pipeline.config, model)
        pipeline = replace(pipeline, config=config, generator=open_generator(config.generate))
        return run.report(pipeline, dataset, short=short)


def _show(report: "EvalReport") -> None:
    from rag.evaluate.report import measure_of

    rows = [
        (say(measure_of(name).title), f"{f.value:.4f}", f"{f.low:.4f} – {f.high:.4f}", f.questions)
        for name, f in report.figures().items()
    ]
    columns = [say("measure"), say("value"), "95 %", say("questions")]
    table(report.dataset, columns, rows)


def show_comparison(name: str, found: "Mapping[str, Difference]") -> None:
    from rag.evaluate.report import measure_of

    columns = [say("measure"), say("before"), say("now")]
    rows = [((measure_of(name).title,), each) for name, each in found.items()]
    show_differences(f"{name}: {say('paired comparison')}", columns, rows)


def show_differences(
    title: str, columns: Sequence[str], rows: "Iterable[tuple[tuple[str, ...], Difference]]"
) -> None:
    """A table with the texts and the difference of each row; `columns` are the texts' and both values'."""
    cells = [
        (
            *texts,
            _number(each.first.value),
            _number(each.second.value),
            _number(each.difference, "+"),
            f"{_number(each.low, '+')} – {_number(each.high, '+')}",
            "< 0.001" if each.p < 0.001 else _number(each.p),
            each.questions,
        )
        for texts, each in rows
    ]
    table(title, [*columns, say("difference"), "95 %", "p", "n"], cells)


def _number(value: float, sign: str = "") -> str:
    return "–" if value != value else f"{value:{sign}.3f}"
