"""Runs an encoder's ONNX graph."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ingest.types import Vectors

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from sentencepiece import SentencePieceProcessor


BOS, PAD, EOS, UNKNOWN = 0, 1, 2, 3  # `<s> <pad> </s> <unk>`, Hugging Face's order for XLM-R


def model(pieces: Sequence[str], scores: Sequence[float]) -> bytes:
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


def load(path: Path, *, threads: int) -> "InferenceSession":
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


def run(session: "InferenceSession", rows: Sequence[list[int]]) -> Vectors:
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
