"""Train the shipped reader on questions of ../shared/reader, ../shared/eval and benchmarks/reader.

    python benchmarks/reader_data.py SHARED OUT [--corpus FOLDER] [--tables N] [--share jaquad=0.15] [--from WEIGHTS --frozen 0]

OUT gets the checkpoints, from which the same command continues, and the weights. `--frozen 8` trains the
upper four layers, `--frozen 0` all; `--corpus` is ../shared/corpus-large, unpacked.

A seventh of the articles is kept for development (`--dev` counts the rows of those alone). Nothing is
read of corpora/, realdocs and the *-near sets.
"""

import argparse
import json
import random
import subprocess
import sys
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path[0] = str(Path(__file__).parents[1])  # benchmarks/finetune.py is not the package

from benchmarks.reader_tables import tables  # noqa: E402  (behind the line above)
from finetune.reader.examples import NEAREST, ReaderQuestion, best_occurrence, training_rows  # noqa: E402
from finetune.reader.train import train  # noqa: E402
from ingest.chunk import Chunker  # noqa: E402
from ingest.embed.e5 import BundledEmbedder, open_embedder  # noqa: E402
from ingest.normalize import bigrams  # noqa: E402
from ingest.types import Chunk, Document, ParseReport, Segment  # noqa: E402
from rag.reader import RowBuilder  # noqa: E402

Rows = Iterator[dict[str, Any]]


def is_held(article: str) -> bool:
    """Whether an article is kept for development (the trial of ../shared/reader kept the same)."""
    return bool(article) and zlib.crc32(article.encode()) % 7 == 0


def lines(path: Path) -> Rows:
    text = path.read_bytes()
    if path.suffix == ".zst":
        text = subprocess.run(["zstd", "-dc", path], capture_output=True, check=True).stdout
    return (json.loads(line) for line in text.decode().splitlines())


@dataclass(frozen=True, slots=True)
class Context:
    """A text that questions are about. Rows without an answer come from contexts of the same group."""

    group: str
    article: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class SourceQuestion:
    """A question whose answer is `text[start:end]` of its context; `start` is -1 if it has none.

    Without a context, its answers must not occur in what is paired with it. `search` is the question
    in the context's language.
    """

    group: str
    text: str
    context: int | None
    start: int = -1
    end: int = -1
    answers: tuple[str, ...] = ()
    search: str = ""


class Group:
    """The chunks of a group's contexts, found by the bigrams that they share with a question (BM25)."""

    def __init__(self, contexts: Sequence[tuple[int, Context]], chunker: Chunker) -> None:
        self.chunks = [chunk for number, each in contexts for chunk in chunks_of(each, number, chunker)]
        postings: dict[str, list[int]] = defaultdict(list)
        sizes = np.zeros(len(self.chunks), np.float32)
        for place, chunk in enumerate(self.chunks):
            terms = set(bigrams(chunk.indexed))
            sizes[place] = len(terms)
            for term in terms:
                postings[term].append(place)
        self._weight = 2.2 / (1 + 1.2 * (0.25 + 0.75 * sizes / max(1, sizes.mean())))
        self._postings = {term: np.array(found) for term, found in postings.items()}

    def ranked(self, question: str) -> list[Chunk]:
        total, count = np.zeros(len(self.chunks), np.float32), len(self.chunks)
        for term in set(bigrams(question)):
            if (found := self._postings.get(term)) is not None:
                rarity = np.log1p((count - len(found) + 0.5) / (len(found) + 0.5))
                total[found] += np.float32(rarity) * self._weight[found]
        order: NDArray[np.int64] = np.argsort(-total, kind="stable")
        return [self.chunks[place] for place in order.tolist()]


def chunks_of(context: Context, number: int, chunker: Chunker) -> list[Chunk]:
    """The chunks of a context. Its number stands for their passage, and its article for their document."""
    document = Document("", context.title, "", ParseReport("", None))
    return [
        replace(chunk, document=context.article, context=context.title, passage=(number, number))
        for _, chunks in chunker.split(document, [Segment(context.text)])
        for chunk in chunks
    ]


class Examples:
    """Contexts and questions, those of development or the others."""

    def __init__(self, dev: bool, seed: int, share: dict[str, float]) -> None:
        self.contexts: list[Context] = []
        self.questions: list[SourceQuestion] = []
        self._dev, self._rng, self._share = dev, random.Random(seed), share
        self._places: dict[Context, int] = {}

    def context(self, *parts: str) -> int:
        context = Context(*parts)
        if context not in self._places:
            self._places[context] = len(self.contexts)
            self.contexts.append(context)
        return self._places[context]

    def ask(self, article: str, *values: Any, **more: Any) -> None:
        question = SourceQuestion(*values, **more)
        share = self._share.get(question.group.partition("-")[0], 1)
        if is_held(article) == self._dev:
            times = int(share) + (self._rng.random() < share % 1)
            self.questions.extend([question] * times)

    def jaquad(self, shared: Path) -> None:
        for row in lines(shared / "reader/data/jaquad.jsonl.zst"):
            article = f"ja:{row['article']}"
            place = self.context("jaquad", article, row["article"], row["context"])
            for asked in row["questions"]:
                start, answer = asked["start"], asked["answer"]
                end = start + len(answer)
                self.ask(article, "jaquad", asked["question"], place, start, end, (answer,))

    def encyclopedia(self, shared: Path) -> None:
        spans = {
            row["query"]: (row["start"], row["answer"])
            for row in lines(shared / "reader/data/cmrc2018-a-spans.jsonl")
        }
        for name in ("cmrc2018-a", "drcd-a"):
            folder = shared / "eval" / name
            gold: dict[str, list[str]] = defaultdict(list)
            for line in (folder / "qrels.tsv").read_text("utf-8").splitlines()[1:]:
                query, passage, _ = line.split("\t")
                gold[query].append(passage)
            places = {}
            for row in lines(folder / "corpus.jsonl"):
                article = f"{name}:{row['title']}"
                places[row["_id"]] = self.context(name, article, row["title"], row["text"])
            for row in lines(folder / "queries.jsonl"):
                source, answers = row["metadata"]["source_id"], tuple(row["answers"])
                key = source.split("-")[0] if name == "drcd-a" else source.rsplit("_QUERY", 1)[0]
                if not row["answerable"]:
                    self.ask(key, name, row["text"], None, answers=answers)
                    continue
                place = places[gold[row["_id"]][0]]
                text = self.contexts[place].text
                start, answer = spans.get(row["_id"], (0, ""))
                found = (start, start + len(answer))
                if name != "cmrc2018-a" or not answer or text[slice(*found)] != answer:
                    found = best_occurrence(text, answers, row["text"])
                if found:
                    self.ask(key, name, row["text"], place, *found, answers)

    def xquad(self, shared: Path, directions: int) -> None:
        """Questions of one language over passages of another: the four of Chinese and English, and
        `directions` more a question, two thirds of them with Chinese or English on one side."""
        asked: dict[str, dict[str, tuple[str, str, int, int]]] = defaultdict(dict)
        articles = {}
        for row in lines(shared / "reader/data/xquad-a.jsonl.zst"):
            group = f"xquad_{row['language']}"
            place = self.context(group, f"xq{row['article']}", "", row["context"])
            for q in row["questions"]:
                asked[q["id"]][row["language"]] = (q["question"], q["answer"], q["start"], place)
                articles[q["id"]] = f"xq{row['article']}"
        for key, by_language in sorted(asked.items()):
            pairs = [(a, b) for a in by_language for b in by_language]
            main = [pair for pair in pairs if {*pair} <= {"zh", "en"}]
            half = [p for p in pairs if p not in main and {*p} & {"zh", "en"}]
            rest = [p for p in pairs if p not in main and p not in half]
            some = self._rng.sample(half, min(len(half), directions * 2 // 3))
            some += self._rng.sample(rest, min(len(rest), directions - directions * 2 // 3))
            for a, b in main + some:
                search, answer, start, place = by_language[b]
                if self.contexts[place].text[start:].startswith(answer):
                    group, end = f"xquad-{a}2{b}", start + len(answer)
                    text, answers = by_language[a][0], (answer,)
                    self.ask(articles[key], group, text, place, start, end, answers, search)

    def written(self, path: Path) -> None:
        """Questions written over passages; the trial learnt all of them, so none is kept."""
        for row in lines(path):
            group = f"written-{path.stem.removeprefix('written-')}"
            document = row["passage"] if row["doc"] == "made" else row["doc"]
            place = self.context("written", document, row.get("title", ""), row["passage"])
            start = row.get("start", row["passage"].find(row["answer"])) if row["answerable"] else -1
            end = start + len(row["answer"])
            answers = (row["answer"],) if row["answerable"] else ()
            self.ask("", group, row["question"], place, start, end, answers)

    def own(self, folder: Path, shared: Path, corpus: Path) -> None:
        """Those of benchmarks/reader; `corpus` is ../shared/corpus-large, unpacked. The text around a
        passage of a document gives negatives of the same article."""
        parallel: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        for row in lines(shared / "reader/data/xquad-a.jsonl.zst"):
            key = f"xquad-a/{row['article']}.{row['paragraph']}", f"xq{row['article']}"
            parallel[key][row["language"]] = row["context"]
        articles = {key[0]: key[1] for key in parallel}
        texts = {}
        for path in sorted(folder.glob("*.jsonl")):
            for row in lines(path):
                if row["doc"] in articles:
                    self._crossed(row, parallel[row["doc"], articles[row["doc"]]], articles[row["doc"]])
                    continue
                title, document, passage = row.get("title", ""), row["doc"], row.get("passage", "")
                if not passage:
                    if (name := document.partition("#")[0]) not in texts:
                        texts[name] = (corpus / name).read_text("utf-8")
                    text = texts[name]
                    if "#" in document:
                        text = text.splitlines()[int(document.partition("#")[2])].strip()
                    passage = text[row["start"] : row["end"]]
                    before = text[max(0, row["start"] - 1500) : row["start"]]
                    after = text[row["end"] : row["end"] + 1500]
                    for other in (before, after):
                        if len(other) > 60:
                            self.context("written", document, "", other)
                self._single(row, document if document != "made" else passage, passage, title, "own")

    def tables(self, count: int, seed: int) -> None:
        for row in tables(count, seed):
            self._single(row, row["passage"], row["passage"], row["title"], "table")

    def _single(self, row: dict[str, Any], key: str, passage: str, title: str, group: str) -> None:
        place = self.context("table" if group == "table" else "written", key, title, passage)
        answer, start = row.get("answer", ""), row.get("at", -1)
        answers = (answer,) if answer else ()
        self.ask(key, group, row["question"], place, start, start + len(answer), answers)

    def _crossed(self, row: dict[str, Any], passages: dict[str, str], article: str) -> None:
        """A question over the English passage; one without an answer over the Chinese one too."""
        for language in ("en",) if "answer" in row else ("en", "zh"):
            place = self.context(f"xquad_{language}", article, "", passages[language])
            answer, start = row.get("answer", ""), row.get("at", -1)
            source = "en" if row["style"] == "english" else "zh"
            group, answers = f"ownx-{source}2{language}", (answer,) if answer else ()
            self.ask(article, group, row["question"], place, start, start + len(answer), answers)

    def over_chunks(self, chunker: Chunker) -> Iterator[ReaderQuestion]:
        grouped: dict[str, list[tuple[int, Context]]] = defaultdict(list)
        for number, context in enumerate(self.contexts):
            grouped[context.group].append((number, context))
        groups = {name: Group(members, chunker) for name, members in grouped.items()}
        for each in self.questions:
            if each.context is None:
                nearest = groups[each.group].ranked(each.search or each.text)[:NEAREST]
                yield ReaderQuestion(each.text, each.answers, None, (0, 0), nearest)
                continue
            ranked = groups[self.contexts[each.context].group].ranked(each.search or each.text)
            own = [chunk for chunk in ranked if chunk.passage[0] == each.context]
            if each.start < 0:
                yield ReaderQuestion(each.text, (), None, (0, 0), own)
            for right in own:
                if 0 <= right.start <= each.start and each.end <= right.end:
                    article = [chunk for chunk in ranked if chunk.document == right.document]
                    span = (each.start - right.start, each.end - right.start)
                    nearest = [*own, *article, *ranked[:NEAREST]]
                    yield ReaderQuestion(each.text, each.answers, right, span, nearest)
                    break


def write(*values: object) -> None:
    sys.stdout.write(" ".join(map(str, values)) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shared", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--share", action="append", default=[])
    parser.add_argument("--directions", type=int, default=4)
    parser.add_argument("--tables", type=int, default=0)
    parser.add_argument("--second", type=float, default=0.25)
    parser.add_argument("--most", type=int, default=0, help="rows at most")
    parser.add_argument("--dev", action="store_true")
    parser.add_argument("--from", type=Path, dest="initial", help="weights to start from")
    parser.add_argument("--frozen", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    share = {name: float(value) for name, _, value in (s.partition("=") for s in options.share)}
    made = Examples(options.dev, options.seed, share)
    made.jaquad(options.shared)
    made.encyclopedia(options.shared)
    made.xquad(options.shared, options.directions)
    for path in sorted((options.shared / "reader/data").glob("written-*.jsonl")):
        made.written(path)
    if options.corpus:
        made.own(Path(__file__).with_name("reader"), options.shared, options.corpus)
    made.tables(options.tables, options.seed)
    embedder = open_embedder()
    assert isinstance(embedder, BundledEmbedder)
    chunker, builder = Chunker(embedder.count_many, embedder.max_tokens), RowBuilder(embedder.pieces)
    rows = list(training_rows(made.over_chunks(chunker), builder, seed=options.seed, second=options.second))
    if options.most:
        rows = random.Random(options.seed).sample(rows, min(options.most, len(rows)))
    write(len(made.contexts), "contexts", len(made.questions), "questions", len(rows), "rows")
    for kind, number in sorted(Counter(row.kind for row in rows).items()):
        write(kind, number)
    if not options.dev:
        weights = options.initial.read_bytes() if options.initial else None
        form = {"epochs": options.epochs, "rate": options.rate, "batch": 32, "seed": options.seed}
        write(train(rows, weights, options.out, frozen=options.frozen, **form))


if __name__ == "__main__":
    main()
