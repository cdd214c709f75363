"""XLM-R's tokenizer as a sentencepiece model, written from a vocabulary of pieces and scores."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

BOS, PAD, EOS, UNKNOWN = 0, 1, 2, 3  # `<s> <pad> </s> <unk>`, Hugging Face's order for XLM-R


def model(pieces: Sequence[str], scores: Sequence[float]) -> bytes:
    """A sentencepiece model whose ids are the places in `pieces`, normalising as XLM-R does.

    The marks (`<s>`, `<mask>`, ...) never match text: a text that holds "</s>" is just text.
    """
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
    """The ids of every text, without marks. Lone surrogates count as unknown characters."""
    clean = [text.encode("utf-8", "replace").decode() for text in texts]
    return processor.Encode(clean, num_threads=1)
