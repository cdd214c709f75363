"""Several servers on one data folder: all see each change, and dead servers leave nothing behind."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ingest.store import open_store
from rag.pipeline import Pipeline
from server.auth import Grant
from server.errors import NotFound
from server.state import ServerState
from tests.fakes import CopyingGenerator
from tests.server.fleet import History, Load, ServerProcess, fleet
from tests.server.servers import (
    SampleServer,
    job_row,
    open_worker,
    run_server,
    sample_server,
    state,
    upload,
    wait_for,
)

QUESTION = "试用期不得超过几个月？"
BASES = ["甲", "乙"]


def at_work(servers: list[ServerProcess], load: Load) -> ServerProcess | None:
    """The server whose worker has a job."""
    with closing(load.sql()) as sql:
        row = sql.execute("SELECT worker FROM jobs WHERE state = 'running'").fetchone()
    if row is None:
        return None
    try:
        status = Path(f"/proc/{row[0].partition('-')[0]}/status").read_text("utf-8")
    except FileNotFoundError:
        return None
    return next((each for each in servers if f"PPid:\t{each.process.pid}\n" in status), None)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="it looks for workers in /proc")
def test_clients_notice_nothing_when_two_of_three_servers_end(tmp_path: Path) -> None:
    """One server is killed during a job and one is stopped; clients of the others notice nothing."""
    data = tmp_path / "chatglm-rag"
    with fleet(tmp_path, 3) as servers:
        load = Load(data, servers, pause=0.1)
        load.fill(BASES)
        with (
            History(data / BASES[0]) as first,
            History(data / BASES[1]) as second,
            load.running([*BASES, BASES[0]], 3),
        ):
            load.wait_for_progress(20)
            found: list[ServerProcess] = []
            wait_for(lambda: found.extend(filter(None, [at_work(servers, load)])) or found)
            found[0].kill()
            load.wait_for_progress(20)
            next(each for each in servers if not each.ending).end()
            load.wait_for_progress(20)
        load.check(dict(zip(BASES, (first, second), strict=True)))
        load.check_jobs()
        # The one that is left and its worker; what the killed ones had is gone.
        wait_for(lambda: len(list((data / ".server" / "members").iterdir())) == 2)
    for base in BASES:
        with open_store(data / base) as store:
            assert store.verify() == []


@contextmanager
def pair(
    data: Path, generator: CopyingGenerator | None = None
) -> Iterator[tuple[SampleServer, ServerState, httpx.Client]]:
    """A server with a knowledge base, and a second one on the same data folder."""
    with (
        sample_server(data) as one,
        closing(state(data, generator=generator)) as other,
        run_server(other) as client,
    ):
        assert "六个月" in ask(client)["answer"]
        yield one, other, client


def ask(client: httpx.Client, question: str = QUESTION, base: str = "mine") -> dict[str, Any]:
    answer = client.post("/ask", json={"question": question, "knowledge_base": base})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_change_by_one_server_is_visible_to_the_other_at_once(tmp_path: Path) -> None:
    with pair(tmp_path) as (one, _, client):
        before = ask(client)
        one.upload({"新.txt": "第二十条 试用期工资不得低于百分之八十。\n"})
        after = ask(client, "试用期工资不得低于多少？")
        assert "百分之八十" in after["answer"]
        assert after["sequence"] > before["sequence"]
        law = one.documents()["劳动合同法.txt"]["id"]
        assert one.client.delete(f"/knowledge-bases/mine/documents/{law}").status_code == 204
        last = ask(client)
        assert last["sequence"] > after["sequence"]
        assert law not in {hit["document"] for hit in last["hits"]}
        assert client.get(f"/traces/{before['id']}").status_code == 404
        assert one.client.get(f"/traces/{last['id']}").json()["sequence"] == last["sequence"]


def test_settings_changed_by_one_server_apply_to_the_other_at_once(tmp_path: Path) -> None:
    generator = CopyingGenerator()
    with pair(tmp_path, generator) as (one, _, client):
        for instruction in ("只用一句话回答。", "用三句话回答。"):
            changed = {"instruction": instruction}
            assert one.client.patch("/knowledge-bases/mine", json=changed).status_code == 200
            ask(client)
            assert instruction in generator.prompts[-1][0].text


def test_a_base_recreated_by_one_server_is_open_on_the_other(tmp_path: Path) -> None:
    with pair(tmp_path) as (one, other, client):
        path = "/knowledge-bases/mine"
        assert one.client.delete(path).status_code == 204
        assert client.get(path).status_code == 404
        assert client.delete(path).status_code == 404
        one.client.post("/knowledge-bases", json={"name": "mine"})
        one.upload({"另.txt": "第一条 试用期不得超过三个月。\n"})
        answer = ask(client)
        assert {cited["name"] for cited in answer["citations"]} == {"另.txt"}
        with pytest.raises(NotFound), other.knowledge_bases.open("mine") as pipeline:
            _delete_during_change(one, pipeline)


def _delete_during_change(one: SampleServer, pipeline: Pipeline) -> None:
    one.client.delete("/knowledge-bases/mine")
    with pipeline.store.change():
        raise AssertionError("its lock is there")


def test_a_revoked_key_is_rejected_by_every_server(tmp_path: Path) -> None:
    with pair(tmp_path) as (one, other, client):
        key = other.keys.create("a", [Grant("read")])
        assert one.client.get("/session").status_code == 401
        bearer = {"Authorization": f"Bearer {key}"}
        assert client.get("/session", headers=bearer).status_code == 200
        one.state.keys.revoke("a")
        assert client.get("/session", headers=bearer).status_code == 401


def send_at_once(clients: Sequence[httpx.Client], method: str, path: str, **body: str) -> list[int]:
    """The sorted statuses of one request that all clients send at the same time."""
    with ThreadPoolExecutor(len(clients)) as pool:
        answers = pool.map(lambda client: client.request(method, path, json=body or None), clients)
        return sorted(answer.status_code for answer in answers)


def test_simultaneous_changes_of_one_base_happen_one_after_the_other(tmp_path: Path) -> None:
    with pair(tmp_path) as (one, _, client):
        both = one.client, client
        for text in map(str, range(10)):
            assert send_at_once(both, "POST", "/knowledge-bases", name=text) == [201, 409]
            path = f"/knowledge-bases/{text}"
            assert send_at_once(both * 2, "PATCH", path, instruction=text) == [200] * 4
            assert client.get(path).json()["instruction"] == text
            assert send_at_once(both, "DELETE", path) == [204, 404]


def test_each_mcp_call_may_reach_another_server(tmp_path: Path) -> None:
    def call(client: httpx.Client, method: str, **params: Any) -> Any:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        accepted = {"accept": "application/json, text/event-stream"}
        answer = client.post("/mcp", json=body, headers=accepted)
        assert answer.status_code == 200, answer.text
        assert "mcp-session-id" not in answer.headers
        [data] = [line for line in answer.text.splitlines() if line.startswith("data: {")]
        return json.loads(data.removeprefix("data: "))["result"]

    with pair(tmp_path) as (one, _, client):
        me = {"name": "test", "version": "1"}
        call(one.client, "initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo=me)
        arguments = {"question": QUESTION, "knowledge_base": "mine"}
        for each in (client, one.client):
            result = call(each, "tools/call", name="ask", arguments=arguments)["structuredContent"]
            assert "六个月" in result["answer"]


DYING = """
import sys, time
from pathlib import Path
from server.database import server_database
from server.jobs import Jobs
from server.replica import Replica
me = Replica(Path(sys.argv[1]))
(me.folder / "half a knowledge base").mkdir()
jobs = Jobs(server_database(me.home), me.alive)
claimed = jobs.claim(me.name)
print(claimed["id"], jobs.create_upload("mine", me.name), me.name, flush=True)
time.sleep(600)
"""


def test_unfinished_work_ends_for_dead_replicas_only(tmp_path: Path) -> None:
    with sample_server(tmp_path) as sample, closing(open_worker(sample.state)) as worker:
        jobs = sample.state.jobs
        upload(sample.state, {"a.txt": "文件。\n"})
        own = jobs.create_upload("mine", sample.state.replica.name)
        command = [sys.executable, "-c", DYING, sample.state.options.home]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, ExitStack() as end:
            end.callback(process.kill)
            assert process.stdout
            claimed, receiving, name = process.stdout.readline().split()
            folder = worker.replica.folder.parent / name
            for dead in (False, True):
                worker.clean_up()
                assert folder.exists() is not dead
                assert jobs.is_running("mine") is not dead
                assert job_row(sample.state, receiving)["state"] == ("cancelled" if dead else "receiving")
                claim = jobs.claim(worker.name)
                assert (claim["id"] if claim else None) == (claimed if dead else None)
                process.kill()
                process.wait()
        assert job_row(sample.state, own)["state"] == "receiving"
        assert sample.state.replica.folder.exists()


def test_deleting_a_base_waits_until_its_job_has_ended(tmp_path: Path) -> None:
    """Otherwise the job could continue in the next knowledge base of that name."""
    with sample_server(tmp_path) as sample, closing(open_worker(sample.state)) as worker:
        job = upload(sample.state, {"a.txt": "文件。\n"})
        assert worker.jobs.claim(worker.name)
        with ThreadPoolExecutor() as pool:
            deletion = pool.submit(sample.client.delete, "/knowledge-bases/mine")
            wait_for(lambda: job_row(sample.state, job)["cancel"])
            assert not deletion.done()
            assert (tmp_path / "mine").exists()
            worker.jobs.finish(job, worker.name, "cancelled")
            assert deletion.result().status_code == 204
        assert not (tmp_path / "mine").exists()
