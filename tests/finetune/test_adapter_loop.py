"""Train on a tiny checkpoint, use the adapter in `rag ask`: the answer changes, and is right."""

import json
import random
from pathlib import Path

import pytest

from rag.types import MARK, NOT_FOUND
from tests.commands import rag
from tests.tiny import MOST, TITLE, fact, numbers, question, row

NUMBERS = numbers(6)
OPTIONS = ["--quant", "none", "--temperature", "0", "--max-new-tokens", "30"]


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """The environment of a person who has a knowledge base of six factories."""
    for name, number in NUMBERS.items():
        (tmp_path / "docs" / name).mkdir(parents=True)
        (tmp_path / "docs" / name / f"{TITLE}.txt").write_text(fact(name, number) + "\n", "utf-8")
    settings = tmp_path / "chatglm-rag" / "default" / "rag.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"[retrieve]\npassages = {MOST}\n[refuse]\nthreshold = 0.0\n", "utf-8")
    environment = {"XDG_DATA_HOME": str(tmp_path)}
    output_of(environment, "ingest", tmp_path / "docs")
    return environment


def output_of(home: dict[str, str], *words: str | Path) -> str:
    done = rag(*words, environment=home)
    assert done.returncode == 0, done.stderr
    return done.stdout


def short(answer: str) -> str:
    """`甲厂的编号是493872[1]。` -> `493872[1]。`; a refusal stays."""
    return answer if answer == NOT_FOUND["han"] else answer.partition("是")[2]


def test_a_trained_adapter_changes_the_answers_of_rag_ask(
    home: dict[str, str], tiny: Path, tmp_path: Path
) -> None:
    """Rows are prompts of `rag` about other numbers, answered without the sentence around them."""
    dice = random.Random("short")
    data, out = tmp_path / "rows.jsonl", tmp_path / "adapter"
    with data.open("w", encoding="utf-8") as file:
        for _ in range(1200):
            messages, answer = row(dice)
            chat = [{"role": message.role, "content": message.text} for message in messages]
            chat.append({"role": "assistant", "content": short(answer)})
            file.write(json.dumps({"messages": chat}, ensure_ascii=False) + "\n")
    output_of(
        home, "finetune", "train", data, "--model", tiny, "--out", out,
        "--lora_rank", "8", "--lora-targets", "query_key_value,dense,dense_h_to_4h,dense_4h_to_h",
        "--learning_rate", "4e-3", "--max_steps", "120", "--batch-size", "16",
        "--lora-dropout", "0", "--save_steps", "120", "--lr-scheduler-type", "cosine",
    )  # fmt: skip
    for name in ("甲", "丁"):
        ask = ["ask", "--json", "--model", tiny, *OPTIONS, question(name)]
        before = json.loads(output_of(home, *ask))
        after = json.loads(output_of(home, *ask, "--adapter", out))
        # Which passage so small an adapter cites depends on their order, and that on the folder's name.
        assert MARK.sub("", before["answer"]) == fact(name, NUMBERS[name])
        assert MARK.sub("", after["answer"]) == f"{NUMBERS[name]}。"
        assert len(after["citations"]) == 1
