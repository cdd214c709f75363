"""The weights of a question's terms, and how much of them a text holds."""

from collections.abc import Sequence
from copy import copy

import numpy as np
from numpy.typing import NDArray

from ingest.normalize import Field, bigrams, words
from rag.types import Idf, Query

Array = NDArray[np.floating]

RARITY = 2.0
"""Exponent of a term's rarity among the sentences of its passage."""
LEAD = 0.9
"""What a question word counts in the lead of a unit, against 1 in the unit itself."""


class TermWeights:
    """A question's distinct terms in one field and their weights in the collection, (n,)."""

    def __init__(self, query: Query, field: Field, idf: Idf) -> None:
        self.split = words if field == "words" else bigrams
        self.names = list(dict.fromkeys(query.keywords.of(field)))
        self.idf = np.array(idf(self.names, field), np.float64)

    def beyond(self, topic: str) -> "TermWeights":
        """The same terms without the weight of those in the topic, unless all are."""
        free = copy(self)
        free.idf = self.idf * (1 - self.present([topic])[0])
        return free if free.idf.any() else self

    def present(self, texts: Sequence[str]) -> Array:
        """Which terms each text has, (texts, n)."""
        terms = [set(self.split(text)) for text in texts]
        found = [[name in each for name in self.names] for each in terms]
        return np.array(found, float).reshape(len(texts), len(self.names))

    def named(self, names: Sequence[str]) -> Array:
        """`present`, less for a name of which a question has only some terms."""
        above = self.present(names)
        sizes = np.array([len(set(self.split(name))) for name in names]).clip(1)
        return above * np.sqrt(np.minimum(above.sum(axis=1) / sizes, 1))[:, None]

    def shares(self, texts: Sequence[str], leads: Sequence[str], topics: Sequence[str]) -> Array:
        """The weighted share, 0 to 1, of the question's terms beyond the topic in each unit of a
        document; a term in its lead counts less."""
        free, above = 1 - self._each(topics), self._each(leads)
        total = free @ self.idf
        own, n = self.present(texts), len(texts)
        present = np.maximum(own, LEAD * above)
        holders = np.where(own.any(axis=0), own.sum(axis=0), above.sum(axis=0)).clip(1)
        rarity = np.log((n + 1) / (holders + 0.5)) / np.log((n + 1) / 1.5)
        held = (present * free) @ (self.idf * rarity**RARITY)
        return np.divide(held, total, out=np.zeros(n), where=total > 0)

    def _each(self, texts: Sequence[str]) -> Array:
        """`present` for texts of which many are equal."""
        distinct = list(dict.fromkeys(texts))
        return self.present(distinct)[[distinct.index(text) for text in texts]]


def worth_of(texts: Sequence[str], weights: Sequence[TermWeights]) -> Array:
    """The weight of the question's terms in each text, (texts,)."""
    return np.sum([each.present(texts) @ each.idf for each in weights], axis=0)
