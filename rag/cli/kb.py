"""`rag kb`: the knowledge bases themselves."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ingest.errors import UserError
from rag.cli.console import note, out, out_json, say, table
from rag.cli.ingest import display
from rag.cli.paths import (
    KbArgument,
    KbOption,
    cache_home,
    chosen_kb,
    data_home,
    existing_folder,
    existing_kb,
    kb_path,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ingest.types import Document

app = typer.Typer(
    help=say("List, inspect, mend and copy knowledge bases.", "列出、检查、修复和备份知识库。"),
    no_args_is_help=True,
    rich_markup_mode=None,
)
Base = Annotated[str | None, KbArgument]
Name = Annotated[str, KbOption]
Json = Annotated[bool, typer.Option("--json", help=say("One JSON value.", "输出一个 JSON 值。"))]


@app.command("list", help=say("All named knowledge bases.", "所有已命名的知识库。"))
def list_() -> None:
    from rag.config import is_base, open_base

    rows = []
    for path in sorted(data_home().glob("*/")):
        try:
            if not is_base(path):
                continue
            with open_base(path) as store:
                info = store.info()
            row = (info.documents, info.chunks, info.identity.name)
        except UserError as problem:  # one that is damaged, newer or away does not hide the others
            row = ("", "", say(str(problem), problem.zh))
        rows.append((path.name, *row))
    columns = [
        say("name", "名称"),
        say("documents", "文档"),
        say("chunks", "块"),
        say("encoder", "编码器"),
    ]
    if rows:
        table("", columns, rows)
    else:
        note(say("None yet; make one with: rag ingest FOLDER", "还没有；请运行：rag ingest 文件夹"))


@app.command(help=say("What a knowledge base holds.", "知识库的内容和状态。"))
def info(
    context: typer.Context, base: Base = None, kb: Name = "default", as_json: Json = False
) -> None:
    from dataclasses import asdict

    from rag.config import open_base

    with open_base(existing_kb(chosen_kb(context, base, kb))) as store:
        found = store.info()
        documents = [(d.source, d.title, d.receipt) for d in store.documents()]
    if as_json:
        out_json(asdict(found) | {"sources": [source for source, _, _ in documents]})
        return
    for name, value in asdict(found).items():
        if value is not None:
            out(f"{name}: {value if name != 'identity' else found.identity.name}")
    columns = [
        say("source", "文件"),
        say("title", "标题"),
        say("format", "格式"),
        say("encoding", "编码"),
    ]
    table("", columns, [(display(s), t, r.format, r.encoding or "") for s, t, r in documents])


@app.command(help=say("Remove documents for good.", "彻底删除文档。"))
def remove(
    sources: Annotated[list[str], typer.Argument(help=say("Files.", "文件。"), metavar="SOURCE")],
    kb: Name = "default",
    purge: Annotated[
        bool,
        typer.Option(
            help=say(
                "Also wipe the indexes' traces of their words, by a rebuild.",
                "同时重建索引，抹去其中的残留词语。",
            )
        ),
    ] = True,
) -> None:
    from rag.config import open_base

    with open_base(existing_kb(kb)) as store:
        names = [_known(store.documents(), source) for source in sources]
        with store.change(reason="remove") as change:
            for name in names:
                change.remove(name)
        if purge:
            store.rebuild()
        for name in names:
            out(say(f"removed {display(name)}", f"已删除 {display(name)}"))


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
            f"{name} stands for {len(ends)} documents; name one of: {', '.join(ends)}",
            zh=f"{name} 对应 {len(ends)} 个文档；请指明其一：{'、'.join(ends)}",
        )
    near = get_close_matches(Path(name).name, [Path(source).name for source in sources], 1, 0.5)
    hint, zh = (f"; did you mean {near[0]}?", f"；是否指 {near[0]}？") if near else ("", "")
    raise UserError(
        f"the knowledge base has no document {name}{hint}", zh=f"知识库中没有文档 {name}{zh}"
    )


@app.command(
    help=say(
        "Check the knowledge base; exit code 1 if something is wrong.",
        "检查知识库；有问题时退出码为 1。",
    )
)
def verify(context: typer.Context, base: Base = None, kb: Name = "default") -> None:
    from rag.config import open_base

    with open_base(existing_kb(chosen_kb(context, base, kb))) as store:
        findings = store.verify()
    for finding in findings:
        out(finding)
    if findings:
        raise UserError(
            f"{len(findings)} findings; rag kb rebuild mends the indexes",
            zh=f"发现 {len(findings)} 个问题；rag kb rebuild 可修复索引",
        )
    out(say("all is well", "一切正常"))


@app.command(
    help=say(
        "Make the indexes anew from the stored text and vectors.", "用已存的文本和向量重建索引。"
    )
)
def rebuild(context: typer.Context, base: Base = None, kb: Name = "default") -> None:
    from rag.config import open_base

    with open_base(existing_kb(chosen_kb(context, base, kb))) as store:
        store.rebuild()
    out(say("rebuilt", "已重建"))


@app.command(help=say("Copy a knowledge base into one file.", "把知识库备份成一个文件。"))
def snapshot(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help=say("The file to write.", "要写入的文件。"))],
    base: Base = None,
    kb: Name = "default",
) -> None:
    from ingest.store import snapshot as write

    write(existing_folder(chosen_kb(context, base, kb)), file)
    out(str(file))


@app.command(help=say("Make a knowledge base from a snapshot.", "从备份恢复知识库。"))
def restore(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help=say("The snapshot.", "备份文件。"))],
    base: Base = None,
    kb: Name = "default",
) -> None:
    from ingest.store import restore as read

    path = kb_path(chosen_kb(context, base, kb))
    read(file, path)
    out(str(path))


@app.command(
    help=say(
        "Fit the refusals to questions whose answers are known to be there or not.",
        "用已知有无答案的问题校准拒答。",
    )
)
def calibrate(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(help=say("A set as `rag eval` reads it.", "rag eval 可读的评测集。"))
    ],
    base: Base = None,
    kb: Name = "default",
) -> None:
    from rag.evaluate import Dataset
    from rag.load import open_pipeline, recalibrate

    path = existing_kb(chosen_kb(context, base, kb))
    questions = {q.text: q.answerable for q in Dataset.load(folder).questions if q.text.strip()}
    with open_pipeline(path, cache=cache_home(), say=say) as pipeline:
        fitted = recalibrate(pipeline, questions)
    limits = f"{fitted.native.threshold:.2f} / {fitted.foreign.threshold:.2f}"
    out(
        say(
            f"{len(questions)} questions; refusing below a confidence of {limits} "
            "(language of the documents / another)",
            f"共 {len(questions)} 个问题；置信度低于 {limits} 时拒答（文档所用语言 / 其他语言）",
        )
    )
