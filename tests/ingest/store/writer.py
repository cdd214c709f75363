"""A process that changes a knowledge base until it is killed; run by the crash tests.

    python -m tests.ingest.store.writer KB SEED

Document `a` always has one text more than `b` has; both change in one transaction, so any
other state is half a change. Each committed step number is written to standard output.
"""

import sys
from itertools import count
from pathlib import Path

from ingest.normalize import terms
from ingest.store import LocalStore, open_store
from ingest.types import DocumentPart
from tests.ingest.store.factories import EMBEDDER, new_document, new_vectors


def texts(source: str, step: int) -> list[str]:
    return [f"text {number} of {source} at step {step}" for number in range(step % 7 + 1)]


def change_both(store: LocalStore, step: int) -> None:
    with store.change(reason=f"step {step}") as change:
        for source in ("a", "b"):
            if step % 5 == 4:
                change.remove(source)
                continue
            document, passages, chunks = new_document(source, texts(source, step))
            change.put(document)
            change.add(DocumentPart(document, passages, chunks, new_vectors(chunks)))
        change.set_meta("step", step)


def check(store: LocalStore) -> int:
    """The step that the knowledge base is at; asserts that it is wholly there and nothing else."""
    step = store.get_meta("step")
    assert store.verify() == []
    if step is None:
        assert not list(store.documents())
        return -1
    assert isinstance(step, int)
    for source in ("a", "b"):
        document = store.document(source)
        if step % 5 == 4:
            assert document is None
            continue
        assert document is not None
        assert store.text(document.id) == "".join(texts(source, step))
    found = store.chunks(store.search_words(terms(f"step {step}"), 1000).keys).values()
    assert {chunk.source for chunk in found} == (set() if step % 5 == 4 else {"a", "b"})
    return step


def main() -> None:
    with open_store(Path(sys.argv[1]), create=EMBEDDER) as store:
        for step in count(check(store) + 1):
            change_both(store, step)
            if step % 6 == 5:
                store.rebuild()
            sys.stdout.write(f"{step}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
