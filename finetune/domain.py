"""A domain run: from a folder of documents to an adapter in use. This is its folder, and what it decides.

`rag finetune domain` (cli/domain.py) takes five steps: it ingests the documents, makes training rows
and held-out questions from them, trains an adapter, compares it with its base on the held-out
questions, and, if it is better, names it in the knowledge base's `rag.toml`. A run may be stopped
anywhere. The same command then continues it, because every step leaves its result in one folder:

    domain.json   the options, and digests of the data: everything that the result depends on
    rows/         train.jsonl, heldout.jsonl, and both parts of the general rows
    adapter/      the adapter, and its training
    eval.json     the evaluation, with eval.png

A step is done when its last file exists; until then, it is started again or resumed.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

from finetune.data.formats import examples
from finetune.data.reader import Record, records
from finetune.train.checkpoint import check_same, checkpoints
from finetune.train.setup import RECORD
from ingest.errors import UserError
from ingest.store.atomic import write_whole

DOCUMENTS, GENERAL = "the data in the documents", "the data of --general"
"""Keys in domain.json. The first is written once the rows are complete."""
HELD_OUT_GENERAL, MOST_HELD_OUT = 0.1, 100
"""The share of the general rows that is evaluated and never learnt, and the most of them."""
LEAST_GENERAL = 3
"""One to learn, one to measure while learning, one to evaluate."""


class DomainRun:
    """The steps' files in `folder`. Its inputs may change until training has its first checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.inputs, self.evaluation = folder, folder / "domain.json", folder / "eval.json"
        self.rows, self.adapter = folder / "rows", folder / "adapter"

    @property
    def is_trained(self) -> bool:
        return (self.adapter / RECORD).is_file()

    def check(self, inputs: Mapping[str, Any]) -> None:
        """Create the folder, or continue with it.

        Raises `UserError` if it can't be created, holds something else, or has a checkpoint that was
        trained with other values of these inputs.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise UserError(
                "the folder {folder} can't be made: {reason}; name another with --out",
                folder=self.folder,
                reason=problem.strerror or problem,
            ) from None
        before = _read(self.inputs)
        if not before and any(self.folder.iterdir()):
            raise UserError("{folder} is not empty; name a new folder with --out", folder=self.folder)
        if self.is_trained or checkpoints(self.adapter):
            check_same({name: before.get(name) for name in inputs}, inputs, self.folder)

    def has_rows(self, inputs: Mapping[str, Any]) -> bool:
        return _read(self.inputs) == inputs

    def make_rows(self, make: Callable[[Path], None], inputs: Mapping[str, Any]) -> None:
        """Let `make` write the folder of the rows, again from the start if it was interrupted."""
        _write(self.inputs, {name: value for name, value in inputs.items() if name != DOCUMENTS})
        shutil.rmtree(self.rows, ignore_errors=True)
        make(self.rows)
        _write(self.inputs, inputs)

    @property
    def example(self) -> str:
        """The first held-out question; raises `UserError` if there is none."""
        file = self.rows / "heldout.jsonl"
        if not file.is_file():
            raise UserError(
                "only one document has questions, so none can be held out to evaluate an adapter; "
                "give more documents, or train without: rag finetune grounded, then train"
            )
        with file.open(encoding="utf-8") as lines:
            return json.loads(next(lines))["question"]

    @property
    def decision(self) -> dict[str, Any] | None:
        """The decision in eval.json; None if the evaluation is not finished."""
        value = _read(self.evaluation)
        return value["verdict"] if value and value["about"]["whole"] else None


def _read(file: Path) -> dict[str, Any]:
    """The object in a JSON file of ours; empty if the file is missing or damaged."""
    with suppress(FileNotFoundError, ValueError):
        return json.loads(file.read_bytes())
    return {}


def _write(file: Path, value: Mapping[str, Any]) -> None:
    write_whole(file, (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode())


def general_rows(file: Path) -> list[Any]:
    """The rows of `--general` unchanged; raises `UserError` if one of them can't be learnt."""
    for _ in examples([file]):
        pass
    rows = [record.value for record in records(file) if isinstance(record, Record)]
    if len(rows) < LEAST_GENERAL:
        raise UserError(
            "--general: {file} has {count} rows; need {least}, to train on, to measure and to ask",
            file=file, count=len(rows), least=LEAST_GENERAL,
        )  # fmt: skip
    return rows


def divide(rows: Sequence[Any], folder: Path, *, seed: int) -> None:
    """Write general rows to `general.jsonl` to mix in and `general-heldout.jsonl` to evaluate."""
    count = max(1, min(MOST_HELD_OUT, round(len(rows) * HELD_OUT_GENERAL)))
    held_out = set(Random(seed).sample(range(len(rows)), count))
    for name, is_held_out in (("general", False), ("general-heldout", True)):
        # In ASCII, because a field that is not learnt may hold text that UTF-8 can't encode.
        part = (row for place, row in enumerate(rows) if (place in held_out) is is_held_out)
        text = "".join(json.dumps(row) + "\n" for row in part)
        write_whole(folder / f"{name}.jsonl", text.encode())


def digest_of(parts: Sequence[str]) -> str:
    """The number of parts, and a hash of them."""
    return f"{len(parts)} ({sha256(' '.join(parts).encode()).hexdigest()[:8]})"
