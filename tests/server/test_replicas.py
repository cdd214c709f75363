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
from tests.server.servers import Filled, filled, row, running, state, upload, wait_for, worker

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
def test_three_processes_under_load_become_one(tmp_path: Path) -> None:
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
            load.go_on(20)
            found: list[ServerProcess] = []
            wait_for(lambda: found.extend(filter(None, [at_work(servers, load)])) or found)
            found[0].kill()
            load.go_on(20)
            next(each for each in servers if not each.ending).end()
            load.go_on(20)
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
) -> Iterator[tuple[Filled, ServerState, httpx.Client]]:
    """A server with a knowledge base, and a second one on the same data folder."""
    with (
        filled(data) as one,
        closing(state(data, generator=generator)) as other,
        running(other) as client,
    ):
        assert "六个月" in asked(client)["answer"]
        yield one, other, client


def asked(client: httpx.Client, question: str = QUESTION, base: str = "mine") -> dict[str, Any]:
    answer = client.post("/ask", json={"question": question, "knowledge_base": base})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_what_one_changes_the_other_answers_from_at_once(tmp_path: Path) -> None:
    with pair(tmp_path) as (one, _, client):
        before = asked(client)
        one.upload({"新.txt": "第二十条 试用期工资不得低于百分之八十。\n"})
        after = asked(client, "试用期工资不得低于多少？")
        assert "百分之八十" in after["answer"]
        assert after["sequence"] > before["sequence"]
        law = one.documents()["劳动合同法.txt"]["id"]
        assert one.client.delete(f"/knowledge-bases/mine/documents/{law}").status_code == 204
        last = asked(client)
        assert last["sequence"] > after["sequence"]
        assert law not in {hit["document"] for hit in last["hits"]}
        assert client.get(f"/traces/{before['id']}").status_code == 404
        assert one.client.get(f"/traces/{last['id']}").json()["sequence"] == last["sequence"]


def test_settings_that_one_has_changed_hold_for_the_other_at_once(tmp_path: Path) -> None:
    generator = CopyingGenerator()
    with pair(tmp_path, generator) as (one, _, client):
        for instruction in ("只用一句话回答。", "用三句话回答。"):
            changed = {"instruction": instruction}
            assert one.client.patch("/knowledge-bases/mine", json=changed).status_code == 200
            asked(client)
            assert instruction in generator.prompts[-1][0].text


def test_a_base_that_one_has_made_anew_is_the_others_too(tmp_path: Path) -> None:
    with pair(tmp_path) as (one, other, client):
        path = "/knowledge-bases/mine"
        assert one.client.delete(path).status_code == 204
        assert client.get(path).status_code == 404
        assert client.delete(path).status_code == 404
        one.client.post("/knowledge-bases", json={"name": "mine"})
        one.upload({"另.txt": "第一条 试用期不得超过三个月。\n"})
        answer = asked(client)
        assert {cited["name"] for cited in answer["citations"]} == {"另.txt"}
        with pytest.raises(NotFound), other.knowledge_bases.open("mine") as pipeline:
            _gone_meanwhile(one, pipeline)


def _gone_meanwhile(one: Filled, pipeline: Pipeline) -> None:
    one.client.delete("/knowledge-bases/mine")
    with pipeline.store.change():
        raise AssertionError("its lock is there")


def test_a_key_that_is_revoked_ends_everywhere(tmp_path: Path) -> None:
    with pair(tmp_path) as (one, other, client):
        key = other.keys.create("a", [Grant("read")])
        assert one.client.get("/session").status_code == 401
        bearer = {"Authorization": f"Bearer {key}"}
        assert client.get("/session", headers=bearer).status_code == 200
        one.state.keys.revoke("a")
        assert client.get("/session", headers=bearer).status_code == 401


def at_once(clients: Sequence[httpx.Client], method: str, path: str, **body: str) -> list[int]:
    """The sorted statuses of one request that all clients send at the same time."""
    with ThreadPoolExecutor(len(clients)) as pool:
        made = pool.map(lambda client: client.request(method, path, json=body or None), clients)
        return sorted(answer.status_code for answer in made)


def test_two_that_make_or_change_one_base_do_it_one_after_the_other(tmp_path: Path) -> None:
    with pair(tmp_path) as (one, _, client):
        both = one.client, client
        for text in map(str, range(10)):
            assert at_once(both, "POST", "/knowledge-bases", name=text) == [201, 409]
            path = f"/knowledge-bases/{text}"
            assert at_once(both * 2, "PATCH", path, instruction=text) == [200] * 4
            assert client.get(path).json()["instruction"] == text
            assert at_once(both, "DELETE", path) == [204, 404]


def test_an_assistant_may_reach_another_server_with_each_call(tmp_path: Path) -> None:
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
        wanted = {"question": QUESTION, "knowledge_base": "mine"}
        for each in (client, one.client):
            told = call(each, "tools/call", name="ask", arguments=wanted)["structuredContent"]
            assert "六个月" in told["answer"]


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


def test_what_the_dead_had_under_way_is_ended_and_that_of_the_living_is_not(tmp_path: Path) -> None:
    with filled(tmp_path) as mine, closing(worker(mine.state)) as hand:
        jobs = mine.state.jobs
        upload(mine.state, {"a.txt": "文件。\n"})
        own = jobs.create_upload("mine", mine.state.replica.name)
        command = [sys.executable, "-c", DYING, mine.state.options.home]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as dying,
            ExitStack() as end,
        ):
            end.callback(dying.kill)
            assert dying.stdout
            claimed, receiving, name = dying.stdout.readline().split()
            folder = hand.replica.folder.parent / name
            for dead in (False, True):
                hand.clean_up()
                assert folder.exists() is not dead
                assert jobs.is_running("mine") is not dead
                assert row(mine.state, receiving)["state"] == ("cancelled" if dead else "receiving")
                taken = jobs.claim(hand.name)
                assert (taken["id"] if taken else None) == (claimed if dead else None)
                dying.kill()
                dying.wait()
        assert row(mine.state, own)["state"] == "receiving"
        assert mine.state.replica.folder.exists()


def test_a_base_is_not_deleted_under_a_workers_hands(tmp_path: Path) -> None:
    """Otherwise the job could continue in the next knowledge base of that name."""
    with filled(tmp_path) as mine, closing(worker(mine.state)) as hand:
        job = upload(mine.state, {"a.txt": "文件。\n"})
        assert hand.jobs.claim(hand.name)
        with ThreadPoolExecutor() as pool:
            gone = pool.submit(mine.client.delete, "/knowledge-bases/mine")
            wait_for(lambda: row(mine.state, job)["cancel"])
            assert not gone.done()
            assert (tmp_path / "mine").exists()
            hand.jobs.finish(job, hand.name, "cancelled")
            assert gone.result().status_code == 204
        assert not (tmp_path / "mine").exists()
