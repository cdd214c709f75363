"""A knowledge base -> `train.jsonl` and `heldout.jsonl`, split by document.

No question of a held-out document is trained on; its passages may still be distractors in a
training row.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Literal, NamedTuple

from finetune.synth.pair import QuestionAnswer, QuestionKind, TitledPassage, normalize
from finetune.synth.raft import RaftBuilder, RaftRow, SyntheticQuestion
from finetune.synth.rules import RULES, pairs_by_rule
from ingest.chunk import sentences
from ingest.errors import UserError
from ingest.i18n import Translatable
from ingest.normalize import one_line
from ingest.store import Store
from ingest.store.atomic import new_folder
from ingest.types import Chunk, Document, Passage
from rag.generate import Generator
from rag.types import Message, Sampling, Script

_NO_TITLE = re.compile(
    r"[-_]|\.\w{1,5}$|^\W*[\d.]+\W*$|[?？]$|^(?:untitled|document|无标题|未命名|新建)", re.IGNORECASE
)
_STATE = re.compile(r"^中华人民共和国(?=.*(?:法|条例|决定|规定)$)")
_OPENING = re.compile(
    r"\s*(?:—\s*\d+\s*—\s*)?#*\s*(?P<name>[\u4e00-\u9fff]{4,30}(?:法|条例|办法|规定|细则|规则|章程))\s*\n"
)


def passages_of(store: Store, document: Document) -> Iterator[TitledPassage]:
    """The passages of a document in order; they tile its text.

    Raises KeyError if the document is removed meanwhile.
    """
    start, title = 0, ""
    while chunks := store.chunks_within(Passage(document.id, start, start, "", "")):
        (passage,) = store.passages(chunks[:1])
        title = title or title_of(document.title, passage.text)
        yield TitledPassage(passage.text, start, title, _places(chunks), _header(chunks[0]))
        start = passage.end


def title_of(title: str, opening: str) -> str:
    """The name that a person would use for the document, from its title or first line; or ""."""
    title = re.split(r"\s[|–—]\s", " ".join(title.split()))[0]
    if match := _OPENING.match(opening):
        return _STATE.sub("", match["name"])
    if not 2 <= len(title) <= 80 or _NO_TITLE.search(title):
        return ""
    # One word in Latin letters is more likely the name of a file.
    is_name = re.search(r"[\u4e00-\u9fff]{2}", title) or " " in title
    return _STATE.sub("", title) if is_name else ""


def _places(chunks: list[Chunk]) -> tuple[tuple[int, str], ...]:
    """The places where headings begin to apply: `p. 3 · 第二章 › 第一节` -> `第二章 › 第一节`."""
    places: list[tuple[int, str]] = []
    for start, label in (place for chunk in chunks for place in chunk.places):
        parts = label.split(" · ")
        if any(part.startswith("row ") for part in parts):
            continue
        path = " · ".join(part for part in parts if not re.fullmatch(r"p\. \d+", part))
        if path and (not places or places[-1][1] != path):
            places.append((start, path))
    return tuple(places)


def _header(chunk: Chunk) -> str:
    """The header of a table that began before the chunk."""
    header = chunk.context.rpartition("\n")[2]
    return header if header.startswith("|") and header not in chunk.text else ""


Key = bytes


class PoolEntry(NamedTuple):
    """The place of a question in the file, the index of its document, and the key of its answer."""

    offset: int
    document: int
    answer: Key


@dataclass
class QuestionPool:
    """The questions of a knowledge base in a seeded order, each once, kept in a file.

    A passage is the place of the question that a model will write about it.
    """

    file: IO[bytes]
    seed: int
    documents: list[Document] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    """`duplicate`: the same question with the same answer; `ambiguous`: with another answer;
    `removed`: documents that were removed meanwhile."""
    _entries: dict[Key, PoolEntry | None] = field(default_factory=dict)  # None: ambiguous

    def gather(self, store: Store, kinds: Collection[QuestionKind]) -> None:
        """Add the questions about every passage of the knowledge base."""
        for document in store.documents():
            self.documents.append(document)
            try:
                for passage in passages_of(store, document):
                    for pair in pairs_by_rule(passage, kinds):
                        self._add(pair)
                    if "model" in kinds and passage.script:
                        key = self._hash(f"section {document.digest} {passage.start}")
                        self._entries[key] = self._write(passage, b"")
            except KeyError:
                self.rejected["removed"] += 1

    def __len__(self) -> int:
        return len(self._ordered())

    def __iter__(self) -> Iterator[tuple[Document, QuestionAnswer | TitledPassage]]:
        for entry in self._ordered():
            self.file.seek(entry.offset)
            yield self.documents[entry.document], _parse(self.file.readline())

    def is_duplicate(self, pair: QuestionAnswer) -> bool:
        """Whether the pool has the question that a model wrote; adds it."""
        key = self._hash(normalize(pair.question))
        is_known = key in self._entries
        self._entries.setdefault(key, None)
        return is_known

    def _ordered(self) -> list[PoolEntry]:
        return [entry for _, entry in sorted(self._entries.items(), key=itemgetter(0)) if entry]

    def _add(self, pair: QuestionAnswer) -> None:
        key, answer = self._hash(normalize(pair.question)), self._hash(normalize(pair.answer))
        if key not in self._entries:
            self._entries[key] = self._write(pair, answer)
            return
        before = self._entries[key]
        if before and before.answer == answer:
            self.rejected["duplicate"] += 1
        else:
            self.rejected["ambiguous"] += 2 if before else 1
            self._entries[key] = None

    def _write(self, item: QuestionAnswer | TitledPassage, answer: Key) -> PoolEntry:
        offset = self.file.seek(0, 2)
        kind = "pair" if isinstance(item, QuestionAnswer) else "passage"
        self.file.write(json.dumps({kind: asdict(item)}).encode() + b"\n")
        return PoolEntry(offset, len(self.documents) - 1, answer)

    def _hash(self, text: str) -> Key:
        return blake2b(f"{self.seed} {text}".encode("utf-8", "replace"), digest_size=8).digest()


def _parse(line: bytes) -> QuestionAnswer | TitledPassage:
    item = json.loads(line)
    if "pair" in item:
        return QuestionAnswer(**item["pair"])
    fields = item["passage"]
    return TitledPassage(**fields | {"places": tuple(map(tuple, fields["places"]))})


MODEL_TOKENS = 160
"""The longest reply of a model that writes a question, in tokens."""
_PROMPT: dict[Script, str] = {
    "han": (
        "阅读资料，就其中的一个事实提一个问题，并从资料中一字不差地抄出答案。"
        "问题要写明所问的对象，脱离资料也能看懂；答案要短。只回复两行：\n问题：……\n答案：……"
    ),
    "latin": (
        "Read the passage. Ask one question about one fact in it, and copy the answer from the "
        "passage to the letter. Name what the question is about, so that it can be understood "
        "without the passage; keep the answer short. Reply with two lines only:\n"
        "Question: ...\nAnswer: ..."
    ),
}
_REPLY = re.compile(
    r"^\W*(?:问题?|Q(?:uestion)?)\s*[:：]\s*(?P<question>\S[^\n]*)\n+\W*(?:答案?|A(?:nswer)?)\s*[:：]\s*(?P<answer>\S[^\n]*)",
    re.IGNORECASE,
)
_QUOTES = " \t\"'“”‘’「」"
_STOPS = "。.；;，,"


def write_pair(passage: TitledPassage, generator: Generator, *, seed: int = 0) -> QuestionAnswer | None:
    """A question that the model writes about the passage.

    None if its reply is not in the required form, its answer is not in the passage, the question is
    not valid, or the passage doesn't fit into the model's window.
    """
    if not passage.script:
        return None
    context = "\n".join(filter(None, (passage.quoted_title, passage.header, passage.text.strip())))
    messages = [Message("user", f"{_PROMPT[passage.script]}\n\n{context}")]
    if generator.count(messages) > generator.context - MODEL_TOKENS:
        return None
    sampling = Sampling(max_new_tokens=MODEL_TOKENS, temperature=0, seed=seed)
    found = _REPLY.search("".join(generator.stream(messages, sampling)))
    return parse_pair(passage, found["question"], found["answer"]) if found else None


def parse_pair(passage: TitledPassage, question: str, answer: str) -> QuestionAnswer | None:
    """The pair of a model's question and an answer in the words of the passage, or None."""
    text, answer = passage.text, answer.strip(_QUOTES)
    answer = answer if answer in text else answer.rstrip(_STOPS).strip(_QUOTES)
    if not answer or (at := text.find(answer)) < 0:
        return None
    around = [(a, b) for a, b in sentences(text) if a < at + len(answer) and at < b]
    start, end = around[0][0], around[-1][1]
    start = end - len(text[start:end].lstrip())
    span = start, start + len(text[start:end].rstrip())
    return next(passage.pair("model", question, answer, one_line(text[slice(*span)]), span), None)


Side = Literal["train", "heldout"]
Progress = Callable[[int], AbstractContextManager[Callable[[], None]]]
"""From the number of questions to a function that is called after each of them."""
PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class SyntheticOptions:
    """The kinds of questions, and the number of rows."""

    kinds: tuple[QuestionKind, ...] = tuple(RULES)
    heldout: float = 0.1
    """The share of the documents whose questions are not trained on."""
    limit: int = 0
    """The most rows of both sides together; 0: no limit."""
    plain: bool = False
    """Also write the training questions and their answers without passages."""
    seed: int = 0


@dataclass
class SyntheticReport:
    """What was written, and what was rejected and why."""

    rows: Counter[tuple[str, Side]] = field(default_factory=Counter)
    """By kind and side."""
    refusals: Counter[tuple[str, Side]] = field(default_factory=Counter)
    """The `rows` whose passages do not answer."""
    documents: dict[str, Side] = field(default_factory=dict)
    """The documents that have rows, by id."""
    rejected: Counter[str] = field(default_factory=Counter)
    """By reason."""
    samples: list[RaftRow] = field(default_factory=list)
    """The first row that cites and the first that refuses."""

    def total(self, side: Side) -> int:
        return sum(count for (_, of), count in self.rows.items() if of == side)


def build(
    builder: RaftBuilder,
    out: Path,
    options: SyntheticOptions,
    *,
    generator: Generator | None = None,
    progress: Progress = lambda total: nullcontext(lambda: None),
) -> SyntheticReport:
    """Write the rows into the folder `out`: all files completely, or none.

    `generator` writes the questions of kind `model`. The same knowledge base, options and seed give
    the same bytes. A file without rows is not written: if only one document has rows, none is held
    out. Raises `UserError` if `out` is not empty, or no row can be built.
    """
    names = ("train", "heldout", *([PLAIN] if options.plain else []))
    with (
        TemporaryFile() as question_file,
        TemporaryFile() as row_file,
        new_folder(out) as folder,
        _open_all(folder, names) as files,
    ):
        pool = QuestionPool(question_file, options.seed)
        pool.gather(builder.pipeline.store, options.kinds)
        report = SyntheticReport(rejected=pool.rejected)
        digests: list[str] = []
        with progress(len(pool)) as tick:
            for document, item in pool:
                row = _row(item, document, builder, generator, pool)
                tick()
                if isinstance(row, str):
                    report.rejected[row] += 1
                    continue
                if (row.gold is None) not in [sample.gold is None for sample in report.samples]:
                    report.samples.append(row)
                digests.append(document.digest)
                _write_line(row.record, row_file)
                if len(digests) == options.limit:
                    break
        if not digests:
            counts = sorted(report.rejected.items())
            why = ", ".join(f"{reason} {count}" for reason, count in counts if count)
            raise UserError(
                "no row can be built from this knowledge base (rejected: {why}); rules need "
                "definitions, articles, lists, tables or figures; or let a model write questions: "
                "--model DIR --write-questions",
                why=why or Translatable("nothing"),
            )
        # Split only now that it is known which documents have rows.
        heldout = heldout_digests(digests, options.heldout, options.seed)
        row_file.seek(0)
        for digest, line in zip(digests, row_file, strict=True):
            side: Side = "heldout" if digest in heldout else "train"
            _write_row(json.loads(line), side, files, report)
    return report


def heldout_digests(digests: Sequence[str], share: float, seed: int) -> frozenset[str]:
    """The documents of `digests` that are held out: `share` of them, by a seeded hash.

    Of two or more at least one, and not all. Files with the same bytes are on the same side.
    """
    ordered = sorted(
        set(digests), key=lambda each: blake2b(f"{seed} {each}".encode(), digest_size=8).digest()
    )
    if len(ordered) < 2 or share <= 0:
        return frozenset()
    return frozenset(ordered[: min(max(1, round(share * len(ordered))), len(ordered) - 1)])


def _row(
    item: QuestionAnswer | TitledPassage,
    document: Document,
    builder: RaftBuilder,
    generator: Generator | None,
    pool: QuestionPool,
) -> RaftRow | str:
    """The row of a pair, which the model writes if `item` is a passage; or the reason for none."""
    if isinstance(item, QuestionAnswer):
        return builder.row(SyntheticQuestion(item, document))
    assert generator, "questions of kind model need a generator"
    pair = write_pair(item, generator, seed=pool.seed)
    if pair is None:
        return "invalid"
    if pool.is_duplicate(pair):
        return "duplicate"
    return builder.row(SyntheticQuestion(pair, document))


def _write_row(
    record: dict[str, Any], side: Side, files: dict[str, IO[bytes]], report: SyntheticReport
) -> None:
    """Write a row to its side, and count it."""
    kind = record["kind"]
    report.rows[kind, side] += 1
    report.refusals[kind, side] += record["gold"] is None
    report.documents[record["document"]] = side
    _write_line(record, files[side])
    if side == "train" and PLAIN in files:
        plain = {"instruction": record["question"], "input": "", "output": record["reply"]}
        _write_line(plain, files[PLAIN])


def _write_line(value: dict[str, Any], file: IO[bytes]) -> None:
    file.write(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n")


@contextmanager
def _open_all(folder: Path, names: Sequence[str]) -> Iterator[dict[str, IO[bytes]]]:
    """New files `NAME.jsonl`, flushed to the disk at the end; empty ones are removed."""
    paths = [folder / f"{name}.jsonl" for name in names]
    with ExitStack() as stack:
        files: dict[str, IO[bytes]] = {path.stem: stack.enter_context(path.open("wb")) for path in paths}
        yield files
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    for path in paths:
        if not path.stat().st_size:
            path.unlink()
