"""A knowledge base -> `train.jsonl` and `heldout.jsonl`, split by document.

No question of a held-out document is trained on; its passages may still stand among those of a
training row that do not answer.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Literal

from finetune.synth.pair import Section, folded, write
from finetune.synth.raft import Asked, Grounded, Grounder
from finetune.synth.rules import MAKERS, Kind, Pair, ask
from ingest.errors import UserError
from ingest.store import Store
from ingest.store.atomic import new_folder
from ingest.types import Chunk, Document, Passage
from rag.generate import Generator

_KIND = re.compile(r"(?:p\. \d+|row \d+)")
_NO_NAME = re.compile(
    r"[-_]|\.\w{1,5}$|^\W*[\d.]+\W*$|[?？]$|^(?:untitled|document|无标题|未命名|新建)",
    re.IGNORECASE,
)
_STATE = re.compile(r"^中华人民共和国(?=.*(?:法|条例|决定|规定)$)")
_OPENING = re.compile(
    r"\s*(?:—\s*\d+\s*—\s*)?#*\s*(?P<name>[\u4e00-\u9fff]{4,30}(?:法|条例|办法|规定|细则|规则|章程))\s*\n"
)


def sections(store: Store, document: Document) -> Iterator[Section]:
    """The passages of a document in order, as sections; they tile its text.

    Raises KeyError where the document is removed meanwhile.
    """
    start, subject = 0, ""
    while chunks := store.chunks_within(Passage(document.id, start, start, "", "")):
        (passage,) = store.passages(chunks[:1])
        subject = subject or subject_of(document.title, passage.text)
        yield Section(passage.text, start, subject, _places(chunks), _header(chunks[0]))
        start = passage.end


def subject_of(title: str, opening: str) -> str:
    """What a person calls the document, "" where neither its title nor its first line tells."""
    title = re.split(r"\s[|–—]\s", " ".join(title.split()))[0]
    if found := _OPENING.match(opening):
        return _STATE.sub("", found["name"])
    if not 2 <= len(title) <= 80 or _NO_NAME.search(title):
        return ""
    # A word of Latin letters without space is more likely a file's name.
    named = re.search(r"[\u4e00-\u9fff]{2}", title) or " " in title
    return _STATE.sub("", title) if named else ""


def _places(chunks: list[Chunk]) -> tuple[tuple[int, str], ...]:
    """Where headings begin to hold; pages, sheets and rows left out."""
    found: list[tuple[int, str]] = []
    for start, label in (place for chunk in chunks for place in chunk.places):
        path = _headings(label)
        if path and (not found or found[-1][1] != path):
            found.append((start, path))
    return tuple(found)


def _headings(label: str) -> str:
    """`p. 3 · 第二章 › 第一节` -> `第二章 › 第一节`"""
    parts = label.split(" · ")
    if any(part.startswith("row ") for part in parts):
        return ""
    return " · ".join(part for part in parts if not _KIND.fullmatch(part))


def _header(chunk: Chunk) -> str:
    """The header of a table that the chunk's text is in the middle of."""
    header = chunk.context.rpartition("\n")[2]
    return header if header.startswith("|") and header not in chunk.text else ""


Key = bytes


@dataclass(frozen=True, slots=True)
class Place:
    """Where a question waits in the file, the number of its document, and what it is answered."""

    at: int
    document: int
    answer: Key


@dataclass
class Questions:
    """Pairs, and sections that a model is to ask about, of the documents that have any."""

    file: IO[bytes]
    seed: int
    documents: list[Document] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)
    """`repeated`: questions asked before, with the same answer; `ambiguous`: with another one;
    `gone`: documents that were removed meanwhile."""
    _places: dict[Key, Place | None] = field(default_factory=dict)  # None: ambiguous

    def gather(self, store: Store, kinds: Collection[Kind]) -> None:
        """Ask about every passage of the knowledge base."""
        for document in store.documents():
            self.documents.append(document)
            try:
                for section in sections(store, document):
                    for pair in ask(section, kinds):
                        self._add(pair)
                    if "model" in kinds and section.script:
                        key = self._hash(f"section {document.digest} {section.start}")
                        self._places[key] = self._put(section, b"")
            except KeyError:
                self.left["gone"] += 1

    def __len__(self) -> int:
        return len(self._ordered())

    def __iter__(self) -> Iterator[tuple[Document, Pair | Section]]:
        for place in self._ordered():
            self.file.seek(place.at)
            yield self.documents[place.document], _read(self.file.readline())

    def repeats(self, pair: Pair) -> bool:
        """Whether a question that a model wrote is asked already; it is from now on."""
        key = self._hash(folded(pair.question))
        there = key in self._places
        self._places.setdefault(key, None)
        return there

    def _ordered(self) -> list[Place]:
        return [place for _, place in sorted(self._places.items(), key=_key) if place]

    def _add(self, pair: Pair) -> None:
        key, answer = self._hash(folded(pair.question)), self._hash(folded(pair.answer))
        if key not in self._places:
            self._places[key] = self._put(pair, answer)
            return
        before = self._places[key]
        if before and before.answer == answer:
            self.left["repeated"] += 1
        else:
            self.left["ambiguous"] += 2 if before else 1
            self._places[key] = None

    def _put(self, asked: Pair | Section, answer: Key) -> Place:
        at = self.file.seek(0, 2)
        kind = "pair" if isinstance(asked, Pair) else "section"
        self.file.write(json.dumps({kind: asdict(asked)}).encode() + b"\n")
        return Place(at, len(self.documents) - 1, answer)

    def _hash(self, text: str) -> Key:
        return blake2b(f"{self.seed} {text}".encode("utf-8", "replace"), digest_size=8).digest()


def _key(item: tuple[Key, Place | None]) -> Key:
    return item[0]


def _read(line: bytes) -> Pair | Section:
    said = json.loads(line)
    if "pair" in said:
        return Pair(**said["pair"])
    fields = said["section"]
    return Section(**fields | {"places": tuple(tuple(place) for place in fields["places"])})


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

    def total(self, side: Side) -> int:
        return sum(count for (_, there), count in self.rows.items() if there == side)

    def show(self, row: Grounded) -> None:
        if (row.gold is None) not in [shown.gold is None for shown in self.samples]:
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

    `generator` writes the questions of kind `model`. The same knowledge base, options and seed give
    the same bytes. `UserError` where `out` holds something already, or no row can be made. A file
    without rows is not written: where one document alone has rows, none is held out.
    """
    names = ("train", "heldout", *([PLAIN] if options.plain else []))
    with (
        TemporaryFile() as asked,
        TemporaryFile() as made,
        new_folder(out) as folder,
        _written(folder, names) as files,
    ):
        questions = Questions(asked, options.seed)
        questions.gather(grounder.pipeline.store, options.kinds)
        report = Report(left=questions.left)
        digests: list[str] = []
        with watch(len(questions)) as tick:
            for document, item in questions:
                row = _row(item, document, grounder, generator, questions)
                tick()
                if isinstance(row, str):
                    report.left[row] += 1
                    continue
                report.show(row)
                digests.append(document.digest)
                _line(row.record, made)
                if len(digests) == options.limit:
                    break
        if not digests:
            raise _nothing(report.left)
        held = divided(digests, options.heldout, options.seed)
        made.seek(0)
        for digest, line in zip(digests, made, strict=True):
            side: Side = "heldout" if digest in held else "train"
            _put(json.loads(line), side, files, report)
    return report


def divided(digests: Sequence[str], share: float, seed: int) -> frozenset[str]:
    """The documents of `digests` that are held out: `share` of them, by a seeded hash.

    At least one, and not all, where there are two or more. Files of the same bytes go together.
    """

    def order(digest: str) -> bytes:
        return blake2b(f"{seed} {digest}".encode(), digest_size=8).digest()

    ordered = sorted(set(digests), key=order)
    if len(ordered) < 2 or share <= 0:
        return frozenset()
    return frozenset(ordered[: min(max(1, round(share * len(ordered))), len(ordered) - 1)])


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


def _put(record: dict[str, Any], side: Side, files: dict[str, IO[bytes]], report: Report) -> None:
    """Write a row to its side, and count it."""
    kind = record["kind"]
    report.rows[kind, side] += 1
    report.refusals[kind, side] += record["gold"] is None
    report.documents[record["document"]] = side
    _line(record, files[side])
    if side == "train" and PLAIN in files:
        plain = {"instruction": record["question"], "input": "", "output": record["reply"]}
        _line(plain, files[PLAIN])


def _line(value: dict[str, Any], file: IO[bytes]) -> None:
    file.write(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n")


@contextmanager
def _written(folder: Path, names: Sequence[str]) -> Iterator[dict[str, IO[bytes]]]:
    """New files `NAME.jsonl`, on the disk at the end; those that nothing was written to go."""
    paths = [folder / f"{name}.jsonl" for name in names]
    with ExitStack() as stack:
        files: dict[str, IO[bytes]] = {
            path.stem: stack.enter_context(path.open("wb")) for path in paths
        }
        yield files
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    for path in paths:
        if not path.stat().st_size:
            path.unlink()


def _nothing(left: Counter[str]) -> UserError:
    why = ", ".join(f"{reason} {count}" for reason, count in sorted(left.items()) if count)
    return UserError(
        f"no row can be made from this knowledge base (left out: {why or 'nothing'}); it needs "
        "documents with headings, definitions, lists, tables or figures; or let a model write "
        "questions: --model DIR --write-questions",
        zh=f"无法从该知识库得到训练数据（舍弃：{why or '无'}）；需要含标题、定义、列表、表格或数字的文档；"
        "也可让模型出题：--model 目录 --write-questions",
    )
