"""Tokens counted without the engine: by an estimate, or by the model's own tokenizer."""

import shutil
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ingest.errors import UserError
from rag.chatglm.chat import encode_chat
from rag.chatglm.tokenization import open_tokenizer
from rag.endpoint.engines import FRAME, MARKS, estimate, tokens
from rag.types import Message
from tests.faulty import answers, faulty
from tests.rag.endpoint.clients import QUESTION, connect

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden"
TEXTS = [
    *(ROOT / "corpora" / "laws" / "docs").glob("*.txt"),
    *(ROOT / "corpora" / "rust-book" / "docs").glob("*.md"),
    *(ROOT / "docs" / "decisions").glob("*.md"),
    *(ROOT / "rag").glob("*.py"),
]


@pytest.mark.parametrize(("text", "count"), [
    ("", 0),
    ("试用期", 6),
    ("a word", 1 + 2),
    ("1,234.5", 7),
    ("é", 2),
    ("😀", 4),
    ("a    b\n", 1 + 1 + 1 + 1),
    ("\udc00", 2),
])  # fmt: skip
def test_a_text_is_estimated_by_its_characters(text: str, count: int) -> None:
    assert tokens(text) == count
    assert estimate([Message("user", text)] * 2) == FRAME + 2 * (MARKS + count)


def test_the_estimate_is_never_too_small() -> None:
    """For ChatGLM3's words, in stretches of 600 characters of prose, code and tables."""
    words = sentencepiece.SentencePieceProcessor(str(GOLDEN / "tokenizer" / "tokenizer.model"))
    ratios = []
    for path in TEXTS:
        text = path.read_text("utf-8", errors="ignore")
        for start in range(0, max(1, len(text) - 600), 600):
            part = text[start : start + 600]
            ratios.append(tokens(part) / max(1, len(words.encode(part))))
    assert len(ratios) > 200
    assert min(ratios) > 1
    assert sorted(ratios)[len(ratios) // 2] < 3


def test_a_chatglm_counts_in_its_own_format(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "v3" / "tiny_safetensors" / "config.json", tmp_path)
    shutil.copy(GOLDEN / "tokenizer" / "tokenizer.model", tmp_path)
    length = len(encode_chat(QUESTION, open_tokenizer(tmp_path), 3))
    with faulty(answers("好")) as engine:
        generator = connect(engine, tokenizer=str(tmp_path)).generator
        assert generator.count(QUESTION) == length
        assert engine.seen == []  # nobody is asked


def test_another_model_counts_by_its_chat_template(tmp_path: Path) -> None:
    letters = {chr(code): code for code in range(32, 127)} | {"<user>": 0, "<reply>": 1, "?": 2}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="?",
        additional_special_tokens=["<user>", "<reply>"],
        chat_template="{% for m in messages %}<user>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<reply>{% endif %}",
    )
    fast.save_pretrained(tmp_path)
    with faulty(answers("好")) as engine:
        generator = connect(engine, tokenizer=str(tmp_path)).generator
        assert generator.count([Message("user", "abcde")]) == 1 + 5 + 1
    fast.chat_template = None
    bare = tmp_path / "bare"
    fast.save_pretrained(bare)
    with pytest.raises(UserError, match=r"has no usable tokenizer .*chat template"):
        connect("http://127.0.0.1:1", tokenizer=str(bare)).generator.count(QUESTION)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\[generate.endpoint\] tokenizer: .* or leave it out"):
        connect("http://127.0.0.1:1", tokenizer=str(tmp_path / "none")).generator.count(QUESTION)
