"""Writes the encoder as ONNX graphs of ONNX Runtime's fused operators, with linear layers in 4 or 8 bits,
and runs them.

ONNX Runtime's `quantize_dynamic` takes one range of activations for a whole batch, so that the
outliers of one text blur all others. Here every token has its own range, or, after a layer norm,
where a few channels are many times wider than the rest, every channel.
"""

import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ingest.types import Vectors

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto
    from onnxruntime import InferenceSession
    from sentencepiece import SentencePieceProcessor


BLOCK = 32  # weights that share one scale
BOS, PAD, EOS, UNKNOWN = 0, 1, 2, 3  # `<s> <pad> </s> <unk>`, Hugging Face's order for XLM-R

_HEADER = struct.Struct("<4sI7ifi")  # magic, version, seven sizes, epsilon, block
_VOCABULARY = struct.Struct("<5iQ")  # pieces, bos, eos, pad, unk, bytes of all pieces
_TENSOR = struct.Struct("<BIQQ")  # kind (0 fp32, 1 q4_0), elements, offset, bytes


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A (rows, columns) matrix in 4 bits: element = (nibble - 8) * scale of its block.

    `nibbles` is uint8 (rows, columns / 32, 16), two neighbours a byte, the first in the low half
    (ONNX Runtime's order); `scales` is float32 (rows, columns / 32).
    """

    nibbles: NDArray[np.uint8]
    scales: NDArray[np.float32]

    def dequantize(self) -> NDArray[np.float32]:
        """The matrix in float32 (rows, columns)."""
        pairs = np.stack([self.nibbles & 0x0F, self.nibbles >> 4], axis=-1)  # (r, b, 16, 2)
        codes = pairs.reshape(*self.scales.shape, BLOCK).astype(np.float32) - 8
        return (codes * self.scales[..., None]).reshape(len(self.scales), -1)


@dataclass(frozen=True, slots=True)
class E5Checkpoint:
    """The contents of the file, without its normalisation map, which sentencepiece contains too.

    Matrices are (outputs, inputs), as in torch. `pieces[id]` and `scores[id]` are the unigram
    vocabulary in the order of Hugging Face's XLM-R tokenizer (`<s> <pad> </s> <unk> , . ...`).
    """

    layers: int
    heads: int
    epsilon: float
    pieces: tuple[str, ...]
    scores: NDArray[np.float32]
    vectors: Mapping[str, NDArray[np.float32]]
    matrices: Mapping[str, QuantizedMatrix]


def read(path: Path) -> E5Checkpoint:
    """The checkpoint at `path`. Raises ValueError if it is not such a file."""
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
    return E5Checkpoint(layers, heads, epsilon, pieces, scores, vectors, matrices)


def _vocabulary(data: bytes, at: int) -> tuple[tuple[str, ...], NDArray[np.float32], int]:
    """The pieces, their scores, and the offset after them and the normalisation map."""
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


def _q4_0(data: bytes, count: int, offset: int, columns: int) -> QuantizedMatrix:
    """ggml's q4_0: a block is an fp16 scale and 16 bytes; byte j holds elements j and j + 16."""
    block = np.dtype([("scale", "<f2"), ("codes", "u1", BLOCK // 2)])
    blocks = np.frombuffer(data, block, count // BLOCK, offset).reshape(-1, columns // BLOCK)
    codes = np.concatenate([blocks["codes"] & 0x0F, blocks["codes"] >> 4], axis=-1)
    nibbles = (codes[..., 0::2] | (codes[..., 1::2] << 4)).astype(np.uint8)
    return QuantizedMatrix(nibbles, blocks["scale"].astype(np.float32))


Range = tuple[NDArray[np.float32], NDArray[np.float32]]
"""The least and the largest value of each input channel, both (inputs,)."""


def _quantize(weight: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Whole numbers in -127..127 (as float32), and the scale of each row."""
    scale = np.maximum(np.abs(weight).max(axis=1), np.float32(1e-12)) / np.float32(127)
    return np.round(weight / scale[:, None]), scale


_INLINE = 128  # bytes
_ALIGNMENT = 4096  # bytes: page-aligned weights are mapped into memory, not read


class Weights:
    """An open file of tensors that several graphs refer to; a name is written once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._written: dict[str, TensorProto] = {}

    def add(self, name: str, array: NDArray[Any] | np.generic) -> "TensorProto":
        """A reference to `array` in the file, written there if `name` is new; or a few bytes."""
        from onnx import TensorProto, helper, numpy_helper
        from onnx.external_data_helper import set_external_data

        if array.nbytes < _INLINE:  # axes and bounds, which shape inference must see
            return numpy_helper.from_array(np.asarray(array), name)
        if name not in self._written:
            self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            tensor = TensorProto(name=name, dims=array.shape, data_type=kind, raw_data=b"")
            set_external_data(tensor, Path(self._file.name).name, self._file.tell(), array.nbytes)
            tensor.ClearField("raw_data")
            self._file.write(np.ascontiguousarray(array).data)
            self._written[name] = tensor
        return self._written[name]


class Graph:
    """Collects the nodes of one graph; a method appends operators and returns their output.

    Without `ranges`, matrices are multiplied in float32 with the checkpoint's own 4-bit weights. With
    `ranges`, they are multiplied in int8: by channel if `ranges` has their input (under the name of
    its first reader), else by token; those in `exact` stay in float32.
    Inputs: `ids` and `mask`, int32 (texts, tokens); mask is 1 for a token, 0 for padding.
    Output: `vectors`, float32 (texts, hidden), of unit length.
    """

    def __init__(
        self,
        checkpoint: E5Checkpoint,
        weights: Weights,
        *,
        ranges: Mapping[str, Range] | None = None,
        exact: Collection[str] = (),
    ) -> None:
        self._checkpoint, self._weights = checkpoint, weights
        self._ranges, self._exact = ranges, exact
        self._nodes: list[Any] = []
        self._used: dict[str, TensorProto] = {}
        self._readers: dict[str, str] = {}  # a matrix's input -> the first matrix that reads it
        self._codes: dict[str, str] = {}  # a matrix's input -> the same in uint8

    def model(self) -> "ModelProto":
        """BertModel with masked mean pooling (modeling_bert.py: post-norm, exact GELU)."""
        from onnx import TensorProto

        x = self._embeddings()
        for layer in range(self._checkpoint.layers):
            x = self._layer(x, f"l{layer}")
        # The mean's direction is the sum's, and only the direction is left after normalisation.
        mask = self._op("Cast", ["mask"], to=TensorProto.FLOAT)
        row = self._op("Unsqueeze", [mask, self._int(1)])
        total = self._op("Squeeze", [self._op("MatMul", [row, x]), self._int(1)])
        self._op("LpNormalization", [total], output="vectors", axis=-1, p=2)
        return self._model(["ids", "mask"], ["vectors"])

    def _model(self, inputs: Sequence[str], outputs: Sequence[str]) -> "ModelProto":
        """The nodes as a model; inputs are int32 (texts, tokens), outputs float32."""
        from onnx import TensorProto, helper

        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self._nodes,
            "encoder",
            [value(name, TensorProto.INT32, ["texts", "tokens"]) for name in inputs],
            [value(name, TensorProto.FLOAT, None) for name in outputs],
            list(self._used.values()),
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def _embeddings(self) -> str:
        """Word, position (from 0) and type, added and normalised: (texts, tokens, hidden)."""
        words, vectors = self._checkpoint.matrices["emb.word"], self._checkpoint.vectors
        table = self._weight("emb.word", words.nibbles.reshape(len(words.nibbles), -1))
        inputs = [table, "ids", self._weight("emb.scale", words.scales)]
        options = {"bits": 4, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
        word = self._fused("GatherBlockQuantized", inputs, **options)
        places = self._weight("emb.place", (vectors["emb.pos"] + vectors["emb.type"][0])[None])
        tokens = self._op("Shape", ["ids"], start=1, end=2)
        place = self._op("Slice", [places, self._int(0), tokens, self._int(1)])
        return self._add_norm(word, place, "emb.ln")

    def _layer(self, x: str, name: str) -> str:
        """Self-attention and feed-forward, each added to its input and normalised."""
        q, k, v = (self._linear(x, f"{name}.{part}") for part in "qkv")
        heads = self._checkpoint.heads
        mixed = self._fused("MultiHeadAttention", [q, k, v, "", "mask"], num_heads=heads)
        x = self._add_norm(x, self._linear(mixed, f"{name}.ao"), f"{name}.aln")
        wide = self._fused("Gelu", [self._linear(x, f"{name}.fi")])
        return self._add_norm(x, self._linear(wide, f"{name}.fo"), f"{name}.oln")

    def _linear(self, x: str, name: str) -> str:
        """x @ weight.T + bias, in whichever precision this graph has for the matrix `name`."""
        self._readers.setdefault(x, name)
        if self._ranges is None or name in self._exact:
            return self._four_bits(x, name)
        if self._readers[x] in self._ranges:
            return self._by_channel(x, name, self._ranges[self._readers[x]])
        return self._by_token(x, name)

    def _four_bits(self, x: str, name: str) -> str:
        matrix = self._checkpoint.matrices[f"{name}.w"]
        outputs, blocks, _ = matrix.nibbles.shape
        weight = self._weight(f"{name}.w", matrix.nibbles)
        scale = self._weight(f"{name}.scale", matrix.scales)
        inputs = [x, weight, scale, "", "", self._vector(f"{name}.b")]
        options = {"bits": 4, "block_size": BLOCK, "accuracy_level": 1}  # 1 means float32
        return self._fused("MatMulNBits", inputs, K=blocks * BLOCK, N=outputs, **options)

    def _by_channel(self, x: str, name: str, limits: Range) -> str:
        """(codes @ weight8) * scale + bias8, where codes = x * gain + zero, rounded and clipped to 0..255.

        A channel's step is multiplied into its weights (as in SmoothQuant, arXiv:2211.10438). No
        step is below their geometric mean: finer ones only cost the other weights bits.
        """
        low, high = limits
        step = ((high - low) / 255).astype(np.float32)
        step = np.maximum(step, np.exp(np.log(step).mean()).astype(np.float32))
        zero = np.round(127.5 - (low + high) / 2 / step).astype(np.float32)
        weight, scale = _quantize(self._checkpoint.matrices[f"{name}.w"].dequantize() * step)
        bias = self._checkpoint.vectors[f"{name}.b"] - scale * (weight @ zero)
        if x not in self._codes:
            # ONNX Runtime's QuantizeLinear is slow with a scale for each channel, fast with one.
            scaled = self._op("Mul", [x, self._weight(f"{name}.gain", np.reciprocal(step))])
            shifted = self._op("Add", [scaled, self._weight(f"{name}.zero", zero)])
            self._codes[x] = self._to_uint8(shifted)
        product = self._product(self._codes[x], name, weight, scale)
        return self._op("Add", [product, self._weight(f"{name}.b8", bias.astype(np.float32))])

    def _by_token(self, x: str, name: str) -> str:
        """step * ((codes @ weight8) * scale) + low * total + bias, for x = codes * step + low. Each
        token has its own low (its least value) and step (a 255th of its width)."""
        weight, scale = _quantize(self._checkpoint.matrices[f"{name}.w"].dequantize())
        last = self._int(-1)
        low, high = self._op("ReduceMin", [x, last]), self._op("ReduceMax", [x, last])
        width = self._op("Sub", [high, low])
        step = self._op("Mul", [width, self._weight("255th", np.float32(1 / 255))])
        codes = self._to_uint8(self._op("Div", [self._op("Sub", [x, low]), step]))
        product = self._op("Mul", [self._product(codes, name, weight, scale), step])
        total = self._weight(f"{name}.total", scale * weight.sum(axis=1))
        shift = self._op("Add", [self._op("Mul", [low, total]), self._vector(f"{name}.b")])
        return self._op("Add", [product, shift])

    def _to_uint8(self, x: str) -> str:
        """uint8, rounded and clipped to 0..255."""
        one, zero = self._weight("one", np.float32(1)), self._weight("nought", np.uint8(0))
        return self._op("QuantizeLinear", [x, one, zero])

    def _product(self, codes: str, name: str, weight: NDArray[np.float32], scale: NDArray[np.float32]) -> str:
        matrix = self._weight(f"{name}.w8", weight.T.astype(np.int8))
        scales = self._weight(f"{name}.s8", scale)
        one, zero = self._weight("one", np.float32(1)), self._weight("nought", np.uint8(0))
        return self._fused("MatMulIntegerToFloat", [codes, matrix, one, scales, zero, "", ""])

    def _add_norm(self, x: str, y: str, name: str) -> str:
        # Not the fused SkipLayerNormalization, which takes 7 times as long in ONNX Runtime 1.32.
        added, epsilon = self._op("Add", [x, y]), self._checkpoint.epsilon
        inputs = [added, self._vector(f"{name}.w"), self._vector(f"{name}.b")]
        return self._op("LayerNormalization", inputs, axis=-1, epsilon=epsilon)

    def _fused(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """One of ONNX Runtime's own operators."""
        return self._op(kind, inputs, domain="com.microsoft", **attributes)

    def _op(self, kind: str, inputs: list[str], *, output: str = "", **attributes: Any) -> str:
        from onnx import helper

        output = output or f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def _int(self, value: int) -> str:
        """A tensor with one element, as axes and bounds need it."""
        return self._weight(f"int{value}", np.array([value]))

    def _vector(self, name: str) -> str:
        return self._weight(name, self._checkpoint.vectors[name])

    def _weight(self, name: str, array: NDArray[Any] | np.generic) -> str:
        self._used[name] = self._weights.add(name, array)
        return name


_TEXTS, _TOKENS = 32, 128


def read_ranges(path: Path) -> dict[str, Range]:
    """The ranges of the matrices' inputs, which `benchmarks/encoder_ranges.py` measures."""
    from safetensors.numpy import load_file

    ends = load_file(path)
    names = sorted({name.rpartition(".")[0] for name in ends})
    return {name: (ends[f"{name}.low"], ends[f"{name}.high"]) for name in names}


def sample(scores: NDArray[np.float32]) -> NDArray[np.int32]:
    """Ids (texts, tokens) drawn by the pieces' log probabilities; always the same ones."""
    chances = np.exp(scores.astype(np.float64))
    chances[scores >= 0] = 0  # the special tokens
    draw = np.random.default_rng(0).choice
    ids = draw(len(chances), (_TEXTS, _TOKENS), p=chances / chances.sum()).astype(np.int32)
    ids[:, 0], ids[:, -1] = BOS, EOS
    return ids


def sentencepiece_model(pieces: Sequence[str], scores: Sequence[float]) -> bytes:
    """A sentencepiece model whose ids are the positions in `pieces`, normalising as XLM-R does.
    The special tokens (`<s>`, `<mask>`, ...) never match text: "</s>" in a text is just text."""
    from sentencepiece import SentencePieceNormalizer, sentencepiece_model_pb2

    schema: Any = sentencepiece_model_pb2  # protobuf makes its classes at run time
    proto = schema.ModelProto()
    normalizer = SentencePieceNormalizer(rule_name="nmt_nfkc")
    proto.ParseFromString(normalizer.serialized_model_proto())
    proto.trainer_spec.model_type = proto.trainer_spec.UNIGRAM
    proto.trainer_spec.bos_id, proto.trainer_spec.pad_id = BOS, PAD
    proto.trainer_spec.eos_id, proto.trainer_spec.unk_id = EOS, UNKNOWN
    kind = schema.ModelProto.SentencePiece
    kinds = dict.fromkeys(["<s>", "<pad>", "</s>", "<mask>"], kind.CONTROL)
    kinds["<unk>"] = kind.UNKNOWN
    for piece, score in zip(pieces, scores, strict=True):
        proto.pieces.add(piece=piece, score=score, type=kinds.get(piece, kind.NORMAL))
    return proto.SerializeToString()


def encode(processor: "SentencePieceProcessor", texts: Sequence[str]) -> list[list[int]]:
    """The ids of every text, without special tokens. Lone surrogates count as unknown characters."""
    clean = [text.encode("utf-8", "replace").decode() for text in texts]
    return processor.Encode(clean, num_threads=1)


@cache
def share_threads(threads: int) -> None:
    """Give all future sessions one pool of threads; call it once in a process."""
    import onnxruntime

    onnxruntime.set_global_thread_pool_sizes(threads, 1)


def open_session(path: Path, *, threads: int) -> "InferenceSession":
    """The graph at `path`, ready to run on `threads` cores, which sleep while they wait."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if share_threads.cache_info().currsize:  # then every session must use the shared pool
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = threads
    # Threads that spin while they wait take cores from other processes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The graph already has fused operators; optimising it would only delay the start.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def embed(session: "InferenceSession", rows: Sequence[list[int]]) -> Vectors:
    """Unit vectors of one batch; `rows` are ids without `<s>` and `</s>`."""
    # Sums over tokens differ in the last bit if their number isn't a multiple of 4. With this width a
    # text's vector does not depend on the rest of its batch.
    width = -(-(max(map(len, rows)) + 2) // 4) * 4
    ids = np.full((len(rows), width), PAD, np.int32)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row) + 2] = [BOS, *row, EOS]
        mask[i, : len(row) + 2] = 1
    (vectors,) = session.run(["vectors"], {"ids": ids, "mask": mask})
    return np.asarray(vectors)
