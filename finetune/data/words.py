"""Texts -> ids in bulk, many times as fast as one by one; light enough for a worker to load.

Where no piece of a SentencePiece vocabulary holds two neighbouring characters, no merge of byte
pair encoding ever joins them: a text falls into words there, whose ids do not depend on what
stands around them. Words recur, in Chinese too (of 600 alpaca rows, 84 in 100 words of the second
half were in the first), so that each is encoded once and remembered.
"""

import gc
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import sentencepiece
from numpy.typing import NDArray

Ids = NDArray[np.int32]
CHARACTERS = 1 << 19
"""How many characters go through numpy at once, at most."""
SLOTS = 1 << 21
REMEMBERED, ROOM = 1 << 20, 1 << 24
"""Words, and their characters or ids, that are remembered at most; then all are forgotten."""
# Of the polynomial, modulo 2^32, that finds a word's slot; odd numbers.
RADIX, SPREAD = 0xDE82EF95, 0x9E3779B1
_NORMAL, _USER_DEFINED = 1, 4  # kinds of pieces in sentencepiece_model.proto


@dataclass(frozen=True, slots=True)
class Flat:
    """Lists of ids one behind the other: list `i` is `ids[ends[i] - counts[i] : ends[i]]`."""

    ids: Ids
    counts: NDArray[np.int64]

    @property
    def ends(self) -> NDArray[np.int64]:
        return np.cumsum(self.counts)

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> "Flat":
        counts = np.array([len(each) for each in lists], np.int64)
        return cls(np.fromiter(chain.from_iterable(lists), np.int32, counts.sum()), counts)

    @classmethod
    def joined(cls, parts: Sequence["Flat"]) -> "Flat":
        ids = np.concatenate([np.zeros(0, np.int32), *(part.ids for part in parts)])
        counts = np.concatenate([np.zeros(0, np.int64), *(part.counts for part in parts)])
        return cls(ids, counts)

    def lists(self) -> list[Ids]:
        return np.split(self.ids, self.ends[:-1]) if len(self.counts) else []


class Words:
    """`Words(model)(texts)` are the ids that SentencePiece gives to the texts, one by one.

    `model` is a SentencePiece model's bytes. Of one that is no byte pair encoding, or that changes
    text before it encodes it, texts are encoded whole.
    """

    def __init__(self, model: bytes) -> None:
        import sentencepiece.sentencepiece_model_pb2 as schema

        self.whole = sentencepiece.SentencePieceProcessor(model_proto=model, num_threads=1)
        spec: Any = schema.ModelProto.FromString(model)  # type: ignore[attr-defined]  # made at run time
        self.separable = separable(spec)
        if not self.separable:
            return
        self.prefix = "▁" if spec.normalizer_spec.add_dummy_prefix else ""
        spec.normalizer_spec.add_dummy_prefix = False
        self.bare = sentencepiece.SentencePieceProcessor(
            model_proto=spec.SerializeToString(), num_threads=1
        )
        known = [p.piece for p in spec.pieces if p.type in (_NORMAL, _USER_DEFINED)]
        self._learn_pairs({piece[k : k + 2] for piece in known for k in range(len(piece) - 1)})
        self.powers, self.inverse = _powers(RADIX), _powers(pow(RADIX, -1, 1 << 32))
        self._forget()

    def __call__(self, texts: Sequence[str]) -> Flat:
        if not self.separable:
            return Flat.of(self.whole.encode(list(texts)))
        made: list[Flat] = []
        group: list[str] = []
        room = CHARACTERS
        for text in texts:
            if len(text) + 1 > room:
                made.append(self._encode(group))
                group, room = [], CHARACTERS
            if len(text) < CHARACTERS:
                group.append(text)
                room -= len(text) + 1
            else:
                made.append(Flat.of([self.whole.encode(text)]))
        made.append(self._encode(group))
        return Flat.joined(made)

    def _learn_pairs(self, pairs: set[str]) -> None:
        """`apart[left[a] + right[b]]`: no piece holds the characters a and b in turn."""
        codes = _codes("".join(sorted(pairs))).reshape(-1, 2)
        self.left, self.right = np.zeros((2, 0x110000), np.int64)
        lefts, rights = np.unique(codes[:, 0]), np.unique(codes[:, 1])
        self.left[lefts] = np.arange(1, len(lefts) + 1) * (len(rights) + 1)
        self.right[rights] = np.arange(1, len(rights) + 1)
        self.apart = np.ones((len(lefts) + 1) * (len(rights) + 1), bool)
        self.apart[self.left[codes[:, 0]] + self.right[codes[:, 1]]] = False
        # SentencePiece writes a blank as ▁.
        for table in (self.left, self.right):
            table[ord(" ")] = table[ord("▁")]

    def _forget(self) -> None:
        self.slots = np.zeros(SLOTS, np.int32)
        self.known = Remembered()

    def _encode(self, texts: Sequence[str]) -> Flat:
        written = [self.prefix + text if text else "" for text in texts]
        codes = _codes("".join(written))
        if not len(codes):
            return Flat(np.zeros(0, np.int32), np.zeros(len(texts), np.int64))
        ends = np.cumsum([len(text) for text in written])
        at = codes.astype(np.int64)
        pairs = self.left.take(at[:-1])
        pairs += self.right.take(at[1:])
        cut = np.empty(len(codes), bool)
        self.apart.take(pairs, out=cut[:-1], mode="clip")  # (that mode is the quick one)
        cut[ends[ends > 0] - 1] = True
        stops = np.flatnonzero(cut) + 1
        words = self._find(codes, stops)
        counts = self.known.counts[words]
        ids = gather(self.known.ids, self.known.ids_at[words], counts)
        # Where the texts' last words end, among all ids.
        after = np.concatenate(([0], np.cumsum(counts)))[np.searchsorted(stops, ends, "right")]
        return Flat(ids, np.diff(after, prepend=0))

    def _find(self, codes: NDArray[np.uint32], stops: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers of the words that end at `stops`; those that are new are learnt."""
        if self.known.has_no_room(len(stops), len(codes)):
            self._forget()
        lengths = np.diff(stops, prepend=0)
        starts = stops - lengths
        sums = np.zeros(len(codes) + 1, np.uint32)
        np.cumsum(codes * self.powers[: len(codes)], out=sums[1:], dtype=np.uint32)
        keys = (sums[stops] - sums[starts]) * self.inverse[starts] * np.uint32(SPREAD)
        slots = (keys >> np.uint32(32 - SLOTS.bit_length() + 1)).astype(np.int64)
        words = self.slots[slots].astype(np.int64)
        missing = self._different(codes, lengths, words)
        # A word may also be in the slot beside its own.
        words[missing] = self.slots[slots[missing] ^ 1]
        while True:
            text = gather(codes, starts[missing], lengths[missing])
            missing = missing[self._different(text, lengths[missing], words[missing])]
            if not len(missing):
                return words
            # One word of each key is learnt; the others of that key are those, or missing still.
            _, first, which = np.unique(keys[missing], return_index=True, return_inverse=True)
            new = self._learn(codes, starts[missing[first]], lengths[missing[first]])
            slot = slots[missing[first]]
            self.slots[np.where(self.slots[slot], slot ^ 1, slot)] = new
            words[missing] = new[which]

    def _different(self, text: Any, lengths: Any, words: Any) -> NDArray[np.int64]:
        """Which of the words, whose `text` stands one behind the other, are not the remembered
        `words`: every character is compared."""
        same = self.known.lengths[words] == lengths
        unlike = text != gather(self.known.text, self.known.text_at[words], lengths)
        if unlike.any():
            ends = np.cumsum(lengths)
            same[np.searchsorted(ends, np.flatnonzero(unlike), "right")] = False
        return np.flatnonzero(~same)

    def _learn(self, codes: Any, starts: Any, lengths: Any) -> NDArray[np.int64]:
        text = gather(codes, starts, lengths)
        ends = np.cumsum(lengths)
        letters = text.tobytes().decode("utf-32-le")
        places = zip((ends - lengths).tolist(), ends.tolist(), strict=True)
        found = self.bare.encode([letters[start:end] for start, end in places])
        return self.known.add(text, lengths, Flat.of(found))


class Remembered:
    """Words by number, from 1: word 0 is none. The places of what is not yet used take no memory."""

    def __init__(self) -> None:
        self.words = 1
        self.characters = self.tokens = 0
        self.lengths, self.counts, self.text_at, self.ids_at = np.zeros((4, REMEMBERED), np.int64)
        self.text, self.ids = np.zeros(ROOM, np.uint32), np.zeros(ROOM, np.int32)

    def has_no_room(self, words: int, characters: int) -> bool:
        """For so many, each character of which has four ids at most: those of its bytes. (There
        is also room to read so many characters behind any word.)"""
        text, ids = self.characters + characters, self.tokens + 4 * characters
        return self.words + words > REMEMBERED or max(text, ids) > ROOM

    def add(self, text: Any, lengths: Any, ids: Flat) -> NDArray[np.int64]:
        """The new words' numbers."""
        new = np.arange(self.words, self.words + len(lengths))
        self.lengths[new], self.counts[new] = lengths, ids.counts
        self.text_at[new] = np.cumsum(lengths) - lengths + self.characters
        self.ids_at[new] = ids.ends - ids.counts + self.tokens
        self.text[self.characters : self.characters + len(text)] = text
        self.ids[self.tokens : self.tokens + len(ids.ids)] = ids.ids
        self.words += len(new)
        self.characters += len(text)
        self.tokens += len(ids.ids)
        return new


def separable(spec: Any) -> bool:
    """Whether the text of a model (a `ModelProto`) may be encoded word by word.

    It must be byte pair encoding, with text taken as it is, and bytes for what is unknown (else
    SentencePiece makes one id of several unknown characters in a row).
    """
    normal, trained = spec.normalizer_spec, spec.trainer_spec
    return bool(
        trained.model_type == trained.BPE
        and trained.byte_fallback
        and not trained.treat_whitespace_as_suffix
        and not normal.precompiled_charsmap
        and not normal.remove_extra_whitespaces
        and normal.escape_whitespaces
    )


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32)  # half surrogate pairs: ?


def gather(values: Any, starts: Any, counts: Any) -> Any:
    """`values[start : start + count]` of each pair, one behind the other."""
    some = counts > 0
    if not some.all():
        starts, counts = starts[some], counts[some]
    if not len(counts):
        return values[:0]
    ends = np.cumsum(counts)
    places = np.ones(ends[-1], np.int64)  # steps of 1, but from one pair to the next
    places[0] = starts[0]
    places[ends[:-1]] = starts[1:] - starts[:-1] - counts[:-1] + 1
    return values[np.cumsum(places, out=places)]


def _powers(radix: int) -> NDArray[np.uint32]:
    powers = np.full(CHARACTERS + 1, radix, np.uint32)
    powers[0] = 1
    return np.multiply.accumulate(powers, dtype=np.uint32)


def packed(texts: Sequence[str]) -> bytes:
    """Texts as a worker is sent them: how many, how many bytes, characters of each, UTF-8."""
    data = "".join(texts).encode("utf-8", "replace")
    lengths = [len(texts), len(data), *map(len, texts)]
    return np.array(lengths, np.int64).tobytes() + data


def serve(vocabulary: Path, asked: IO[bytes], answers: IO[bytes]) -> None:
    """Answer texts with ids until there are no more: how many texts, how many ids, ids of each
    text (all int64), and the ids (int32)."""
    words = Words(vocabulary.read_bytes())
    while head := asked.read(16):
        count, size = np.frombuffer(head, np.int64).tolist()
        ends = np.cumsum(np.frombuffer(asked.read(8 * count), np.int64)).tolist()
        whole = asked.read(size).decode("utf-8")
        texts = [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        found = words(texts)
        answers.write(np.array([count, len(found.ids)], np.int64).tobytes())
        answers.write(found.counts.astype(np.int64).tobytes() + found.ids.tobytes())
        answers.flush()


if __name__ == "__main__":  # a worker (finetune.data.bulk_encode); it ends with its input
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C is for the one who asks
    gc.disable()  # nothing here refers to itself
    serve(Path(sys.argv[1]), sys.stdin.buffer, sys.stdout.buffer)
