"""`rag ingest`: documents into a knowledge base, with progress, resume and a summary."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rag.cli.places import KbOption, cache_home, kb_path
from rag.cli.screen import note, out_json, say, table

if TYPE_CHECKING:
    from ingest.files import Found
    from ingest.pipeline import Outcome


def ingest(
    paths: Annotated[
        list[Path],
        typer.Argument(help=say("Files and folders.", "文件和文件夹。"), metavar="PATH"),
    ],
    kb: Annotated[str, KbOption] = "default",
    embedder: Annotated[
        str | None,
        typer.Option(
            help=say(
                "Encoder of a new knowledge base: bundled, or a sentence-transformers name or path.",
                "新知识库的编码器：bundled，或 sentence-transformers 的模型名或路径。",
            )
        ),
    ] = None,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            help=say(
                "Remove documents whose file is gone from these folders.",
                "移除这些文件夹里已不存在的文档。",
            ),
        ),
    ] = False,
    ocr: Annotated[
        bool,
        typer.Option(
            help=say("Read pages and images without text.", "识别没有文字层的页面和图片。")
        ),
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help=say("One JSON line a file.", "每个文件一行 JSON。"))
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help=say("Only what was refused.", "只报告被拒的文件。")),
    ] = False,
) -> None:
    from ingest.files import walk
    from ingest.pipeline import Ingestion
    from ingest.sandbox import Sandbox
    from rag.cli.progress import IngestProgress
    from rag.open import background_of, open_writer

    found = list(walk(paths))
    files = [file for file in found if not file.skipped]
    writer = open_writer(kb_path(kb), embedder=embedder, cache=cache_home())
    outcomes: list[Outcome] = []
    size = sum(file.size for file in files)
    with writer.store as store, Sandbox(ocr=ocr) as sandbox:
        with IngestProgress(len(files), size, quiet=quiet or as_json) as progress:
            work = Ingestion(store, writer.embedder, writer.chunker, sandbox, progress.chunks)
            for outcome in work.run(files):
                progress.file(outcome)
                outcomes.append(outcome)
                if as_json:
                    out_json(_record(outcome))
        outcomes += work.prune(files, paths, remove=prune)
        background_of(store, writer.embedder)  # now, so that the first question need not wait
        if not as_json:
            _summary(outcomes, [file for file in found if file.skipped], quiet=quiet)
            if not quiet:
                info = store.info()
                note(
                    say(
                        f"{info.path}: {info.documents} documents, {info.chunks} chunks",
                        f"{info.path}：{info.documents} 个文档，{info.chunks} 块",
                    )
                )


ingest.__doc__ = say(
    "Read documents into a knowledge base; again: only what is new or changed.",
    "把文档读入知识库；再次运行时只处理新增和改动的文件。",
)


def _record(outcome: "Outcome") -> dict[str, object]:
    from dataclasses import asdict

    return asdict(outcome)


def _summary(outcomes: "list[Outcome]", skipped: "list[Found]", *, quiet: bool) -> None:
    refused = [outcome for outcome in outcomes if outcome.status == "refused"]
    rows = [(display(o.source), say("refused", "拒绝"), o.reason) for o in refused]
    if not quiet:
        rows += [(display(file.source), say("skipped", "跳过"), file.skipped) for file in skipped]
        rows += [
            (display(outcome.source), _status(outcome.status), _receipt(outcome))
            for outcome in outcomes
            if outcome.status not in ("refused", "unchanged")
        ]
        counts = Counter(_status(outcome.status) for outcome in outcomes)
        note(", ".join(f"{status} {count}" for status, count in counts.items()))
    if rows:
        table("", [say("file", "文件"), say("state", "状态"), say("details", "说明")], rows)


def _status(status: str) -> str:
    chinese = {
        "added": "新增",
        "changed": "更新",
        "unchanged": "未变",
        "refused": "拒绝",
        "removed": "移除",
        "missing": "文件已不在（--prune 可移除）",
    }
    english = {"missing": "file is gone (--prune removes it)"}
    return say(english.get(status, status), chinese[status])


def _receipt(outcome: "Outcome") -> str:
    """Format, encoding, what was replaced, pages read by OCR, warnings."""
    receipt = outcome.receipt
    if receipt is None:
        return ""
    parts = [receipt.format, *([receipt.encoding] if receipt.encoding else [])]
    parts.append(say(f"{outcome.chunks} chunks", f"{outcome.chunks} 块"))
    if receipt.replaced:
        parts.append(say(f"{receipt.replaced} bytes replaced", f"替换 {receipt.replaced} 字节"))
    if receipt.ocr_pages:
        parts.append(say(f"{receipt.ocr_pages} pages by OCR", f"OCR {receipt.ocr_pages} 页"))
    return ", ".join([*parts, *receipt.warnings])


def display(source: str) -> str:
    """A source as short as it can be said here."""
    path, here = Path(source), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else source
