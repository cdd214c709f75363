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
    has_ended,
    job_row,
    open_worker,
    options,
    run_jobs,
    sample_server,
    server_with_worker,
    state,
    upload,
    wait_for,
    worker_pid,
)

LONG = "".join(
    f"第{number}条 编号{number}的仓库存放第{number * 7}号货物，值班人员每{number + 1}小时巡查一次。\n"
    for number in range(1, 1200)
)


def test_the_next_worker_completes_the_job_of_a_killed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.worker.SHORT_LIFE", 0.0)
    with server_with_worker(tmp_path) as (parts, supervisor):
        files = {f"{number}.txt": LONG[: 3000 + number] for number in range(4)}
        job = upload(parts, files)
        wait_for(lambda: job_row(parts, job)["chunks"] > 0, 60)
        first = worker_pid(supervisor)
        assert first
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: supervisor.alive() and worker_pid(supervisor) != first)
        wait_for(has_ended(parts, job), 90)
        assert job_row(parts, job)["state"] == "done"
        with open_store(tmp_path / "mine") as store:
            assert store.verify() == []
            heads = {Path(head.source).name: head for head in store.documents()}
            assert {name: store.text(heads[name].id) for name in files} == files
        assert {file["state"] for file in parts.jobs.files(job)} <= {"added", "unchanged"}


def test_a_cancelled_job_ends_soon_and_an_interrupted_one_continues_later(tmp_path: Path) -> None:
    with server_with_worker(tmp_path) as (parts, _):
        job = upload(parts, {"long.txt": LONG, "after.txt": "短。\n"})
        wait_for(lambda: job_row(parts, job)["chunks"] > 0, 60)
        parts.jobs.cancel(job)
        wait_for(has_ended(parts, job))
        assert job_row(parts, job)["state"] == "cancelled"
        again = upload(parts, {"again.txt": LONG[:8000]})
        wait_for(lambda: job_row(parts, again)["state"] == "running")
    with closing(state(tmp_path)) as parts:
        assert job_row(parts, again)["state"] in ("queued", "done")
        assert job_row(parts, again)["attempts"] <= 1
    with server_with_worker(tmp_path) as (parts, _):
        wait_for(has_ended(parts, again), 90)
        assert job_row(parts, again)["state"] == "done"
        with open_store(tmp_path / "mine") as store:
            assert [Path(head.source).name for head in store.documents()] == ["again.txt"]


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="Linux alone has this way to give way")
def test_the_worker_has_idle_priority_and_dies_with_its_parent(tmp_path: Path) -> None:
    server_options = options(tmp_path)
    with WorkerSupervisor(server_options) as supervisor:
        wait_for(supervisor.alive)
        pid = worker_pid(supervisor)
        assert pid
        wait_for(lambda: os.sched_getscheduler(pid) == os.SCHED_IDLE)
    assert not supervisor.alive()


def test_progress_never_runs_ahead_of_the_knowledge_base(tmp_path: Path) -> None:
    """At every step, the knowledge base holds all files that are reported as done."""
    with sample_server(tmp_path) as sample, ExitStack() as stack:
        parts = sample.state
        job = upload(parts, {f"{number}.txt": f"第{number}份文件。\n" for number in range(5)})
        worker = stack.enter_context(closing(open_worker(parts)))
        progress: list[tuple[int, int]] = []
        outcome = worker.jobs.record_outcome

        def look(which: str, position: int, what: Any) -> None:
            outcome(which, position, what)
            job_status = sample.client.get(f"/jobs/{job}").json()
            stored = {name for name in sample.documents() if name[0].isdigit()}
            progress.append((job_status["files_done"], len(stored)))

        worker.jobs.record_outcome = look  # type: ignore[method-assign]
        claimed = worker.jobs.claim(worker.name)
        assert claimed
        worker.work(claimed)
        assert [done for done, _ in progress] == [1, 2, 3, 4, 5]
        assert all(stored >= done for done, stored in progress)


def test_the_next_job_deletes_uploads_that_no_document_uses(tmp_path: Path) -> None:
    with sample_server(tmp_path) as sample:
        folder = tmp_path / "mine" / "originals"
        assert len(list(folder.iterdir())) == 3
        sample.upload({"坏.pdf": b"%PDF-1.4 cut off", "poem.txt": "另一首。\n"})
        digests = {path.name for path in folder.iterdir()}
        with open_store(tmp_path / "mine") as store:
            assert digests == {head.digest for head in store.documents()}
        assert len(digests) == 3


def test_a_job_is_retried_while_another_process_writes_the_base(tmp_path: Path) -> None:
    with (
        sample_server(tmp_path) as sample,
        open_store(tmp_path / "mine") as store,
        closing(open_worker(sample.state)) as worker,
    ):
        job = upload(sample.state, {"late.txt": "晚到的文件。\n"})
        claimed = worker.jobs.claim(worker.name)
        assert claimed
        from ingest.store import local

        with store.change(reason="the command line"), pytest.MonkeyPatch.context() as patch:
            writing = local.writing
            patch.setattr(local, "writing", lambda path, **more: writing(path, **{**more, "timeout": 0.0}))
            worker.work(claimed)
        waiting = job_row(sample.state, job)
        assert (waiting["state"], waiting["attempts"]) == ("queued", 0)
        with sample.state.databases[0].change() as sql:
            sql.execute("UPDATE jobs SET after = 0")
        run_jobs(sample.state)
        assert job_row(sample.state, job)["state"] == "done"


def test_a_job_of_a_deleted_base_fails_with_a_reason(tmp_path: Path) -> None:
    with sample_server(tmp_path) as sample:
        job = upload(sample.state, {"a.txt": "文件。\n"})
        sample.state.knowledge_bases.delete("mine")
        run_jobs(sample.state)
        failed = job_row(sample.state, job)
        assert (failed["state"], failed["error"]) == ("failed", "there is no knowledge base mine")


def test_the_servers_worker_runs_ours(folder: Path, tmp_path: Path) -> None:
    with server_with_worker(tmp_path / "data") as (parts, supervisor):
        job = upload(parts, {"a.txt": "第一条 试用期不得超过六个月。\n"})
        wait_for(has_ended(parts, job), 60)
        assert job_row(parts, job)["state"] == "done"
        assert supervisor.alive()
