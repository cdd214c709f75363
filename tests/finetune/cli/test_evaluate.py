"""`rag finetune eval` on a trained ChatGLM: its verdict is its exit code."""

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
import typer
from torch import Tensor

import rag.cli  # mounts finetune.cli, so it comes first
from finetune.cli.evaluate import ask, evaluate
from finetune.evaluate.metrics import chosen
from finetune.evaluate.questions import Cases, read
from finetune.evaluate.run import CaseResult
from ingest.errors import UserError
from ingest.store import open_store
from rag.chatglm.generator import ChatGLMGenerator, open_generator
from tests.commands import rag
from tests.finetune.factories import (
    GREEDY,
    UNKNOWN,
    Careful,
    grounded_rows,
    pair,
    pipeline_over,
    write_docs,
    write_lines,
)
from tests.rag.chatglm.adapters import linears, merged, tensors, write
from tests.tiny import MOST, question

ENDS = ["v_proj", "down_proj"]
SCALE = 8 / 4
DO_NOT_SHIP = 3
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Home:
    """A person's environment, with a knowledge base of factories and questions about them."""

    environment: dict[str, str]
    questions: Path
    model: Path
    """Answers from passages."""
    broken: Path
    """The same with noise of rank 4 on its weights."""
    damaging: Path
    """The adapter that is that noise."""
    repairing: Path
    """The adapter that takes it away again."""

    def evaluate(self, model: Path, adapter: Path, *words: str | Path) -> CompletedProcess[str]:
        options = ["--quant", "none", "--max-new-tokens", "30", "--resamples", "200"]
        command = ["finetune", "eval", "--model", model, "--adapter", adapter]
        return rag(*command, *options, *words, environment=self.environment)


@pytest.fixture(scope="module")
def home(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = tmp_path_factory.mktemp("home")
    environment = {"XDG_DATA_HOME": str(home), "LC_ALL": "C.UTF-8", "COLUMNS": "120"}
    done = rag("ingest", write_docs(home / "docs"), environment=environment)
    assert done.returncode == 0, done.stderr
    [database] = home.rglob("kb.sqlite")
    (database.parent / "rag.toml").write_text(f"[retrieve]\npassages = {MOST}\n", "utf-8")
    with open_store(database.parent) as store:
        questions = write_lines(home / "heldout.jsonl", grounded_rows(store))
    generator = open_generator(tiny, quant="none")
    noise = {
        name: tensor * 3 if "lora_B" in name else tensor
        for name, tensor in tensors(linears(generator.model), ENDS).items()
    }
    inverse = {name: -tensor if "lora_B" in name else tensor for name, tensor in noise.items()}
    named = {"base_model_name_or_path": "chatglm3-6b"}
    return Home(
        environment,
        questions,
        tiny,
        _broken(generator, noise, home / "broken"),
        write(home / "damaging", noise, ENDS, **named),
        write(home / "repairing", inverse, ENDS, **named),
    )


@torch.no_grad()
def _broken(generator: ChatGLMGenerator, noise: Tensors, folder: Path) -> Path:
    for name, module in generator.model.named_modules():
        if name.endswith(tuple(ENDS)):
            module.weight.copy_(merged(module.weight, noise, name, scale=SCALE))
    generator.model.save_pretrained(folder)
    generator.tokenizer.save_pretrained(folder)
    return folder


def test_a_damaging_adapter_is_not_shipped(home: Home, tmp_path: Path) -> None:
    saved, picture = tmp_path / "eval.json", tmp_path / "eval.png"
    done = home.evaluate(home.model, home.damaging, home.questions, "--json", saved, "--picture", picture)
    assert done.returncode == DO_NOT_SHIP, done.stderr
    assert "do not ship (on 8 questions)" in done.stdout
    assert "worse: F1, gold passage: 1.000 → " in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    value = json.loads(saved.read_text("utf-8"))
    assert value["verdict"]["ship"] is False
    assert all(reason["zh"] != reason["text"] for reason in value["verdict"]["reasons"])
    assert value["about"]["whole"] is True
    assert value["about"]["bleu4"] in done.stdout  # which of the many it is
    gold = [each for each in value["replies"] if each["condition"] == "gold"]
    assert len(gold) == 8
    for each in gold:
        assert each["answers"][0] in each["base"]["text"]
        assert each["base"]["cited"] == [1]
        assert each["base"]["unsupported"] == []
    assert {each["base"]["text"] for each in gold} != {each["adapter"]["text"] for each in gold}


def test_a_repairing_adapter_is_shipped(home: Home) -> None:
    done = home.evaluate(home.broken, home.repairing, home.questions)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ship it (on 8 questions)" in done.stdout
    assert "better: F1, gold passage" in done.stdout


def test_an_exam_is_asked_without_passages(home: Home, tmp_path: Path) -> None:
    rows = [
        {"instruction": f"{name}厂的编号是多少？\nA. 1\nB. 2", "input": "", "output": "A", "exam": "cloze"}
        for name in "甲乙丙"
    ]
    questions, saved = write_lines(tmp_path / "exam.jsonl", rows), tmp_path / "eval.json"
    done = home.evaluate(home.model, home.damaging, questions, "--json", saved)
    assert done.returncode == DO_NOT_SHIP, done.stderr
    value = json.loads(saved.read_text("utf-8"))
    assert [(each["condition"], each["measure"]) for each in value["figures"]] == [("closed", "accuracy")]
    for reply in value["replies"]:
        assert reply["base"]["scores"]["accuracy"] == chosen(reply["base"]["text"], "A")


@pytest.fixture
def here(home: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("XDG_DATA_HOME", home.environment["XDG_DATA_HOME"])
    monkeypatch.delenv("RAG_KB", raising=False)
    return home


def run(home: Home, questions: Path, **options: object) -> None:
    """The command in this process, with the damaging adapter unless another is named."""
    plain = {
        "model": str(home.model),
        "adapter": home.damaging,
        "quant": "none",
        "max_new_tokens": 30,
        "resamples": 200,
        "kb": "default",
    }
    evaluate(questions, **(plain | options))  # type: ignore[arg-type]  # as typer calls it


def test_few_questions_are_not_enough_to_ship(
    here: Home, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    saved = tmp_path / "eval.json"
    broken = {"model": str(here.broken), "adapter": here.repairing}
    with pytest.raises(typer.Exit) as ended:
        run(here, here.questions, limit=2, conditions="gold", json=saved, **broken)
    assert ended.value.exit_code == DO_NOT_SHIP
    value = json.loads(saved.read_text("utf-8"))
    assert len(value["replies"]) == 2
    [figure] = [each for each in value["figures"] if each["measure"] == "f1"]
    assert figure["difference"] > 0  # it is better, as far as two can say
    assert "2" in capsys.readouterr().out.splitlines()[-2]


def test_alpaca_rows_are_evaluated_closed_book(here: Home, tmp_path: Path) -> None:
    path, saved = tmp_path / "rows.json", tmp_path / "eval.json"
    row = {"instruction": question(UNKNOWN[0]), "input": "", "output": "123"}
    path.write_text(json.dumps([row]), "utf-8")
    with pytest.raises(typer.Exit) as ended:
        run(here, path, general=path, json=saved, kb="nowhere")
    assert ended.value.exit_code == DO_NOT_SHIP
    replies = json.loads(saved.read_text("utf-8"))["replies"]
    assert [each["condition"] for each in replies] == ["closed", "general"]
    with pytest.raises(UserError, match="name no place in a document"):
        run(here, path, conditions="gold")
    path.write_text(json.dumps([row, {"instruction": "", "output": "1"}]), "utf-8")
    with pytest.raises(UserError, match=r"rows.json:2: .* or delete it$"):
        run(here, path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conditions": "open"}, "--conditions has open"),
        ({"picture": Path("a.txt")}, "a.txt"),
        ({"picture": Path("no/such/a.png")}, "no folder no/such to write a.png into"),
        ({"json": Path("no/such/a.json")}, "no folder no/such to write a.json into"),
        ({"json": Path()}, "is a folder; name a file"),
        ({"kb": "nowhere"}, "nowhere"),
        ({"quant": "int3"}, "int3"),
        ({"adapter": Path("no/such/folder")}, "no/such/folder"),
        ({"model": "no/such/folder"}, "no/such/folder"),
    ],
)
def test_a_mistake_is_an_error(here: Home, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(here, here.questions, **options)


def test_a_mistake_ends_in_one_line(home: Home) -> None:
    done = home.evaluate(home.model, home.damaging, home.questions, "--conditions", "open")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("rag: --conditions has open")
    assert len(done.stderr.splitlines()) == 1


def test_ctrl_c_ends_with_the_results_so_far(tmp_path: Path) -> None:
    class Interrupted(Careful):
        def reply(self, asked: str, fenced: list[tuple[str, str, str]]) -> str:
            if len(self.prompts) == self.last:
                signal.raise_signal(signal.SIGINT)
            return super().reply(asked, fenced)

        last = 4

    def until(adapter: Interrupted) -> tuple[list[tuple[CaseResult, ...]], bool]:
        with pipeline_over(write_docs(tmp_path / "docs"), tmp_path / "kb") as pipeline:
            rows = write_lines(tmp_path / "rows.jsonl", grounded_rows(pipeline.store))
            asked = read(rows, pipeline.store).questions
            cases = Cases(pair(Careful(), adapter), pipeline, GREEDY)
            return ask([(asked, ("gold",))], cases)

    results, whole = until(Interrupted())
    assert (len(results), whole) == (3, False)
    first = Interrupted()
    first.last = 1
    tmp_path = tmp_path / "again"
    tmp_path.mkdir()
    with pytest.raises(KeyboardInterrupt):
        until(first)
