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

from finetune.data.template import EncodedExample
from finetune.types import Ids, TokenRow
from ingest.errors import UserError
from ingest.store.atomic import write_whole

DATA, RECORD = "data-00000-of-00001.arrow", "tokens.json"
INFO, STATE = "dataset_info.json", "state.json"
FILES = (DATA, RECORD, INFO, STATE)
IDS, LABELS, SEQ_LEN = "input_ids", "labels", "seq_len"
LIST = pa.list_(pa.int32())
_SEQUENCE = {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "Sequence"}
FEATURES = {
    IDS: _SEQUENCE, LABELS: _SEQUENCE, SEQ_LEN: {"dtype": "int64", "_type": "Value"},
}  # fmt: skip
"""As `datasets` writes its columns' types, in a form that all of its versions read."""

NONE = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class Counts:
    """How many examples of the data were used, and how."""

    examples: int = 0
    shortened: int = 0
    """Examples of which a part did not fit into their rows."""
    left_out: int = 0
    """Examples without a row, as the tutorial's `--skip-overlength` leaves some out."""
    bad: int = 0
    """Rows of the data that could not be examples, or could not be cut, and were skipped."""
    ended: tuple[str, ...] = ()
    """Rows at which a file breaks off; what follows them is lost."""

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class RowBlock:
    """The concatenated rows of some examples; row `i` has `lengths[i]` tokens."""

    ids: Ids
    labels: Ids
    lengths: NDArray[np.int32]
    counts: Counts = Counts()

    @classmethod
    def empty(cls, counts: Counts) -> "RowBlock":
        return cls(NONE, NONE, NONE, counts)

    @classmethod
    def of(cls, encoded: Sequence[EncodedExample]) -> "RowBlock":
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
    """`finetune.types.TokenRows` on disk. Only the lengths of its rows are held in memory."""

    def __init__(self, folder: Path) -> None:
        """Opens the set in a folder; raises `UserError` if it holds none, or a damaged one."""
        self.folder = folder
        try:
            record = json.loads((folder / RECORD).read_text("utf-8"))
            with pa.memory_map(str(folder / DATA)) as file, pa.ipc.open_stream(file) as stream:
                self._table = stream.read_all()
            counts = record["counts"]
            self.counts = Counts(**counts | {"ended": tuple(counts["ended"])})
            self.digest = str(record["digest"])
            self.target: dict[str, Any] = dict(record["made_for"])
            """The generation that the rows are for, their template, and their tokenizer's hash."""
            self.lengths: NDArray[np.int32] = np.concatenate([NONE, *(b.lengths for b in self.blocks())])
            whole = len(self) == record["rows"]
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            raise damaged_set(folder) from None
        if not whole:
            raise damaged_set(folder)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int, /) -> TokenRow:
        """The row at `index`, from 0, in arrays of its own."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return TokenRow(*(self._table[name][index].values.to_numpy().copy() for name in (IDS, LABELS)))

    def blocks(self) -> Iterator[RowBlock]:
        """Some rows at a time, in order; all counts come with the first block."""
        yield RowBlock.empty(self.counts)
        for batch in self._table.to_batches():
            ids, labels = (batch[name].flatten().to_numpy() for name in (IDS, LABELS))
            yield RowBlock(ids, labels, np.diff(batch[IDS].offsets.to_numpy()))

    def is_whole(self) -> bool:
        """Whether the rows are those that were written; reads them all."""
        digest = Digest()
        for block in self.blocks():
            digest.add(block)
        return digest.text == self.digest


class Digest:
    """The hash of rows: their content and order, however they are grouped."""

    def __init__(self) -> None:
        self._hashes = [sha256() for _ in range(3)]

    def add(self, block: RowBlock) -> None:
        arrays = (block.ids, block.labels, block.lengths.astype(np.int32))
        for each, array in zip(self._hashes, arrays, strict=True):
            each.update(np.ascontiguousarray(array).data)

    @property
    def text(self) -> str:
        return sha256(b"".join(each.digest() for each in self._hashes)).hexdigest()[:32]


def write(
    folder: Path,
    blocks: Iterable[RowBlock],
    target: Mapping[str, Any],
    *,
    seq_len: bool = False,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write the blocks' rows into an empty folder, as a set; each file is flushed to the disk.

    `target` is the model that the rows are for (see `TokenSet`). `seq_len` adds a column from which the
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
    info: dict[str, Any] = {"citation": "", "description": "", "homepage": "", "license": ""}
    info |= {"features": {name: FEATURES[name] for name in columns}}
    state = {"_data_files": [{"filename": DATA}], "_fingerprint": digest.text[:16]}
    state |= {"_format_columns": None, "_format_kwargs": {}, "_format_type": None}
    state |= {"_output_all_columns": False, "_split": None}
    for name, value in ((STATE, state), (INFO, info), (RECORD, record)):
        write_whole(folder / name, (json.dumps(value, indent=2) + "\n").encode())


def _batch(block: RowBlock, schema: pa.Schema) -> pa.RecordBatch:
    ends = np.concatenate(([0], np.cumsum(block.lengths))).astype(np.int32)
    columns = [
        pa.ListArray.from_arrays(pa.array(ends), pa.array(values)) for values in (block.ids, block.labels)
    ]
    if SEQ_LEN in schema.names:
        # The length of the prompt; the labels begin with its last token.
        learnt = np.flatnonzero(block.labels >= 0)
        first = learnt[np.searchsorted(learnt, ends[:-1])] - ends[:-1]
        columns.append(pa.array(first + 1, pa.int64()))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def damaged_set(folder: Path) -> UserError:
    return UserError(
        "{folder} is not a whole set of tokens; make it again with: rag finetune prepare", folder=folder
    )
