"""`rag finetune grounded` as a person types it, with the bundled encoder and a real tokenizer."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import sentencepiece
import torch

from ingest.store import open_store
from rag.chatglm.chat import encode_chat
from rag.chatglm.configuration import ChatGLM2Config
from rag.chatglm.modeling_chatglm import ChatGLM2ForCausalLM
from rag.chatglm.tokenization import ChatGLMTokenizer, open_tokenizer
from rag.types import Message
from tests import commands
from tests.finetune.documents import DOCUMENTS

Rag = Callable[..., CompletedProcess[str]]
FILES = ("劳动合同法.txt", "居民身份证法.txt", "山川.txt")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def rag(home: Path) -> Rag:
    def run(*words: str | Path, locale: str = "C.UTF-8") -> CompletedProcess[str]:
        environment = {"XDG_DATA_HOME": str(home / "data"), "LC_ALL": locale}
        return commands.rag(*words, environment=environment)

    return run


@pytest.fixture(scope="module")
def kb(rag: Rag, home: Path) -> str:
    docs = home / "docs"
    docs.mkdir()
    for name in FILES:
        (docs / name).write_text(DOCUMENTS[name], "utf-8")
    done = rag("ingest", docs, "--kb", "demo")
    assert done.returncode == 0, done.stderr
    return "demo"


def rows(folder: Path) -> list[dict]:
    text = "".join(path.read_text("utf-8") for path in sorted(folder.glob("*.jsonl")))
    return [json.loads(line) for line in text.splitlines()]


def test_a_knowledge_base_becomes_training_rows(rag: Rag, kb: str, home: Path) -> None:
    done = rag("finetune", "grounded", kb, home / "set", "--heldout", "0.4")
    assert done.returncode == 0, done.stderr
    made = rows(home / "set")
    assert len(made) > 8
    for word in ("definitions", "figures, authorities", "total", "documents"):
        assert word in done.stdout
    assert {Path(row["source"]).name for row in made} == set(FILES)
    with open_store(home / "data" / "chatglm-rag" / kb) as store:
        for row in made:
            assert row["answer"] in store.text(row["document"], row["start"], row["end"])
    named = rag("finetune", "grounded", "--kb", kb, home / "same", "--heldout", "0.4")
    assert named.returncode == 0, named.stderr
    assert rows(home / "same") == made
    again = rag("finetune", "grounded", kb, home / "set", locale="zh_CN.UTF-8")
    assert again.returncode == 1
    assert again.stderr.startswith("rag：")
    assert again.stderr.count("\n") == 1


def test_a_model_s_tokenizer_and_window_decide_what_fits(rag: Rag, kb: str, home: Path, tiny: Path) -> None:
    wide = rag("finetune", "grounded", kb, home / "wide", "--model", tiny)
    assert wide.returncode == 1
    assert wide.stderr.strip() == (
        "rag: [generate] max_new_tokens is 512, but the model's window holds 512 tokens, prompt "
        f"included; lower it in {home / 'data' / 'chatglm-rag' / kb / 'rag.toml'}"
    )
    settings = home / "data" / "chatglm-rag" / kb / "rag.toml"
    settings.write_text("[generate]\nmax_new_tokens = 32\n")
    options = ("--kinds", "article,cloze", "--passages", "2", "--without-gold", "0")
    done = rag("finetune", "grounded", kb, home / "narrow", "--model", tiny, *options)
    settings.unlink()
    assert done.returncode == 0, done.stderr
    tokenizer = open_tokenizer(tiny)
    for row in rows(home / "narrow"):
        assert row["kind"] in ("article", "cloze")
        prompt = [Message("user", row["messages"][0]["content"])]
        assert len(encode_chat(prompt, tokenizer, 3)) <= 512 - 32
        assert row["gold"] in (1, 2)


def examiner(folder: Path, reply: str) -> Path:
    """A ChatGLM3 that says `reply` to everything.

    Nothing is added to what a token embeds to, and of that the head makes the token that follows.
    """
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["".join(DOCUMENTS.values())]),
        model_prefix=str(folder / "tokenizer"),
        model_type="char",
        hard_vocab_limit=False,
        user_defined_symbols=["\n", reply],
        max_sentencepiece_length=len(reply) * 4,
        minloglevel=2,
    )
    tokenizer = ChatGLMTokenizer(str(folder / "tokenizer.model"), generation=3)
    config = ChatGLM2Config(
        generation=3, vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=32,
        max_position_embeddings=4096, attention_bias=True, tie_word_embeddings=False,
        pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = ChatGLM2ForCausalLM(config)
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
        embedded, head = model.model.embed_tokens.weight.normal_(), model.lm_head.weight.zero_()
        message = ("<|assistant|>", "\n", reply, "</s>")
        for token, following in pairwise(map(tokenizer.convert_tokens_to_ids, message)):
            head[following] = embedded[token]
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_writes_a_question(rag: Rag, kb: str, home: Path) -> None:
    model = examiner(home / "chatglm3-examiner", "问题：五指山的海拔约为多少米？\n答案：一千八百六十七米")
    done = rag(
        "finetune", "grounded", kb, home / "asked", "--model", model, "--write-questions",
        "--kinds", "model", "--without-gold", "0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = rows(home / "asked")
    assert (row["kind"], row["question"]) == ("model", "五指山的海拔约为多少米？")
    assert row["answer"] == "一千八百六十七米"
    assert row["messages"][1]["content"] == f"五指山海拔约一千八百六十七米[{row['gold']}]。"
    assert "by the model" in done.stdout
    assert "written by the model, but not valid" in done.stdout  # of the other passages


def test_the_folder_is_required_unless_kb_names_the_base(rag: Rag, kb: str) -> None:
    done = rag("finetune", "grounded", kb)
    assert done.returncode == 2
    assert "Missing argument 'OUT'" in done.stderr
    assert "缺少" in rag("finetune", "grounded", kb, locale="zh_CN.UTF-8").stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere", "out"), "there is no knowledge base 'nowhere'"),
        (("demo", "out", "--kinds", "cloze,riddle"), "--kinds names 'riddle'"),
        (("demo", "out", "--kb", "other"), "KB is demo and --kb is other"),
        (("demo", "out", "--write-questions"), "add --model MODEL"),
        (("demo", "out", "--model", "./missing"), "missing"),
        (("demo", __file__), "exists already; name a new folder"),
        (
            ("demo", __file__, "--model", "./missing", "--write-questions"),
            "exists already; name a new folder",
        ),
    ],
)
def test_a_mistake_is_one_line(rag: Rag, kb: str, words: tuple[str, ...], message: str) -> None:
    done = rag("finetune", "grounded", *words)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
