"""All questions of a knowledge base, in an order of their own, without holding them in memory.

Pairs wait in a file on disk; what is held is where each stands. The order is that of a seeded hash,
so that it depends on the questions alone, not on where the documents are.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import IO

from finetune.sections import sections
from finetune.synth.pair import folded
from finetune.synth.rules import Kind, Pair, Section, ask
from ingest.store import Store
from ingest.types import Document

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
