"""A knowledge base -> `train.jsonl` and `heldout.jsonl`, split by document.

No question of a held-out document is trained on; its passages may still stand among those of a
training row that do not answer.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Literal

from finetune.asked import Questions
from finetune.grounded import Asked, Grounded, Grounder
from finetune.questions import MAKERS, Kind, Pair, Section
from finetune.questions.written import write
from ingest.errors import UserError
from ingest.store.files import sync_directory
from ingest.types import Document
from rag.generate import Generator

Side = Literal["train", "heldout"]
Watch = Callable[[int], AbstractContextManager[Callable[[], None]]]
"""Of how many questions, to what is called after each."""
PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class SetOptions:
    """What questions are made, and how many rows of them."""

    kinds: tuple[Kind, ...] = tuple(MAKERS)
    heldout: float = 0.1
    """The share of the documents whose questions are kept out of training."""
    limit: int = 0
    """Rows in all, at most; 0: all that there are."""
    plain: bool = False
    """Also write the training questions and their answers without passages."""
    seed: int = 0


@dataclass
class Report:
    """What a set holds, and what was left out of it and why."""

    rows: Counter[tuple[str, Side]] = field(default_factory=Counter)
    """By kind and side."""
    refusals: Counter[tuple[str, Side]] = field(default_factory=Counter)
    """Of `rows`, those whose passages do not answer."""
    documents: dict[str, Side] = field(default_factory=dict)
    """Those that have rows, by id."""
    left: Counter[str] = field(default_factory=Counter)
    samples: list[Grounded] = field(default_factory=list)
    """The first row that cites and the first that refuses."""

    def total(self, side: Side | None = None) -> int:
        return sum(count for (_, there), count in self.rows.items() if side in (None, there))

    def add(self, row: Grounded, side: Side) -> None:
        kind = row.asked.pair.kind
        self.rows[kind, side] += 1
        self.documents[row.asked.document.id] = side
        refuses = row.gold is None
        self.refusals[kind, side] += refuses
        if refuses not in [shown.gold is None for shown in self.samples]:
            self.samples.append(row)


def make(
    grounder: Grounder,
    out: Path,
    options: SetOptions,
    *,
    generator: Generator | None = None,
    watch: Watch = lambda total: nullcontext(lambda: None),
) -> Report:
    """Write the set into the folder `out`: all of its files whole, or none.

    `generator` writes the questions of kind `model`. The same knowledge base, options and seed give the same bytes.
    `UserError` where `out` holds a set already, or no row can be made. A file without rows is not
    written: where one document alone has questions, none is held out.
    """
    names = ("train", "heldout", *([PLAIN] if options.plain else []))
    with TemporaryFile() as spool, _whole(out, names) as files:
        questions = Questions(spool, options.seed)
        questions.gather(grounder.pipeline.store, options.kinds)
        report = Report(left=questions.left)
        held = questions.heldout(options.heldout)
        room = _room(options, divided=bool(held))
        with watch(len(questions)) as tick:
            for document, item in questions:
                side: Side = "heldout" if document.digest in held else "train"
                if report.total(side) < room[side]:
                    row = _row(item, document, grounder, generator, questions)
                    if isinstance(row, Grounded):
                        report.add(row, side)
                        _put(row, side, files)
                    else:
                        report.left[row] += 1
                elif all(report.total(each) >= most for each, most in room.items()):
                    break
                tick()
        if not report.rows:
            raise _nothing(report.left)
    return report


def _room(options: SetOptions, *, divided: bool) -> dict[Side, float]:
    """How many rows each side may have."""
    most = options.limit or float("inf")
    held = (max(1, round(most * options.heldout)) if options.limit else most) if divided else 0
    return {"train": most - held if options.limit else most, "heldout": held}


def _row(
    item: Pair | Section,
    document: Document,
    grounder: Grounder,
    generator: Generator | None,
    questions: Questions,
) -> Grounded | str:
    """The row of a pair, which the model writes where `item` is a section; or why there is none."""
    if isinstance(item, Pair):
        return grounder.row(Asked(item, document))
    assert generator, "questions of kind model need a generator"
    pair = write(item, generator, seed=questions.seed)
    if pair is None:
        return "rejected"
    return "repeated" if questions.repeats(pair) else grounder.row(Asked(pair, document))


def _put(row: Grounded, side: Side, files: dict[str, IO[bytes]]) -> None:
    _line(row.record, files[side])
    if side == "train" and PLAIN in files:
        pair = row.asked.pair
        said = {"instruction": pair.question, "input": "", "output": pair.reply}
        _line(said, files[PLAIN])


def _line(value: dict[str, Any], file: IO[bytes]) -> None:
    file.write(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n")


@contextmanager
def _whole(folder: Path, names: Sequence[str]) -> Iterator[dict[str, IO[bytes]]]:
    """Files `NAME.jsonl` that appear together once all is written, or not at all.

    Those that nothing was written to do not appear.
    """
    paths = {name: folder / f"{name}.jsonl" for name in names}
    if there := [path.name for path in paths.values() if path.exists()]:
        raise UserError(
            f"{folder} already holds {there[0]}; name another folder, or move it away",
            zh=f"{folder} 中已有 {there[0]}；请换一个文件夹，或先将其移走",
        )
    folder.mkdir(parents=True, exist_ok=True)
    new = {name: path.with_name(f"{path.name}.new") for name, path in paths.items()}
    try:
        with ExitStack() as stack:
            files: dict[str, IO[bytes]] = {
                name: stack.enter_context(path.open("wb")) for name, path in new.items()
            }
            yield files
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        for name, path in new.items():
            if path.stat().st_size:
                path.replace(paths[name])
        sync_directory(folder)
    finally:
        for path in new.values():
            path.unlink(missing_ok=True)


def _nothing(left: Counter[str]) -> UserError:
    why = ", ".join(f"{reason} {count}" for reason, count in sorted(left.items()) if count)
    return UserError(
        f"no row can be made from this knowledge base (left out: {why or 'nothing'}); it needs "
        "documents with headings, definitions, lists, tables or figures; or let a model write "
        "questions: --model DIR --write-questions",
        zh=f"无法从该知识库得到训练数据（舍弃：{why or '无'}）；需要含标题、定义、列表、表格或数字的文档；"
        "也可让模型出题：--model 目录 --write-questions",
    )
