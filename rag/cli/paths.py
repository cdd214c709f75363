"""Where knowledge bases and built models live on this machine."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ingest.errors import UserError
from rag.cli.console import say

if TYPE_CHECKING:
    from rag.config import Place

KbOption = typer.Option(
    "--kb",
    envvar="RAG_KB",
    help=say(
        "Knowledge base: a name, a folder if it has a slash, or milvus://HOST:19530/NAME.",
        "知识库：名称；含斜杠时为文件夹；或 milvus://主机:19530/名称。",
    ),
)

KbArgument = typer.Argument(
    metavar="KB", help=say("The knowledge base, as for --kb.", "知识库，同 --kb。")
)
"""The same, for commands about one knowledge base."""


def chosen_kb(context: typer.Context, base: str | None, kb: str) -> str:
    """The knowledge base that is typed as KB or with --kb; RAG_KB counts if neither is typed."""
    source = context.get_parameter_source("kb")
    if base is not None and source is not None and source.name == "COMMANDLINE" and base != kb:
        raise UserError(
            f"KB is {base} and --kb is {kb}; give one of them",
            zh=f"参数 KB 为 {base}，而 --kb 为 {kb}；请只给其中之一",
        )
    return kb if base is None else base


def data_home() -> Path:
    """Named knowledge bases (XDG base directory specification)."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "chatglm-rag"


def cache_home() -> Path:
    """What can be built again: the bundled encoder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chatglm-rag"


def kb_place(name: str) -> "Place":
    """A knowledge base given by name, by path or by its address on a server."""
    if "://" in name:
        from ingest.store import parse_address

        return parse_address(name)
    return kb_path(name)


def kb_path(name: str) -> Path:
    """The folder of a knowledge base given by name or by path; `UserError` for an address."""
    if "://" in name:
        raise UserError(
            f"this needs a knowledge base with a folder, not {name}; make a folder with a rag.toml "
            f'that says [store] url = "{name}", and name the folder',
            zh=f"此操作需要有文件夹的知识库，不能是 {name}；请建一个文件夹，在其 rag.toml 中写"
            f' [store] url = "{name}"，再以该文件夹为 --kb',
        )
    if os.sep in name or name in (".", ".."):
        return Path(name).expanduser()
    if not name or name.startswith(".") or "\0" in name:
        raise UserError(
            f"{name!r} is no name for a knowledge base; use letters, digits and -",
            zh=f"{name!r} 不能作知识库名；请用文字、数字和 -",
        )
    return data_home() / name


def existing_kb(name: str) -> "Place":
    """As `kb_place`, for a knowledge base that must be there; a server is not asked yet."""
    from rag.config import is_base

    place = kb_place(name)
    if isinstance(place, Path) and not is_base(place):
        raise UserError(
            f"there is no knowledge base {name!r} at {place}; make it with: rag ingest FOLDER --kb {name}",
            zh=f"没有知识库 {name!r}（{place}）；请先运行：rag ingest 文件夹 --kb {name}",
        )
    return place


def existing_folder(name: str) -> Path:
    """As `existing_kb`, for what only a knowledge base in a folder can do."""
    from rag.config import store_at

    place = store_at(existing_kb(name))
    if not isinstance(place, Path):
        raise UserError(
            f"{name} is on a server, which has backups of its own (milvus-backup); a snapshot is of a "
            "knowledge base in a folder",
            zh=f"{name} 在服务器上，请用服务器自身的备份工具（milvus-backup）；快照只适用于文件夹中的知识库",
        )
    return place
