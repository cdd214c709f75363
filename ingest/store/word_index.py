"""The word index: a Tantivy index over normalized words and bigrams, without the text.

A file beside the index names the last change that it surely covers; it is written after each commit.
Catching up removes each row before it adds it, so it can safely be done twice.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ingest.errors import UserError
from ingest.normalize import FIELDS, Field, terms
from ingest.store.atomic import scratch, write_whole
from ingest.store.protocol import Ranking

if TYPE_CHECKING:
    from tantivy import IndexWriter

MARK = "covered.json"
POSTINGS = 200_000  # read for a query
HEAP = 100_000_000  # bytes before Tantivy writes a segment; bounds the memory of a huge change


class Coverage(NamedTuple):
    """The newest change in an index, and the highest chunk key in it."""

    seq: int = 0
    stamp: int = 0
    last: int = 0


class Words:
    """An open index. `reload` reads what another process has committed."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Raises ValueError if `path` is not an index of ours."""
        import tantivy

        builder = tantivy.SchemaBuilder()
        builder.add_integer_field("key", indexed=True, fast=True)
        builder.add_integer_field("document", indexed=True)
        for name in FIELDS:
            builder.add_text_field(name, tokenizer_name="spaces", index_option="freq")
        self.path = path
        self._schema = builder.build()
        if create:
            path.mkdir(parents=True)
            self._index = tantivy.Index(self._schema, str(path))
        elif os.access(path, os.W_OK, effective_ids=True):
            self._index = tantivy.Index.open(str(path))
        else:  # Tantivy locks files beside those that it reads
            links = scratch(self)
            for file in path.iterdir():
                if file.suffix != ".lock":
                    (links / file.name).symlink_to(file.absolute())
            self._index = tantivy.Index.open(str(links))
        spaces = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace()).build()
        self._index.register_tokenizer("spaces", spaces)
        self._index.config_reader(reload_policy="manual")
        self.reload()

    def reload(self) -> None:
        self._index.reload()
        self._searcher = self._index.searcher()
        self._searcher.doc_freq("document", 0)  # ValueError: earlier versions had no such field
        mark = self.path / MARK
        self.covered = Coverage(*json.loads(mark.read_bytes())) if mark.exists() else Coverage()

    @property
    def rows(self) -> int:
        return self._searcher.num_docs

    def doc_freq(self, terms: Sequence[str], *, field: Field) -> list[int]:
        return [self._searcher.doc_freq(field, term) for term in terms]

    def search(
        self, query: Sequence[str], k: int, *, field: Field, documents: Sequence[int] | None = None
    ) -> Ranking:
        """The best chunks, of all or of the documents with these keys, for the terms `query` by BM25 (k1 1.2,
        b .75, Tantivy's)."""
        import tantivy

        searcher = self._searcher
        term_query, should = tantivy.Query.term_query, tantivy.Occur.Should
        terms = self._affordable(query, field)
        clauses = [(should, term_query(self._schema, field, term, "freq")) for term in terms]
        matching = tantivy.Query.boolean_query(clauses)
        if documents is not None:
            theirs = tantivy.Query.term_set_query(self._schema, "document", documents)
            unscored = tantivy.Query.const_score_query(theirs, 0.0)
            must = tantivy.Occur.Must
            matching = tantivy.Query.boolean_query([(must, unscored), (must, matching)])
        hits = searcher.search(matching, k, count=False).hits
        keys = searcher.fast_field_values("key", [address for _, address in hits])
        return Ranking(np.array(keys, np.int64), np.array([score for score, _ in hits], np.float32))

    def _affordable(self, terms: Sequence[str], field: Field) -> list[str]:
        """The rarest of `terms` whose postings together stay under `POSTINGS`, at least one.

        The others are in so many chunks that they hardly distinguish any, and would take most of the
        time; below about 100,000 chunks none is left out.
        """
        counts = sorted((self._searcher.doc_freq(field, term), term) for term in set(terms))
        counts = [(count, term) for count, term in counts if count]
        totals = accumulate(count for count, _ in counts)
        rows = zip(counts, totals, strict=True)
        return [term for (_, term), total in rows if total <= POSTINGS or term == counts[0][1]]

    def keys(self) -> set[int]:
        """Every chunk key in the index."""
        import tantivy

        hits = self._searcher.search(tantivy.Query.all_query(), max(self.rows, 1)).hits
        keys = self._searcher.fast_field_values("key", [address for _, address in hits])
        return {int(key or 0) for key in keys}

    @contextmanager
    def writer(self) -> Iterator["WordWriter"]:
        """A writer whose changes are dropped unless `commit` is called. Needs the writer lock."""
        with failures_named(self.path):
            inner = self._index.writer(HEAP, 1)
            # A killed writer can leave files that no commit names, with names that ours will use.
            inner.garbage_collect_files()
            writer = WordWriter(self.path, inner)
        try:
            yield writer
        finally:
            writer.close()
        self.reload()


class WordWriter:
    def __init__(self, path: Path, writer: "IndexWriter") -> None:
        self._path, self._writer = path, writer
        self._committed = False

    def add(self, key: int, document: int, indexed: str) -> None:
        import tantivy

        cut = terms(indexed)
        row = {field: " ".join(cut.of(field)) for field in FIELDS}
        with failures_named(self._path):
            self._writer.add_document(tantivy.Document(key=key, document=document, **row))

    def remove(self, key: int) -> None:
        with failures_named(self._path):
            self._writer.delete_documents_by_term("key", key)

    def commit(self, covered: Coverage) -> None:
        with failures_named(self._path):
            self._writer.commit()
            self._committed = True
        write_whole(self._path / MARK, json.dumps(covered).encode())
        for name in ("meta.json", ".managed.json"):  # Tantivy keeps these for its own user
            shutil.copymode(self._path / MARK, self._path / name)

    def close(self) -> None:
        """Wait for merges, which would otherwise be lost, or drop changes that weren't committed."""
        with failures_named(self._path):
            if not self._committed:  # a rollback also ends merges
                self._writer.rollback()
            self._writer.wait_merging_threads()


@contextmanager
def failures_named(path: Path) -> Iterator[None]:
    """Tantivy's errors while it writes come from the disk, since rows and schema are correct."""
    try:
        yield
    except ValueError as error:
        raise UserError(
            "can't write the word index {path} ({error}); free space there and run it again: the "
            "index catches up from kb.sqlite",
            path=path,
            error=error,
        ) from error


def newest(parent: Path) -> Path | None:
    """The word index to use: names are numbers, the highest is the newest whole one."""
    names = [path for path in parent.glob("*") if path.name.isdigit()]
    return max(names, key=lambda path: int(path.name), default=None)


def drop_others(keep: Path) -> None:
    """Remove all other indexes; a process that still reads one keeps it until it closes it."""
    for path in keep.parent.iterdir():
        if path != keep:
            shutil.rmtree(path, ignore_errors=True)
