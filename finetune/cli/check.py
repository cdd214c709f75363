"""`rag finetune check`: what is wrong with training data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.options import MAX_LENGTH, Columns
from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.cli.console import counting, note, out, out_message, say, table
from rag.cli.options import argument, fetch_model, option, with_options

if TYPE_CHECKING:
    from finetune.data.check import Diagnosis
    from finetune.data.report import View
    from finetune.data.template import RowEncoder


FIRST = 5
"""Findings of a kind that are listed."""


def show(diagnosis: "Diagnosis") -> None:
    """The counts, the findings and the lengths."""
    from finetune.data.report import TITLES, UNITS, bars, counts, summary

    out_message(
        "{rows:,} rows: {usable:,} usable, {bad:,} bad, {warned:,} with warnings",
        rows=diagnosis.rows,
        usable=diagnosis.usable,
        bad=diagnosis.bad,
        warned=diagnosis.warned,
    )
    found = diagnosis.by_problem()
    if found:
        columns = [say("problem"), say("bad"), say("warnings")]
        rows = [(say(TITLES[kind]), bad or "", warn or "") for kind, bad, warn in counts(diagnosis)]
        table("", columns, rows)
        for problem, findings in found.items():
            rows = [(one.source, say(one.text)) for one in findings[:FIRST]]
            if more := max(0, len(findings) - FIRST):
                rows.append(("…", say("and {more:,} more", more=more)))
            table(say(TITLES[problem]), [say("row"), say("what")], rows)
    out(summary(diagnosis, say))
    table("", [say(UNITS[diagnosis.unit]), say("rows"), ""], bars(diagnosis.lengths))


def show_rows(diagnosis: "Diagnosis", views: "Sequence[View]", wanted: Sequence[str]) -> None:
    """The rows that were asked for; `UserError` for one that is not there."""
    from finetune.data.report import plain

    bad = {finding.source: finding for finding in diagnosis.findings if finding.bad}
    for name in wanted:
        shown = [view for view in views if name in (view.source, view.source.rpartition(":")[2])]
        broken = [source for source in bad if name in (source, source.rpartition(":")[2])]
        if not shown and not broken:
            raise UserError(
                "there is no row {name} (or it is blank); --row is a row's number, or FILE:NUMBER", name=name
            )
        for source in broken:
            out(f"{source}: {say(bad[source].text)}")
        for view in shown:
            out(view.title(say))
            out(plain(view.pieces) + "\n")


@dataclass(frozen=True)
class ReportOptions:
    json: Path | None = option("--json", "Write all findings here.")
    html: Path | None = option("--html", "Write an HTML report here.")

    def check(self) -> None:
        """Raises `UserError`, before the work, if a report can't be written or would replace another
        file, as `--json data.json` would for a reader who thinks that --json takes no name."""
        from finetune.data.report import HEADS
        from finetune.evaluate.compare import check_place

        for name, path in vars(self).items():
            if path:
                check_place(path)
            if path and path.exists():
                with path.open("rb") as file:
                    is_report = file.read(32).startswith(HEADS[name])
                if not is_report:
                    raise UserError(
                        "{path} exists and is not an earlier report; give {option} another name",
                        path=path,
                        option=f"--{name}",
                    )

    def write(self, diagnosis: "Diagnosis", views: "Sequence[View]") -> None:
        from json import dumps

        from finetune.data.report import page, record
        from ingest.normalize import readable
        from ingest.store.atomic import write_whole

        if self.json:
            text = dumps(record(diagnosis), indent=1, ensure_ascii=False)
            write_whole(self.json, f"{readable(text)}\n".encode())
        if self.html:
            write_whole(self.html, page(diagnosis, views, say).encode())
        for path in filter(None, vars(self).values()):
            note(str(path))


@with_options("Check training data row by row; exit code 1 if rows are bad.")
def check(
    data: list[Path] = argument(
        "", "Files: alpaca, context/target, ShareGPT, messages; JSON, JSON lines or CSV."
    ),
    *,
    model: str | None = option(
        "--model", "ChatGLM folder, of which only the tokenizer is read; lengths are then counted in tokens."
    ),
    template: str = option("--template chat|tutorial", "Prompt template.", default="chat"),
    max_length: int | None = option(
        "--max-length",
        Translatable(
            "Report rows longer than this: in tokens with --model (default {max_length}), else in "
            "characters.",
            max_length=MAX_LENGTH,
        ),
        least=1,
    ),
    row: list[str] | None = option(
        "--row N|FILE:N", "Show this row's tokens and which of them count in the loss."
    ),
    columns: Columns,
    reports: ReportOptions,
) -> None:
    from finetune.data.check import diagnose
    from finetune.data.report import View, pieces
    from rag.chatglm.chat import TEMPLATES

    wanted = row or []
    if wanted and model is None:
        raise UserError("--row shows tokens, which need a tokenizer; name a model's folder with --model")
    reports.check()
    if template not in TEMPLATES:
        known = " | ".join(TEMPLATES)
        raise UserError("--template is {template}; it is {known}", template=template, known=known)
    encoder = _encoder(model, template, max_length) if model else None
    with counting(say("rows read")) as progress:
        diagnosis = diagnose(
            data,
            columns=columns,
            encoder=encoder,
            template=template,
            max_length=max_length or 0,
            wanted=wanted,
            progress=progress,
        )
    views: list[View] = []
    if encoder and (wanted or reports.html):
        views = [
            View(example.source, tuple(pieces(row, encoder.tokenizer)))
            for example in diagnosis.samples
            for row in encoder(example).rows
        ]
    show(diagnosis)
    if wanted:
        show_rows(diagnosis, views, wanted)
    reports.write(diagnosis, views)
    if diagnosis.bad:
        raise UserError(
            "{bad} of {rows} rows are bad; correct them, or leave them out of a training with --skip-bad",
            bad=diagnosis.bad,
            rows=diagnosis.rows,
        )


def _encoder(model: str, template: str, max_length: int | None) -> "RowEncoder":
    from finetune.data.template import CachedTokenizer, RowEncoder
    from rag.chatglm.chat import FORMATS
    from rag.chatglm.tokenization import open_tokenizer

    tokenizer = open_tokenizer(fetch_model(model, weights=False))
    # GLM-4's -hf form has transformers' own tokenizer.
    generation = getattr(tokenizer, "generation", 4)
    most = max_length or min(MAX_LENGTH, FORMATS[generation].max_length)
    return RowEncoder(CachedTokenizer(tokenizer), generation, template, most)
