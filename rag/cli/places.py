"""Where knowledge bases and built models live on this machine."""

import os
from pathlib import Path

import typer

from ingest.errors import UserError
from rag.cli.screen import say

KbOption = typer.Option(
    "--kb",
    envvar="RAG_KB",
    help=say(
        "Knowledge base: a name, or a folder if it has a slash.",
        "知识库：名称；含斜杠时为文件夹。",
    ),
)


def data_home() -> Path:
    """Named knowledge bases (XDG base directory specification)."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "chatglm-rag"


def cache_home() -> Path:
    """What can be built again: the bundled encoder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chatglm-rag"


def kb_path(name: str) -> Path:
    """The folder of a knowledge base given by name or by path."""
    if os.sep in name or name in (".", ".."):
        return Path(name).expanduser()
    if not name or name.startswith(".") or "\0" in name:
        raise UserError(
            f"{name!r} is no name for a knowledge base; use letters, digits and -",
            zh=f"{name!r} 不能作知识库名；请用文字、数字和 -",
        )
    return data_home() / name


def existing_kb(name: str) -> Path:
    """The same, for a knowledge base that must be there."""
    path = kb_path(name)
    if not (path / "kb.sqlite").is_file():
        raise UserError(
            f"there is no knowledge base {name!r} at {path}; make it with: rag ingest FOLDER --kb {name}",
            zh=f"没有知识库 {name!r}（{path}）；请先运行：rag ingest 文件夹 --kb {name}",
        )
    return path
