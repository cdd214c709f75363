"""Training data -> rows of tokens, computed once for each content; and the tutorial's jsonl.

A set's name in the cache is the hash of everything that its rows depend on: the bytes of the data
and of the tokenizer, and the options. So edited data never gives old rows, and a file that was only
touched is not read again. One process makes a set, and others that need it wait for it. A set is
written whole or not at all, and is checked before it is used.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from hashlib import file_digest, sha256
from itertools import islice
from pathlib import Path
from typing import Any

from finetune.data.dataset import FILES, Counts, RowBlock, TokenSet, write
from finetune.data.formats import AS_FOUND, read
from finetune.data.reader import Record, records
from finetune.data.template import (
    CachedTokenizer,
    EncodedExample,
    RowEncoder,
    TutorialEncoder,
    TutorialOptions,
    tutorial_context,
)
from finetune.options import Columns, Objective
from finetune.types import Example, InvalidRow, row_error
from ingest.errors import Busy, UserError
from ingest.i18n import Translatable
from ingest.store.atomic import disk_usage, new_folder, write_whole
from rag.chatglm.chat import TEMPLATES
from rag.chatglm.tokenization import open_tokenizer

VERSION = 5
"""Increased whenever the same data would give other rows, or another layout on disk."""
BLOCK_EXAMPLES = 512
MOST_BYTES = 10 << 30
"""Of the cache; the newest set stays even if it is larger."""
CONTEXTS = Columns("context", "target")
VOCABULARIES = ("ice_text.model", "tokenizer.model", "tokenizer.json")
TOKENIZER_FILES = (
    *VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "config.json",
)  # fmt: skip

Encoder = Callable[[Example], EncodedExample]


def tokenize(
    paths: Sequence[Path],
    tokenizer_dir: Path,
    *,
    generation: int,
    template: str,
    max_length: int,
    cache: Path,
    columns: Columns = AS_FOUND,
    tutorial: TutorialOptions | None = None,
    skip_bad: bool = False,
    objective: Objective = "sft",
    progress: Callable[[int], None] | None = None,
) -> TokenSet:
    """The rows of all examples of the files, in order; from `cache` if they are there.

    With `tutorial` they are the tutorial's rows, whatever `template` and `max_length` are.
    `progress` gets the number of examples done. Raises `UserError` at the first bad row or one that
    can't be cut, unless `skip_bad`, if no row is left, and for pairs with another `objective` than ORPO
    or the reverse.
    """
    if template not in TEMPLATES:
        raise UserError(
            "the template is {text!r}; it is one of {known}", text=template, known=list(TEMPLATES)
        )
    how: dict[str, Any] = {"template": template, "max_length": max_length, "objective": objective}
    if tutorial:
        how = {"script": "TutorialOptions", **asdict(tutorial)}
        template, columns = "tutorial", context_columns(paths, columns)
    source = [_hashes(paths, tokenizer_dir), asdict(columns), skip_bad]
    identity = json.dumps([VERSION, generation, how, source], sort_keys=True)
    place = cache / sha256(identity.encode()).hexdigest()[:32] / "rows"
    with locked(place.parent):
        if cached := _cached(place):
            os.utime(place.parent)  # `_trim` deletes those that were used longest ago
            return cached
        tokenizer = open_tokenizer(tokenizer_dir)
        encoder: Encoder = RowEncoder(CachedTokenizer(tokenizer), generation, template, max_length)
        if tutorial:
            encoder = TutorialEncoder(tokenizer, generation, tutorial, columns == CONTEXTS)
        examples = of_objective(usable(paths, columns, skip_bad=skip_bad), objective)
        rows = blocks(examples, encoder, skip_bad=skip_bad)
        with new_folder(place, replace=True) as folder:
            write(folder, rows, target_of(tokenizer_dir, generation, template), progress=progress)
        _trim(cache, keep=place.parent)
        return TokenSet(place)


def _trim(cache: Path, *, keep: Path) -> None:
    """Delete the sets that were used longest ago while all take more than `MOST_BYTES`."""
    sets = sorted((each for each in cache.iterdir() if each != keep), key=lambda each: each.stat().st_mtime)
    sizes = {each: disk_usage(each) for each in (*sets, keep)}
    for each in sets:
        if sum(sizes.values()) <= MOST_BYTES:
            break
        with suppress(Busy), locked(each, wait=False):  # one that is being made stays
            shutil.rmtree(each)
            del sizes[each]


def target_of(tokenizer_dir: Path, generation: int, template: str) -> dict[str, Any]:
    """The model that rows of tokens are for; no other should learn them."""
    files = [path for name in VOCABULARIES if (path := tokenizer_dir / name).is_file()]
    tokenizer = sha256(files[0].read_bytes()).hexdigest()[:16] if files else None
    return {"generation": generation, "template": template, "tokenizer": tokenizer}


def usable(paths: Sequence[Path], columns: Columns, *, skip_bad: bool) -> Iterator[Example | Counts]:
    """The examples of files in order. A bad row raises `UserError`, or gives its counts if `skip_bad`."""
    for item in read(paths, columns=columns):
        if isinstance(item, Example):
            yield item
        elif skip_bad:
            yield Counts(bad=item.bad, ended=(item.source,) if item.problem == "ended" else ())
        else:
            raise row_error(item, "--skip-bad")


def of_objective(items: Iterator[Example | Counts], objective: Objective) -> Iterator[Example | Counts]:
    """The same; raises `UserError` at one that the objective can't learn from."""
    for item in items:
        if isinstance(item, Example) and bool(item.rejected) != (objective == "orpo"):
            raise UserError(
                '{source} is {kind}; rag finetune train learns pairs ("chosen" and "rejected", as grounded '
                "--preferences writes them) with --objective orpo, and rows with one answer without it",
                source=item.source,
                kind=Translatable("a pair") if item.rejected else Translatable("no pair"),
            )
        yield item


def blocks(items: Iterator[Example | Counts], encoder: Encoder, *, skip_bad: bool) -> Iterator[RowBlock]:
    """The rows of what `usable` gave.

    Raises `UserError` at an example that can't be cut, unless bad rows are skipped, and at the end
    if all rows are bad.
    """

    def encoded(example: Example) -> EncodedExample:
        try:
            return encoder(example)
        except InvalidRow as invalid:
            if skip_bad:
                return EncodedExample((), shortened=False, bad=True)
            raise row_error(invalid.finding(example.source), "--skip-bad") from None

    counts = Counts()
    while batch := list(islice(items, BLOCK_EXAMPLES)):
        block = RowBlock.of([encoded(item) for item in batch if isinstance(item, Example)])
        skipped = sum((item for item in batch if isinstance(item, Counts)), block.counts)
        counts += skipped
        yield replace(block, counts=skipped)
    require_examples(counts)


def require_examples(counts: Counts) -> None:
    """Raises `UserError` if all rows are bad."""
    if not counts.examples:
        raise UserError(
            "all rows are bad ({bad}), so none is left to train on; see: rag finetune check", bad=counts.bad
        )


def context_columns(paths: Sequence[Path], columns: Columns) -> Columns:
    """The columns of the tutorial's jsonl if all files are in that form (their contexts are used
    unchanged); otherwise `columns`."""
    if columns != AS_FOUND:
        return columns
    first = (next((r for r in records(path) if isinstance(r, Record)), None) for path in paths)
    values = (record.value if record else None for record in first)
    pairs = all(isinstance(v, dict) and {"context", "target"} <= {*v} for v in values)
    return CONTEXTS if pairs else columns


def _hashes(paths: Sequence[Path], tokenizer_dir: Path) -> list[list[str]]:
    """Those of the data's files in order (suffix and bytes decide how they are read), and of the
    tokenizer's."""
    hashes: list[list[str]] = []
    own = [tokenizer_dir / name for name in TOKENIZER_FILES]
    for path in [*paths, *(path for path in own if path.is_file())]:
        if not path.is_file():
            next(records(path))  # raises what is wrong
        with path.open("rb") as file:
            label = path.name if path in own else path.suffix.lower()
            hashes.append([label, file_digest(file, "sha256").hexdigest()])
    return hashes


def _cached(place: Path) -> TokenSet | None:
    """The set at `place`, if it is there and undamaged."""
    try:
        tokens = TokenSet(place)
    except UserError:
        return None
    return tokens if tokens.is_whole() else None


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds a lock on the folder, which is made if it is missing. Raises `Busy` if another process holds
    it, unless that is to be waited for."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise Busy(
                "another process writes in {folder}; wait for it, or name another folder with --out",
                folder=folder,
            ) from None
        yield
    finally:
        os.close(descriptor)


def write_set(tokens: TokenSet, out: Path, *, seq_len: bool = False, overwrite: bool = False) -> None:
    """Write the set into the folder `out`, whole or not at all.

    `seq_len` adds the column that the tutorial's finetune.py needs. Raises `UserError` if `out` is
    not empty, unless `overwrite`.
    """
    check_free(out, overwrite=overwrite)
    with new_folder(out, replace=overwrite) as folder:
        write(folder, tokens.blocks(), tokens.target, seq_len=seq_len)


def write_jsonl(
    paths: Sequence[Path],
    out: Path,
    *,
    columns: Columns = AS_FOUND,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> Counts:
    """Write the data as cover_alpaca2jsonl.py does: a context and a target on each line, in ASCII.

    Returns the counts; an example is `shortened` if it has earlier turns or a system message, for
    which the form has no place. Raises `UserError` if `out` exists, unless `overwrite`, and at a bad
    row, unless `skip_bad`.
    """
    if out.is_dir() or (out.exists() and not overwrite):
        raise _exists(out)
    if any(path.exists() and out.exists() and path.samefile(out) for path in paths):
        raise UserError("{out} is the data itself; name another file", out=out)
    out.parent.mkdir(parents=True, exist_ok=True)
    columns = context_columns(paths, columns)
    counts, lines = Counts(), list[str]()
    for item in usable(paths, columns, skip_bad=skip_bad):
        if isinstance(item, Example):
            context = tutorial_context(item, whole=columns == CONTEXTS)
            lines.append(json.dumps({"context": context, "target": item.answer}) + "\n")
            item = Counts(1, item.unplaced("tutorial") > 0)
        counts += item
    require_examples(counts)
    write_whole(out, "".join(lines).encode())
    return counts


def check_free(out: Path, *, overwrite: bool) -> None:
    """Raises `UserError` if a set can't be written there: only a set is ever overwritten."""
    if out.exists() and not out.is_dir():
        raise UserError("{out} is a file; name a folder for the tokens", out=out)
    names = sorted(path.name for path in out.iterdir()) if out.exists() else []
    if names and not overwrite:
        raise _exists(out)
    if others := [name for name in names if name not in FILES]:
        raise UserError(
            "{out} also holds {others}, which is not part of a set of tokens and would be lost; "
            "name another folder",
            out=out,
            others=others[0],
        )


def _exists(out: Path) -> UserError:
    return UserError("{out} is there already; name a new place, or add --overwrite", out=out)
