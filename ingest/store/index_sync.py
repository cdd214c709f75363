"""Opens the two indexes, catches them up and rebuilds them, always from the primary data.

The primary data names the file of vector codes and its digest; the word index names its change.
"""

import secrets
import shutil
import sqlite3
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import numpy as np

from ingest.errors import UserError
from ingest.store import sqlite
from ingest.store.atomic import sync, write_whole
from ingest.store.sqlite import count, set_meta
from ingest.store.vector_index import EXACT_ROWS, Candidates
from ingest.store.word_index import Coverage, Words, drop_others, newest

KEEP_AFTER = 10_000  # rows that the stored codes may lack before they are written again
SAMPLE = 5_000  # vectors from which the codes' centre is computed


def open_words(path: Path, words: Words | None = None) -> Words | None:
    """The newest word index, or None if none can be read; `words` with the commits of others, if it
    is the newest."""
    with suppress(ValueError):
        if words is not None and newest(path / "words") == words.path:
            words.reload()
            return words
    with suppress(ValueError):
        if folder := newest(path / "words"):
            return Words(folder)
    return None


def knows(sql: sqlite3.Connection, covered: Coverage) -> bool:
    """Whether the primary data had this state at some time since the last rebuild."""
    rebuilt = sqlite.meta(sql, "rebuilt")
    if covered.seq < (rebuilt if isinstance(rebuilt, int) else 0):
        return False
    if covered.seq == 0:
        return covered == Coverage()
    stamp = sql.execute("SELECT stamp FROM changes WHERE seq = ?", (covered.seq,)).fetchone()
    return stamp is not None and stamp[0] == covered.stamp


def repair_words(path: Path, sql: sqlite3.Connection, words: Words | None) -> Words:
    """A word index that covers the primary data: the rows that it lacks are added, or it is rebuilt."""
    words = open_words(path, words)
    if words is None or not knows(sql, words.covered):
        return rebuild_words(path, sql)
    now, before = sqlite.covered(sql), words.covered
    if before == now:
        return words
    try:
        with words.writer() as writer:
            for (key,) in sql.execute("SELECT key FROM removed WHERE seq > ?", (before.seq,)):
                writer.remove(key)
            for key, document, text in sqlite.texts_after(sql, before.last):
                writer.remove(key)
                writer.add(key, document, text)
            writer.commit(now)
    except UserError:  # the index can be read, but no longer written
        return rebuild_words(path, sql)
    return words


def build_words(folder: Path, sql: sqlite3.Connection) -> Words:
    """A word index in a new folder."""
    words = Words(folder, create=True)
    with words.writer() as writer:
        for row in sqlite.texts_after(sql, 0):
            writer.add(*row)
        writer.commit(sqlite.covered(sql))
    return words


def rebuild_words(path: Path, sql: sqlite3.Connection) -> Words:
    """A new word index; the old one is removed."""
    parent = path / "words"
    parent.mkdir(exist_ok=True)
    old = newest(parent)
    target = parent / str(int(old.name) + 1 if old else 1)
    building = parent / f"{target.name}.new"
    shutil.rmtree(building, ignore_errors=True)
    build_words(building, sql)
    building.rename(target)
    sync(parent)
    drop_others(target)
    sql.execute("BEGIN IMMEDIATE")
    sql.execute("DELETE FROM removed")
    set_meta(sql, "rebuilt", sqlite.covered(sql).seq)
    sql.execute("COMMIT")
    return Words(target)


def open_candidates(path: Path, sql: sqlite3.Connection, dim: int) -> Candidates | None:
    """The stored codes, or None if they are missing or their digest is not the expected one."""
    codes = sqlite.meta(sql, "codes")
    if not isinstance(codes, dict):
        return None if count(sql, "chunks") > EXACT_ROWS else Candidates(dim)
    try:
        data = (path / "vectors" / codes["file"]).read_bytes()
    except OSError:
        return None
    if digest(data) != codes["digest"]:
        return None
    return Candidates.load(dim, data, last=codes["last"], trained=codes["trained"])


def catch_up(candidates: Candidates, sql: sqlite3.Connection, dim: int) -> Candidates:
    """Add the missing rows; build new candidates if most of the old rows have been removed."""
    for keys, vectors in sqlite.vectors_after(sql, candidates.last, dim):
        candidates.add(keys, vectors)
    stale = candidates.rows > 2 * count(sql, "chunks") + KEEP_AFTER
    return build_candidates(sql, dim) if stale else candidates


def build_candidates(sql: sqlite3.Connection, dim: int) -> Candidates:
    candidates = Candidates(dim)
    last = sqlite.covered(sql).last
    rng = np.random.default_rng(0)
    keys = rng.integers(1, last + 1, 2 * SAMPLE).tolist() if last else []
    _, sample = sqlite.vectors_of(sql, keys, dim)
    rows = count(sql, "chunks")
    if rows > EXACT_ROWS and len(sample):
        candidates.train(sample, rows)
    return catch_up(candidates, sql, dim)


def update_codes(
    path: Path, sql: sqlite3.Connection, candidates: Candidates | None, dim: int
) -> Candidates | None:
    """`candidates`, brought up to date and stored if opening the stored ones would be slow."""
    codes = sqlite.meta(sql, "codes")
    lag, most = count(sql, "chunks"), EXACT_ROWS
    if isinstance(codes, dict):
        query = "SELECT count(*) FROM chunks WHERE key > ?"
        lag, most = sql.execute(query, (codes["last"],)).fetchone()[0], KEEP_AFTER
    if lag <= most:
        return candidates
    candidates = candidates or open_candidates(path, sql, dim)
    if candidates is not None:
        candidates = catch_up(candidates, sql, dim)
    if candidates is None or candidates.rows > 2 * candidates.trained:
        return rebuild_candidates(path, sql, dim)  # their centre was computed from too few rows
    write_codes(path, sql, candidates)
    return candidates


def rebuild_candidates(path: Path, sql: sqlite3.Connection, dim: int) -> Candidates:
    """New candidates; codes that were stored before are removed."""
    candidates = build_candidates(sql, dim)
    write_codes(path, sql, candidates)
    return candidates


def write_codes(path: Path, sql: sqlite3.Connection, candidates: Candidates) -> None:
    """Store the codes: a new file, flushed, then named in the primary data; the old one goes last."""
    parent = path / "vectors"
    parent.mkdir(exist_ok=True)
    name = None
    if candidates.trained:
        data = candidates.dump()
        name = f"{secrets.token_hex(8)}.codes"
        write_whole(parent / name, data)
        codes = {"file": name, "digest": digest(data), "last": candidates.last}
        set_meta(sql, "codes", codes | {"trained": candidates.trained})
    else:
        sql.execute("DELETE FROM meta WHERE name = 'codes'")
    for other in parent.iterdir():
        if other.name != name:
            other.unlink()


def digest(data: bytes) -> str:
    return blake2b(data, digest_size=32).hexdigest()
