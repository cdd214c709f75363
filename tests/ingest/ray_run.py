"""Ingestion with and without a cluster, whose workers are killed at a word of the text.

`python -m tests.ingest.ray_run DOCS KB DEATHS [STOP]` ingests on a cluster of two workers and
prints a JSON line for each outcome, and one at the end; after STOP outcomes it waits to be killed.
"""

import json
import os
import signal
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from ingest import pipeline
from ingest.chunk import Chunker, ChunkOptions
from ingest.embed import Vectors
from ingest.files import walk
from ingest.pipeline import FileOutcome, Ingestion
from ingest.ray_pipeline import Tools, cluster, ingest_on_ray
from ingest.store import Identity, Store, open_store
from ingest.types import ParsedFile
from tests.fakes import HashEmbedder, TextParser

OPTIONS = ChunkOptions(60, 100, 20)
ONCE, ALWAYS = "读一次致命", "读每次致命"
EMBEDDED_ONCE, EMBEDDED_ALWAYS = "编码一次致命", "编码每次致命"


def die(deaths: Path, name: str, *, again: bool) -> None:
    """`kill -9` of this process, which is put on record; if not `again`, only the first time."""
    record = deaths / name
    if again or not record.exists():
        with record.open("a") as file:
            file.write(f"{os.getpid()}\n")
        os.kill(os.getpid(), signal.SIGKILL)


class MortalParser(TextParser):
    def __init__(self, deaths: Path) -> None:
        self.deaths = deaths

    def parse(self, path: Path) -> ParsedFile:
        parsed = super().parse(path)
        (segment,) = parsed.segments
        if ALWAYS in segment.text:
            die(self.deaths, "always", again=True)
        if ONCE in segment.text:
            die(self.deaths, "once", again=False)
        return parsed


class MortalEmbedder(HashEmbedder):
    def __init__(self, deaths: Path) -> None:
        super().__init__()
        self.deaths = deaths

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        if any(EMBEDDED_ALWAYS in text for text in texts):
            die(self.deaths, "embedded always", again=True)
        if any(EMBEDDED_ONCE in text for text in texts):
            die(self.deaths, "embedded", again=False)
        return super().embed_passages(texts)


@contextmanager
def parser(deaths: Path) -> Iterator[MortalParser]:
    yield MortalParser(deaths)


def mortal(deaths: Path) -> Tools:
    """Tools of workers that may die."""
    embedder = partial(MortalEmbedder, deaths)
    return Tools(embedder, partial(parser, deaths), OPTIONS, HashEmbedder.name)


def create_store(kb: Path) -> Store:
    return open_store(kb, create=Identity(HashEmbedder.name, HashEmbedder.dim))


def serial(docs: Path, kb: Path) -> list[FileOutcome]:
    """Outcomes without a cluster."""
    embedder = HashEmbedder()
    chunker = Chunker(embedder.count_many, embedder.max_tokens, OPTIONS)
    with create_store(kb) as store:
        return list(Ingestion(store, embedder, chunker, TextParser()).run(walk([docs])))


def contents(kb: Path) -> dict[str, list[tuple[object, ...]]]:
    """Every row of `kb.sqlite`: keys, texts, places, digests, the vectors' bytes, all of it.

    Left out are what differs between any two runs: the random stamp of a commit, and the times
    when the knowledge base was created and its documents were ingested.
    """
    queries = {name: f"SELECT * FROM {name} ORDER BY key" for name in ("passages", "chunks", "removed")}
    report = "json_remove(receipt, '$.ingested')"
    queries["documents"] = (
        f"SELECT key, id, source, title, digest, {report}, length FROM documents ORDER BY key"
    )
    queries["changes"] = "SELECT seq FROM changes ORDER BY seq"
    queries["meta"] = "SELECT * FROM meta WHERE name != 'created' ORDER BY name"
    with closing(sqlite3.connect(kb / "kb.sqlite")) as sql:
        return {name: sql.execute(query).fetchall() for name, query in queries.items()}


def main(docs: Path, kb: Path, deaths: Path, stop: str = "") -> None:
    pipeline.BATCH_SECONDS = float("inf")  # so that commits are where a quick run has them
    tools = mortal(deaths)
    with create_store(kb) as store, cluster(workers=2) as workers:
        files = list(walk([docs]))
        run = ingest_on_ray(files, store, tools, workers=workers)
        for number, outcome in enumerate(run, 1):
            line = [outcome.source, outcome.status, outcome.chunks, str(outcome.problem or "")]
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
            if str(number) == stop:
                signal.pause()
        last = {"workers": workers, "open": listening_addresses()}
        sys.stdout.write(json.dumps(last) + "\n")


def listening_addresses() -> list[str]:
    """Addresses that this process and those below it listen at."""
    import psutil

    here = psutil.Process()
    found = [
        connection.laddr.ip
        for process in (here, *here.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    return sorted(set(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), *sys.argv[4:])
