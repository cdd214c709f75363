"""Texts -> ids in bulk, many times as fast as one by one; light enough for a worker to load.

Where no piece of a SentencePiece vocabulary holds two neighbouring characters, no merge of byte
pair encoding ever joins them: a text falls into words there, whose ids do not depend on what
stands around them. Words recur, in Chinese too (of 600 alpaca rows, 84 in 100 words of the second
half were in the first), so that each is encoded once and remembered.
"""

import json
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
CHARACTERS = 1 << 20
"""How many characters go through numpy at once, at most."""
SLOTS = 1 << 21
REMEMBERED = 1 << 23
"""Characters or ids of remembered words, at most; then all are forgotten."""
BLANK, WRITTEN_BLANK = 0x20, 0x2581
# Of the polynomial that finds a word's slot; any odd number will do.
RADIX, SPREAD = 0xD1342543DE82EF95, 0x9E3779B97F4A7C15
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

        self.whole = sentencepiece.SentencePieceProcessor(model_proto=model)
        spec: Any = schema.ModelProto.FromString(model)  # type: ignore[attr-defined]  # made at run time
        self.separable = separable(spec)
        if not self.separable:
            return
        self.prefix = "▁" if spec.normalizer_spec.add_dummy_prefix else ""
        spec.normalizer_spec.add_dummy_prefix = False
        self.bare = sentencepiece.SentencePieceProcessor(model_proto=spec.SerializeToString())
        known = [p.piece for p in spec.pieces if p.type in (_NORMAL, _USER_DEFINED)]
        self._learn_pairs({piece[k : k + 2] for piece in known for k in range(len(piece) - 1)})
        self.powers, self.inverse = _powers(RADIX), _powers(pow(RADIX, -1, 1 << 64))
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
        self.left, self.right = np.zeros((2, 0x110000), np.uint32)
        lefts, rights = np.unique(codes[:, 0]), np.unique(codes[:, 1])
        self.left[lefts] = np.arange(1, len(lefts) + 1) * (len(rights) + 1)
        self.right[rights] = np.arange(1, len(rights) + 1)
        self.apart = np.ones((len(lefts) + 1) * (len(rights) + 1), bool)
        self.apart[self.left[codes[:, 0]] + self.right[codes[:, 1]]] = False

    def _forget(self) -> None:
        self.slots = np.zeros(SLOTS, np.int32)
        self.lengths, self.counts = np.zeros((2, 1), np.int64)  # of words; word 0 is none
        self.text, self.text_at = np.zeros(1, np.uint32), np.zeros(1, np.int64)
        self.ids, self.ids_at = np.zeros(1, np.int32), np.zeros(1, np.int64)

    def _encode(self, texts: Sequence[str]) -> Flat:
        written = [self.prefix + text if text else "" for text in texts]
        codes = _codes("".join(written))
        if not len(codes):
            return Flat(np.zeros(0, np.int32), np.zeros(len(texts), np.int64))
        codes = np.where(codes == BLANK, np.uint32(WRITTEN_BLANK), codes)
        ends = np.cumsum([len(text) for text in written])
        cut = np.append(self.apart[self.left[codes[:-1]] + self.right[codes[1:]]], True)
        cut[ends[ends > 0] - 1] = True
        stops = np.flatnonzero(cut) + 1
        words = self._find(codes, stops)
        counts = self.counts[words]
        ids = gather(self.ids, self.ids_at[words], counts)
        # Where the texts' last words end, among all ids.
        after = np.concatenate(([0], np.cumsum(counts)))[np.searchsorted(stops, ends, "right")]
        return Flat(ids, np.diff(after, prepend=0))

    def _find(self, codes: NDArray[np.uint32], stops: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers of the words that end at `stops`; those that are new are learnt."""
        if len(self.text) + len(codes) > REMEMBERED or len(self.ids) > REMEMBERED:
            self._forget()
        lengths = np.diff(stops, prepend=0)
        starts = stops - lengths
        sums = np.zeros(len(codes) + 1, np.uint64)
        np.cumsum(codes * self.powers[: len(codes)], out=sums[1:])
        keys = (sums[stops] - sums[starts]) * self.inverse[starts] * np.uint64(SPREAD)
        keys >>= np.uint64(64 - SLOTS.bit_length() + 1)
        words = self.slots[keys].astype(np.int64)
        missing = self._different(codes, starts, lengths, words)
        while len(missing):
            # One word of each key is learnt; the others of that key are those, or missing still.
            _, first, which = np.unique(keys[missing], return_index=True, return_inverse=True)
            new = self._learn(codes, starts[missing[first]], lengths[missing[first]])
            self.slots[keys[missing[first]]] = new
            words[missing] = new[which]
            left = self._different(codes, starts[missing], lengths[missing], words[missing])
            missing = missing[left]
        return words

    def _different(self, codes: Any, starts: Any, lengths: Any, words: Any) -> NDArray[np.int64]:
        """Which of the words at `starts` are not the remembered `words`: every character is
        compared."""
        same = self.lengths[words] == lengths
        compared = np.where(same, lengths, 0)
        unlike = gather(codes, starts, compared) != gather(self.text, self.text_at[words], compared)
        if unlike.any():
            ends = np.cumsum(compared)
            same[np.searchsorted(ends, np.flatnonzero(unlike), "right")] = False
        return np.flatnonzero(~same)

    def _learn(self, codes: Any, starts: Any, lengths: Any) -> NDArray[np.int64]:
        text = gather(codes, starts, lengths)
        ends = np.cumsum(lengths)
        letters = text.tobytes().decode("utf-32-le")
        places = zip((ends - lengths).tolist(), ends.tolist(), strict=True)
        found = Flat.of(self.bare.encode([letters[start:end] for start, end in places]))
        new = np.arange(len(lengths)) + len(self.lengths)
        self.text_at = np.append(self.text_at, ends - lengths + len(self.text))
        self.ids_at = np.append(self.ids_at, found.ends - found.counts + len(self.ids))
        self.text, self.ids = np.append(self.text, text), np.append(self.ids, found.ids)
        self.lengths = np.append(self.lengths, lengths)
        self.counts = np.append(self.counts, found.counts)
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
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return values[np.repeat(starts - ends + counts, counts) + np.arange(total)]


def _powers(radix: int) -> NDArray[np.uint64]:
    powers = np.full(CHARACTERS + 1, radix, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


def serve(vocabulary: Path, asked: IO[bytes], answers: IO[bytes]) -> None:
    """Answer each line, a JSON array of texts: their number and the number of their ids, how many
    ids each text has (all int64), and the ids (int32)."""
    words = Words(vocabulary.read_bytes())
    for line in asked:
        found = words(json.loads(line))
        answers.write(np.array([len(found.counts), len(found.ids)], np.int64).tobytes())
        answers.write(found.counts.astype(np.int64).tobytes() + found.ids.tobytes())
        answers.flush()


if __name__ == "__main__":  # a worker (finetune.speller); it ends with its input
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C is for the one who asks
    serve(Path(sys.argv[1]), sys.stdin.buffer, sys.stdout.buffer)
