"""`rag kb`: the knowledge bases themselves."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ingest.errors import UserError
from ingest.i18n import Translatable, translate
from rag.cli.console import note_message, out, out_json, out_message, say, table
from rag.cli.ingest import display
from rag.cli.options import (
    JSON,
    KB,
    KB_ARGUMENT,
    argument,
    cache_home,
    chosen_kb,
    data_home,
    existing_folder,
    existing_kb,
    kb_path,
    option,
    with_options,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ingest.types import Document

app = typer.Typer(
    help=say("List, inspect, repair, snapshot and restore knowledge bases."),
    no_args_is_help=True,
    rich_markup_mode=None,
)
INFO_TITLES = {
    "location": Translatable("location"),
    "identity": Translatable("encoder"),
    "created": Translatable("created"),
    "sequence": Translatable("sequence"),
    "documents": Translatable("documents"),
    "passages": Translatable("passages"),
    "chunks": Translatable("chunks"),
    "unpurged": Translatable("unpurged"),
    "bytes": Translatable("bytes"),
}


@app.command("list")
@with_options("List the named knowledge bases.")
def list_() -> None:
    from rag.config import read_config

    rows = []
    for path in sorted(data_home().glob("*/")):
        try:
            config = read_config(path)
            if not config.exists:
                continue
            with config.open_store() as store:
                info = store.info()
            row = (info.documents, info.chunks, info.identity.name)
        except UserError as problem:  # one that is damaged, newer or away does not hide the others
            row = ("", "", say(problem.message))
        rows.append((path.name, *row))
    columns = [say("name"), say("documents"), say("chunks"), say("encoder")]
    if rows:
        table("", columns, rows)
    else:
        note_message("None yet; make one with: rag ingest FOLDER")


@app.command()
@with_options("Show what a knowledge base holds.")
def info(context: typer.Context, base: str | None = KB_ARGUMENT, kb: str = KB, as_json: bool = JSON) -> None:
    from dataclasses import asdict

    with existing_kb(chosen_kb(context, base, kb)).open_store() as store:
        found = store.info()
        documents = [(d.source, d.title, d.report) for d in store.documents()]
    if as_json:
        out_json(asdict(found) | {"sources": [source for source, _, _ in documents]})
        return
    for name, value in (asdict(found) | {"identity": found.identity.name}).items():
        if value is not None:
            out(f"{say(INFO_TITLES[name])}: {value}")
    columns = [say("source"), say("title"), say("format"), say("encoding")]
    table("", columns, [(display(s), t, r.format, r.encoding or "") for s, t, r in documents])


@app.command()
@with_options("Delete documents permanently.")
def remove(
    sources: list[str] = argument("SOURCE", "Documents to remove."),
    kb: str = KB,
    purge: bool = option(
        "--purge/--no-purge", "Also rebuild the indexes, to wipe all traces of their words.", default=True
    ),
) -> None:
    with existing_kb(kb).open_store() as store:
        names = [_known(store.documents(), source) for source in sources]
        with store.change(reason="remove") as change:
            for name in names:
                change.remove(name)
        if purge:
            store.rebuild()
        for name in names:
            out_message("removed {name}", name=display(name))


def _known(documents: "Iterable[Document]", name: str) -> str:
    """The source that `name` stands for: a source, a path, or the end of one source's path."""
    from difflib import get_close_matches

    sources = [document.source for document in documents]
    for exact in (name, str(Path(name).absolute())):
        if exact in sources:
            return exact
    parts = Path(name).parts
    ends = [source for source in sources if Path(source).parts[-len(parts) :] == parts]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise UserError(
            "{name} stands for {ends_count} documents; name one of: {ends}",
            name=name, ends_count=len(ends), ends=ends,
        )  # fmt: skip
    near = get_close_matches(Path(name).name, [Path(source).name for source in sources], 1, 0.5)
    hint = Translatable("; did you mean {near}?", near=near[0]) if near else ""
    raise UserError("the knowledge base has no document {name}{hint}", name=name, hint=hint)


@app.command()
@with_options("Check the knowledge base; exit code 1 if something is wrong.")
def verify(context: typer.Context, base: str | None = KB_ARGUMENT, kb: str = KB) -> None:
    with existing_kb(chosen_kb(context, base, kb)).open_store() as store:
        findings = store.verify()
    for finding in findings:
        out(translate(finding, say.language))
    if findings:
        raise UserError(
            "{findings_count} findings; rag kb rebuild repairs the indexes", findings_count=len(findings)
        )
    out_message("all is well")


@app.command()
@with_options("Rebuild the indexes from the stored text and vectors.")
def rebuild(context: typer.Context, base: str | None = KB_ARGUMENT, kb: str = KB) -> None:
    with existing_kb(chosen_kb(context, base, kb)).open_store() as store:
        store.rebuild()
    out_message("rebuilt")


@app.command()
@with_options("Save a snapshot of a knowledge base as one file.")
def snapshot(
    context: typer.Context,
    file: Path = argument("", "File to write."),
    base: str | None = KB_ARGUMENT,
    kb: str = KB,
) -> None:
    from ingest.store import snapshot as write

    write(existing_folder(chosen_kb(context, base, kb)), file)
    out(str(file))


@app.command()
@with_options("Restore a knowledge base from a snapshot.")
def restore(
    context: typer.Context,
    file: Path = argument("", "Snapshot file."),
    base: str | None = KB_ARGUMENT,
    kb: str = KB,
) -> None:
    from ingest.store import restore as read

    path = kb_path(chosen_kb(context, base, kb))
    read(file, path)
    out(str(path))


@app.command()
@with_options("Calibrate refusals on questions that are known to have an answer, or none.")
def calibrate(
    context: typer.Context,
    folder: Path = argument("", "Evaluation set in the format of `rag eval`."),
    base: str | None = KB_ARGUMENT,
    kb: str = KB,
) -> None:
    from rag.evaluate.dataset import Dataset
    from rag.load import open_pipeline, recalibrate

    config = existing_kb(chosen_kb(context, base, kb))
    questions = {q.text: q.answerable for q in Dataset.load(folder).questions if q.text.strip()}
    with open_pipeline(config, cache=cache_home(), say=say) as pipeline:
        fitted = recalibrate(pipeline, questions)
    limits = f"{fitted.native.threshold:.2f} / {fitted.foreign.threshold:.2f}"
    out_message(
        "{questions_count} questions; refusing below a confidence of {limits} (language of "
        "the documents / another)",
        questions_count=len(questions),
        limits=limits,
    )
