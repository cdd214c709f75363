"""The tools, called by the official client: in memory, over stdio, and over HTTP with keys."""

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client, StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from ingest.i18n import Translator
from server.auth import Grant
from server.mcp_tools import tools
from tests.server.servers import SampleServer, sample_server

QUESTION = "试用期不得超过几个月？"


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SampleServer]:
    with sample_server(tmp_path_factory.mktemp("server")) as full:
        yield full


def call(client_of: Any, tool: str, **arguments: Any) -> Any:
    async def run() -> Any:
        async with Client(client_of) as client:
            return await client.call_tool(tool, arguments)

    return asyncio.run(run())


def test_the_tools_are_named_and_described(sample: SampleServer) -> None:
    async def run() -> list[Any]:
        async with Client(tools(sample.state, Translator("en"))) as client:
            return (await client.list_tools()).tools

    found = {tool.name: tool for tool in asyncio.run(run())}
    assert set(found) == {"ask", "search", "list_knowledge_bases"}
    assert all(tool.description for tool in found.values())
    assert set(found["search"].input_schema["properties"]) == {
        "question", "knowledge_base", "limit", "scope",
    }  # fmt: skip
    assert all(tool.annotations and tool.annotations.read_only_hint for tool in found.values())


def test_ask_and_search_return_the_same_as_the_api(sample: SampleServer) -> None:
    server = tools(sample.state, Translator("en"))
    answer = call(server, "ask", question=QUESTION, knowledge_base="mine")
    assert not answer.is_error
    same = sample.ask(QUESTION)
    assert {**answer.structured_content, "id": ""} == {**same, "id": ""}
    within = call(server, "ask", question=QUESTION, knowledge_base="mine", scope={"places": ["none.txt"]})
    assert within.is_error
    assert "no document is in none.txt" in within.content[0].text
    found = call(server, "search", question=QUESTION, knowledge_base="mine", limit=1)
    assert found.structured_content["hits"] == same["hits"][:1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"question": QUESTION, "knowledge_base": "none"}, "没有知识库 none"),
        ({"question": " ", "knowledge_base": "mine"}, "问题是空的"),
        ({"question": QUESTION, "knowledge_base": "../x"}, "knowledge_base"),
    ],
)
def test_a_mistake_is_one_line_in_the_callers_language(
    sample: SampleServer, arguments: dict, says: str
) -> None:
    result = call(tools(sample.state, Translator("zh")), "ask", **arguments)
    assert result.is_error
    assert says in result.content[0].text
    assert "Traceback" not in result.content[0].text


def over_http(sample: SampleServer, key: str, tool: str, **arguments: Any) -> Any:
    async def run() -> Any:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        address = f"{sample.client.base_url}/mcp"
        async with httpx.AsyncClient(headers=headers, timeout=20) as http:
            transport = streamable_http_client(address, http_client=http)
            async with Client(transport) as client:
                return await client.call_tool(tool, arguments)

    return asyncio.run(run())


def test_over_http_a_key_sees_only_its_own_knowledge_bases(tmp_path: Path) -> None:
    with sample_server(tmp_path) as sample:
        open_to_all = over_http(sample, "", "ask", question=QUESTION, knowledge_base="mine")
        assert "六个月" in open_to_all.structured_content["answer"]
        sample.client.post("/knowledge-bases", json={"name": "other"})
        key = sample.state.keys.create("a", [Grant("read", "mine")])
        listed = over_http(sample, key, "list_knowledge_bases").structured_content
        assert [base["name"] for base in listed["result"]] == ["mine"]
        denied = over_http(sample, key, "search", question=QUESTION, knowledge_base="other")
        assert denied.is_error
        for wrong in ("", key[:-1] + "x"):
            with pytest.raises(BaseException):  # noqa: B017, PT011 -- the client groups its errors
                over_http(sample, wrong, "list_knowledge_bases")


def test_over_stdio_the_server_runs_as_an_assistant_starts_it(tmp_path: Path) -> None:
    documents = tmp_path / "docs"
    documents.mkdir()
    (documents / "law.md").write_text("# 法\n\n第十九条 试用期不得超过六个月。\n", "utf-8")
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path / "data"), "LC_ALL": "C.UTF-8"}
    rag = ["-c", "from rag.cli.app import main; main()"]

    async def run() -> Any:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *rag, "ingest", str(documents), "--kb", "mine", "-q", env=environment
        )
        assert await process.wait() == 0
        parameters = StdioServerParameters(command=sys.executable, args=[*rag, "mcp"], env=environment)
        async with Client(stdio_client(parameters)) as client:
            return await client.call_tool("ask", {"question": QUESTION, "knowledge_base": "mine"})

    answer = asyncio.run(run())
    assert "六个月" in answer.structured_content["citations"][0]["quote"]
