"""`rag ingest`: documents into a knowledge base, with progress, resume and a summary."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.errors import UserError
from ingest.i18n import Translatable, translate
from rag.cli.console import IngestProgress, Progress, note, out_json, say, table
from rag.cli.options import KB, argument, cache_home, kb_config, option, with_options

LISTED = 20
"""Files read without loss that a summary names; the rest is counted."""

if TYPE_CHECKING:
    from ingest.files import FoundFile
    from ingest.pipeline import FileOutcome, Ingestion
    from ingest.store import Info
    from rag.config import Config


@dataclass(frozen=True, kw_only=True)
class IngestOptions:
    embedder: str | None = option(
        "--embedder", "Encoder of a new knowledge base: bundled, or a sentence-transformers name or path."
    )
    prune: bool = option(
        "--prune", "Remove documents whose files no longer exist in these folders.", default=False
    )
    ocr: bool = option("--ocr/--no-ocr", "Run OCR on pages and images without text.", default=True)
    ray: bool = option(
        "--ray",
        "Read and embed on many cores or machines: on the Ray cluster of RAY_ADDRESS, else on this "
        "machine's cores.",
        default=False,
    )
    workers: int | None = option("--workers", "With --ray: number of cores to use; default: all.", least=1)
    as_json: bool = option("--json", "Print one JSON line per file.", default=False)
    quiet: bool = option("--quiet -q", "Show only refused files.", default=False)
    summary: bool = True
    """Show a table of the files at the end."""


@with_options("Read documents into a knowledge base; a second run reads only what is new or changed.")
def ingest(
    paths: list[Path] = argument("PATH", "Files and folders."), kb: str = KB, *, options: IngestOptions
) -> None:
    if options.workers and not options.ray:
        raise UserError("--workers needs --ray")
    ingest_into(kb_config(kb), paths, options, kb=kb)


def ingest_into(config: "Config", paths: list[Path], options: IngestOptions, *, kb: str) -> None:
    """Read the documents, with a summary that calls the knowledge base `kb`."""
    from ingest.files import walk
    from ingest.pipeline import Ingestion
    from ingest.sandbox import Sandbox
    from rag.load import open_writer, score_norm_of

    found = list(walk(paths))
    files = [file for file in found if not file.skipped]
    quiet = options.quiet
    writer = open_writer(config, embedder=options.embedder, cache=cache_home())
    outcomes: list[FileOutcome] = []
    size = sum(file.size for file in files)
    with writer.store as store, Sandbox(ocr=options.ocr) as sandbox:
        try:
            with Progress(say("ingest"), max(1, size), quiet=quiet or options.as_json) as bar:
                progress = IngestProgress(bar, len(files))
                work = Ingestion(store, writer.embedder, writer.chunker, sandbox, progress.chunks)
                on_ray = partial(_on_ray, work, config=config, options=options)
                with on_ray(files) if options.ray and files else nullcontext(work.run(files)) as run:
                    for outcome in run:
                        progress.file(outcome)
                        outcomes.append(outcome)
                        if options.as_json:
                            out_json(_record(outcome))
            outcomes += work.prune(found, paths, remove=options.prune)
            if any(outcome.status == "removed" for outcome in outcomes):
                store.rebuild()  # wipes the indexes' traces of what was removed
            score_norm_of(store, writer.embedder)  # now, so that the first question need not wait
        finally:  # an interrupted run also reports what was done
            if options.summary and not options.as_json:
                _summary(outcomes, [file for file in found if file.skipped], quiet=quiet)
            if not (options.as_json or quiet):
                note(_total(outcomes, kb, store.info()))


@contextmanager
def _on_ray(
    work: "Ingestion", files: "Sequence[FoundFile]", *, config: "Config", options: IngestOptions
) -> "Iterator[Iterator[FileOutcome]]":
    """`work.run(files)` on the cluster of RAY_ADDRESS, or on one of this machine."""
    from ingest.embed import open_embedder
    from ingest.ray_pipeline import LOCAL, Tools, cluster, ingest_on_ray
    from ingest.sandbox import Sandbox

    identity, cache = work.store.identity, cache_home().absolute()
    tools = Tools(
        embedder=partial(
            open_embedder,
            str(identity.options["embedder"]),
            cache=cache,
            threads=1,
            backend=config.embed.backend,
        ),
        parser=partial(Sandbox, ocr=options.ocr),
        options=work.chunker.options,
        encoder=identity.name,
    )
    with cluster(os.environ.get("RAY_ADDRESS") or LOCAL, workers=options.workers) as cores:
        yield ingest_on_ray(files, work.store, tools, workers=cores, tick=work.tick)


def _record(outcome: "FileOutcome") -> dict[str, object]:
    from rag.render import report_record

    return {
        "source": outcome.source,
        "status": outcome.status,
        "chunks": outcome.chunks,
        "receipt": report_record(outcome.report, say) if outcome.report else None,
        "reason": say(outcome.problem.message) if outcome.problem else None,
    }


def _summary(outcomes: "list[FileOutcome]", skipped: "list[FoundFile]", *, quiet: bool) -> None:
    """Every file that was refused, skipped or read with a loss; of the others only a few."""
    rows = [_row(outcome) for outcome in outcomes if outcome.problem]
    if not quiet:
        rows += [(_name(file.source), say("skipped"), file.skipped) for file in skipped]
        read = [outcome for outcome in outcomes if outcome.report]
        lossy = [o for o in read if o.report and (o.report.replaced or o.report.warnings)]
        whole = [outcome for outcome in read if outcome not in lossy]
        absent = [outcome for outcome in outcomes if outcome.status in ("missing", "removed")]
        rows += map(_row, [*absent, *lossy, *whole[:LISTED]])
        if more := len(whole[LISTED:]):
            rows.append(("…", "", say("{more} more without loss", more=more)))
    if rows:
        table("", [say("file"), say("state"), say("details")], rows)


def _total(outcomes: "list[FileOutcome]", kb: str, info: "Info") -> str:
    counts = Counter(outcome.status for outcome in outcomes)
    numbers = say(", ").join(f"{count} {say(STATUSES[name])}" for name, count in counts.items())
    return say(
        "{counts}; {kb}: {documents} documents, {chunks} chunks",
        counts=numbers or say("no file was read"),
        kb=kb,
        documents=info.documents,
        chunks=info.chunks,
    )


STATUSES = {
    "added": Translatable("added"),
    "changed": Translatable("changed"),
    "unchanged": Translatable("unchanged"),
    "refused": Translatable("refused"),
    "removed": Translatable("removed"),
    "missing": Translatable("file is gone (--prune removes it)"),
}


def _row(outcome: "FileOutcome") -> tuple[str, str, str]:
    """Source, state, and why it was refused; else format, encoding, bytes replaced, OCR, warnings."""
    name, status, report = _name(outcome.source), say(STATUSES[outcome.status]), outcome.report
    if outcome.problem:
        return name, status, say(outcome.problem.message)
    if report is None:
        return name, status, ""
    parts = [report.format, *([report.encoding] if report.encoding else [])]
    parts.append(say("{chunks} chunks", chunks=outcome.chunks))
    if report.replaced:
        parts.append(say("{replaced} bytes replaced", replaced=report.replaced))
    if report.ocr_pages:
        parts.append(say("{ocr_pages} pages by OCR", ocr_pages=report.ocr_pages))
    return (
        name,
        status,
        say(", ").join([*parts, *(translate(each, say.language) for each in report.warnings)]),
    )


def _name(source: str) -> str:
    """A source as short as tells it apart: below here, else its folder and name."""
    shown = display(source)
    return shown if shown != source else str(Path(*Path(source).parts[-2:]))


def display(source: str) -> str:
    """A source as it can be typed here."""
    path, here = Path(source), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else source
