"""A knowledge base -> `train.jsonl` and `heldout.jsonl`, split by document.

No question of a held-out document is trained on; its passages may still be distractors in a
training row.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from hashlib import blake2b
from operator import itemgetter
from pathlib import Path
from random import Random
from typing import Any, Literal

from finetune.options import SyntheticOptions
from finetune.synth.pair import QuestionAnswer, QuestionKind, TitledPassage, is_self_contained, normalize
from finetune.synth.raft import RaftBuilder, RaftRow, SyntheticQuestion
from finetune.synth.rules import pairs_by_rule
from ingest.chunk import sentences
from ingest.errors import UserError
from ingest.i18n import Translatable
from ingest.normalize import one_line
from ingest.store import Store
from ingest.store.atomic import check_new, new_folder, write_whole
from ingest.types import Chunk, Document, Passage
from rag.generate import Generator
from rag.question import script_of
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


Item = QuestionAnswer | TitledPassage
"""A question, or the passage about which a model will write one."""


@dataclass
class QuestionPool:
    """The questions of a knowledge base in a seeded order, each once."""

    seed: int
    rejected: Counter[str] = field(default_factory=Counter)
    """`duplicate`: the same question with the same answer; `ambiguous`: with another answer;
    `removed`: documents that were removed meanwhile."""
    _items: dict[bytes, tuple[Document, Item] | None] = field(default_factory=dict)  # None: ambiguous

    def gather(self, store: Store, kinds: Collection[QuestionKind]) -> None:
        """Add the questions about every passage of the knowledge base."""
        for document in store.documents():
            try:
                for passage in passages_of(store, document):
                    for pair in pairs_by_rule(passage, kinds):
                        self._add(document, pair)
                    if "model" in kinds and passage.script:
                        key = self._hash(f"section {document.digest} {passage.start}")
                        self._items[key] = document, passage
            except KeyError:
                self.rejected["removed"] += 1

    def ordered(self) -> list[tuple[Document, Item]]:
        return [item for _, item in sorted(self._items.items(), key=itemgetter(0)) if item]

    def is_duplicate(self, pair: QuestionAnswer) -> bool:
        """Whether the pool has the question that a model wrote; adds it."""
        key = self._hash(normalize(pair.question))
        is_known = key in self._items
        self._items.setdefault(key, None)
        return is_known

    def _add(self, document: Document, pair: QuestionAnswer) -> None:
        key = self._hash(normalize(pair.question))
        if key not in self._items:
            self._items[key] = document, pair
            return
        before = self._items[key]
        other = before[1] if before else None
        if isinstance(other, QuestionAnswer) and normalize(other.answer) == normalize(pair.answer):
            self.rejected["duplicate"] += 1
        else:
            self.rejected["ambiguous"] += 2 if before else 1
            self._items[key] = None

    def _hash(self, text: str) -> bytes:
        return blake2b(f"{self.seed} {text}".encode("utf-8", "replace"), digest_size=8).digest()


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
    check_new(out)  # before the work
    pool = QuestionPool(options.seed)
    pool.gather(builder.pipeline.store, options.chosen)
    items = pool.ordered()
    report = SyntheticReport(rejected=pool.rejected)
    rows: list[tuple[str, RaftRow]] = []
    with progress(len(items)) as tick:
        for document, item in items:
            row = _row(item, document, builder, generator, pool)
            tick()
            if isinstance(row, str):
                report.rejected[row] += 1
                continue
            rows.append((document.digest, row))
            if len(rows) == options.limit:
                break
    if not rows:
        counts = sorted(report.rejected.items())
        why = ", ".join(f"{reason} {count}" for reason, count in counts if count)
        raise UserError(
            "no row can be built from this knowledge base (rejected: {why}); rules need "
            "definitions, articles, lists, tables or figures; or let a model write questions: "
            "--model DIR --write-questions",
            why=why or Translatable("nothing"),
        )
    # Split only now that it is known which documents have rows.
    heldout = heldout_digests([digest for digest, _ in rows], options.heldout, options.seed)
    files: dict[str, list[dict[str, Any]]] = {"train": [], "heldout": []}
    pairs: list[dict[str, Any]] = []
    for digest, row in rows:
        record, side = row.record, "heldout" if digest in heldout else "train"
        files[side].append(record)
        pairs += row.preferences if side == "train" else []
        report.rows[record["kind"], side] += 1
        report.refusals[record["kind"], side] += record["gold"] is None
        report.documents[record["document"]] = side
    with new_folder(out) as folder:
        for name, records in files.items():
            if records:
                write_lines(folder / f"{name}.jsonl", records)
    if options.preferences:
        write_lines(options.preferences, pairs)
    return report


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_whole(path, text.encode("utf-8", "replace"))


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
    item: Item, document: Document, builder: RaftBuilder, generator: Generator | None, pool: QuestionPool
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


_EXAM_KINDS: tuple[QuestionKind, ...] = ("definition", "table", "cloze")
_NUMBER = re.compile(r"[\d.,零〇一二两三四五六七八九十百千万亿]+")
_CHOOSE: dict[Script, str] = {"han": "只回复选项的字母。", "latin": "Reply with the letter only."}
_JUDGE: dict[Script, tuple[str, str, str]] = {
    "han": ("判断下面的说法，只回复“对”或“错”：", "对", "错"),
    "latin": ("Is this statement true or false? Reply with one word: ", "true", "false"),
}


def exam(store: Store, *, limit: int | None, seed: int) -> list[dict[str, Any]]:
    """Rows that ask for one of four choices, or whether a statement is true, about half of each.

    Wrong choices, and what makes a statement false, answer other questions about the same kind of fact. The
    same knowledge base and seed give the same rows. Raises `UserError` if none can be made.
    """
    pool = QuestionPool(seed)
    pool.gather(store, _EXAM_KINDS)
    pairs = [(document, item) for document, item in pool.ordered() if isinstance(item, QuestionAnswer)]
    alike: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for _, pair in pairs:
        alike[_fact(pair)].setdefault(normalize(pair.answer), pair.answer)
    rows: list[dict[str, Any]] = []
    for document, pair in pairs:
        right, reply, dice = normalize(pair.answer), normalize(pair.reply), Random(f"{seed} {pair.question}")
        wrong = [text for key, text in alike[_fact(pair)].items() if key not in reply and right not in key]
        script, wrong = script_of(pair.question), dice.sample(wrong, min(3, len(wrong)))
        if len(wrong) == 3 and (dice.random() < 0.5 or not is_self_contained(pair.reply)):
            choices = dice.sample([pair.answer, *wrong], 4)
            lines = [f"{letter}. {one_line(text)}" for letter, text in zip("ABCD", choices, strict=True)]
            text, answer = (
                "\n".join([pair.question, *lines, _CHOOSE[script]]),
                "ABCD"[choices.index(pair.answer)],
            )
        elif wrong and pair.answer in pair.reply and is_self_contained(pair.reply):
            (ask, *answers), is_false = _JUDGE[script], dice.random() < 0.5
            said = pair.reply.replace(pair.answer, wrong[0]) if is_false else pair.reply
            text, answer = ask + said, answers[is_false]
        else:
            continue
        row = {"instruction": text, "input": "", "output": answer, "exam": pair.kind}
        rows.append(row | {"source": document.source, "start": pair.start, "end": pair.end})
    if not rows:
        raise UserError(
            "no exam can be made from this knowledge base: none of its {count} definitions, figures and cells "
            "has another of its kind to be told from; ingest more documents",
            count=len(pairs),
        )
    return rows[:limit]


def _fact(pair: QuestionAnswer) -> str:
    """The kind of fact that an answer is: a column of a table, a number of a unit, a purpose, or its rule
    and script."""
    if pair.kind == "table":
        return re.split("[；;]", pair.reply.rpartition(pair.answer)[0])[-1].strip()
    unit = _NUMBER.sub("0", pair.answer)
    if "目的是什么" in pair.question:
        return "purpose"
    return f"{pair.kind} {unit if '0' in unit and len(unit) <= 8 else script_of(pair.question)}"
