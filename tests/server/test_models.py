"""The embedding cache: equal vectors, each computed once, never more than the limit."""

import threading
from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ingest.embed import Vector, Vectors
from server.models import CachedEmbedder


class CountingEmbedder:
    """Gives each text a vector of its own, and records the texts."""

    name, dim, max_tokens = "counting", 4, 100

    def __init__(self) -> None:
        self.passages: list[str] = []

    def count(self, text: str) -> int:
        return len(text)

    def count_many(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    def embed_query(self, text: str) -> Vector:
        return self._vector(f"?{text}")

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        self.passages += texts
        return np.array([self._vector(text) for text in texts], np.float32).reshape(-1, 4)

    def _vector(self, text: str) -> Vector:
        return np.random.default_rng([len(text), *text.encode()]).random(4, np.float32)


TEXTS = st.lists(st.sampled_from("甲乙丙丁戊己庚辛"), max_size=6)


@given(st.lists(TEXTS, max_size=8), st.integers(0, 5))
def test_the_cache_returns_the_encoders_vectors_and_stays_within_its_limit(
    calls: list[list[str]], most: int
) -> None:
    plain, cached = CountingEmbedder(), CachedEmbedder(CountingEmbedder(), most)
    for texts in calls:
        vectors = cached.embed_passages(texts)
        assert vectors.dtype == np.float32
        assert np.array_equal(vectors, plain.embed_passages(texts))
        assert len(cached._cache) <= most
    assert np.array_equal(cached.embed_query("甲"), plain.embed_query("甲"))


@given(st.lists(TEXTS, max_size=8))
def test_a_passage_that_fits_in_the_cache_is_embedded_once(calls: list[list[str]]) -> None:
    counting = CountingEmbedder()
    cached = CachedEmbedder(counting, 8)
    for texts in calls:
        cached.embed_passages(texts)
    assert sorted(counting.passages) == sorted({text for texts in calls for text in texts})


def test_the_least_recently_used_vector_leaves_the_cache() -> None:
    counting = CountingEmbedder()
    cached = CachedEmbedder(counting, 2)
    for text in "甲乙甲丙甲":
        cached.embed_passages([text])
    assert counting.passages == ["甲", "乙", "丙"]


def test_changing_a_result_does_not_change_the_cache() -> None:
    cached = CachedEmbedder(CountingEmbedder(), 8)
    first = cached.embed_passages(["甲"])
    first[:] = 0
    assert np.array_equal(cached.embed_passages(["甲"]), CountingEmbedder().embed_passages(["甲"]))


def test_many_threads_get_the_right_vectors() -> None:
    cached, plain, wrong = CachedEmbedder(CountingEmbedder(), 5), CountingEmbedder(), []

    def work(seed: int) -> None:
        dice = np.random.default_rng(seed)
        for _ in range(200):
            texts = ["甲乙丙丁戊己庚辛"[k] for k in dice.integers(0, 8, 4)]
            if not np.array_equal(cached.embed_passages(texts), plain.embed_passages(texts)):
                wrong.append(texts)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
