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
from rag.cli.options import ModelOptions
from rag.endpoint import EndpointOptions
from rag.endpoint.engines import EngineFailure
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
from tests.server.servers import (
    LAW,
    PAGES,
    SampleServer,
    encoders,
    options,
    run_server,
    sample_server,
    wait_for,
)

QUESTION = "试用期不得超过几个月？"
ASKED = [Message("user", QUESTION)]


# This server's own /v1, asked as an engine is


def server_as_engine(sample: SampleServer, name: str = "") -> EndpointGenerator:
    address = f"{sample.client.base_url}{name}"
    return reach(address, EndpointOptions(), note=lambda message: None)


def test_our_own_endpoint_works_as_an_engine(tmp_path: Path) -> None:
    own = CopyingGenerator()
    with sample_server(tmp_path, generator=own) as sample:
        whole = sample.ask(QUESTION)
        own.pieces = 0
        generator = server_as_engine(sample)
        pieces = list(generator.stream(ASKED, Sampling()))
        assert "".join(pieces) == whole["answer"]
        assert len(pieces) == len(whole["answer"]) == own.pieces
        assert generator.engine.model == "mine"
        assert generator.usage
        assert generator.usage.read == whole["usage"]["read"]
        assert "".join(generator.stream(ASKED, Sampling(3))) == whole["answer"][:3]
        assert generator.count(ASKED) > len(QUESTION)


def test_a_refusal_by_our_own_endpoint_is_reported(tmp_path: Path) -> None:
    with sample_server(tmp_path) as sample:
        with pytest.raises(EngineFailure, match="404: there is no knowledge base none"):
            list(server_as_engine(sample, "#none").stream(ASKED, Sampling()))
        with pytest.raises(EngineFailure, match="400"):
            list(server_as_engine(sample).stream([Message("user", "长" * 2001)], Sampling()))


def test_our_own_endpoint_accepts_the_key_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sample_server(tmp_path, generator=CopyingGenerator()) as sample:
        key = sample.state.keys.create("reader", [parse_grant("read")])
        with pytest.raises(EngineFailure, match=r"401.*RAG_MODEL_KEY"):
            list(server_as_engine(sample).stream(ASKED, Sampling()))
        monkeypatch.setenv("RAG_MODEL_KEY", key)
        assert "六个月" in "".join(server_as_engine(sample).stream(ASKED, Sampling()))


def test_leaving_an_answer_of_our_own_endpoint_frees_its_slot(tmp_path: Path) -> None:
    with sample_server(tmp_path, generator=CopyingGenerator()) as sample:
        writing = sample.state.answerer.local_queue
        pieces = server_as_engine(sample).stream(ASKED, Sampling())
        next(pieces)
        pieces.close()
        wait_for(lambda: writing.running == 0)
        assert sample.ask(QUESTION)["answer"]


def test_the_command_line_answers_with_our_own_endpoint(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "劳动合同法.txt").write_text(LAW, "utf-8")
    environment = {"XDG_DATA_HOME": str(tmp_path / "home"), "LANG": "zh_CN.UTF-8"}
    with sample_server(tmp_path / "server", generator=CopyingGenerator()) as sample:
        (tmp_path / "server" / "mine" / "rag.toml").write_text("[refuse]\nthreshold = 0\n")
        model = f"{sample.client.base_url}/v1#mine"
        result = commands.rag("ingest", str(tmp_path / "docs"), environment=environment)
        assert result.returncode == 0, result.stderr
        [kb] = (tmp_path / "home").rglob("kb.sqlite")
        (kb.parent / "rag.toml").write_text("[generate.endpoint]\ntries = 1\n")
        result = commands.rag("ask", "--json", "--model", model, QUESTION, environment=environment)
        assert result.returncode == 0, result.stderr
        answer = json.loads(result.stdout)
        assert "六个月" in answer["answer"]
        assert answer["generator"] == "mine"
        assert [each["quote"] for each in answer["citations"]]
        assert "没有报告模型窗口大小" in result.stderr
        result = commands.rag("doctor", "--json", "--model", model, environment=environment)
        assert json.loads(result.stdout) == {
            "engine": "", "model": "mine", "window": None, "counts": False,
        }  # fmt: skip
    with faulty(says(event(chunk("六个")), ends=False)) as engine:
        result = commands.rag("ask", "--model", engine.address, QUESTION, environment=environment)
        assert (result.returncode, result.stdout) == (1, "六个\n")  # what came stays
        assert result.stderr.startswith(f"rag：{engine.address} 在输出 2 个字符后中断")
    result = commands.rag("ask", "--model", model, QUESTION, environment=environment)
    assert result.returncode == 1
    assert result.stderr.startswith(f"rag：无法访问 {sample.client.base_url}/v1")
    assert result.stderr.count("\n") == 1


# A server whose answers another engine writes


def test_a_missing_model_is_reported_at_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usual = options(tmp_path)
    two = {"data": [{"id": "a", "owned_by": "vllm"}, {"id": "b", "owned_by": "vllm"}]}
    with faulty(drops, paths={"/v1/models": two}) as engine:
        with pytest.raises(UserError, match="serves 2 models"):
            serve.with_usual_model(usual, ModelOptions(model=engine.address))
        assert serve.with_usual_model(usual, ModelOptions(model=f"{engine.address}#a")).generate
    # The engine does not report its window.
    assert capsys.readouterr().err.count(engine.address) == 1
    server_options = serve.with_usual_model(usual, ModelOptions(model=engine.address))
    # The engine may still be starting.
    assert server_options.generate == GenerateOptions(model=engine.address)
    assert engine.address in capsys.readouterr().err


@contextmanager
def server_with_engine(engine: Faulty, data: Path, **more: Any) -> Iterator[SampleServer]:
    """A server as `rag serve --model http://…` makes it."""
    server_options = options(data, generate=GenerateOptions(model=engine.address), **more)
    models = Models(model_loader(server_options.cache, print))
    with (
        closing(ServerState(server_options, models, open_encoder=encoders)) as state,
        run_server(state) as client,
    ):
        client.post("/knowledge-bases", json={"name": "mine"})
        full = SampleServer(state, client)
        full.upload(dict(PAGES))
        yield full


def test_answers_are_cited_and_counted_by_the_engine(tmp_path: Path) -> None:
    with faulty(says(reply("试用期不得超过六个月", "[1]。", finish="length"))) as engine:
        with server_with_engine(engine, tmp_path) as sample:
            answer = sample.ask(QUESTION)
            assert answer["answer"] == "试用期不得超过六个月[1]。"
            assert answer["citations"][0]["quote"] in LAW
            assert answer["usage"] == {"read": 11, "written": 3, "cut": True}
            assert sample.client.get("/knowledge-bases/mine").json()["generator"] in engine.address
        assert QUESTION in engine.chats[0].body["messages"][-1]["content"]


def test_several_answers_are_written_at_once(tmp_path: Path) -> None:
    together = threading.Barrier(3)

    def wait_for_others(call: Call) -> None:
        together.wait(PATIENCE)  # until all three are under way
        answers("六个月[1]。")(call)

    with faulty(wait_for_others) as engine, server_with_engine(engine, tmp_path) as sample:
        got: list[str] = []
        asking = [
            threading.Thread(target=lambda: got.append(sample.ask(QUESTION)["answer"])) for _ in range(3)
        ]
        for each in asking:
            each.start()
        for each in asking:
            each.join()
        assert got == ["六个月[1]。"] * 3


def test_a_client_that_leaves_stops_only_its_own_answer(tmp_path: Path) -> None:
    acts = stalls(), never_ends, answers("六个月")
    with faulty(*acts) as engine, server_with_engine(engine, tmp_path) as sample:
        address, body = f"{sample.client.base_url}/ask", {"question": QUESTION, "stream": True}
        queue = sample.state.answerer.remote_queue
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
        assert sample.ask(QUESTION)["answer"] == "六个月"


@pytest.mark.parametrize(("act", "status", "code"), [
    (fails(429, "quota", Retry_After="3600"), 503, "model_unreachable"),
    (fails(404, "no such model"), 502, "model_failed"),
    (says(b"data: {\n\n"), 502, "model_failed"),
])  # fmt: skip
def test_an_error_of_the_engine_is_not_the_clients_mistake(
    act: Any, status: int, code: str, tmp_path: Path
) -> None:
    with faulty(act) as engine, server_with_engine(engine, tmp_path) as sample:
        body = {"question": QUESTION, "knowledge_base": "mine"}
        answer = sample.client.post("/ask", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert "127.0.0.1" not in answer.text  # where it is served is the operator's to know
        assert "the language model" in answer.json()["error"]["message"]


def test_a_base_can_not_use_an_adapter_on_an_engine(tmp_path: Path) -> None:
    (tmp_path / "adapters" / "law").mkdir(parents=True)
    (tmp_path / "adapters" / "law" / "adapter_config.json").write_text("{}")
    adapters = tmp_path / "adapters"
    with faulty(drops) as engine, server_with_engine(engine, tmp_path / "data", adapters=adapters) as sample:
        changed = sample.client.patch("/knowledge-bases/mine", json={"adapter": "law"})
        assert changed.status_code == 400
        assert "goes after #" in changed.json()["error"]["message"]
        assert sample.client.get("/knowledge-bases/mine").json()["adapter"] == ""
