"""Training data -> rows of tokens, made once for each content.

A set's name in the cache is the hash of all that its rows come from: the bytes of the data and of
the tokenizer, and how examples are written. So edited data never gives old rows, and a file that
was only touched is not read again. A set is written under another name, flushed, and renamed: what
has a set's name was written whole, and is checked before it is used.
"""

import errno
import fcntl
import gc
import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import file_digest, sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.bulk_encode import Speller, Spelt
from finetune.data.compat import Compat, ThudmOptions, TutorialOptions, full_length, layout
from finetune.data.dataset import FILES, TokenSet, write
from finetune.data.formats import AS_FOUND, Columns, examples, read
from finetune.data.frames import Block, Counts, Frames, Layout
from finetune.data.reader import Record, records
from finetune.data.template import RowEncoder
from finetune.types import IGNORED, Example
from ingest.errors import UserError
from ingest.store.atomic import new_folder, sync
from rag.chatglm.chat import TEMPLATES, framed
from rag.chatglm.tokenization import open_tokenizer

__all__ = ["TokenSet", "tokenise"]

VERSION = 3
"""Raised whenever the same data would give other rows, or they would lie otherwise on disk."""
EXAMPLES = 512
"""In a block."""
SEVERAL = 16_000_000
"""Bytes of data from which on a worker process is worth its start (0.5 s)."""
CONTEXTS = Columns("context", "target")
VOCABULARIES = ("ice_text.model", "tokenizer.model", "tokenizer.json")
TOKENIZER_FILES = (
    *VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "config.json",
)  # fmt: skip


def tokenise(
    paths: Sequence[Path],
    tokenizer_dir: Path,
    *,
    generation: int,
    template: str,
    max_length: int,
    cache: Path,
    columns: Columns = AS_FOUND,
    compat: Compat | None = None,
    skip_bad: bool = False,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> TokenSet:
    """The rows of all examples of the files, in order, from `cache` where they are there.

    With `compat` they are another script's rows, whatever template and max_length say. `workers`
    is how many processes do it, this one included; 0 is as many as there are cores, if that is
    worth it. `progress` is told how many examples are done. `UserError` at the first bad row or
    one that can't be cut, unless `skip_bad`, and where nothing is left.
    """
    if template not in TEMPLATES:
        known = ", ".join(TEMPLATES)
        raise UserError(
            f"the template is {template!r}; it is one of {known}",
            zh=f"模板为 {template!r}；应为 {known} 之一",
        )
    how = {"template": template, "max_length": max_length}
    if compat:
        how = {"script": type(compat).__name__, **asdict(compat)}
        if isinstance(compat, TutorialOptions):
            columns = as_tutorial(paths, columns)
    source = [_hashes(paths, tokenizer_dir), asdict(columns), skip_bad]
    identity = json.dumps([VERSION, generation, how, source], sort_keys=True)
    place = cache / sha256(identity.encode()).hexdigest()[:32]
    if kept := _kept(place):
        return kept
    tokenizer = open_tokenizer(tokenizer_dir)
    made: Layout = Frames(RowEncoder(tokenizer, generation, template, max_length), skip_bad)
    if compat:
        framed, history = columns != CONTEXTS, bool(columns.history)
        made = layout(compat, tokenizer, generation, framed=framed, history=history)
    reading = Reading(paths, columns, skip_bad=skip_bad)
    helpers = (workers or _worth(paths)) - 1
    with (
        _placing(place) as folder,
        _no_cycles(),
        Speller(tokenizer, parsing=made.parsing, workers=helpers) as speller,
    ):
        read = chain(blocks(reading, made, speller), reading.last())
        form = template
        if compat:
            form = "tutorial" if isinstance(compat, TutorialOptions) else "chat"
        write(folder, some(read), made_for(tokenizer_dir, generation, form), progress=progress)
    return TokenSet.open(place)


def made_for(tokenizer_dir: Path, generation: int, template: str) -> dict[str, Any]:
    """What rows of tokens are for, and nothing else should learn them."""
    found = [path for name in VOCABULARIES if (path := tokenizer_dir / name).is_file()]
    tokenizer = sha256(found[0].read_bytes()).hexdigest()[:16] if found else None
    return {"generation": generation, "template": template, "tokenizer": tokenizer}


def some(blocks: Iterable[Block]) -> Iterator[Block]:
    """The blocks; `UserError` at the end where all their rows were bad."""
    counts = Counts()
    for block in blocks:
        counts += block.counts
        yield block
    need_some(counts)


def need_some(counts: Counts) -> None:
    if not counts.examples:
        raise UserError(
            f"all rows are bad ({counts.bad}), so none is left to learn; see: rag finetune check",
            zh=f"所有数据行（{counts.bad} 行）均无法用于训练；请用 rag finetune check 查看原因",
        )


def blocks(examples: Iterable[Example], made: Layout, speller: Speller) -> Iterator[Block]:
    """The rows of the examples, some at a time; a bounded number is on its way."""
    source = iter(examples)
    waiting: deque[tuple[list[Example], Spelt]] = deque()
    while part := list(islice(source, EXAMPLES)):
        texts = [text for example in part for text in made.texts(example)]
        waiting.append((part, speller.submit(texts)))
        if len(waiting) > speller.ahead:
            part, spelt = waiting.popleft()
            yield made.block(part, spelt())
    for part, spelt in waiting:
        yield made.block(part, spelt())


class Reading:
    """The examples of the files."""

    def __init__(self, paths: Sequence[Path], columns: Columns, *, skip_bad: bool) -> None:
        self.paths, self.columns, self.skip_bad = paths, columns, skip_bad
        self.bad = 0
        self.ended: list[str] = []

    def __iter__(self) -> Iterator[Example]:
        if not self.skip_bad:
            yield from examples(self.paths, columns=self.columns, skip="--skip-bad")
            return
        for item in read(self.paths, columns=self.columns):
            if isinstance(item, Example):
                yield item
                continue
            self.bad += item.bad
            self.ended += [item.source] if item.problem == "ended" else []

    def skipped(self) -> Counts:
        """Of the bad rows, known when all are read."""
        return Counts(bad=self.bad, ended=tuple(self.ended))

    def last(self) -> Iterator[Block]:
        """Without rows: those counts."""
        yield Block.empty(self.skipped())


def as_tutorial(paths: Sequence[Path], columns: Columns) -> Columns:
    """The tutorial's jsonl has contexts that are taken as they are, in whatever form."""
    if columns == AS_FOUND:
        first = (next((r for r in records(path) if isinstance(r, Record)), None) for path in paths)
        if all(
            r and isinstance(r.value, dict) and {"context", "target"} <= {*r.value} for r in first
        ):
            return CONTEXTS
    return columns


def _hashes(paths: Sequence[Path], tokenizer_dir: Path) -> list[list[str]]:
    """Of the data's files in order (their kind is told by suffix and bytes), and the tokenizer's."""
    hashes: list[list[str]] = []
    own = [tokenizer_dir / name for name in TOKENIZER_FILES]
    for path in [*paths, *(path for path in own if path.is_file())]:
        if not path.is_file():
            next(records(path))  # says what is wrong
        with path.open("rb") as file:
            label = path.name if path in own else path.suffix.lower()
            hashes.append([label, file_digest(file, "sha256").hexdigest()])
    return hashes


def _worth(paths: Sequence[Path]) -> int:
    """How many processes are worth it."""
    size = sum(path.stat().st_size for path in paths)
    return len(os.sched_getaffinity(0)) if size >= SEVERAL else 1


def _kept(place: Path) -> TokenSet | None:
    """The set at `place`, if it is there and as it was written."""
    try:
        kept = TokenSet.open(place)
    except UserError:
        return None
    return kept if kept.is_whole() else None


@contextmanager
def _placing(place: Path) -> Iterator[Path]:
    """A new folder beside `place`, put into its place at the end; nothing is left of it on an error.

    Two processes may make the same set: the first one's stays. What a killed one has left is
    removed by the next.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with _locked(place.parent):
        _sweep(place.parent)
        new = Path(tempfile.mkdtemp(prefix=".new-", dir=place.parent))
        held = os.open(new, os.O_RDONLY)  # until its end, by which the next one knows that we live
        fcntl.flock(held, fcntl.LOCK_EX)
    try:
        yield new
        sync(new)
        with _locked(place.parent):
            if not _kept(place):
                if place.exists():
                    place.rename(Path(tempfile.mkdtemp(prefix=".old-", dir=place.parent), "old"))
                new.chmod(0o755)
                new.rename(place)
                sync(place.parent)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(
            f"the disk of {place.parent} is full; make room, or set another place for caches",
            zh=f"{place.parent} 所在磁盘已满；请腾出空间，或改用其他缓存位置",
        ) from None
    finally:
        os.close(held)
        shutil.rmtree(new, ignore_errors=True)


@contextmanager
def _no_cycles() -> Iterator[None]:
    """Without the search for what refers to itself, which nothing does here: a sixth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """For a moment: while a set gets its place."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sweep(cache: Path) -> None:
    for left in [*cache.glob(".new-*"), *cache.glob(".old-*")]:
        descriptor = os.open(left, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)


def write_set(
    tokens: TokenSet,
    out: Path,
    *,
    seq_len: bool = False,
    padding: tuple[int, int] | None = None,
    overwrite: bool = False,
) -> None:
    """The set as a folder of its own, whole or not at all.

    `seq_len`: with the column that the tutorial's finetune.py needs. `padding`: rows are filled up
    to that length with that id and IGNORED labels, as THUDM's scripts for ChatGLM-6B and ChatGLM2
    store them. `UserError` where `out` holds something, unless `overwrite`.
    """
    blocks = tokens.blocks()
    if padding:
        blocks = (padded(block, *padding) for block in blocks)
    check_free(out, overwrite=overwrite)
    with new_folder(out, replace=overwrite) as folder:
        write(folder, blocks, tokens.made_for, seq_len=seq_len)


def padding_of(
    compat: Compat | None, tokenizer_dir: Path, generation: int
) -> tuple[int, int] | None:
    """The length and the id to which a script's rows are padded, if they are."""
    if not isinstance(compat, ThudmOptions) or generation > 2:
        return None
    return full_length(compat, generation), open_tokenizer(tokenizer_dir).pad_token_id


def padded(block: Block, length: int, pad: int) -> Block:
    """The same rows, each with `length` tokens at least."""
    full = np.maximum(block.lengths, length)
    places = np.repeat(np.cumsum(full) - full, block.lengths) + _within(block.lengths)
    ids, labels = (
        np.full(int(full.sum()), pad, np.int32),
        np.full(int(full.sum()), IGNORED, np.int32),
    )
    ids[places], labels[places] = block.ids, block.labels
    return Block(ids, labels, full.astype(np.int32), block.counts)


def write_jsonl(
    paths: Sequence[Path],
    out: Path,
    *,
    columns: Columns = AS_FOUND,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> Counts:
    """The data as cover_alpaca2jsonl.py writes it: a context and a target on each line, in ASCII.

    What became of the data comes back; an example is `shortened` where earlier turns or a system
    message are left out, for which the form has no place. `UserError` where `out` is there, unless
    `overwrite`, and at a bad row, unless `skip_bad`.
    """
    if out.is_dir() or (out.exists() and not overwrite):
        raise _exists(out)
    if any(path.exists() and out.exists() and path.samefile(out) for path in paths):
        raise UserError(
            f"{out} is the data itself; name another file", zh=f"{out} 就是数据本身；请换一个文件"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    columns = as_tutorial(paths, columns)
    reading = Reading(paths, columns, skip_bad=skip_bad)
    counts = Counts()
    descriptor, name = tempfile.mkstemp(prefix=f".{out.name}-", dir=out.parent)
    new = Path(name)
    try:
        with open(descriptor, "w", encoding="ascii", newline="\n") as file:
            for example in reading:
                file.write(json.dumps(pair(example, whole=columns == CONTEXTS)) + "\n")
                counts += Counts(1, example.unplaced("tutorial") > 0)
            counts += reading.skipped()
            need_some(counts)
            file.flush()
            os.fsync(file.fileno())
        new.chmod(0o644)
        new.replace(out)
        sync(out.parent)
    finally:
        new.unlink(missing_ok=True)
    return counts


def pair(example: Example, *, whole: bool) -> dict[str, str]:
    """An example as the tutorial puts it; `whole`, its question is the context already."""
    context = example.question
    if not whole:
        context = framed(example.question, example.input)
    return {"context": context, "target": example.answer}


def check_free(out: Path, *, overwrite: bool) -> None:
    """`UserError` where a set may not be put: only a set is ever overwritten."""
    if out.exists() and not out.is_dir():
        raise UserError(
            f"{out} is a file; name a folder for the tokens", zh=f"{out} 是文件；请指定文件夹"
        )
    held = sorted(path.name for path in out.iterdir()) if out.exists() else []
    if held and not overwrite:
        raise _exists(out)
    if others := [name for name in held if name not in FILES]:
        raise UserError(
            f"{out} also holds {others[0]}, which is no part of a set of tokens and would be lost; "
            "name another folder",
            zh=f"{out} 中还有 {others[0]}，它不属于词元集，会因此丢失；请换一个文件夹",
        )


def _within(lengths: np.ndarray) -> np.ndarray:
    """0, 1, … for each length, one behind the other."""
    total = int(lengths.sum())
    return np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _exists(out: Path) -> UserError:
    return UserError(
        f"{out} is there already; name a new place, or add --overwrite",
        zh=f"{out} 已存在；请换一个位置，或加 --overwrite",
    )
