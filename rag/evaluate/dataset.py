"""Questions with known answers over a known corpus, read from a folder of one of two layouts.

BEIR's: `corpus.jsonl`, `queries.jsonl`, and `qrels.tsv` or `qrels/test.tsv`; queries may carry
`answers` and `answerable`. Ours: `questions.jsonl` beside a folder `docs/` of files.
"""

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ingest.errors import UserError


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of `path` that are not blank, each with its place, `file:line`."""
    if not path.is_file():
        raise UserError(
            f"{path} is missing; it belongs to an evaluation set",
            zh=f"缺少 {path}；评测集应有此文件",
        )
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise wrong(
                    where,
                    f"not UTF-8 ({error.reason} at byte {error.start})",
                    f"不是 UTF-8 编码（第 {error.start} 字节）",
                ) from None
            if line.strip():
                yield where, line


def records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, line in lines(path):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise wrong(
                where,
                f"no JSON ({error.msg} at column {error.colno})",
                f"不是有效的 JSON（第 {error.colno} 列：{error.msg}）",
            ) from None
        if not isinstance(record, dict):
            raise wrong(
                where,
                f"a {type(record).__name__}; each line is one JSON object",
                f"{type(record).__name__} 不是 JSON 对象；每行应为一个对象",
            )
        yield where, record


def unique(path: Path, *, key: str = "_id") -> Iterator[tuple[str, dict[str, Any]]]:
    seen: set[str] = set()
    for where, record in records(path):
        id = take(record, key, str, where)
        once(id, seen, where)
        seen.add(id)
        yield where, record


def once(id: str, seen: Mapping[str, object] | set[str], where: str) -> None:
    if id in seen:
        raise wrong(where, f"id {id!r} was used before; ids are unique", f"编号 {id!r} 重复")


KINDS = {
    str: ("a text", "文本"),
    int: ("an integer", "整数"),
    bool: ("true or false", "true 或 false"),
    list: ("a list", "列表"),
}
_REQUIRED: Any = object()


def take(
    record: Mapping[str, Any], name: str, kind: type, where: str, *, default: Any = _REQUIRED
) -> Any:
    """`record[name]`, which is of `kind`, one of `KINDS`; `default` where it is absent."""
    value = record.get(name, default)
    if value is _REQUIRED:
        names = ", ".join(record) or "none"
        raise wrong(
            where, f"no field {name!r}; the fields are {names}", f"缺少字段 {name!r}；现有：{names}"
        )
    if not isinstance(value, kind):
        raise wrong(
            where,
            f"{name} is {value!r}; it must be {KINDS[kind][0]}",
            f"{name} 为 {value!r}，应为{KINDS[kind][1]}",
        )
    return value


def strings(record: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    values = take(record, name, list, where, default=[])
    for value in values:
        if not isinstance(value, str) or not value.strip():
            raise wrong(
                where,
                f"{name} holds {value!r}; it must be a list of texts",
                f"{name} 含 {value!r}，应为非空字符串的列表",
            )
    return tuple(values)


def wrong(where: str, problem: str, problem_zh: str) -> UserError:
    """The error that says what is wrong at `where`, in both languages."""
    return UserError(f"{where}: {problem}", zh=f"{where}：{problem_zh}")


@dataclass(frozen=True, slots=True)
class Entry:
    """A corpus entry of a BEIR-like set. Its `id` becomes the source of the ingested document."""

    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Gold:
    """A place that answers a question: `quote` stands in the file `document` below `docs/`."""

    document: str
    quote: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its answers (any one suffices) and what is relevant to it.

    BEIR-like sets fill `grades` (corpus id -> grade, relevant above 0), ours fill `gold`; both are
    empty when the corpus does not hold the answer.
    """

    id: str
    text: str
    answerable: bool
    answers: tuple[str, ...] = ()
    grades: Mapping[str, int] = field(default_factory=dict)
    gold: tuple[Gold, ...] = ()
    language: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A named set of questions, and what they are asked of: `entries`, or the files in `docs`."""

    name: str
    questions: tuple[Question, ...]
    entries: tuple[Entry, ...] = ()
    docs: Path | None = None

    @classmethod
    def load(cls, folder: Path) -> "Dataset":
        """Read and check `folder`; a `UserError` names the file and the line that is wrong."""
        if (folder / "corpus.jsonl").is_file():
            dataset = _load_beir(folder)
        elif (folder / "questions.jsonl").is_file():
            dataset = _load_ours(folder)
        else:
            raise UserError(
                f"{folder} is no evaluation set: it needs corpus.jsonl, queries.jsonl and"
                " qrels.tsv, or questions.jsonl and docs/",
                zh=f"{folder} 不是评测集：需有 corpus.jsonl、queries.jsonl 和 qrels.tsv，"
                "或 questions.jsonl 和 docs/",
            )
        if not dataset.questions:
            raise UserError(
                f"{folder} has no question with a judgement; nothing to evaluate",
                zh=f"{folder} 中没有带标注的问题，无从评测",
            )
        return dataset

    def sample(self, count: int, *, seed: int = 0) -> "Dataset":
        """This set with `count` of its questions, drawn at random and kept in order."""
        if count >= len(self.questions):
            return self
        places = sorted(random.Random(seed).sample(range(len(self.questions)), count))
        return replace(self, questions=tuple(self.questions[place] for place in places))


def _load_beir(folder: Path) -> Dataset:
    entries: dict[str, Entry] = {}
    for where, record in records(folder / "corpus.jsonl"):
        id = take(record, "_id", str, where)
        once(id, entries, where)
        title = take(record, "title", str, where, default="")
        entries[id] = Entry(id, title, take(record, "text", str, where))
    queries = folder / "queries.jsonl"
    asked = {take(record, "_id", str, where): (where, record) for where, record in unique(queries)}
    grades = _qrels(folder, entries, asked)
    questions = []
    for id, (where, record) in asked.items():
        judged = any(grade > 0 for grade in grades.get(id, {}).values())
        if "answerable" not in record and not judged:
            continue  # BEIR's queries.jsonl also holds the queries of other splits
        answerable = take(record, "answerable", bool, where, default=judged)
        if answerable != judged:
            says, says_zh = ("relevant entries", "有") if judged else ("no relevant entry", "没有")
            raise wrong(
                where,
                f"query {id} is answerable: {str(answerable).lower()}, but qrels give it {says};"
                " make them agree",
                f"查询 {id} 的 answerable 为 {str(answerable).lower()}，"
                f"但 qrels 中{says_zh}相关条目；请使二者一致",
            )
        questions.append(
            Question(
                id,
                take(record, "text", str, where),
                answerable,
                strings(record, "answers", where),
                grades.get(id, {}),
            )
        )
    return Dataset(folder.name, tuple(questions), tuple(entries.values()))


def _qrels(
    folder: Path, entries: Mapping[str, Entry], queries: Mapping[str, object]
) -> dict[str, dict[str, int]]:
    """Query id -> corpus id -> grade."""
    path = folder / "qrels.tsv"
    if not path.exists() and (folder / "qrels" / "test.tsv").exists():
        path = folder / "qrels" / "test.tsv"
    grades: dict[str, dict[str, int]] = {}
    for where, line in lines(path):
        columns = line.split("\t")
        if where.endswith(":1") and columns[0] == "query-id":
            continue
        if len(columns) != 3:
            raise wrong(
                where,
                f"{len(columns)} columns; a line is query id, corpus id and score between tabs",
                f"有 {len(columns)} 列；每行应为查询编号、条目编号和分数，以制表符分隔",
            )
        query, entry, score = columns
        if query not in queries:
            file = folder / "queries.jsonl"
            raise wrong(
                where, f"query {query!r} is not in {file}", f"查询 {query!r} 不在 {file} 中"
            )
        if entry not in entries:
            file = folder / "corpus.jsonl"
            raise wrong(
                where, f"entry {entry!r} is not in {file}", f"条目 {entry!r} 不在 {file} 中"
            )
        try:
            grades.setdefault(query, {})[entry] = int(score)
        except ValueError:
            raise wrong(
                where, f"score {score!r} is no whole number", f"分数 {score!r} 不是整数"
            ) from None
    return grades


def _load_ours(folder: Path) -> Dataset:
    if not (folder / "docs").is_dir():
        raise UserError(
            f"{folder} has questions.jsonl but no folder docs/ to ask them of",
            zh=f"{folder} 有 questions.jsonl，但没有供提问的文件夹 docs/",
        )
    questions = []
    for where, record in unique(folder / "questions.jsonl", key="id"):
        answerable = take(record, "answerable", bool, where, default=True)
        gold = _gold(record, folder / "docs", where)
        if answerable != bool(gold):
            raise wrong(
                where,
                f"answerable is {str(answerable).lower()} but gold holds {len(gold)} places;"
                " answerable questions have one or more, the others none",
                f"answerable 为 {str(answerable).lower()}，而 gold 有 {len(gold)} 处；"
                "可回答的问题至少一处，其余没有",
            )
        questions.append(
            Question(
                id=take(record, "id", str, where),
                text=take(record, "question", str, where),
                answerable=answerable,
                answers=strings(record, "answers", where),
                gold=gold,
                language=take(record, "language", str, where, default=""),
                kind=take(record, "kind", str, where, default=""),
            )
        )
    return Dataset(folder.name, tuple(questions), docs=folder / "docs")


def _gold(record: Mapping[str, Any], docs: Path, where: str) -> tuple[Gold, ...]:
    gold = []
    for place in take(record, "gold", list, where, default=[]):
        if not isinstance(place, dict):
            raise wrong(
                where,
                f"gold holds {place!r}; it needs a document and a quote",
                f"gold 含 {place!r}；每处应有 document 和 quote",
            )
        document, quote = take(place, "document", str, where), take(place, "quote", str, where)
        if not (docs / document).is_file():
            raise wrong(
                where,
                f"gold names {document!r}, which is not a file in {docs}",
                f"gold 中的 {document!r} 不是 {docs} 中的文件",
            )
        gold.append(Gold(document, quote))
    return tuple(gold)
