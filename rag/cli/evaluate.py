"""`rag eval`: figures with intervals on sets of questions, and comparisons."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rag.cli.console import note, out_json, say, table
from rag.cli.paths import cache_home

if TYPE_CHECKING:
    from rag.evaluate.dataset import Dataset
    from rag.evaluate.report import EvalReport


def evaluate(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help=say("Sets: corpus.jsonl, queries.jsonl, qrels.tsv; or questions.jsonl and docs/."),
            metavar="SET",
        ),
    ],
    sample: Annotated[
        int | None, typer.Option(min=1, help=say("Ask only so many questions."))
    ] = None,
    embedder: Annotated[str | None, typer.Option(help=say("The encoder."))] = None,
    settings: Annotated[Path | None, typer.Option(help=say("A rag.toml to evaluate."))] = None,
    save: Annotated[Path | None, typer.Option(help=say("Folder for a report per set."))] = None,
    against: Annotated[
        Path | None, typer.Option(help=say("Folder of reports to compare with."))
    ] = None,
    picture: Annotated[Path | None, typer.Option(help=say("PNG or SVG of the figures."))] = None,
    as_json: Annotated[bool, typer.Option("--json", help=say("One JSON line a set."))] = False,
) -> None:
    from rag.evaluate.dataset import Dataset
    from rag.evaluate.report import EvalReport, draw

    reports: list[EvalReport] = []
    for folder in folders:
        dataset = Dataset.load(folder)
        report = _report(dataset.sample(sample) if sample else dataset, embedder, settings)
        reports.append(report)
        if as_json:
            out_json({"set": report.dataset, "figures": _values(report)})
        else:
            _show(report)
        if save:
            save.mkdir(parents=True, exist_ok=True)
            report.save(save / f"{report.dataset}.json")
        if against:
            _show_comparison(EvalReport.load(against / f"{report.dataset}.json"), report)
    if picture:
        draw({report.dataset: report.figures() for report in reports}, picture)
        note(str(picture))


evaluate.__doc__ = say("Measure retrieval, answers, refusals and citations on sets of questions.")


def _report(dataset: "Dataset", embedder: str | None, settings: Path | None) -> "EvalReport":
    from rag.evaluate import run

    home = cache_home()
    pipeline = run.prepare(dataset, home / "eval", embedder=embedder, cache=home, settings=settings)
    with pipeline:
        return run.report(pipeline, dataset)


def _values(report: "EvalReport") -> dict[str, dict[str, float]]:
    from dataclasses import asdict

    return {name: asdict(figure) for name, figure in report.figures().items()}


def _show(report: "EvalReport") -> None:
    from rag.evaluate.report import MEASURES

    rows = [
        (say(MEASURES[name].title), f"{f.value:.4f}", f"{f.low:.4f} – {f.high:.4f}", f.questions)
        for name, f in report.figures().items()
    ]
    columns = [say("measure"), say("value"), "95 %", say("questions")]
    table(report.dataset, columns, rows)


def _show_comparison(before: "EvalReport", after: "EvalReport") -> None:
    from rag.evaluate.report import MEASURES, compare

    rows = [
        (
            say(MEASURES[name].title),
            f"{d.first:.4f}",
            f"{d.second:.4f}",
            f"{d.difference:+.4f} ({d.low:+.4f} – {d.high:+.4f})",
            f"{d.p:.3f}",
        )
        for name, d in compare(before, after).items()
    ]
    columns = [say("measure"), say("before"), say("now"), say("difference"), "p"]
    table(f"{after.dataset}: {say('paired comparison')}", columns, rows)
