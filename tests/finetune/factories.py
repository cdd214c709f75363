"""A small knowledge base to ask about, and honest stand-ins that answer from it well or badly."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from finetune.evaluate.questions import Pair
from ingest.chunk import Chunker, ChunkOptions, sentences
from ingest.files import walk
from ingest.i18n import Translator
from ingest.pipeline import Ingestion
from ingest.store import Identity, Store, open_store
from rag.config import Config
from rag.load import score_norm_of
from rag.pipeline import Pipeline
from rag.retrieve import RetrieveOptions
from rag.types import NOT_FOUND, Message, Sampling
from tests.fakes import HashEmbedder, TextParser
from tests.tiny import FACTORIES, MOST, TITLE, fact, numbers, question

NUMBERS = numbers(8)
UNKNOWN = FACTORIES[8:]
GREEDY = Sampling(max_new_tokens=30, temperature=0)
_FENCED = re.compile(r"^\[(\d+)\].*\n(`{3,})\n([\s\S]*?)\n\2$", re.MULTILINE)


def write_docs(folder: Path, numbers: dict[str, str] = NUMBERS) -> Path:
    """A file for each factory."""
    for name, number in numbers.items():
        (folder / name).mkdir(parents=True)
        (folder / name / f"{TITLE}.txt").write_text(fact(name, number) + "\n", "utf-8")
    return folder


@contextmanager
def pipeline_over(docs: Path, kb: Path, *, passages: int = MOST) -> Iterator[Pipeline]:
    embedder = HashEmbedder()
    chunker = Chunker(embedder.count_many, embedder.max_tokens, ChunkOptions(60, 100, 20))
    with open_store(kb, create=Identity(embedder.name, embedder.dim)) as store:
        list(Ingestion(store, embedder, chunker, TextParser()).run(walk([docs])))
        norm = score_norm_of(store, embedder)
        config = Config(retrieve=RetrieveOptions(passages=passages))
        yield Pipeline(store, embedder, norm, Translator("en"), config)


def grounded_rows(store: Store) -> list[dict[str, object]]:
    """What `rag finetune grounded` writes of a question, for every factory."""
    rows: list[dict[str, object]] = []
    for document in store.documents():
        text = store.text(document.id)
        name = text[0]
        start = text.index(NUMBERS[name])
        rows.append(
            {
                "id": f"q-{name}",
                "question": question(name),
                "answer": NUMBERS[name],
                "reply": fact(name, NUMBERS[name]),
                "source": document.source,
                "document": document.id,
                "start": start,
                "end": start + len(NUMBERS[name]),
                "gold": 1,
                "kind": "cloze",
                "messages": [],
            }
        )
    return rows


def write_lines(path: Path, rows: Sequence[object]) -> Path:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), "utf-8")
    return path


class Speaking:
    """A generator whose tokens are characters; what it says, its kind decides."""

    name = "speaking"
    context = 4000

    def __init__(self) -> None:
        self.prompts: list[tuple[Message, ...]] = []

    def count(self, messages: Sequence[Message]) -> int:
        return sum(len(message.text) for message in messages)

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
        self.prompts.append(tuple(messages))
        text = messages[-1].text
        asked = re.findall(r"(.)厂的编号是多少", text)[-1]
        yield from self.reply(asked, _FENCED.findall(text))[: sampling.max_new_tokens]

    def reply(self, asked: str, fenced: list[tuple[str, str, str]]) -> str:
        raise NotImplementedError


class Careful(Speaking):
    """Copies the sentence about the factory that is asked for, or says that there is none."""

    def reply(self, asked: str, fenced: list[tuple[str, str, str]]) -> str:
        for number, _, passage in fenced:
            for start, end in sentences(passage):
                if asked in passage[start:end]:
                    return f"{passage[start:end].strip('。 ')}[{number}]。"
        return NOT_FOUND["han"] if fenced else "不知道"


class ThinAir(Speaking):
    """Says the same of everything, in the tone of one who has read it."""

    def reply(self, asked: str, fenced: list[tuple[str, str, str]]) -> str:
        return f"{asked}厂的编号是999[1]。" if fenced else "999"


class Memory(Careful):
    """Knows the numbers by heart when nothing is shown to it."""

    def reply(self, asked: str, fenced: list[tuple[str, str, str]]) -> str:
        return super().reply(asked, fenced) if fenced else NUMBERS.get(asked, "不知道")


def pair(base: Speaking, adapter: Speaking) -> Pair:
    return Pair(base, adapter)
