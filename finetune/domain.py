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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

from finetune.records import Record, records
from finetune.train.checkpoint import same
from finetune.train.finish import RECORD
from ingest.errors import UserError
from ingest.store.files import write_whole
from ingest.types import Document

MADE_OF = "domain.json"
DOCUMENTS = "the documents"
"""What MADE_OF calls them, once the rows are made."""
ASKED_GENERAL = 0.1
"""The share of the general rows that is asked afterwards and never learnt, of at most:"""
ASKED_MOST = 100
_HEADER = re.compile(r"^\ufeff?[ \t]*\[[ \t]*generate[ \t]*\][^\r\n]*", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Work:
    """The steps' files in `folder`."""

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

    def begin(self, made_of: Mapping[str, Any]) -> None:
        """Make the folder, or go on with it.

        `UserError` where it holds something else, or was begun with other options.
        """
        if (self.folder / MADE_OF).is_file():
            before = self._made_of()
            same({name: before.get(name) for name in made_of}, made_of, self.folder)
            return
        if self.folder.exists() and any(self.folder.iterdir()):
            raise UserError(
                f"{self.folder} is not empty; name a new folder with --out",
                zh=f"{self.folder} 不是空文件夹；请用 --out 指定新文件夹",
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._keep(made_of)

    def rows_are_of(self, documents: Iterable[Document]) -> bool:
        """Whether rows are made, of these documents; `UserError` where they are of others."""
        before = self._made_of()
        if DOCUMENTS not in before:
            return False
        same(before, before | {DOCUMENTS: _told(documents)}, self.folder)
        return True

    def make_rows(self, make: Callable[[Path], None], documents: Iterable[Document]) -> None:
        """Let `make` fill the folder of the rows, anew where it was broken off."""
        shutil.rmtree(self.rows, ignore_errors=True)
        make(self.rows)
        self._keep(self._made_of() | {DOCUMENTS: _told(documents)})

    def _made_of(self) -> dict[str, Any]:
        return json.loads((self.folder / MADE_OF).read_bytes())

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
                "give more documents, or train without: rag finetune grounded, then train",
                zh="只有一个文档有题目，无法留出用于评判适配器的问题；请增加文档，"
                "或依次运行 rag finetune grounded 与 train",
            )
        with file.open(encoding="utf-8") as lines:
            return json.loads(next(lines))["question"]

    @property
    def verdict(self) -> dict[str, Any] | None:
        """What the evaluation came to, as eval.json has it; None where it is not finished."""
        if not self.found.is_file():
            return None
        value = json.loads(self.found.read_bytes())
        return value["verdict"] if value["about"]["whole"] else None


def divide(general: Path, folder: Path, *, seed: int) -> None:
    """General rows -> `general.jsonl` to mix in and `general-heldout.jsonl` to ask, in `folder`.

    `UserError` names a row that can't be read, or that one row can't be divided.
    """
    read: list[Any] = []
    for record in records(general):
        if not isinstance(record, Record):
            raise UserError(
                f"{record.source}: {record.text}; mend it, or leave it out",
                zh=f"{record.source}：{record.zh}；请修正或删去",
            )
        read.append(record.value)
    if len(read) < 2:
        raise UserError(
            f"{general} has {len(read)} rows; need 2, one to learn and one to ask",
            zh=f"{general} 有 {len(read)} 行；至少需要 2 行，用于学习和提问",
        )
    count = max(1, min(ASKED_MOST, round(len(read) * ASKED_GENERAL)))
    asked = set(Random(seed).sample(range(len(read)), count))
    for name, kept in (("general", False), ("general-heldout", True)):
        lines = (
            json.dumps(row, ensure_ascii=False) + "\n"
            for place, row in enumerate(read)
            if (place in asked) is kept
        )
        write_whole(folder / f"{name}.jsonl", "".join(lines).encode("utf-8", "replace"))


def _told(documents: Iterable[Document]) -> str:
    """How many, and what stands for their bytes."""
    digests = sorted(document.digest for document in documents)
    return f"{len(digests)} ({sha256(' '.join(digests).encode()).hexdigest()[:8]})"


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
