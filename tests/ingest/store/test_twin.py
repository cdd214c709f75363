"""The store against its slow twin: plain dictionaries, brute force, a store made from scratch."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.store import LocalStore, open_store, vectors
from ingest.store.vectors import FEWEST, Candidates
from ingest.types import Chunk
from tests.ingest.store.made import DIM, EMBEDDER, made_vectors, put

TEXTS = ["劳动合同的期限", "the quick brown fox", "合同期限與報酬", "fox 与 合同", "又一句话"]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["a.txt", "b.txt", "c.txt"]),
        st.lists(st.sampled_from(TEXTS), max_size=3),
        st.booleans(),
    ),
    min_size=1,
    max_size=5,
)
QUERIES = ["合同", "fox", "報酬 期限"]


def words_found(store: LocalStore, query: str, field: str) -> dict[str, float]:
    ranking = store.search_words(query, 100, field=field)  # type: ignore[arg-type] - both fields
    chunks = store.chunks(ranking.keys).values()
    return {c.id: round(float(s), 4) for c, s in zip(chunks, ranking.scores, strict=True)}


def dense_found(store: LocalStore, vector: np.ndarray) -> list[tuple[str, float]]:
    ranking = store.search_dense(vector, 100)
    chunks = store.chunks(ranking.keys).values()
    return sorted((c.id, round(float(s), 2)) for c, s in zip(chunks, ranking.scores, strict=True))


def dense_expected(chunks: list[Chunk], vector: np.ndarray) -> list[tuple[str, float]]:
    scores = made_vectors(chunks).astype(np.float16).astype(np.float32) @ vector
    return sorted((c.id, round(float(s), 2)) for c, s in zip(chunks, scores, strict=True) if s > 0)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_any_history_ends_in_the_state_of_a_fresh_store(steps) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        truth: dict[str, list[str]] = {}
        living: dict[str, list[Chunk]] = {}
        with open_store(Path(scratch, "kb"), create=EMBEDDER) as store:
            for source, texts, removing in steps:
                if removing:
                    with store.change() as change:
                        assert change.remove(source) == (source in truth)
                    truth.pop(source, None)
                    living.pop(source, None)
                else:
                    truth[source] = texts
                    living[source] = put(store, source, texts)
            chunks = [chunk for group in living.values() for chunk in group]
            vector = made_vectors(chunks)[0] if chunks else np.ones(DIM, np.float32)
            assert dense_found(store, vector) == dense_expected(chunks, vector)
            before = {
                (q, f): words_found(store, q, f) for q in QUERIES for f in ("words", "bigrams")
            }
            store.rebuild()
            assert store.verify() == []
            assert dense_found(store, vector) == dense_expected(chunks, vector)
            with open_store(Path(scratch, "fresh"), create=EMBEDDER) as fresh:
                for source, texts in truth.items():
                    put(fresh, source, texts)
                for (query, field), found in before.items():
                    assert words_found(store, query, field) == words_found(fresh, query, field)
                    assert set(words_found(store, query, field)) == set(found)


def test_codes_find_what_an_exact_scan_finds() -> None:
    rng = np.random.default_rng(7)
    dim, count = 384, vectors.EXACT_ROWS + 4_000
    centres = rng.standard_normal((count // 10, dim), dtype=np.float32)
    rows = centres[rng.integers(0, len(centres), count)]
    rows = rows + 0.8 * rng.standard_normal((count, dim), dtype=np.float32) + 1
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    keys = np.arange(count, dtype=np.int64) * 3 + 1
    candidates = Candidates(dim)
    for start in range(0, count, 5_000):
        candidates.add(keys[start : start + 5_000], rows[start : start + 5_000])
    assert candidates.trained
    loaded = Candidates.load(dim, candidates.dump(), last=candidates.last, trained=1)
    found = 0
    for query in rows[:50] + 0.02 * rng.standard_normal((50, dim), dtype=np.float32):
        nearest = keys[np.argsort(-(rows @ query))[:10]]
        proposed = candidates.search(query, FEWEST)
        assert set(proposed) == set(loaded.search(query, FEWEST))
        found += len(set(nearest) & set(proposed))
    assert found / 500 >= 0.99
    assert loaded.keys().tolist() == keys.tolist()


def test_growing_past_the_exact_scan_changes_no_answer(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("ingest.store.vectors.EXACT_ROWS", 60)
    monkeypatch.setattr("ingest.store.caches.EXACT_ROWS", 60)
    monkeypatch.setattr("ingest.store.caches.KEEP_AFTER", 20)
    rng = np.random.default_rng(3)
    living: dict[str, list[Chunk]] = {}
    with open_store(tmp_path / "kb", create=EMBEDDER) as store:
        for step in range(12):
            texts = [f"text {number} of {step}" for number in rng.integers(0, 10**9, 10)]
            living[f"{step % 9}"] = put(store, f"{step % 9}", texts)
        chunks = [chunk for group in living.values() for chunk in group]
        with open_store(tmp_path / "kb") as reader:
            for vector in made_vectors(chunks[::20]):
                best = dense_expected(chunks, vector)
                assert dense_found(store, vector) == best
                assert dense_found(reader, vector) == best
        assert [path.suffix for path in (tmp_path / "kb" / "vectors").iterdir()] == [".codes"]
        assert store.verify() == []
