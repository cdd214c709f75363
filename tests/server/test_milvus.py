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
from tests.server.servers import SampleServer, encoders, run_jobs, run_server, sample_server, state

QUESTION = "试用期最长几个月？"


def collections(server: str) -> set[str]:
    client = MilvusClient(parse_address(f"{server}/x").uri)
    try:
        return set(client.list_collections())
    finally:
        client.close()


def test_a_knowledge_base_is_created_and_deleted_on_milvus(tmp_path: Path, milvus_server: str) -> None:
    before = collections(milvus_server)
    with sample_server(tmp_path, store=milvus_server) as sample:
        assert not list(tmp_path.rglob("kb.sqlite"))
        created = collections(milvus_server) - before
        assert len(created) == 3
        [listed] = sample.client.get("/knowledge-bases").json()["knowledge_bases"]
        assert (listed["name"], listed["bytes"], listed["documents"]) == ("mine", None, 3)
        answer = sample.ask(QUESTION)
        assert not answer["refused"]
        assert answer["sequence"] == listed["sequence"]
        [cited, *_] = answer["citations"]
        where = f"/knowledge-bases/mine/documents/{cited['document']}"
        text = sample.client.get(f"{where}/text", params={"start": cited["start"], "end": cited["end"]})
        assert text.json()["text"] == cited["quote"]
        assert sample.client.delete(where).status_code == 204
        run_jobs(sample.state)
        assert sample.client.get(where).status_code == 404
        assert sample.ask(QUESTION)["sequence"] > answer["sequence"]
        twice = sample.client.post("/knowledge-bases", json={"name": "mine"})
        assert twice.status_code == 409
        assert collections(milvus_server) - before == created, "what was made in vain is gone"
        assert sample.client.delete("/knowledge-bases/mine").status_code == 204
        assert collections(milvus_server) == before
        assert sample.client.get("/knowledge-bases").json()["knowledge_bases"] == []


def unreachable(answer: httpx.Response, port: int) -> bool:
    """The error says when to try again, but not where the server is."""
    assert str(port) not in answer.text
    assert "milvus" not in answer.text
    error = answer.json()["error"]
    return answer.status_code == 503 and error["code"] == "store_unreachable"


def test_while_milvus_is_down_other_bases_answer_and_jobs_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.store.milvus.client.TIMEOUT", 10.0)
    port = free_port()
    away = start(tmp_path / "milvus", port)
    try:
        with sample_server(tmp_path / "data", store=f"milvus://127.0.0.1:{port}") as sample:
            _check_outage(sample, away, tmp_path, port)
    finally:
        away.kill()
        away.wait()


def _check_outage(sample: SampleServer, away, folder: Path, port: int) -> None:
    near = sample.state.options.data / "near"
    open_writer(
        read_config(near), embedder=None, cache=sample.state.options.cache, open_encoder=encoders
    ).store.close()
    away.kill()
    away.wait()
    response = sample.client.post("/ask", json={"question": QUESTION, "knowledge_base": "mine"})
    assert unreachable(response, port)
    assert int(response.headers["Retry-After"]) > 0
    listed = {b["name"]: b for b in sample.client.get("/knowledge-bases").json()["knowledge_bases"]}
    assert listed["near"]["problem"] is None
    assert "milvus" not in listed["mine"]["problem"]
    assert (
        sample.client.post("/ask", json={"question": QUESTION, "knowledge_base": "near"}).status_code == 200
    )
    sent = sample.client.post(
        "/knowledge-bases/mine/documents",
        files=[("files", ("new.md", "# 新\n\n彩虹糖的保质期是九年。".encode()))],
    )
    assert sent.status_code == 202, sent.text
    run_jobs(sample.state)
    job = f"/jobs/{sent.json()['id']}"
    assert sample.client.get(job).json()["state"] == "queued"
    back = start(folder / "milvus", port)
    try:
        end = time.monotonic() + 60
        while sample.client.get(job).json()["state"] != "done" and time.monotonic() < end:
            run_jobs(sample.state)
            time.sleep(0.2)
        assert sample.client.get(job).json()["state"] == "done"
        assert "九年" in sample.ask("彩虹糖的保质期是多久？")["answer"]
    finally:
        back.kill()
        back.wait()


def test_two_data_folders_share_a_knowledge_base(tmp_path: Path, milvus_server: str) -> None:
    """Like two machines: what one ingests or deletes, the other one sees at once."""
    with sample_server(tmp_path / "one", store=milvus_server) as one:
        settings = (tmp_path / "one" / "mine" / "rag.toml").read_text("utf-8")
        (tmp_path / "two" / "mine").mkdir(parents=True)
        (tmp_path / "two" / "mine" / "rag.toml").write_text(settings, "utf-8")
        with closing(state(tmp_path / "two")) as server, run_server(server) as client:
            two = SampleServer(server, client)
            mine, theirs = (each.documents() for each in (one, two))
            assert {name: each["id"] for name, each in mine.items()} == {
                name: each["id"] for name, each in theirs.items()
            }  # size and date are known only where a file was uploaded
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
