"""The store at scale, on synthetic vectors and Zipf text: build, open, search, add one document.

    python benchmarks/store.py FOLDER [--chunks 1000000] [--queries 200]

The knowledge base stays in FOLDER (chunks x 3 KB), so that a second run only measures. Vectors
are clustered like real ones: neighbours share a centre, dimensions differ in size. Nothing else
should run beside it.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from plan import CHUNKS, DIM, WORDS, Synthetic, add, build, synthetic_text

from ingest.normalize import terms
from ingest.store import Identity, LocalStore, open_store
from ingest.types import Vectors

K = 100  # a leg
SHARES = (0.0, 0.001, 0.01, 0.1, 0.5)  # of the documents, in scope


def exact_top(
    store: LocalStore, queries: Vectors, k: int, within: tuple[str, ...] | None = None
) -> list[set[int]]:
    """The keys of the `k` nearest of all the vectors in the truth, or of those in scope, a set a query."""
    from ingest.store.sqlite import vectors_after

    best = np.full((len(queries), k), -np.inf, np.float32)
    keys = np.zeros((len(queries), k), np.int64)
    subset = store._subset(within)
    for found, stored in vectors_after(store._sql, 0, DIM):
        if subset:
            there = np.isin(found, subset.keys)
            found, stored = found[there], stored[there]
        scores = np.concatenate([best, queries @ stored.T], axis=1)
        named = np.concatenate([keys, np.broadcast_to(found, (len(queries), len(found)))], axis=1)
        top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        best, keys = np.take_along_axis(scores, top, 1), np.take_along_axis(named, top, 1)
    return [set(row.tolist()) for row in keys]


def hybrid(store: LocalStore, vector: Vectors, text: str, within: tuple[str, ...] | None = None) -> None:
    """What retrieval needs of a question: both legs, and the cosine of every hit.

    One after the other: in two threads the interpreter's lock costs more than the second core wins.
    """
    dense = store.search_dense(vector, K, within=within)
    words = store.search_words(terms(text), K, within=within)
    store.vectors(np.union1d(dense.keys, words.keys))


def measure(path: Path, synthetic: Synthetic, count: int) -> Iterator[tuple[str, str]]:
    rng = np.random.default_rng(10**9)
    with open_store(path) as store:
        drawn = store.vectors(rng.integers(1, store.count() + 1, count))
    queries, texts = synthetic.near(rng, drawn), synthetic.texts(rng, count, 10)
    start = time.perf_counter()
    with open_store(path) as store:
        hybrid(store, queries[0], texts[0])
        yield "open and first hybrid search", f"{time.perf_counter() - start:.2f} s"
        legs: dict[str, Callable[[int], object]] = {
            "hybrid search": lambda i: hybrid(store, queries[i], texts[i]),
            "dense leg": lambda i: store.search_dense(queries[i], K),
            "word leg": lambda i: store.search_words(terms(texts[i]), K),
            "bigram leg": lambda i: store.search_words(terms(texts[i]), K, field="bigrams"),
        }
        for name, leg in legs.items():
            spent = [timed(leg, i) for i in range(count)]
            p50, p95 = np.percentile(spent, [50, 95]) * 1e3
            yield f"{name}, p50 / p95", f"{p50:.1f} / {p95:.1f} ms"
        nearest = exact_top(store, queries, 10)
        for k in (10, K):
            found = [set(store.search_dense(query, k).keys[:10].tolist()) for query in queries]
            recall = np.mean([len(a & b) / 10 for a, b in zip(nearest, found, strict=True)])
            yield f"recall@10 of the dense leg at k={k}", f"{recall:.4f}"
        ids = np.array([document.id for document in store.documents()])
        for share in SHARES:
            within = tuple(ids[rng.permutation(len(ids))[: max(1, round(share * len(ids)))]].tolist())
            subset = store._subset(within)
            assert subset
            size = len(subset.keys)
            hybrid(store, queries[0], texts[0], within)  # the keys of a scope are read once
            spent = [
                timed(lambda i, within=within: hybrid(store, queries[i], texts[i], within), i)
                for i in range(count)
            ]
            p50, p95 = np.percentile(spent, [50, 95]) * 1e3
            nearest = exact_top(store, queries, min(10, size), within)
            found = [
                set(store.search_dense(query, 10, within=within).keys[:10].tolist()) for query in queries
            ]
            recall = np.mean([len(a & b) / len(a) for a, b in zip(nearest, found, strict=True)])
            yield f"within {size:,} chunks, p50 / p95, recall@10", f"{p50:.1f} / {p95:.1f} ms, {recall:.4f}"
        spent = [timed(lambda i: add_one(store, synthetic, i), i) for i in range(5)]
        yield (
            "add one document until it is found, median / worst of 5",
            (f"{np.median(spent):.2f} / {max(spent):.2f} s"),
        )


def add_one(store: LocalStore, synthetic: Synthetic, number: int) -> None:
    rng = np.random.default_rng(time.time_ns())
    text = synthetic_text(f"one more {number}", synthetic.texts(rng, CHUNKS, WORDS))
    vectors = synthetic.vectors(rng, CHUNKS)
    add(store, [text], vectors)
    (chunk,) = store.chunks(store.search_dense(vectors[3], 1).keys).values()
    assert chunk == text.chunks[3]
    assert len(store.search_words(terms(chunk.text), 1).keys)


def timed(run: Callable[[int], object], argument: int) -> float:
    start = time.perf_counter()
    run(argument)
    return time.perf_counter() - start


def say(text: str, stream=sys.stdout) -> None:
    stream.write(text)
    stream.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chunks", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=200)
    options = parser.parse_args()
    path = options.folder / f"{options.chunks}"
    synthetic = Synthetic(options.chunks)
    with open_store(path, create=Identity("synthetic", DIM)) as store:
        before = store.count()
        for count, seconds in build(store, synthetic, options.chunks):
            say(f"\r{count:,} chunks, {(count - before) / seconds:,.0f}/s   ", sys.stderr)
            before = count
    say(f"\n| {options.chunks:,} chunks, {DIM}-d | |\n|---|---|\n")
    for name, value in measure(path, synthetic, options.queries):
        say(f"| {name} | {value} |\n")


if __name__ == "__main__":
    main()
