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
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

from finetune.data.formats import examples
from finetune.data.reader import Record, records
from finetune.train.checkpoint import check_same, checkpoints
from finetune.train.setup import RECORD
from ingest.errors import UserError
from ingest.i18n import Translatable
from ingest.store.atomic import write_whole

INPUTS = "domain.json"
DOCUMENTS = "the documents"
"""Their key in INPUTS, once the rows are written."""
GENERAL = "the rows of --general"
HELD_OUT_GENERAL, MOST_HELD_OUT = 0.1, 100
"""The share of the general rows that is evaluated and never learnt, and the most of them."""
LEAST_GENERAL = 3
"""One to learn, one to measure while learning, one to evaluate."""


class DomainRun:
    """The steps' files in `folder`. Its inputs may change until training has its first checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.evaluation = folder, folder / "eval.json"
        self.rows, self.adapter = folder / "rows", folder / "adapter"

    @property
    def is_trained(self) -> bool:
        return (self.adapter / RECORD).is_file()

    def begin(self, options: Mapping[str, Any]) -> None:
        """Create the folder, or continue with it.

        Raises `UserError` if it can't be created, holds something else, or has a checkpoint that was
        trained with other options.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise UserError(
                "the folder {folder} can't be made: {reason}; name another with --out",
                folder=self.folder,
                reason=problem.strerror or problem,
            ) from None
        before = self._inputs()
        if not before and any(self.folder.iterdir()):
            raise UserError("{folder} is not empty; name a new folder with --out", folder=self.folder)
        if self._has_checkpoint:
            check_same({name: before.get(name) for name in options}, options, self.folder)

    def has_rows(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the rows of these inputs exist; raises `UserError` if others were trained on."""
        if self._inputs() == inputs:
            return True
        if self._has_checkpoint:
            raise UserError(
                "the documents changed since the adapter in {folder} was trained; name a new folder "
                "with --out",
                folder=self.folder,
            )
        return False

    def make_rows(self, make: Callable[[Path], None], inputs: Mapping[str, Any]) -> None:
        """Let `make` write the folder of the rows, again from the start if it was interrupted."""
        self._write_inputs({name: value for name, value in inputs.items() if name != DOCUMENTS})
        shutil.rmtree(self.rows, ignore_errors=True)
        make(self.rows)
        self._write_inputs(inputs)

    @property
    def _has_checkpoint(self) -> bool:
        return self.is_trained or bool(checkpoints(self.adapter))

    def _inputs(self) -> dict[str, Any]:
        """What was written; empty before the first step."""
        file = self.folder / INPUTS
        return _read(file, Translatable("start again in another folder")) or {}

    def _write_inputs(self, inputs: Mapping[str, Any]) -> None:
        text = json.dumps(inputs, ensure_ascii=False, indent=2) + "\n"
        write_whole(self.folder / INPUTS, text.encode())

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
        again = Translatable("delete it to evaluate again")
        value = _read(self.evaluation, again)
        if value is None:
            return None
        try:
            whole, decision = value["about"]["whole"], value["verdict"]
            _ = decision["ship"], [(each["text"], each["zh"]) for each in decision["reasons"]]
        except (KeyError, TypeError):
            raise _damaged(self.evaluation, again) from None
        return decision if whole else None


def _read(file: Path, way_out: Translatable) -> dict[str, Any] | None:
    """The object in a JSON file; None if the file is missing."""
    if not file.is_file():
        return None
    try:
        value = json.loads(file.read_bytes())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise _damaged(file, way_out)
    return value


def _damaged(file: Path, way_out: Translatable) -> UserError:
    return UserError("{file} is damaged; {way_out}", file=file, way_out=way_out)


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
