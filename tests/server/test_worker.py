"""The worker process: jobs survive its death, progress is exact, and its priority is low."""

import os
import signal
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from ingest.store import open_store
from server.worker import WorkerSupervisor
from tests.server.servers import (
    ended,
    filled,
    options,
    row,
    served,
    state,
    upload,
    wait_for,
    work,
    worker,
    worker_pid,
)

LONG = "".join(
    f"第{number}条 编号{number}的仓库存放第{number * 7}号货物，值班人员每{number + 1}小时巡查一次。\n"
    for number in range(1, 1200)
)


def test_a_killed_workers_job_is_done_by_the_next_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.worker.SHORT_LIFE", 0.0)
    with served(tmp_path) as (parts, supervisor):
        files = {f"{number}.txt": LONG[: 3000 + number] for number in range(4)}
        job = upload(parts, files)
        wait_for(lambda: row(parts, job)["chunks"] > 0, 60)
        first = worker_pid(supervisor)
        assert first
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: supervisor.alive() and worker_pid(supervisor) != first)
        wait_for(ended(parts, job), 90)
        assert row(parts, job)["state"] == "done"
        with open_store(tmp_path / "mine") as store:
            assert store.verify() == []
            heads = {Path(head.source).name: head for head in store.documents()}
            assert {name: store.text(heads[name].id) for name in files} == files
        assert {file["state"] for file in parts.jobs.files(job)} <= {"added", "unchanged"}


def test_a_cancelled_job_ends_soon_and_a_stopped_one_goes_on_later(tmp_path: Path) -> None:
    with served(tmp_path) as (parts, _):
        job = upload(parts, {"long.txt": LONG, "after.txt": "短。\n"})
        wait_for(lambda: row(parts, job)["chunks"] > 0, 60)
        parts.jobs.cancel(job)
        wait_for(ended(parts, job))
        assert row(parts, job)["state"] == "cancelled"
        again = upload(parts, {"again.txt": LONG[:8000]})
        wait_for(lambda: row(parts, again)["state"] == "running")
    with closing(state(tmp_path)) as parts:
        assert row(parts, again)["state"] in ("queued", "done")
        assert row(parts, again)["attempts"] <= 1
    with served(tmp_path) as (parts, _):
        wait_for(ended(parts, again), 90)
        assert row(parts, again)["state"] == "done"
        with open_store(tmp_path / "mine") as store:
            assert [Path(head.source).name for head in store.documents()] == ["again.txt"]


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="Linux alone has this way to give way")
def test_the_worker_gives_way_and_dies_with_its_parent(tmp_path: Path) -> None:
    made = options(tmp_path)
    with WorkerSupervisor(made) as supervisor:
        wait_for(supervisor.alive)
        pid = worker_pid(supervisor)
        assert pid
        wait_for(lambda: os.sched_getscheduler(pid) == os.SCHED_IDLE)
    assert not supervisor.alive()


def test_progress_is_true(tmp_path: Path) -> None:
    """At every step, the knowledge base holds all files that are reported as done."""
    with filled(tmp_path) as mine, ExitStack() as stack:
        parts = mine.state
        job = upload(parts, {f"{number}.txt": f"第{number}份文件。\n" for number in range(5)})
        hand = stack.enter_context(closing(worker(parts)))
        told: list[tuple[int, int]] = []
        outcome = hand.jobs.record_outcome

        def look(which: str, position: int, what: Any) -> None:
            outcome(which, position, what)
            shown = mine.client.get(f"/jobs/{job}").json()
            stored = {name for name in mine.documents() if name[0].isdigit()}
            told.append((shown["files_done"], len(stored)))

        hand.jobs.record_outcome = look  # type: ignore[method-assign]
        claimed = hand.jobs.claim(hand.name)
        assert claimed
        hand.work(claimed)
        assert [done for done, _ in told] == [1, 2, 3, 4, 5]
        assert all(stored >= done for done, stored in told)


def test_originals_that_no_document_has_go_with_the_next_job(tmp_path: Path) -> None:
    with filled(tmp_path) as mine:
        folder = tmp_path / "mine" / "originals"
        assert len(list(folder.iterdir())) == 3
        mine.upload({"坏.pdf": b"%PDF-1.4 cut off", "poem.txt": "另一首。\n"})
        kept = {path.name for path in folder.iterdir()}
        with open_store(tmp_path / "mine") as store:
            assert kept == {head.digest for head in store.documents()}
        assert len(kept) == 3


def test_a_base_that_another_writes_is_tried_again(tmp_path: Path) -> None:
    with (
        filled(tmp_path) as mine,
        open_store(tmp_path / "mine") as store,
        closing(worker(mine.state)) as hand,
    ):
        job = upload(mine.state, {"late.txt": "晚到的文件。\n"})
        claimed = hand.jobs.claim(hand.name)
        assert claimed
        from ingest.store import local

        with store.change(reason="the command line"), pytest.MonkeyPatch.context() as patch:
            writing = local.writing
            patch.setattr(
                local, "writing", lambda path, **more: writing(path, **{**more, "timeout": 0.0})
            )
            hand.work(claimed)
        waiting = row(mine.state, job)
        assert (waiting["state"], waiting["attempts"]) == ("queued", 0)
        with mine.state.databases[0].change() as sql:
            sql.execute("UPDATE jobs SET after = 0")
        work(mine.state)
        assert row(mine.state, job)["state"] == "done"


def test_a_job_of_a_base_that_is_gone_fails_with_a_reason(tmp_path: Path) -> None:
    with filled(tmp_path) as mine:
        job = upload(mine.state, {"a.txt": "文件。\n"})
        mine.state.knowledge_bases.delete("mine")
        work(mine.state)
        failed = row(mine.state, job)
        assert (failed["state"], failed["error"]) == ("failed", "there is no knowledge base mine")
