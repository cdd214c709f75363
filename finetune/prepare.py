"""Training data -> what other trainers read: sets of tokens, and the tutorial's jsonl."""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finetune.data.compat import Compat, ThudmOptions, full_length
from finetune.data.dataset import FILES, TokenSet, write
from finetune.data.formats import AS_FOUND, Columns
from finetune.data.frames import Block, Counts
from finetune.data.tokenize import CONTEXTS, Reading, as_tutorial, need_some
from finetune.types import IGNORED, Example
from ingest.errors import UserError
from ingest.store.atomic import new_folder, sync
from rag.chatglm.template import framed
from rag.chatglm.tokenization import open_tokenizer


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
