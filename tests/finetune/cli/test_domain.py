"""`rag finetune domain` as a person types it: from documents to an adapter that answers, or does not."""

import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from typer.testing import CliRunner

import rag.cli  # mounts finetune.cli, so it comes first
from finetune.domain import DOCUMENTS
from ingest.errors import UserError
from rag.cli.app import app
from tests.commands import Command, rag, start
from tests.encoders import link_encoders
from tests.finetune.train.trainings import result_files
from tests.rag.cli.test_commands import READS
from tests.tiny import FACTORIES, TITLE, fact, numbers, row

DO_NOT_SHIP = 3
SETTINGS = "[retrieve]\npassages = 3\n[generate]\nmax_new_tokens = 20\n[refuse]\nthreshold = 0.0\n"
# Words of a field, each in a document of its own.
TERMS = {
    "劳动合同": "劳动者与用人单位确立劳动关系、明确双方权利和义务的书面协议",
    "试用期": "用人单位对新招收的职工进行思想品德和工作能力考察的期限",
    "竞业限制": "离职人员在约定期限内不得到有竞争关系的单位任职的约定",
    "经济补偿": "解除劳动合同时由用人单位一次性支付给劳动者的金钱",
    "服务期": "用人单位提供专项培训后与劳动者约定的最短工作年限",
    "集体合同": "工会代表职工一方与用人单位就劳动报酬等事项订立的协议",
    "商业秘密": "不为公众所知悉并经权利人采取保密措施的技术信息和经营信息",
    "工作时间": "劳动者根据法律规定在用人单位从事生产或者工作的时间",
}
# A model that reads numbers of factories alone can't be helped with them in so few steps.
UNHELPED = ("--max-steps", "8", "--save-steps", "2", "--lr", "1e-6")
LINEARS = "query_key_value,dense,dense_h_to_4h,dense_4h_to_h"
HELPED = (
    *("--max-steps", "60", "--batch-size", "16", "--lr", "3e-3"),
    *("--lora-rank", "16", "--lora-targets", LINEARS, "--lora-dropout", "0"),
)
SEED = 3
Done = CompletedProcess[str]


@dataclass(frozen=True)
class Home:
    """A person's environment, with documents to be named in a command."""

    folder: Path
    cache: Path
    model: Path

    @classmethod
    def made(cls, folder: Path, cache: Path, model: Path) -> "Home":
        home = cls(folder, cache, model)
        home.settings.parent.mkdir(parents=True)
        home.settings.write_text(SETTINGS, "utf-8")
        home.docs.mkdir()
        return home

    @property
    def docs(self) -> Path:
        return self.folder / "docs"

    @property
    def settings(self) -> Path:
        return self.folder / "chatglm-rag" / "demo" / "rag.toml"

    @property
    def environment(self) -> dict[str, str]:
        homes = {"XDG_DATA_HOME": str(self.folder), "XDG_CACHE_HOME": str(self.cache)}
        return homes | {"LC_ALL": "C.UTF-8", "RAG_KB": "demo"}

    def command(self, out: Path, *options: str | Path) -> list[str]:
        named = ["--model", str(self.model), "--out", str(out), "--device", "cpu"]
        return ["finetune", "domain", str(self.docs), *named, *map(str, options)]

    def start(self, out: Path, *options: str) -> Command:
        return start(*self.command(out, *options), environment=self.environment)

    def run(self, *words: str, **environment: str) -> Done:
        return rag(*words, environment=self.environment | environment)

    def domain(self, out: Path, *options: str | Path, **environment: str) -> Done:
        return self.run(*self.command(out, *options), **environment)

    def refused(self, out: Path, *options: str | Path) -> UserError:
        """Why, in a process that has all loaded."""
        done = CliRunner(env=self.environment).invoke(app, self.command(out, *options))
        assert isinstance(done.exception, UserError), (done.exception, done.output)
        return done.exception


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return link_encoders(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def home(tiny: Path, cache: Path, tmp_path: Path) -> Home:
    return Home.made(tmp_path, cache, tiny)


@pytest.fixture(scope="module")
def terms(tiny: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """With documents that the model can't be helped with in a few steps, and `work`, where the
    command was run on them."""
    home = Home.made(tmp_path_factory.mktemp("home"), cache, tiny)
    for term, meaning in TERMS.items():
        (home.docs / f"{term}.txt").write_text(f"本法所称{term}，是指{meaning}。\n", "utf-8")
    done = home.domain(home.folder / "work", *UNHELPED)
    assert done.returncode == DO_NOT_SHIP, done.stderr
    assert f"the adapter stays in {home.folder / 'work' / 'adapter'}" in done.stderr
    assert home.settings.read_text("utf-8") == SETTINGS
    return home


def test_a_better_adapter_is_put_in_use_and_answers(home: Home, tmp_path: Path) -> None:
    """Of factories whose documents were held out, in words that the model could not read before.

    Mixed in are rows about other numbers, as of another knowledge base: 12 facts alone teach no
    one when to refuse.
    """
    known = numbers(len(FACTORIES))
    for name, number in known.items():
        (home.docs / name).mkdir()
        (home.docs / name / f"{TITLE}.txt").write_text(fact(name, number) + "\n", "utf-8")
    general, out = tmp_path / "general.jsonl", tmp_path / "work"
    general.write_text("".join(other_rows(300)), "utf-8")
    mixed = f"{general}:0.5"
    done = home.domain(out, "--heldout", "0.4", "--general", mixed, "--seed", str(SEED), *HELPED)
    assert done.returncode == 0, done.stderr
    assert "better: F1, retrieved" in done.stdout
    used = {"model": str(home.model), "adapter": str(out / "adapter")}
    held = home.settings.read_text("utf-8")
    assert tomllib.loads(held)["generate"] == {"max_new_tokens": 20, **used}
    ask = shlex.split(done.stdout.splitlines()[-1])  # what it proposes
    assert ask[:4] == ["rag", "ask", "--kb", "demo"]
    name = ask[4][0]
    assert ask[4] == f"{name}厂的编号是什么？"
    assert name not in (out / "rows" / "train.jsonl").read_text("utf-8").split("问题：")
    answer = home.run(*ask[1:])
    assert re.match(rf"{name}厂的编号是{known[name]}\[\d\]。", answer.stdout), answer.stderr
    assert home.settings.read_text("utf-8") == held


def other_rows(count: int) -> Iterator[str]:
    dice = random.Random("other rows")
    for _ in range(count):
        [message], answer = row(dice)
        asked = message.text.replace("多少", "什么")
        yield json.dumps({"instruction": asked, "output": answer}, ensure_ascii=False) + "\n"


def test_finished_steps_are_not_repeated(terms: Home) -> None:
    work = terms.folder / "work"
    held = files_of(work)
    again = terms.domain(work, *UNHELPED)
    assert again.returncode == DO_NOT_SHIP, again.stderr
    for message in (
        "8 unchanged",
        "made before",
        "[3/5] training: done before",
        "done before, do not ship",
        "nothing got better beyond chance",
    ):
        assert message in again.stderr
    chinese = terms.domain(work, *UNHELPED, LC_ALL="zh_CN.UTF-8")
    assert "已完成，不应采用\n  没有任何主要指标有显著提升" in chinese.stderr
    assert files_of(work) == held


def test_it_reads_the_settings_once(terms: Home) -> None:
    """Of the five steps, only the last would read the file again, to change it."""
    words = terms.command(terms.folder / "reads", "--max-steps", "1", *UNHELPED[2:])
    done = subprocess.run(
        [sys.executable, "-c", READS, *words], capture_output=True, text=True,
        env=os.environ | terms.environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == DO_NOT_SHIP, done.stderr
    assert done.stderr.endswith("reads: 1")


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_command_continues_to_the_same_bytes(terms: Home) -> None:
    out, whole = terms.folder / "killed", terms.folder / "work"

    def kill_at(reached: Callable[[], bool]) -> None:
        command = terms.start(out, *UNHELPED)
        while not reached():
            assert command.running
            time.sleep(0.001)
        command.kill()

    kill_at((out / "domain.json").is_file)
    assert DOCUMENTS not in json.loads((out / "domain.json").read_bytes())  # the rows not all made
    kill_at((out / "adapter" / "checkpoint-2").is_dir)
    assert not (out / "adapter" / "training.json").exists()
    assert terms.domain(out, *UNHELPED).returncode == DO_NOT_SHIP
    assert result_files(out / "rows") == result_files(whole / "rows")
    name = "adapter_model.safetensors"
    assert (out / "adapter" / name).read_bytes() == (whole / "adapter" / name).read_bytes()


def test_more_documents_may_be_given_after_too_few(home: Home, terms: Home) -> None:
    first, *others = sorted(terms.docs.iterdir())
    out = home.folder / "work"
    shutil.copy(first, home.docs)
    assert "give more documents" in str(home.refused(out, *UNHELPED))
    for path in others:
        shutil.copy(path, home.docs)
    done = home.domain(out, "--max-steps", "1", *UNHELPED[2:])
    assert done.returncode == DO_NOT_SHIP, done.stderr


def test_without_readable_documents_no_rows_are_made(home: Home) -> None:
    out = home.folder / "work"
    assert f"{home.docs} is an empty folder" in str(home.refused(out))
    (home.docs / "a.pdf").write_bytes(b"%PDF-1.7 cut short")
    (home.docs / "b.docx").write_bytes(b"PK\x03\x04")
    assert "holds no document" in str(home.refused(out))
    home.docs.rename(home.folder / "elsewhere")
    assert str(home.docs) in str(home.refused(out))
    assert list(out.iterdir()) == []  # so that nothing has to be given again


@pytest.mark.parametrize(
    ("rows", "share", "message"),
    [
        (['{"instruction": "问", "output": ""}'], "0.5", r'general.jsonl:4: "output" is empty'),
        ([r'{"instruction": "\ud800", "output": "答"}'], "0.5", "half a character"),
        ([], "1.5", "--general has the share 1.5; need 0 to below 1"),
        ([], "x", "--general is 'x'; need a number"),
    ],
)
def test_bad_general_rows_are_an_error_before_ingestion(
    home: Home, rows: list[str], share: str, message: str
) -> None:
    good = ['{"instruction": "问", "output": "答"}'] * 3
    general = home.folder / "general.jsonl"
    general.write_text("\n".join([*good, *rows]), "utf-8")
    problem = home.refused(home.folder / "work", "--general", f"{general}:{share}")
    assert message in str(problem)
    assert "--skip-bad" not in str(problem)
    assert not (home.settings.parent / "kb.sqlite").exists()


def test_settings_without_room_are_an_error_before_ingestion(home: Home) -> None:
    home.settings.write_text("[generate]\nmax_new_tokens = 512\n", "utf-8")
    problem = home.refused(home.folder / "work")
    assert "max_new_tokens is 512, but the model's window holds 512 tokens" in str(problem)
    assert not (home.settings.parent / "kb.sqlite").exists()


def test_an_out_that_is_not_a_folder_is_an_error(home: Home) -> None:
    file = home.folder / "file"
    file.touch()
    for out in (file, file / "below"):
        assert f"the folder {out} can't be made" in str(home.refused(out))
