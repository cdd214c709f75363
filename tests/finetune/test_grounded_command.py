"""`rag finetune grounded` as a person types it, with the bundled encoder and a real tokenizer."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.store import open_store
from rag.chatglm.chat import count_chat
from rag.chatglm.tokenizer import open_tokenizer
from rag.types import Message
from tests.finetune.grounds import DOCUMENTS

Rag = Callable[..., subprocess.CompletedProcess[str]]
FILES = ("劳动合同法.txt", "居民身份证法.txt", "山川.txt")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def rag(home: Path) -> Rag:
    def run(*words: str | Path, locale: str = "C.UTF-8") -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "XDG_DATA_HOME": str(home / "data"), "LC_ALL": locale}
        environment.pop("RAG_KB", None)
        command = [sys.executable, "-c", "from rag.cli import main; main()", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)

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
    for word in ("definitions", "figures, names", "in all", "documents", "Answer: "):
        assert word in done.stdout
    assert {Path(row["source"]).name for row in made} == set(FILES)
    with open_store(home / "data" / "chatglm-rag" / kb) as store:
        for row in made:
            assert row["answer"] in store.text(row["document"], row["start"], row["end"])
    again = rag("finetune", "grounded", kb, home / "set", locale="zh_CN.UTF-8")
    assert again.returncode == 1
    assert again.stderr.startswith("rag：")
    assert again.stderr.count("\n") == 1


def test_a_model_s_tokenizer_and_window_decide_what_fits(
    rag: Rag, kb: str, home: Path, tiny: Path
) -> None:
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
        assert count_chat(prompt, tokenizer, 3) <= 512 - 32
        assert row["gold"] in (1, 2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nowhere", "out"), "there is no knowledge base 'nowhere'"),
        (("demo", "out", "--kinds", "cloze,riddle"), "--kinds names 'riddle'"),
        (("demo", "out", "--write-questions"), "add --model MODEL"),
        (("demo", "out", "--model", "./missing"), "missing"),
    ],
)
def test_a_mistake_is_one_line(rag: Rag, kb: str, words: tuple[str, ...], said: str) -> None:
    done = rag("finetune", "grounded", *words)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
