"""The reader: a question and a chunk -> the best span of the chunk, and whether it answers the question.

The encoder with two heads, as an extractive reader with a null answer (SQuAD 2.0, arXiv:1806.03822). A row
is `<s> question </s></s> context text </s>`. Beside its id, every token has a feature that says whether it
belongs to the question or to the chunk, and whether the other text contains it too. The bundled weights are
the encoder's upper layers and the heads; docs/reader.md is their model card.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ingest.chunk import Span
from ingest.embed import e5_graph
from ingest.embed.e5 import BundledEmbedder, cached_folder, data_file
from ingest.embed.e5_graph import BOS, EOS, PAD, E5Checkpoint, Graph, Weights, encode
from ingest.errors import UserError
from ingest.normalize import simplify
from ingest.types import Chunk
from rag.types import AnswerSpan, ReaderOutput

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession
    from sentencepiece import SentencePieceProcessor

Logits = NDArray[np.float32]

WEIGHTS = "reader.safetensors"
BUNDLED_SHA256 = "621c867820e22df6a8607b71c33a2501e9fab597a5b0eeae8e0265373c63e8d5"
FEATURES = 6  # of a token: (question, chunk) x (absent from the other text, one character, several)
FEATURE_LAYER = 8  # the features are added to its input; a reader's weights depend on it
_MOST_TOKENS = 512
_MOST_QUESTION = 48
_MOST_CONTEXT = 48
_LONGEST_SPAN = 40  # tokens
_FAR = 1e4  # subtracted from the logit of what can't be chosen
_LEAST_CORRELATION = 0.98  # of the logits in int8 and in float32; .999 is usual


@dataclass(frozen=True, slots=True)
class ReaderRow:
    """One input of the reader. Token `first + i` is `text[offsets[i][0] : offsets[i][1]]`."""

    ids: list[int]
    features: NDArray[np.uint8]
    first: int
    offsets: list[Span]


NO_SPAN = AnswerSpan(0, 0, -20.0)
"""The best span of a text without tokens."""


def best_span(output: ReaderOutput, start: int = 0, end: int | None = None) -> AnswerSpan:
    """The best span within characters [start, end) of the chunk's text."""
    inside = [k for k, (a, b) in enumerate(output.offsets) if a >= start and (end is None or b <= end)]
    if not inside:
        return NO_SPAN
    low, high = inside[0], inside[-1] + 1
    sums = output.starts[low:high, None] + output.ends[None, low:high]
    distance = np.arange(high - low)[None, :] - np.arange(high - low)[:, None]
    sums = np.where((distance >= 0) & (distance < _LONGEST_SPAN), sums, -np.inf)
    first, last = divmod(int(sums.argmax()), high - low)
    begin, stop = output.offsets[low + first][0], output.offsets[low + last][1]
    return AnswerSpan(begin, stop, float(sums[first, last]))


class RowBuilder:
    """Writes rows of at most `most` tokens with the tokenizer of the bundled encoder."""

    def __init__(self, pieces: "SentencePieceProcessor", most: int = _MOST_TOKENS) -> None:
        self._pieces, self._most = pieces, most

    def row(self, question: str, context: str, text: str) -> ReaderRow:
        """`question` over a chunk `text` under `context` (title and headings); the end is cut off.

        If only one of them is in traditional characters, both are read in simplified ones.
        """
        if (simplify(question) == question) != (simplify(text) == text):
            question, context, text = map(simplify, (question, context, text))
        words, above = encode(self._pieces, [question, context])
        head = [BOS, *words[:_MOST_QUESTION], EOS, EOS, *above[:_MOST_CONTEXT]]
        tokens, offsets = self._tokens(text)
        room = self._most - len(head) - 1
        ids = [*head, *tokens[:room], EOS]
        return ReaderRow(ids, self._overlap(ids), len(head), offsets[:room])

    def _tokens(self, text: str) -> tuple[list[int], list[Span]]:
        """The ids of `text` and what each covers, without leading space."""
        data = text.encode("utf-8", "replace")  # a lone surrogate becomes one "?"
        sizes = (len(character.encode("utf-8", "replace")) for character in text)
        at = dict(zip(accumulate(sizes, initial=0), range(len(text) + 1), strict=True))
        ids, offsets = [], []
        for piece in self._pieces.Encode(data.decode(), return_type="proto").pieces:
            start, end = at[piece.begin], at[piece.end]
            while start < end and text[start].isspace():
                start += 1
            ids.append(piece.id)
            offsets.append((start, end))
        return ids, offsets

    def _overlap(self, ids: Sequence[int]) -> NDArray[np.uint8]:
        cut, name = ids.index(EOS), self._pieces.IdToPiece
        words = [name(i).replace("\u2581", " ").lower() if i > EOS + 1 else "" for i in ids]
        question, chunk = "".join(words[:cut]), "".join(words[cut:])
        found = np.zeros(len(ids), np.uint8)
        for k, word in enumerate(map(str.strip, words)):
            in_chunk = k >= cut
            if word.isalnum() and word in (question if in_chunk else chunk):
                found[k] = 1 if len(word) == 1 else 2
            found[k] += 3 * in_chunk
        return found


class Reader:
    """The reader of a folder by `build`, on ONNX Runtime, with the encoder's tokenizer."""

    def __init__(self, folder: Path, pieces: "SentencePieceProcessor", *, threads: int) -> None:
        self.folder, self._builder = folder, RowBuilder(pieces)
        self._session = e5_graph.open_session(folder / "reader.onnx", threads=threads)

    def read(self, question: str, chunks: Sequence[Chunk]) -> list[ReaderOutput]:
        """What it says of each chunk under its title and headings."""
        rows = [self._builder.row(question, chunk.context, chunk.text) for chunk in chunks]
        return _run(self._session, rows) if rows else []


def padded(rows: Sequence[ReaderRow]) -> dict[str, NDArray[np.int32]]:
    """The inputs of `ReaderGraph`, each (rows, tokens of the longest)."""
    shape = (len(rows), max(len(row.ids) for row in rows))
    ids, features = np.full(shape, PAD, np.int32), np.zeros(shape, np.int32)
    mask, allowed = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for k, row in enumerate(rows):
        size = len(row.ids)
        ids[k, :size], features[k, :size], mask[k, :size] = row.ids, row.features, 1
        allowed[k, row.first : size - 1] = 1
    return {"ids": ids, "mask": mask, "features": features, "allowed": allowed}


def _run(session: "InferenceSession", rows: Sequence[ReaderRow]) -> list[ReaderOutput]:
    spans, answerable = map(np.asarray, session.run(["spans", "answerable"], padded(rows)))
    readings = []
    for k, row in enumerate(rows):
        logits = spans[k, row.first : row.first + len(row.offsets)] - spans[k, 0]
        output = ReaderOutput(row.offsets, logits[:, 0], logits[:, 1], float(answerable[k, 0]))
        readings.append(replace(output, score=output.score + best_span(output).margin / 2))
    return readings


def weights_file(weights: str) -> Path:
    """The file of the "bundled" weights, or of those in a folder."""
    return (Path(__file__).parent if weights == "bundled" else Path(weights)) / WEIGHTS


def open_reader(weights: str, encoder: BundledEmbedder) -> Reader:
    """The reader with the "bundled" weights or those of a folder, built beside the encoder on first use.

    Raises `UserError` if the weights are missing or damaged.
    """
    bundled, path = weights == "bundled", weights_file(weights)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError("cannot read {path}: {why}", path=path, why=error.strerror) from None
    digest = sha256(data).hexdigest()
    if bundled and digest != BUNDLED_SHA256:
        raise UserError(
            "{path} has SHA-256 {digest}…, not {sha256}…; install chatglm-rag again",
            path=path, digest=digest[:12], sha256=BUNDLED_SHA256[:12],
        )  # fmt: skip
    folder = encoder.folder.with_name(f"reader-{digest[:16]}")
    return _opened(cached_folder(folder, partial(build, data, path)), encoder)


@cache
def _opened(folder: Path, encoder: BundledEmbedder) -> Reader:
    """One reader for all knowledge bases that share an encoder."""
    return Reader(folder, encoder.pieces, threads=encoder.threads)


@dataclass(frozen=True, slots=True)
class EightBits:
    """A (rows, columns) matrix: element = code, -127 to 127, times the scale of its row, (rows,)."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]

    def dequantize(self) -> NDArray[np.float32]:
        """The matrix in float32 (rows, columns)."""
        return self.codes.astype(np.float32) * self.scales[:, None]


def build(data: bytes, path: Path, folder: Path) -> None:
    """Write the graph and its weights into `folder`; `data` are the contents of `path`."""
    import onnx
    from safetensors import SafetensorError
    from safetensors.numpy import load

    fast, exact = folder / "reader.onnx", folder / "float32.onnx"
    try:
        tensors = load(data)
        encoder = e5_graph.read(data_file())
        checkpoint = with_upper_layers(encoder, tensors)
        for file, ranges in ((fast, {}), (exact, None)):
            with file.with_suffix(".bin").open("wb") as stream:
                graph = ReaderGraph(checkpoint, Weights(stream), tensors, ranges=ranges)
                onnx.save(graph.model(), file)
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError("{path} holds no reader: {problem}", path=path, problem=error) from None
    rows = [
        ReaderRow(ids, np.zeros(len(ids), np.uint8), 16, [(k, k + 1) for k in range(len(ids) - 17)])
        for ids in e5_graph.sample(encoder.scores).tolist()
    ]
    ours, theirs = (
        np.concatenate([each.starts for each in _run(e5_graph.open_session(file, threads=1), rows)])
        for file in (fast, exact)
    )
    # x86 without VNNI saturates sums of int8 products at 16 bits, so float32 is used there.
    if not np.isfinite(theirs).all():
        raise UserError("{path} holds no reader: {problem}", path=path, problem="not finite")
    saturated = np.corrcoef(ours, theirs)[0, 1] < _LEAST_CORRELATION
    for unused in folder.glob("reader.*" if saturated else "float32.*"):
        unused.unlink()
    if saturated:
        exact.rename(fast)


def with_upper_layers(encoder: E5Checkpoint, tensors: dict[str, NDArray[np.generic]]) -> E5Checkpoint:
    """The encoder with the layers of `tensors` in place of its own. Raises KeyError or ValueError if they
    are of another encoder."""
    scales = {name.removesuffix("scale"): name for name in tensors if name.endswith(".scale")}
    matrices = {
        f"{name}w": EightBits(tensors[f"{name}w"].astype(np.int8), tensors[scale].astype(np.float32))
        for name, scale in scales.items()
    }
    vectors = {
        name: values.astype(np.float32)
        for name, values in tensors.items()
        if name.startswith("l") and name not in matrices and name not in scales.values()
    }
    for name, values in vectors.items():
        if values.shape != (expected := encoder.vectors[name].shape):
            raise ValueError(f"{name} has shape {values.shape}, not {expected}")
    return replace(encoder, vectors={**encoder.vectors, **vectors}, matrices={**encoder.matrices, **matrices})


class ReaderGraph(Graph):
    """The encoder's graph with features and heads; without `ranges`, in float32.

    Inputs beside the encoder's: `features`, and `allowed`, which is 1 for the tokens of the chunk.
    Outputs: `spans` (rows, tokens, 2), the logits of an answer's first and last token, of which token 0 is
    the null, and `answerable` (rows, 1), a logit.
    """

    def __init__(
        self,
        checkpoint: E5Checkpoint,
        weights: Weights,
        tensors: dict[str, NDArray[np.generic]],
        *,
        ranges: dict[str, e5_graph.Range] | None = None,
    ) -> None:
        super().__init__(checkpoint, weights, ranges=ranges)
        self._tensors = tensors

    def model(self) -> "ModelProto":
        from onnx import TensorProto

        x = self._embeddings()
        for layer in range(self._checkpoint.layers):
            if layer == FEATURE_LAYER:
                x = self._op("Add", [x, self._op("Gather", [self._tensor("feature"), "features"])])
            x = self._layer(x, f"l{layer}")
        one, last = self._int(1), self._int(2**31 - 1)
        allowed = self._op("Cast", ["allowed"], to=TensorProto.FLOAT)
        allowed = self._op("Sub", [allowed, self._weight("one", np.float32(1))])
        far = self._op(
            "Unsqueeze", [self._op("Mul", [allowed, self._weight("far", np.float32(_FAR))]), self._int(2)]
        )
        spans = self._head(x, "span", "spans")
        far_of_chunk = self._op("Slice", [far, one, last, one])
        of_chunk = self._op("Add", [self._op("Slice", [spans, one, last, one]), far_of_chunk])
        share = self._op("Transpose", [self._op("Softmax", [of_chunk], axis=1)], perm=[0, 2, 1])
        ends = self._op("MatMul", [share, self._op("Slice", [x, one, last, one])])
        first = self._op("Slice", [x, self._int(0), one, one])
        whole = self._op("Concat", [first, ends], axis=1)
        flat = self._op("Flatten", [whole], axis=1)
        summary = self._op("Tanh", [self._head(flat, "pool")])
        self._head(summary, "has", "answerable")
        return self._model(["ids", "mask", "features", "allowed"], ["spans", "answerable"])

    def _head(self, x: str, name: str, output: str = "") -> str:
        weight = self._weight(f"{name}.w", self._tensors[f"{name}.w"].astype(np.float32).T.copy())
        bias = self._weight(f"{name}.b", self._tensors[f"{name}.b"].astype(np.float32))
        return self._op("Add", [self._op("MatMul", [x, weight]), bias], output=output)

    def _tensor(self, name: str) -> str:
        return self._weight(name, self._tensors[name].astype(np.float32))

    def _linear(self, x: str, name: str) -> str:
        matrix = self._checkpoint.matrices[f"{name}.w"]
        if self._ranges is None and isinstance(matrix, EightBits):
            weight = self._weight(f"{name}.w32", matrix.dequantize().T.copy())
            return self._op("Add", [self._op("MatMul", [x, weight]), self._vector(f"{name}.b")])
        return super()._linear(x, name)
