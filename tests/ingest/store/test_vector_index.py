"""Vector codes against their slow twin, an exact scan."""

from pathlib import Path

import numpy as np

from ingest.store import open_store, vector_index
from ingest.store.vector_index import FEWEST, Candidates
from ingest.types import Chunk
from tests.ingest.store.factories import EMBEDDER, new_vectors, put
from tests.ingest.store.test_protocol import by_vector, expected


def test_codes_find_what_an_exact_scan_finds() -> None:
    rng = np.random.default_rng(7)
    dim, count = 384, vector_index.EXACT_ROWS + 4_000
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
    monkeypatch.setattr("ingest.store.vector_index.EXACT_ROWS", 60)
    monkeypatch.setattr("ingest.store.index_sync.EXACT_ROWS", 60)
    monkeypatch.setattr("ingest.store.index_sync.KEEP_AFTER", 20)
    rng = np.random.default_rng(3)
    living: dict[str, list[Chunk]] = {}
    with open_store(tmp_path / "kb", create=EMBEDDER) as store:
        for step in range(12):
            texts = [f"text {number} of {step}" for number in rng.integers(0, 10**9, 10)]
            living[f"{step % 9}"] = put(store, f"{step % 9}", texts)
        chunks = [chunk for group in living.values() for chunk in group]
        with open_store(tmp_path / "kb") as reader:
            for vector in new_vectors(chunks[::20]):
                best = expected(chunks, vector)
                assert by_vector(store, vector) == best
                assert by_vector(reader, vector) == best
        assert [path.suffix for path in (tmp_path / "kb" / "vectors").iterdir()] == [".codes"]
        assert store.verify() == []
