"""Answers of a remote model: this server's own `/v1`, and a faulty engine."""

import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ingest.errors import UserError
from rag.endpoint import EndpointOptions
from rag.endpoint.engines import Failed
from rag.endpoint.generator import EndpointGenerator, reach
from rag.generate import GenerateOptions
from rag.types import Message, Sampling
from server.auth import parse_grant
from server.cli import serve
from server.models import Models, model_loader
from server.state import ServerState
from tests import commands
from tests.fakes import CopyingGenerator
from tests.faulty import (
    PATIENCE,
    Call,
    Faulty,
    answers,
    chunk,
    drops,
    event,
    fails,
    faulty,
    never_ends,
    reply,
    says,
    stalls,
)
from tests.server.servers import LAW, PAGES, Filled, encoders, filled, options, running, wait_for

QUESTION = "试用期不得超过几个月？"
ASKED = [Message("user", QUESTION)]


# This server's own /v1, asked as an engine is


def elsewhere(mine: Filled, name: str = "") -> EndpointGenerator:
    address = f"{mine.client.base_url}{name}"
    return reach(address, EndpointOptions(), note=lambda message: None)


def test_our_own_endpoint_is_one(tmp_path: Path) -> None:
    own = CopyingGenerator()
    with filled(tmp_path, generator=own) as mine:
        whole = mine.ask(QUESTION)
        own.pieces = 0
        generator = elsewhere(mine)
        pieces = list(generator.stream(ASKED, Sampling()))
        assert "".join(pieces) == whole["answer"]
        assert len(pieces) == len(whole["answer"]) == own.pieces
        assert generator.engine.model == "mine"
        assert generator.usage
        assert generator.usage.read == whole["usage"]["read"]
        assert not generator.usage.cut
        assert "".join(generator.stream(ASKED, Sampling(3))) == whole["answer"][:3]
        assert generator.usage.cut
        assert generator.count(ASKED) > len(QUESTION)


def test_what_our_own_endpoint_refuses_is_told(tmp_path: Path) -> None:
    with filled(tmp_path) as mine:
        with pytest.raises(Failed, match="404: there is no knowledge base none"):
            list(elsewhere(mine, "#none").stream(ASKED, Sampling()))
        with pytest.raises(Failed, match="422"):
            list(elsewhere(mine).stream([Message("user", "长" * 2001)], Sampling()))


def test_our_own_endpoint_takes_the_key_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filled(tmp_path, generator=CopyingGenerator()) as mine:
        key = mine.state.keys.create("reader", [parse_grant("read")])
        with pytest.raises(Failed, match=r"401.*RAG_MODEL_KEY"):
            list(elsewhere(mine).stream(ASKED, Sampling()))
        monkeypatch.setenv("RAG_MODEL_KEY", key)
        assert "六个月" in "".join(elsewhere(mine).stream(ASKED, Sampling()))


def test_leaving_a_reply_of_our_own_endpoint_frees_its_turn(tmp_path: Path) -> None:
    with filled(tmp_path, generator=CopyingGenerator()) as mine:
        writing = mine.state.answerer.local_queue
        pieces = elsewhere(mine).stream(ASKED, Sampling())
        next(pieces)
        pieces.close()
        wait_for(lambda: writing.running == 0)
        assert mine.ask(QUESTION)["answer"]


def test_the_command_line_answers_by_our_own_endpoint(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "劳动合同法.txt").write_text(LAW, "utf-8")
    environment = {"XDG_DATA_HOME": str(tmp_path / "home"), "LANG": "zh_CN.UTF-8"}
    with filled(tmp_path / "server", generator=CopyingGenerator()) as mine:
        (tmp_path / "server" / "mine" / "rag.toml").write_text("[refuse]\nthreshold = 0\n")
        model = f"{mine.client.base_url}/v1#mine"
        done = commands.rag("ingest", str(tmp_path / "docs"), environment=environment)
        assert done.returncode == 0, done.stderr
        [kb] = (tmp_path / "home").rglob("kb.sqlite")
        (kb.parent / "rag.toml").write_text("[generate.endpoint]\ntries = 1\n")
        done = commands.rag("ask", "--json", "--model", model, QUESTION, environment=environment)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert "六个月" in answer["answer"]
        assert answer["generator"] == "mine"
        assert [each["quote"] for each in answer["citations"]]
        assert "没有报告模型窗口大小" in done.stderr
        shown = commands.rag("doctor", "--json", "--model", model, environment=environment)
        assert json.loads(shown.stdout) == {
            "engine": "", "model": "mine", "window": None, "counts": False,
        }  # fmt: skip
    with faulty(says(event(chunk("六个")), ends=False)) as engine:
        done = commands.rag("ask", "--model", engine.address, QUESTION, environment=environment)
        assert (done.returncode, done.stdout) == (1, "六个\n")  # what came stays
        assert done.stderr.startswith(f"rag：{engine.address} 在输出 2 个字符后中断")
    done = commands.rag("ask", "--model", model, QUESTION, environment=environment)
    assert done.returncode == 1
    assert done.stderr.startswith(f"rag：无法访问 {mine.client.base_url}/v1")
    assert done.stderr.count("\n") == 1


# A server whose answers another engine writes


def test_what_is_not_there_is_told_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = options(tmp_path)
    two = {"data": [{"id": "a", "owned_by": "vllm"}, {"id": "b", "owned_by": "vllm"}]}
    with faulty(drops, paths={"/v1/models": two}) as engine:
        with pytest.raises(UserError, match="serves 2 models"):
            serve.UsualModel(engine.address).added_to(usual)
        assert serve.UsualModel(f"{engine.address}#a").added_to(usual).generate
    assert (
        capsys.readouterr().err.count(engine.address) == 1
    )  # of its window, which it does not tell
    made = serve.UsualModel(engine.address).added_to(usual)
    assert made.generate == GenerateOptions(model=engine.address)  # it may still be starting
    assert engine.address in capsys.readouterr().err


@contextmanager
def written_by(engine: Faulty, data: Path, **more: Any) -> Iterator[Filled]:
    """A server as `rag serve --model http://…` makes it."""
    made = options(data, generate=GenerateOptions(model=engine.address), **more)
    models = Models(model_loader(made.cache, print))
    with (
        closing(ServerState(made, models, open_encoder=encoders)) as state,
        running(state) as client,
    ):
        client.post("/knowledge-bases", json={"name": "mine"})
        full = Filled(state, client)
        full.upload(dict(PAGES))
        yield full


def test_answers_are_cited_and_counted_by_the_engine(tmp_path: Path) -> None:
    with faulty(says(reply("试用期不得超过六个月", "[1]。", finish="length"))) as engine:
        with written_by(engine, tmp_path) as mine:
            answer = mine.ask(QUESTION)
            assert answer["answer"] == "试用期不得超过六个月[1]。"
            assert answer["citations"][0]["quote"] in LAW
            assert answer["usage"] == {"read": 11, "written": 3, "cut": True}
            assert mine.client.get("/knowledge-bases/mine").json()["generator"] in engine.address
        assert QUESTION in engine.chats[0].body["messages"][-1]["content"]


def test_several_answers_are_written_at_one_time(tmp_path: Path) -> None:
    together = threading.Barrier(3)

    def meets(call: Call) -> None:
        together.wait(PATIENCE)  # until all three are under way
        answers("六个月[1]。")(call)

    with faulty(meets) as engine, written_by(engine, tmp_path) as mine:
        got: list[str] = []
        asking = [
            threading.Thread(target=lambda: got.append(mine.ask(QUESTION)["answer"]))
            for _ in range(3)
        ]
        for each in asking:
            each.start()
        for each in asking:
            each.join()
        assert got == ["六个月[1]。"] * 3


def test_a_client_that_leaves_ends_its_own_answer_and_no_other(tmp_path: Path) -> None:
    acts = stalls(), never_ends, answers("六个月")
    with faulty(*acts) as engine, written_by(engine, tmp_path) as mine:
        address, body = f"{mine.client.base_url}/ask", {"question": QUESTION, "stream": True}
        queue = mine.state.answerer.remote_queue
        waiting = httpx.Client(timeout=60)
        with waiting.stream("POST", address, json=body | {"knowledge_base": "mine"}) as silent:
            assert engine.begun.wait(PATIENCE)  # it reads the prompt
            with httpx.stream("POST", address, json=body | {"knowledge_base": "mine"}) as lively:
                for line in lively.iter_lines():
                    if "又" in line:
                        break
                assert queue.running == 2
            wait_for(lambda: queue.running == 1)  # the second has left
            assert silent.status_code == 200
        waiting.close()
        wait_for(lambda: queue.running == 0)
        assert engine.gone.wait(PATIENCE)
        assert mine.ask(QUESTION)["answer"] == "六个月"


@pytest.mark.parametrize(("act", "status", "code"), [
    (fails(429, "quota", Retry_After="3600"), 503, "model_unreachable"),
    (fails(404, "no such model"), 502, "model_failed"),
    (says(b"data: {\n\n"), 502, "model_failed"),
])  # fmt: skip
def test_what_the_engine_gets_wrong_is_not_the_clients_mistake(
    act: Any, status: int, code: str, tmp_path: Path
) -> None:
    with faulty(act) as engine, written_by(engine, tmp_path) as mine:
        body = {"question": QUESTION, "knowledge_base": "mine"}
        answer = mine.client.post("/ask", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert "127.0.0.1" not in answer.text  # where it is served is the operator's to know
        assert "the language model" in answer.json()["error"]["message"]


def test_a_base_can_not_put_an_adapter_on_it(tmp_path: Path) -> None:
    (tmp_path / "adapters" / "law").mkdir(parents=True)
    (tmp_path / "adapters" / "law" / "adapter_config.json").write_text("{}")
    adapters = tmp_path / "adapters"
    with faulty(drops) as engine, written_by(engine, tmp_path / "data", adapters=adapters) as mine:
        changed = mine.client.patch("/knowledge-bases/mine", json={"adapter": "law"})
        assert changed.status_code == 400
        assert "goes after #" in changed.json()["error"]["message"]
        assert mine.client.get("/knowledge-bases/mine").json()["adapter"] == ""
