"""Older office formats, read by kreuzberg, which is used only here."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ingest.files import damaged, locked
from ingest.parse.blocks import Block, clean, heading, table
from ingest.parse.sheet import CELLS

MIME = {
    "doc": "application/msword",
    "ppt": "application/vnd.ms-powerpoint",
    "odt": "application/vnd.oasis.opendocument.text",
    "odp": "application/vnd.oasis.opendocument.presentation",
    "rtf": "application/rtf",
    "msg": "application/vnd.ms-outlook",
}


def extract(path: Path, mime: str) -> Any:
    """kreuzberg's `ExtractionResult`, without OCR and cleaning. Raises `Unreadable` if it refuses."""
    import kreuzberg

    config = kreuzberg.ExtractionConfig(
        use_cache=False,
        enable_quality_processing=False,
        include_document_structure=True,
        output_format="plain",
        concurrency=kreuzberg.ConcurrencyConfig(max_threads=2),
        content_filter=kreuzberg.ContentFilterConfig(
            include_headers=True, include_footers=True, strip_repeating_text=False
        ),
    )
    try:
        return kreuzberg.extract_file_sync(str(path), mime, config)
    except (kreuzberg.KreuzbergError, RuntimeError, ValueError, OSError) as error:
        if re.search("password|encrypt", str(error), re.IGNORECASE):
            raise locked(path.name) from error
        raise damaged(path.name, str(error).strip().split(": ")[-1][:200]) from error


def document_blocks(path: Path, kind: str) -> Iterator[Block]:
    """Old Word and PowerPoint, OpenDocument, RTF, Outlook: headings, paragraphs, tables."""
    result = extract(path, MIME[kind])
    nodes = (result.document or {}).get("nodes", [])
    if not nodes:
        yield from (Block(clean(part)) for part in result.content.split("\n\n"))
    for node in nodes:
        content = node["content"]
        if content["node_type"] in ("heading", "title"):
            yield heading(content.get("text") or "", content.get("level") or 1)
        elif content["node_type"] == "table":
            yield from table(_grid(content["grid"]))
        elif content["node_type"] == "list_item":
            yield Block("- " + clean(content.get("text") or ""), (), True)
        elif content["node_type"] not in ("group", "image"):
            yield Block(clean(content.get("text") or ""))


def _grid(grid: dict[str, Any]) -> Iterator[list[str]]:
    """The rows of kreuzberg's cell list."""
    row: list[str] = []
    at = 0
    for cell in grid["cells"]:
        if cell["row"] != at:
            yield row
            row, at = [], cell["row"]
        if cell["col"] < CELLS:
            row += [""] * (cell["col"] - len(row)) + [cell["content"]]
    yield row
