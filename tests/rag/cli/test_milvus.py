"""A knowledge base on a server, used as one in a folder."""

import json
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.commands import rag

LAW = "# 劳动合同法\n\n第十九条 三年以上固定期限的劳动合同，试用期不得超过六个月。\n"
CARGO = "# Cargo\n\nCargo 是 Rust 的构建系统和包管理器。Rust 每六周发布一个新的稳定版本。\n"
QUESTION = "试用期最长几个月？"


class Person:
    """Has documents and a home, and types commands."""

    def __init__(self, home: Path) -> None:
        self.home, self.docs = home, home / "docs"
        self.docs.mkdir()
        (self.docs / "law.md").write_text(LAW, "utf-8")
        (self.docs / "cargo.txt").write_bytes(CARGO.encode("gb18030"))

    def types(self, *words: object, fails: str = "") -> CompletedProcess[str]:
        environment = {"XDG_DATA_HOME": str(self.home / "data"), "LC_ALL": "C.UTF-8"}
        done = rag(*words, environment=environment)
        assert (done.returncode, fails) == (1 if fails else 0, fails), done.stderr
        assert fails in done.stderr
        assert not fails or len(done.stderr.strip().splitlines()) == 1
        return done


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path)


def test_it_lives_and_answers_by_its_address(person: Person, milvus_server: str) -> None:
    kb = f"{milvus_server}/laws"
    person.types("ask", QUESTION, "--kb", kb, fails=f"no knowledge base at {kb}; make one: rag ingest")
    first = person.types("ingest", person.docs, "--kb", kb, "--json")
    assert {json.loads(line)["status"] for line in first.stdout.splitlines()} == {"added"}
    again = person.types("ingest", person.docs, "--kb", kb, "--json")
    assert {json.loads(line)["status"] for line in again.stdout.splitlines()} == {"unchanged"}
    answer = json.loads(person.types("ask", QUESTION, "--kb", kb, "--json").stdout)
    assert "六个月" in answer["citations"][0]["quote"]
    cited = answer["citations"][0]
    assert cited["quote"] in LAW
    assert json.loads(person.types("ask", "珠穆朗玛峰有多高？", "--kb", kb, "--json").stdout)["refused"]
    person.types("kb", "remove", person.docs / "law.md", "--kb", kb)
    assert json.loads(person.types("ask", QUESTION, "--kb", kb, "--json").stdout)["refused"]
    info = json.loads(person.types("kb", "info", "--kb", kb, "--json").stdout)
    assert (info["location"], info["documents"], info["bytes"]) == (kb, 1, None)
    assert "all is well" in person.types("kb", "verify", "--kb", kb).stdout
    person.types("kb", "snapshot", person.home / "x.zip", "--kb", kb, fails="milvus-backup")
    assert not (person.home / "data").exists()


def test_a_folder_gives_it_a_name_and_settings(person: Person, milvus_server: str) -> None:
    folder = person.home / "data" / "chatglm-rag" / "laws"
    folder.mkdir(parents=True)
    settings = f'[store]\nurl = "{milvus_server}/named?tenant=a"\n[refuse]\nthreshold = 0\n'
    (folder / "rag.toml").write_text(settings, "utf-8")
    person.types("ingest", person.docs, "--kb", "laws", "--quiet")
    assert not (folder / "kb.sqlite").exists()
    bold = json.loads(person.types("ask", "珠穆朗玛峰有多高？", "--kb", "laws", "--json").stdout)
    assert not bold["refused"]
    assert "laws" in person.types("kb", "list").stdout
    (folder / "kb.sqlite").touch()  # of a time before it moved
    person.types("kb", "snapshot", person.home / "x.zip", "--kb", "laws", fails="milvus-backup")
    plain = person.types("kb", "info", "--kb", f"{milvus_server}/named?tenant=a", "--json")
    assert json.loads(plain.stdout)["documents"] == 2
    person.types("kb", "info", "--kb", f"{milvus_server}/named?tenant=b", fails="no knowledge base")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["ask", "q", "--kb", "milvus://127.0.0.1:1/laws"], "check that the server runs"),
        (["ask", "q", "--kb", "http://127.0.0.1:1/laws"], "does not begin with milvus://"),
        (["ask", "q", "--kb", "milvus://me:secret@127.0.0.1/laws"], "set MILVUS_TOKEN"),
        (["kb", "restore", "x.zip", "--kb", "milvus://127.0.0.1/laws"], "[store] url"),
    ],
)
def test_a_mistake_ends_in_one_line(person: Person, words: list[str], says: str) -> None:
    done = person.types(*words, fails=says)
    assert "secret" not in done.stderr
