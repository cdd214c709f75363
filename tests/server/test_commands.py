"""`rag serve`, `rag keys`, `rag trace` and `rag mcp` as a person types them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import IO

import httpx
import pytest

from tests.encoders import link_encoders

Rag = Callable[..., subprocess.CompletedProcess[str]]
RAG = [sys.executable, "-c", "from rag.cli.app import main; main()"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return {**inherited, "XDG_DATA_HOME": str(tmp_path / "data"), "LC_ALL": "C.UTF-8"}


@pytest.fixture
def rag(environment: dict[str, str]) -> Rag:
    def run(*words: str, locale: str = "C.UTF-8") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*RAG, *words], capture_output=True, text=True, timeout=120,
            env={**environment, "LC_ALL": locale},
        )  # fmt: skip

    return run


@contextmanager
def run_server_process(
    environment: dict[str, str], *words: str, notes: int | IO[str] = subprocess.PIPE
) -> Iterator[tuple[str, subprocess.Popen]]:
    """The address of a listening server, and its process, which writes its notes to `notes`."""
    process = subprocess.Popen(
        [*RAG, "serve", "--port", "0", *words], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=notes,
    )  # fmt: skip
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + (process.stderr.read() if process.stderr else "")
        yield found[0].rstrip("/"), process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def test_a_server_from_start_to_end(environment: dict[str, str], rag: Rag, tmp_path: Path) -> None:
    documents = tmp_path / "docs"
    documents.mkdir()
    (documents / "法.md").write_text("# 法\n\n第十九条 试用期不得超过六个月。\n", "utf-8")
    assert rag("ingest", str(documents), "--kb", "laws", "-q").returncode == 0
    with run_server_process(environment) as (address, process):
        with httpx.Client(base_url=address, timeout=60) as client:
            assert "script-src 'self'" in client.get("/").headers["content-security-policy"]
            body = {"question": "试用期不得超过几个月？", "knowledge_base": "laws"}
            answer = client.post("/ask", json=body).json()
            assert "六个月" in answer["answer"]
            assert answer["citations"][0]["name"] == "法.md"
            assert str(tmp_path) not in json.dumps(answer)
        traced = rag("trace", answer["id"])
        assert "六个月" in traced.stdout
        assert json.loads(rag("trace", answer["id"], "--json").stdout)["record"]["answer"]["citations"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    lines = [json.loads(line) for line in (process.stderr.read() if process.stderr and not
             process.stderr.closed else "").splitlines()]  # fmt: skip
    assert all("试用期" not in json.dumps(line, ensure_ascii=False) for line in lines)


def test_every_request_needs_a_key_once_there_is_one(environment: dict[str, str], rag: Rag) -> None:
    with run_server_process(environment) as (address, _), httpx.Client(base_url=address) as client:
        assert client.get("/session").json()["key"] is None
        result = rag("keys", "create", "张三", "--scope", "read")
        assert result.returncode == 0
        assert "every request needs a key" in result.stderr
        key = result.stdout.strip()
        assert client.get("/session").status_code == 401
        bearer = {"Authorization": f"Bearer {key}"}
        assert client.get("/session", headers=bearer).json()["key"] == "张三"
        [listed] = json.loads(rag("keys", "list", "--json").stdout)
        assert listed["name"] == "张三"
        assert key not in rag("keys", "list").stdout
        assert rag("keys", "revoke", listed["id"]).returncode == 0
        assert client.get("/session", headers=bearer).status_code == 401


def test_a_key_for_no_knowledge_base_and_a_second_one_of_a_name_are_told(rag: Rag) -> None:
    first = rag("keys", "create", "reader", "--scope", "read:nope")
    assert "there is no knowledge base nope yet" in first.stderr
    second = rag("keys", "create", "reader", "--scope", "read")
    assert "reader is the name of other keys too" in second.stderr
    assert first.stdout.split("-")[1] in second.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["serve", "--host", "0.0.0.0"], "rag keys create"),
        (["serve", "--host", "192.0.2.1"], "rag keys create"),
        (["serve", "--port", "70000"], "port is 70000"),
        (["serve", "--slots", "0"], "slots is 0"),
        (["serve", "--model", "/nowhere"], "there is no folder /nowhere"),
        (["keys", "create", "x", "--scope", "root"], "root is not a valid scope"),
        (["keys", "revoke", "nobody"], "no usable key is called nobody"),
        (["trace", "nothing"], "there is no answer nothing"),
    ],
)
def test_a_mistake_ends_in_one_line(rag: Rag, words: list[str], says: str) -> None:
    result = rag(*words)
    assert result.returncode == 1, result.stderr
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_mistake_is_reported_in_chinese_too(rag: Rag) -> None:
    result = rag("serve", "--host", "0.0.0.0", locale="zh_CN.UTF-8")
    assert "请先创建" in result.stderr


def test_a_port_in_use_is_an_error(rag: Rag) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        result = rag("serve", "--port", port)
    assert result.returncode == 1
    assert f"port {port}" in result.stderr
    assert "--port" in result.stderr


README_QUESTIONS = {
    "How long must an online shop announce its closing in advance?": "三十日",
    "2026年世界杯决赛在哪座城市举行？": "Not found",
    "试用期最长不得超过几个月？": "六个月",
}
"""Those of `make demo`, with their answers."""


def test_make_demo_asks_these() -> None:
    asked = re.findall(r'ask --kb demo "(.*)"', (Path(__file__).parents[2] / "Makefile").read_text("utf-8"))
    assert set(asked) == README_QUESTIONS.keys()


def test_the_demo_serves_the_corpora(environment: dict[str, str], rag: Rag, tmp_path: Path) -> None:
    """The demonstration needs no preparation, and its answers can be traced."""
    cache = link_encoders(Path(environment["XDG_DATA_HOME"]) / "cache")
    environment["XDG_CACHE_HOME"] = str(cache)
    notes = tmp_path / "notes"
    with (
        notes.open("w") as file,
        run_server_process(environment, "--demo", "--no-ocr", notes=file) as (address, _),
    ):
        starting = httpx.get(f"{address}/readyz")  # it listens before it has read anything
        assert starting.status_code == 503
        assert "the server is starting" in starting.json()["error"]["message"]
        while httpx.get(f"{address}/readyz", timeout=60).status_code != 200:
            sleep(1)
        bases = httpx.get(f"{address}/knowledge-bases").json()["knowledge_bases"]
        assert [each["name"] for each in bases] == ["laws", "rust-book"]
        body = {"question": "试用期最长不得超过几个月？", "knowledge_base": "laws"}
        answer = httpx.post(f"{address}/ask", json=body, timeout=60).json()
        assert any("劳动合同法" in cited["name"] for cited in answer["citations"])
        for question, says in README_QUESTIONS.items():
            answer = httpx.post(f"{address}/ask", json=body | {"question": question}, timeout=60).json()
            assert says in answer["answer"]
    told = notes.read_text("utf-8")
    assert "reading laws; not ready yet" in told
    assert re.search(r"laws: 1\d documents, \d+ chunks", told)
    assert "The demonstration is ready." in told
    traced = rag("trace", answer["id"], "--json")
    assert json.loads(traced.stdout)["id"] == answer["id"], traced.stderr
    refused = rag("serve", "--demo", "--host", "0.0.0.0")
    assert refused.returncode == 1
    assert "--demo is for this machine" in refused.stderr
