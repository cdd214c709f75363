"""A model's directory, by path or by name: found here, else fetched from Hugging Face or ModelScope.

Hugging Face is spoken to through its own library, which honours HF_ENDPOINT, HF_HOME and
HF_HUB_OFFLINE, and whose cache other tools share. A name without a revision means the copy that was
fetched first, whose commit is recorded beside it; `name@main` asks for the newest.
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from ingest.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
RECORD = "origin.json"
"""Beside the files; written last, so that it also says that they are all there."""
MODELSCOPE = "modelscope:"
KINDS = (".safetensors", ".bin")
"""Of weights, the preferred one first; the other is left out."""
READ = (".json", ".model", ".txt", ".jinja")
"""What else of a model is read. Code (*.py) is neither run nor fetched."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a directory's files come from."""

    hub: str
    name: str
    revision: str
    """The commit."""

    def save(self, directory: Path) -> None:
        (directory / RECORD).write_text(json.dumps(asdict(self), indent=2), "utf-8")


def origin(directory: Path) -> Origin | None:
    """What was recorded when the directory was fetched; None where it was not fetched by this."""
    try:
        return Origin(**json.loads((directory / RECORD).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def fetch(name: str, *, cache: Path, weights: bool = True, endpoint: str | None = None) -> Path:
    """The directory of a model: `name` is a path, `owner/name[@revision]` on the Hugging Face hub, or
    `modelscope:owner/name[@revision]`.

    A name's files may also be put by hand into `cache/owner/name`. Without `weights` the
    directory holds config.json, and perhaps the rest. What has arrived is not fetched again: of
    Hugging Face's whole files, of ModelScope's each byte.
    `UserError` where there is no such model, or no copy and no network.
    """
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    there = name.removeprefix(MODELSCOPE)
    repository, _, revision = there.partition("@")
    placed = cache / repository
    if not NAME.fullmatch(repository):
        raise UserError(
            f"there is no folder {name}; give a model's folder, or its name on a hub: owner/name",
            zh=f"没有文件夹 {name}；请给出模型文件夹，或其在模型库中的名称：owner/name",
        )
    if not revision and (placed / "config.json").is_file():
        return placed
    if there != name:
        from rag.chatglm import modelscope as hub
    else:
        from rag.chatglm import huggingface as hub
    address = endpoint or hub.address()
    found = hub.copy(repository, revision, cache=cache, weights=weights)
    if found:
        return found
    try:
        return hub.download(repository, revision, cache=cache, weights=weights, endpoint=address)
    except ConnectionError as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        page = hub.PAGE.format(endpoint=address, name=repository)
        raise UserError(
            f"{name} is not on this machine and {address} can't be reached ({why}); on a machine "
            f"with network get {page} (all but *.py; of weights the *.safetensors, or the *.bin if "
            f"there are none) and put the files into {placed}",
            zh=f"本机没有 {name}，且无法访问 {address}（{why}）；请在联网的机器上下载 {page} "
            f"（*.py 除外；权重取 *.safetensors，没有时取 *.bin），并将文件放入 {placed}",
        ) from None


def wanted(names: list[str], *, weights: bool) -> list[str]:
    """Which of a repository's files are fetched; `UserError` where it holds no config.json."""
    if "config.json" not in names:
        raise UserError(
            "the repository holds no config.json, so it is no model; check the name",
            zh="该仓库没有 config.json，不是模型；请检查名称",
        )
    if not weights:
        return ["config.json"]
    kind = next((kind for kind in KINDS if any(name.endswith(kind) for name in names)), KINDS[0])
    others = tuple(f"{other}.index.json" for other in KINDS if other != kind)
    return [
        name
        for name in names
        if "/" not in name
        and (name.endswith((kind, *READ)) or "LICENSE" in name)
        and not name.endswith(others)
        and name != RECORD
    ]


def absent(name: str, address: str) -> UserError:
    """That a hub has no such model."""
    return UserError(
        f"{address} has no model {name} that can be read without logging in; check the name, or "
        "log in (for Hugging Face: hf auth login)",
        zh=f"{address} 上没有可公开读取的模型 {name}；请检查名称，或先登录（Hugging Face：hf auth login）",
    )


def without_revision(name: str, revision: str, address: str) -> UserError:
    """That a hub has the model, but not this revision of it."""
    return UserError(
        f"{name} has no revision {revision!r} at {address}; leave @{revision} out, or give a "
        "branch, a tag or a commit",
        zh=f"{address} 上的 {name} 没有版本 {revision!r}；请去掉 @{revision}，或给出分支、标签或提交",
    )
