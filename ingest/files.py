"""From paths to the files to read: sorted, each once, what is passed over named with its reason."""

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from ingest.errors import UserError, readable
from ingest.formats import extension

_LITTER = {"thumbs.db", "desktop.ini"}


@dataclass(frozen=True, slots=True)
class Found:
    """A file met on the way; `skipped` is the reason why it is not read, or empty.

    `named` is what its document is called where that is not where the file lies.
    """

    path: Path
    skipped: str = ""
    named: str = ""

    @property
    def source(self) -> str:
        """The document's name: its absolute path, without `..` and doubled slashes.

        One file has one name from whichever folder it is reached, and two never share one. Bytes
        that are not UTF-8 are written `\\xba`; only `path` opens the file.
        """
        return self.named or readable(Path(os.path.abspath(self.path)).as_posix())

    @property
    def size(self) -> int:
        """In bytes."""
        return self.path.stat().st_size if os.path.isfile(self.path) else 0


def walk(paths: Sequence[Path]) -> Iterator[Found]:
    """Every file under `paths`, in a fixed order.

    Raises `UserError` at once for a path that does not exist or can't be reached and for a folder
    without files. Knowledge bases are passed over. A file named outright is read whatever its extension; links inside a folder are not followed.
    """
    for path in paths:
        _reach(path)
        if path.is_dir() and not any(_folder(path)):
            raise UserError(
                f"{path} is an empty folder; put documents there or name another",
                zh=f"{path} 是空文件夹，请放入文档或另选文件夹",
            )
    return _walk(paths)


def _reach(path: Path) -> None:
    """Raises `UserError` unless `path` is there."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        near, nearest = _nearest(path)
        raise UserError(f"{path} does not exist{near}", zh=f"{path} 不存在{nearest}") from error
    except OSError as error:
        raise UserError(
            f"{path} can't be read: {error.strerror}; check its name and permissions",
            zh=f"无法读取 {path}：{error.strerror}，请检查名称和权限",
        ) from error


def digest(path: Path) -> str:
    """blake2b of the file's bytes, in hex."""
    hasher = blake2b(digest_size=32)
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            hasher.update(piece)
    return hasher.hexdigest()


def _walk(paths: Sequence[Path]) -> Iterator[Found]:
    seen: set[Path] = set()
    for path in paths:
        for found in _folder(path) if path.is_dir() else (Found(path, _not_a_file(path)),):
            place = found.path if os.path.islink(found.path) else found.path.resolve()
            if place not in seen:
                seen.add(place)
                yield found


def _folder(root: Path) -> Iterator[Found]:
    errors: list[OSError] = []
    for here, folders, files in os.walk(root, onerror=errors.append):
        yield from _unreadable(errors)
        if "kb.sqlite" in files:
            yield Found(Path(here), "a knowledge base")
            folders.clear()
            continue
        for name in sorted(folders):
            if name.startswith("."):
                yield Found(Path(here, name), "hidden folder")
            elif os.path.islink(os.path.join(here, name)):
                yield Found(Path(here, name), "link to a folder, not followed")
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            yield Found(Path(here, name), _reason(Path(here, name)))
    yield from _unreadable(errors)


def _unreadable(errors: list[OSError]) -> Iterator[Found]:
    """The folders that could not be listed since the last call."""
    while errors:
        error = errors.pop(0)
        yield Found(Path(error.filename), f"can't be read: {error.strerror}")


def _reason(path: Path) -> str:
    name = path.name.lower()
    if name.startswith(("~$", ".~lock")) or name.endswith((".tmp", "~")):
        return "temporary file"
    if name.startswith(".") or name in _LITTER:
        return "hidden file"
    if os.path.islink(path):
        return "link, not followed"
    if extension(path) is None:
        return f"unknown format {path.suffix}" if path.suffix else "unknown format, no extension"
    return _not_a_file(path)


def _not_a_file(path: Path) -> str:
    return "" if os.path.isfile(path) else "not a regular file"


def _nearest(path: Path) -> tuple[str, str]:
    """`; did you mean docs/b.txt?` in English and Chinese, or nothing."""
    parent = path.parent
    if not parent.is_dir():
        return f" (nor does {parent})", f"（{parent} 也不存在）"
    names = {name.lower(): parent / name for name in sorted(os.listdir(parent), reverse=True)}
    near = difflib.get_close_matches(path.name.lower(), names, n=1, cutoff=0.5)
    if not near:
        return "", ""
    return f"; did you mean {names[near[0]]}?", f"，是否指 {names[near[0]]}？"
