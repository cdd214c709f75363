"""`rag finetune reader` as a person types it."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests import commands
from tests.finetune.documents import DOCUMENTS

Rag = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def rag(home: Path) -> Rag:
    def run(*words: str | Path) -> CompletedProcess[str]:
        return commands.rag(*words, environment={"XDG_DATA_HOME": str(home / "data")})

    return run


@pytest.fixture(scope="module")
def questions(rag: Rag, home: Path) -> Path:
    """Two questions, and a knowledge base `demo` that answers one of them."""
    docs = home / "set/docs"
    docs.mkdir(parents=True)
    (docs / "山川.txt").write_text(DOCUMENTS["山川.txt"], "utf-8")
    done = rag("ingest", docs, "--kb", "demo")
    assert done.returncode == 0, done.stderr
    quote = next(line for line in DOCUMENTS["山川.txt"].splitlines() if len(line) > 20)
    gold = [{"document": "山川.txt", "quote": quote}]
    rows = [
        {"id": "1", "question": "这里写了什么？", "answers": [quote[4:10]], "answerable": True, "gold": gold},
        {"id": "2", "question": "谁发明了电话？", "answers": [], "answerable": False},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (home / "set/questions.jsonl").write_text(text, "utf-8")
    return home / "set"


def test_too_few_questions_end_in_one_line_with_both_numbers(rag: Rag, questions: Path, home: Path) -> None:
    done = rag("finetune", "reader", questions, "--kb", "demo")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "has 1 questions whose answer was found in demo, and 1 without an answer; need 20" in last
    assert "Traceback" not in done.stderr
    assert not (home / "data/chatglm-rag/demo/rag.toml").exists()


def test_a_knowledge_base_without_a_reader_ends_in_one_line(rag: Rag, questions: Path, home: Path) -> None:
    settings = home / "data/chatglm-rag/demo/rag.toml"
    settings.write_text('[read]\nreader = "none"\n', "utf-8")
    done = rag("finetune", "reader", questions / "questions.jsonl", "--kb", "demo")
    settings.unlink()
    assert done.returncode == 1
    assert "demo has no reader to train" in done.stderr.splitlines()[-1]
