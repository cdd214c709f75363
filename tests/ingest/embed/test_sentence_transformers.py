"""sentence-transformers encoders, on a tiny random checkpoint made here."""

from pathlib import Path

import numpy as np
import pytest

from ingest.embed import open_embedder, sentence_transformers
from ingest.errors import UserError

WORDS = [f"w{n}" for n in range(30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BertModel, 2 layers wide 32, window 16, that splits at blanks; its name says e5."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("models") / "tiny-e5-random"
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    ids = {word: at for at, word in enumerate([*marks, "query", "passage", ":", *WORDS])}
    raw = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    named = dict(zip(["pad_token", "unk_token", "cls_token", "sep_token"], marks, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=16, **named).save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(ids),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(path)
    return path


def test_vectors_carry_the_family_prefixes(folder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    embedder = open_embedder(str(folder))
    model = SentenceTransformer(str(folder), local_files_only=True)
    texts = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9"]
    for prefix, found in (
        ("passage: ", embedder.embed_passages(texts)),
        ("query: ", np.array([embedder.embed_query(text) for text in texts])),
    ):
        expected = model.encode([prefix + text for text in texts], normalize_embeddings=True)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert found.dtype == np.float32
    assert embedder.dim == 32
    assert embedder.embed_passages([]).shape == (0, 32)


def test_window_is_the_models_less_marks_and_prefix(folder: Path) -> None:
    embedder = open_embedder(str(folder))
    assert embedder.max_tokens == 16 - 2 - 2
    assert embedder.count_many(["w1 w2", ""]) == [2, 0]
    embedder.embed_passages([" ".join(WORDS[:12])])
    with pytest.raises(ValueError, match="13 tokens; at most 12 fit"):
        embedder.embed_passages(["w1", " ".join(WORDS[:13])])


def test_whole_long_question_counts(folder: Path) -> None:
    embedder = open_embedder(str(folder))
    long, cut = " ".join(WORDS), " ".join(WORDS[:12])
    assert np.linalg.norm(embedder.embed_query(long)) == pytest.approx(1, abs=1e-5)
    assert not np.allclose(embedder.embed_query(long), embedder.embed_query(cut), atol=1e-3)


def test_name_tells_weights_apart(folder: Path) -> None:
    name = open_embedder(str(folder)).name
    assert name == open_embedder(str(folder)).name
    weights = folder / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        assert open_embedder(str(folder)).name != name
    finally:
        weights.write_bytes(before)


@pytest.mark.parametrize(
    ("name", "query", "passage"),
    [
        ("intfloat/multilingual-e5-large", "query: ", "passage: "),
        ("BAAI/bge-small-zh-v1.5", "为这个句子生成表示以用于检索相关文章：", ""),
        ("BAAI/bge-m3", "", ""),
        ("sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2", "", ""),
    ],
)
def test_families(name: str, query: str, passage: str) -> None:
    assert sentence_transformers._prefixes({"query": None, "document": None}, name) == (query, passage)


def test_the_models_own_prompts_come_first() -> None:
    prompts = {"query": "Q: ", "passage": "P: "}
    assert sentence_transformers._prefixes(prompts, "intfloat/multilingual-e5-small") == ("Q: ", "P: ")


def test_absent_model_and_absent_extra_name_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="hf download"):
        open_embedder(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="hf download nobody/nothing"):
        open_embedder("nobody/nothing")
    monkeypatch.setattr(sentence_transformers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'chatglm-rag\[encoders\]'"):
        open_embedder("nobody/nothing")
