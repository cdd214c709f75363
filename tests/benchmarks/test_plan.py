"""What benchmarks/plan.py measures with: synthetic stores, and a process that answers."""

from pathlib import Path

import pytest

from benchmarks.plan import DIM, Synthetic, build, in_child, line
from ingest.embed import BUNDLED, open_embedder
from ingest.store import Identity, open_store

CACHE = Path.home() / ".cache" / "chatglm-rag"


def test_synthetic_stores_grow_to_the_number_of_chunks(tmp_path: Path) -> None:
    with open_store(tmp_path / "kb", create=Identity("synthetic", DIM)) as store:
        synthetic = Synthetic(100)
        assert [count for count, _ in build(store, synthetic, 60)] == [60]
        assert [count for count, _ in build(store, synthetic, 100)] == [100]
        assert store.count() == 100


def test_a_line_is_found_and_kept_above_zero() -> None:
    slope, height = line([1, 2, 3], [5, 7, 9])
    assert slope == pytest.approx(2)
    assert height == pytest.approx(3)
    assert min(line([1, 2], [5, 1])) > 0
    assert line([4, 4], [8, 8])[0] == pytest.approx(2)


def test_questions_are_measured_in_a_process_that_runs_our_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = open_embedder(cache=CACHE)
    identity = Identity(embedder.name, embedder.dim, {"embedder": BUNDLED})
    synthetic = Synthetic(100)
    with open_store(tmp_path / "kb", create=identity) as store:
        assert list(build(store, synthetic, 100))
    (tmp_path / "rag.py").write_text("raise SystemExit('the user’s rag.py')", "utf-8")
    monkeypatch.chdir(tmp_path)
    question = synthetic.words[0] + synthetic.words[1]
    found = in_child("answering", str(tmp_path / "kb"), [question] * 3, str(CACHE), 1, False)
    assert found["resident"] > 50_000_000  # Python, ONNX Runtime and the encoder
    assert min(found["embed"], found["vectors"], found["searches"]) > 0
    assert 0 < found["read"] <= found["all_postings"]
