"""A full disk and the like, as errors that a person can act on."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ingest.errors import UserError

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
NO_PLACE = {errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ENOENT}


@contextmanager
def failures_named(path: Path) -> Iterator[None]:
    """Turn failed writes under `path` into `UserError`; what was committed before is kept."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise full(path, error) from error
        if error.errno in NOT_ALLOWED:
            raise forbidden(path, error) from error
        if error.errno in NO_PLACE:
            raise UserError(
                f"{path} can't be written there ({error.strerror}); name another path",
                zh=f"无法写入 {path}（{error.strerror}）；请换一个路径",
            ) from error
        raise
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL or primary(error) == sqlite3.SQLITE_IOERR:
            raise full(path, error) from error
        if primary(error) in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            raise forbidden(path, error) from error
        raise


def primary(error: sqlite3.Error) -> int:
    """The result code without the details in its higher bytes."""
    return error.sqlite_errorcode & 0xFF


def full(path: Path, error: Exception) -> UserError:
    return UserError(
        f"no room to write {path} ({error}); nothing is lost, free space and go on",
        zh=f"没有空间写入 {path}（{error}）；已有内容没有丢失，请腾出空间后继续",
    )


def forbidden(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} can't be written ({error}); change its permissions",
        zh=f"无法写入 {path}（{error}）；请修改其权限",
    )
