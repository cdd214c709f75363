"""The folder that a domain's adapter is made in, step by step, and how an adapter is put in use.

    domain.json   what all of it is made of
    rows/         train.jsonl, heldout.jsonl, and both parts of the general rows
    adapter/      the adapter, and its training
    eval.json     what it is worth, with eval.png

A step is done when the last file that it writes is there; before, it is begun anew or taken up again.
"""

import json
import re
import shutil
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

from finetune.data.formats import examples
from finetune.data.reader import Record, records
from finetune.train.checkpoint import found, same
from finetune.train.setup import RECORD
from ingest.errors import UserError
from ingest.i18n import Translatable
from ingest.store.atomic import write_whole
from ingest.types import Document

MADE_OF = "domain.json"
DOCUMENTS = "the documents"
"""What MADE_OF calls them, once the rows are made."""
GENERAL = "the rows of --general"
ASKED_GENERAL = 0.1
"""The share of the general rows that is asked afterwards and never learnt, of at most:"""
ASKED_MOST = 100
LEAST_GENERAL = 3
"""One to learn, one to measure while learning, one to ask."""
_HEADER = re.compile(r"^\ufeff?[ \t]*\[[ \t]*generate[ \t]*\][^\r\n]*", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Work:
    """The steps' files in `folder`.

    All that they are made of may change until training has its first checkpoint.
    """

    folder: Path

    @property
    def rows(self) -> Path:
        return self.folder / "rows"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def found(self) -> Path:
        return self.folder / "eval.json"

    @property
    def trained(self) -> bool:
        return (self.adapter / RECORD).is_file()

    def begin(self, options: Mapping[str, Any]) -> None:
        """Make the folder, or go on with it.

        `UserError` where it can't be made, holds something else, or has a checkpoint that was
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
        before = self._made_of()
        if not before and any(self.folder.iterdir()):
            raise UserError(
                "{folder} is not empty; name a new folder with --out", folder=self.folder
            )
        if self._begun:
            same({name: before.get(name) for name in options}, options, self.folder)

    def rows_are_of(self, made_of: Mapping[str, Any]) -> bool:
        """Whether rows are made, of just this; `UserError` where others were trained on."""
        if self._made_of() == made_of:
            return True
        if self._begun:
            raise UserError(
                "the documents changed since the adapter in {folder} was trained; name a new folder "
                "with --out",
                folder=self.folder,
            )
        return False

    def make_rows(self, make: Callable[[Path], None], made_of: Mapping[str, Any]) -> None:
        """Let `make` fill the folder of the rows, anew where it was broken off."""
        self._keep({name: value for name, value in made_of.items() if name != DOCUMENTS})
        shutil.rmtree(self.rows, ignore_errors=True)
        make(self.rows)
        self._keep(made_of)

    @property
    def _begun(self) -> bool:
        return self.trained or bool(found(self.adapter))

    def _made_of(self) -> dict[str, Any]:
        """Nothing, where it was never begun."""
        file = self.folder / MADE_OF
        return _read(file, Translatable("begin anew in another folder")) or {}

    def _keep(self, made_of: Mapping[str, Any]) -> None:
        text = json.dumps(made_of, ensure_ascii=False, indent=2) + "\n"
        write_whole(self.folder / MADE_OF, text.encode())

    @property
    def example(self) -> str:
        """The first question that was held out; `UserError` where there is none."""
        file = self.rows / "heldout.jsonl"
        if not file.is_file():
            raise UserError(
                "one document alone has questions, so none can be held out to judge an adapter by; "
                "give more documents, or train without: rag finetune grounded, then train"
            )
        with file.open(encoding="utf-8") as lines:
            return json.loads(next(lines))["question"]

    @property
    def verdict(self) -> dict[str, Any] | None:
        """What the evaluation came to, as eval.json has it; None where it is not finished."""
        again = Translatable("delete it to evaluate again")
        value = _read(self.found, again)
        if value is None:
            return None
        try:
            whole, found = value["about"]["whole"], value["verdict"]
            _ = found["ship"], [(reason["text"], reason["zh"]) for reason in found["reasons"]]
        except (KeyError, TypeError):
            raise _damaged(self.found, again) from None
        return found if whole else None


def _read(file: Path, way_out: Translatable) -> dict[str, Any] | None:
    """The object in a JSON file; None without one."""
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
    """The rows of `--general` as they are; `UserError` names one that can't be learnt."""
    for _ in examples([file]):
        pass
    read = [record.value for record in records(file) if isinstance(record, Record)]
    if len(read) < LEAST_GENERAL:
        raise UserError(
            "--general: {file} has {count} rows; need {least}, to learn, to measure and to ask",
            file=file,
            count=len(read),
            least=LEAST_GENERAL,
        )
    return read


def divide(rows: Sequence[Any], folder: Path, *, seed: int) -> None:
    """General rows -> `general.jsonl` to mix in and `general-heldout.jsonl` to ask, in `folder`."""
    count = max(1, min(ASKED_MOST, round(len(rows) * ASKED_GENERAL)))
    asked = set(Random(seed).sample(range(len(rows)), count))
    for name, kept in (("general", False), ("general-heldout", True)):
        # In ASCII, for a field that is not learnt may hold what UTF-8 can't.
        text = "".join(
            json.dumps(row) + "\n" for place, row in enumerate(rows) if (place in asked) is kept
        )
        write_whole(folder / f"{name}.jsonl", text.encode())


def digest_of(documents: Iterable[Document]) -> str:
    """How many, and what stands for their bytes."""
    return _digest(sorted(document.digest for document in documents))


def digest_of_rows(rows: Sequence[Any]) -> str:
    return _digest([json.dumps(row) for row in rows])


def _digest(parts: Sequence[str]) -> str:
    return f"{len(parts)} ({sha256(' '.join(parts).encode()).hexdigest()[:8]})"


def lines(values: Mapping[str, str]) -> list[str]:
    """The values as TOML has them."""
    return [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]


def put_in_use(settings: Path, values: Mapping[str, str]) -> bool:
    """Whether `values` stand in `[generate]` of a `rag.toml` now; all else in it stays to the byte.

    False, and nothing is touched, where it names a model already (unless these very values), or
    has the section in a form that no line can be put into.
    """
    text = settings.read_bytes().decode() if settings.is_file() else ""
    held = _parsed(text)
    section = held.get("generate", {})
    if all(section.get(name) == value for name, value in values.items()):
        return True
    newline = "\r\n" if "\r\n" in text else "\n"
    if header := _HEADER.search(text):
        end = header.end()
        new = newline.join([text[:end], *lines(values)]) + text[end:]
    else:
        ended = text if not text or text.endswith("\n") else text + newline
        gap = newline if text.strip() else ""
        new = ended + gap + newline.join(["[generate]", *lines(values), ""])
    wanted = {**held, "generate": {**section, **values}}
    if set(section) & {"model", *values} or _parsed(new) != wanted:
        return False
    write_whole(settings.resolve(), new.encode())
    return True


def _parsed(text: str) -> dict[str, Any]:
    """Nothing, where it is no TOML."""
    try:
        return tomllib.loads(text.removeprefix("\ufeff"))
    except tomllib.TOMLDecodeError:
        return {}
