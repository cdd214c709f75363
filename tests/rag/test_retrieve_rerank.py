"""Reranking, with a tiny cross-encoder of random weights and with a slow twin."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ingest.errors import UserError
from ingest.types import Chunk, Hit, Passage
from rag.retrieve import CrossEncoderReranker, Scores, rerank

TEXTS = ["劳动合同", "试用期不得超过六个月", "工资"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 2 layers, width 16, over characters."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("reranker")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set("".join(TEXTS)))]
    (folder / "vocab.txt").write_text("\n".join(words), "utf-8")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def found(text: str, at: int) -> tuple[Hit, Passage]:
    chunk = Chunk("d", "s", "t", (), "", at, at + len(text), text, (at, at + len(text)))
    return Hit(chunk, 0.0), Passage("d", at, at + len(text), text, "")


class LengthReranker:
    """Longer passages first."""

    def score(self, question: str, passages: Sequence[str]) -> Scores:
        return np.array([len(passage) for passage in passages], np.float32)


def test_hits_and_passages_follow_the_scores() -> None:
    hits, passages = zip(*(found(text, 20 * i) for i, text in enumerate(TEXTS)), strict=True)
    ranked, texts = rerank("？", list(hits), list(passages), LengthReranker())
    assert [passage.text for passage in texts] == sorted(TEXTS, key=len, reverse=True)
    assert [hit.chunk.text for hit in ranked] == [passage.text for passage in texts]
    assert [hit.score for hit in ranked] == [10, 4, 2]


def test_a_cross_encoder_scores_every_passage_by_itself(checkpoint: Path) -> None:
    reranker = CrossEncoderReranker(str(checkpoint))
    together = reranker.score("试用期？", TEXTS)
    alone = [reranker.score("试用期？", [text])[0] for text in TEXTS]
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_a_model_that_is_not_there_says_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the reranker .*rag\.toml"):
        CrossEncoderReranker(str(tmp_path / "nothing"))
