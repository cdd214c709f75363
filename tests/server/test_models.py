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
        self.asked: list[str] = []

    def count(self, text: str) -> int:
        return len(text)

    def count_many(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    def embed_query(self, text: str) -> Vector:
        return self._vector(f"?{text}")

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        self.asked += texts
        return np.array([self._vector(text) for text in texts], np.float32).reshape(-1, 4)

    def _vector(self, text: str) -> Vector:
        return np.random.default_rng([len(text), *text.encode()]).random(4, np.float32)


TEXTS = st.lists(st.sampled_from("甲乙丙丁戊己庚辛"), max_size=6)


@given(st.lists(TEXTS, max_size=8), st.integers(0, 5))
def test_the_vectors_are_the_encoders_and_only_so_many_are_held(
    calls: list[list[str]], most: int
) -> None:
    plain, kept = CountingEmbedder(), CachedEmbedder(CountingEmbedder(), most)
    for texts in calls:
        vectors = kept.embed_passages(texts)
        assert vectors.dtype == np.float32
        assert np.array_equal(vectors, plain.embed_passages(texts))
        assert len(kept._cache) <= most
    assert np.array_equal(kept.embed_query("甲"), plain.embed_query("甲"))


@given(st.lists(TEXTS, max_size=8))
def test_what_has_room_is_embedded_once(calls: list[list[str]]) -> None:
    counting = CountingEmbedder()
    kept = CachedEmbedder(counting, 8)
    for texts in calls:
        kept.embed_passages(texts)
    assert sorted(counting.asked) == sorted({text for texts in calls for text in texts})


def test_what_was_asked_for_last_is_held_longest() -> None:
    counting = CountingEmbedder()
    kept = CachedEmbedder(counting, 2)
    for text in "甲乙甲丙甲":
        kept.embed_passages([text])
    assert counting.asked == ["甲", "乙", "丙"]


def test_a_vector_that_is_changed_outside_stays_as_it_was() -> None:
    kept = CachedEmbedder(CountingEmbedder(), 8)
    first = kept.embed_passages(["甲"])
    first[:] = 0
    assert np.array_equal(kept.embed_passages(["甲"]), CountingEmbedder().embed_passages(["甲"]))


def test_many_threads_get_the_right_vectors() -> None:
    kept, plain, wrong = CachedEmbedder(CountingEmbedder(), 5), CountingEmbedder(), []

    def work(seed: int) -> None:
        dice = np.random.default_rng(seed)
        for _ in range(200):
            texts = ["甲乙丙丁戊己庚辛"[k] for k in dice.integers(0, 8, 4)]
            if not np.array_equal(kept.embed_passages(texts), plain.embed_passages(texts)):
                wrong.append(texts)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
