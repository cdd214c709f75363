"""Rows on disk: a folder in the layout of Hugging Face's `datasets`, read through a memory map."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from finetune.data.template import Encoded
from finetune.types import Ids, Row
from ingest.errors import UserError
from ingest.store.atomic import write_whole

DATA, RECORD = "data-00000-of-00001.arrow", "tokens.json"
INFO, STATE = "dataset_info.json", "state.json"
FILES = (DATA, RECORD, INFO, STATE)
IDS, LABELS, SEQ_LEN = "input_ids", "labels", "seq_len"
LIST = pa.list_(pa.int32())
FEATURES = {
    IDS: {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "Sequence"},
    LABELS: {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "Sequence"},
    SEQ_LEN: {"dtype": "int64", "_type": "Value"},
}
"""As `datasets` writes its columns' types, in a form that all of its versions read."""

Lists = tuple[Ids, NDArray[np.int32]]
"""The concatenated values of lists, and the offset of each list and of the end."""
NONE = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class Counts:
    """How many examples of the data were used, and how."""

    examples: int = 0
    shortened: int = 0
    """Examples of which something did not fit into their rows."""
    left_out: int = 0
    """Examples that have no row, as the tutorial's `--skip-overlength` leaves some out."""
    bad: int = 0
    """Rows of the data that could not be examples, or could not be cut, and were skipped."""
    ended: tuple[str, ...] = ()
    """Rows at which a file breaks off; what follows them is lost."""

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class Block:
    """The concatenated rows of some examples; row `i` has `lengths[i]` tokens."""

    ids: Ids
    labels: Ids
    lengths: NDArray[np.int32]
    counts: Counts = Counts()

    @classmethod
    def empty(cls, counts: Counts) -> "Block":
        return cls(NONE, NONE, NONE, counts)

    @classmethod
    def of(cls, encoded: Sequence[Encoded]) -> "Block":
        rows = [row for each in encoded for row in each.rows]
        shortened = sum(each.shortened for each in encoded)
        bad = sum(each.bad for each in encoded)
        empty = sum(not each.rows for each in encoded)
        return cls(
            np.concatenate([NONE, *(row.ids for row in rows)]),
            np.concatenate([NONE, *(row.labels for row in rows)]),
            np.array([len(row) for row in rows], np.int32),
            Counts(len(encoded) - bad, shortened, empty - bad, bad),
        )


class TokenSet:
    """`finetune.types.Rows` on disk. Only the lengths of its rows are held in memory."""

    def __init__(
        self,
        folder: Path,
        parts: list[tuple[Lists, Lists]],
        digest: str,
        counts: Counts,
        target: Mapping[str, Any],
    ) -> None:
        self.folder, self.digest, self.counts = folder, digest, counts
        self.target = target
        """The generation that the rows are for, their template, and their tokenizer's hash."""
        self._parts = parts
        lengths = [np.diff(ends) for (_, ends), _ in parts]
        self.lengths: NDArray[np.int32] = np.concatenate([NONE, *lengths])
        self._starts = np.cumsum([0, *(len(each) for each in lengths)])

    @classmethod
    def open(cls, folder: Path) -> "TokenSet":
        """The set in a folder; `UserError` if the folder holds no set, or a damaged one."""
        try:
            record = json.loads((folder / RECORD).read_text("utf-8"))
            with pa.memory_map(str(folder / DATA)) as file, pa.ipc.open_stream(file) as stream:
                parts = [(_lists(batch[IDS]), _lists(batch[LABELS])) for batch in stream]
            counts, target = record["counts"], dict(record["made_for"])
            counts = Counts(**counts | {"ended": tuple(counts["ended"])})
            tokens = cls(folder, parts, str(record["digest"]), counts, target)
            whole = len(tokens) == record["rows"]
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            raise broken(folder) from None
        if not whole:
            raise broken(folder)
        return tokens

    @property
    def shortened(self) -> int:
        """Examples of which something did not fit into their rows."""
        return self.counts.shortened

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int, /) -> Row:
        """The row at `index`, from 0, in arrays of its own."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        part = int(np.searchsorted(self._starts, index, "right")) - 1
        place = index - self._starts[part]
        return Row(*(v[ends[place] : ends[place + 1]].copy() for v, ends in self._parts[part]))

    def blocks(self) -> Iterator[Block]:
        """Some rows at a time, in order; all counts with the first."""
        yield Block.empty(self.counts)
        for (ids, ends), (labels, _) in self._parts:
            part = slice(ends[0], ends[-1])
            yield Block(ids[part], labels[part], np.diff(ends))

    def is_whole(self) -> bool:
        """Whether the rows are those that were written. (Reads them all.)"""
        digest = Digest()
        for block in self.blocks():
            digest.add(block)
        return digest.text == self.digest


class Digest:
    """Of rows: their content and order, however they are grouped."""

    def __init__(self) -> None:
        self._hashes = [sha256() for _ in range(3)]

    def add(self, block: Block) -> None:
        arrays = (block.ids, block.labels, block.lengths.astype(np.int32))
        for each, array in zip(self._hashes, arrays, strict=True):
            each.update(np.ascontiguousarray(array).data)

    @property
    def text(self) -> str:
        return sha256(b"".join(each.digest() for each in self._hashes)).hexdigest()[:32]


def write(
    folder: Path,
    blocks: Iterable[Block],
    target: Mapping[str, Any],
    *,
    seq_len: bool = False,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write the blocks' rows into an empty folder, as a set; each file is flushed to the disk.

    `target` is what the rows are for (see `TokenSet`). `seq_len` adds a column from which the
    tutorial's trainer takes its labels. `progress` gets the number of examples done.
    """
    digest, rows, counts = Digest(), 0, Counts()
    columns = [IDS, LABELS, SEQ_LEN] if seq_len else [IDS, LABELS]
    schema = pa.schema([(name, pa.int64() if name == SEQ_LEN else LIST) for name in columns])
    with (folder / DATA).open("wb") as file:
        with pa.ipc.new_stream(file, schema) as stream:
            for block in blocks:
                digest.add(block)
                rows += len(block.lengths)
                counts += block.counts
                if len(block.lengths):
                    stream.write_batch(_batch(block, schema))
                if progress:
                    progress(counts.examples)
        file.flush()
        os.fsync(file.fileno())
    record = {"rows": rows, "digest": digest.text, "counts": asdict(counts)}
    record["made_for"] = dict(target)
    info = {"citation": "", "description": "", "homepage": "", "license": ""}
    state = {
        "_data_files": [{"filename": DATA}],
        "_fingerprint": digest.text[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_whole(folder / STATE, _json(state))
    write_whole(
        folder / INFO, _json(info | {"features": {name: FEATURES[name] for name in columns}})
    )
    write_whole(folder / RECORD, _json(record))


def _batch(block: Block, schema: pa.Schema) -> pa.RecordBatch:
    ends = np.concatenate(([0], np.cumsum(block.lengths))).astype(np.int32)
    columns = [
        pa.ListArray.from_arrays(pa.array(ends), pa.array(values))
        for values in (block.ids, block.labels)
    ]
    if SEQ_LEN in schema.names:
        # The length of the prompt, with whose last token the labels begin.
        learnt = np.flatnonzero(block.labels >= 0)
        first = learnt[np.searchsorted(learnt, ends[:-1])] - ends[:-1]
        columns.append(pa.array(first + 1, pa.int64()))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _lists(column: Any) -> Lists:
    return column.values.to_numpy(), column.offsets.to_numpy()


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def broken(folder: Path) -> UserError:
    return UserError(
        "{folder} is not a whole set of tokens; make it again with: rag finetune prepare",
        folder=folder,
    )
