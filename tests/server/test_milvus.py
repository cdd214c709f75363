"""Knowledge bases that a Milvus server stores, and the errors if it does not answer."""

import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from pymilvus import MilvusClient

from ingest.store import parse_address
from rag.config import read_config
from rag.load import open_writer
from tests.milvus import free_port, start
from tests.server.servers import Filled, encoders, filled, running, state, work

QUESTION = "试用期最长几个月？"


def collections(server: str) -> set[str]:
    client = MilvusClient(parse_address(f"{server}/x").uri)
    try:
        return set(client.list_collections())
    finally:
        client.close()


def test_a_knowledge_base_lives_and_ends_there(tmp_path: Path, milvus_server: str) -> None:
    before = collections(milvus_server)
    with filled(tmp_path, store=milvus_server) as mine:
        assert not list(tmp_path.rglob("kb.sqlite"))
        made = collections(milvus_server) - before
        assert len(made) == 3
        [listed] = mine.client.get("/knowledge-bases").json()["knowledge_bases"]
        assert (listed["name"], listed["bytes"], listed["documents"]) == ("mine", None, 3)
        answer = mine.ask(QUESTION)
        assert not answer["refused"]
        assert answer["sequence"] == listed["sequence"]
        [cited, *_] = answer["citations"]
        where = f"/knowledge-bases/mine/documents/{cited['document']}"
        text = mine.client.get(
            f"{where}/text", params={"start": cited["start"], "end": cited["end"]}
        )
        assert text.json()["text"] == cited["quote"]
        assert mine.client.delete(where).status_code == 204
        work(mine.state)
        assert mine.client.get(where).status_code == 404
        assert mine.ask(QUESTION)["sequence"] > answer["sequence"]
        twice = mine.client.post("/knowledge-bases", json={"name": "mine"})
        assert twice.status_code == 409
        assert collections(milvus_server) - before == made, "what was made in vain is gone"
        assert mine.client.delete("/knowledge-bases/mine").status_code == 204
        assert collections(milvus_server) == before
        assert mine.client.get("/knowledge-bases").json()["knowledge_bases"] == []


def unreachable(answer: httpx.Response, port: int) -> bool:
    """The error says when to try again, but not where the server is."""
    assert str(port) not in answer.text
    assert "milvus" not in answer.text
    error = answer.json()["error"]
    return answer.status_code == 503 and error["code"] == "store_unreachable"


def test_while_its_server_is_away_others_answer_and_work_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.store.milvus.client.TIMEOUT", 10.0)
    port = free_port()
    away = start(tmp_path / "milvus", port)
    try:
        with filled(tmp_path / "data", store=f"milvus://127.0.0.1:{port}") as mine:
            _lose_and_find(mine, away, tmp_path, port)
    finally:
        away.kill()
        away.wait()


def _lose_and_find(mine: Filled, away, folder: Path, port: int) -> None:
    near = mine.state.options.data / "near"
    open_writer(
        read_config(near), embedder=None, cache=mine.state.options.cache, open_encoder=encoders
    ).store.close()
    away.kill()
    away.wait()
    asked = mine.client.post("/ask", json={"question": QUESTION, "knowledge_base": "mine"})
    assert unreachable(asked, port)
    assert int(asked.headers["Retry-After"]) > 0
    listed = {b["name"]: b for b in mine.client.get("/knowledge-bases").json()["knowledge_bases"]}
    assert listed["near"]["problem"] is None
    assert "milvus" not in listed["mine"]["problem"]
    assert (
        mine.client.post("/ask", json={"question": QUESTION, "knowledge_base": "near"}).status_code
        == 200
    )
    sent = mine.client.post(
        "/knowledge-bases/mine/documents",
        files=[("files", ("new.md", "# 新\n\n彩虹糖的保质期是九年。".encode()))],
    )
    assert sent.status_code == 202, sent.text
    work(mine.state)
    job = f"/jobs/{sent.json()['id']}"
    assert mine.client.get(job).json()["state"] == "queued"
    back = start(folder / "milvus", port)
    try:
        end = time.monotonic() + 60
        while mine.client.get(job).json()["state"] != "done" and time.monotonic() < end:
            work(mine.state)
            time.sleep(0.2)
        assert mine.client.get(job).json()["state"] == "done"
        assert "九年" in mine.ask("彩虹糖的保质期是多久？")["answer"]
    finally:
        back.kill()
        back.wait()


def test_two_servers_with_folders_of_their_own_share_a_knowledge_base(
    tmp_path: Path, milvus_server: str
) -> None:
    """Like two machines: what one ingests or deletes, the other one sees at once."""
    with filled(tmp_path / "one", store=milvus_server) as one:
        settings = (tmp_path / "one" / "mine" / "rag.toml").read_text("utf-8")
        (tmp_path / "two" / "mine").mkdir(parents=True)
        (tmp_path / "two" / "mine" / "rag.toml").write_text(settings, "utf-8")
        with closing(state(tmp_path / "two")) as server, running(server) as client:
            two = Filled(server, client)
            assert two.documents() == one.documents()
            before = two.ask(QUESTION)
            assert before["sequence"] == one.ask(QUESTION)["sequence"]
            job = one.upload({"new.md": "# 新\n\n彩虹糖的保质期是九年。"})
            assert job["state"] == "done"
            found = two.ask("彩虹糖的保质期是多久？")
            assert "九年" in found["answer"]
            assert found["sequence"] > before["sequence"]
            assert two.upload({"new.md": "# 新\n\n彩虹糖的保质期是三年。"})["state"] == "done"
            assert "三年" in one.ask("彩虹糖的保质期是多久？")["answer"]
            head = one.documents()["new.md"]["id"]
            assert one.client.delete(f"/knowledge-bases/mine/documents/{head}").status_code == 204
            gone = two.ask("彩虹糖的保质期是多久？")
            assert head not in {hit["document"] for hit in gone["hits"]}
