"""The job queue: each job is claimed once, requeued if its worker dies, and never lost."""

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ingest.errors import Unreadable, UserError
from ingest.pipeline import FileOutcome
from ingest.types import ParseReport
from server.database import server_database
from server.jobs import LIST_LIMIT, MAX_ATTEMPTS, Jobs
from server.uploads import Upload


@pytest.fixture
def alive() -> set[str]:
    return {"w", "r"}


@pytest.fixture
def jobs(tmp_path: Path, alive: set[str]) -> Iterator[Jobs]:
    with closing(server_database(tmp_path)) as database:
        yield Jobs(database, alive.__contains__)


def queue_job(jobs: Jobs, base: str = "a", files: int = 1) -> str:
    job = jobs.create_upload(base, "r")
    for number in range(files):
        jobs.add_file(job, Upload(f"{number}.txt", f"{number:064x}", 10))
    jobs.queue(job)
    return job


def state(jobs: Jobs, job: str) -> str:
    row = jobs.get(job)
    assert row
    return row["state"]


def test_an_upload_is_not_claimed_before_it_is_complete(jobs: Jobs) -> None:
    job = jobs.create_upload("a", "r")
    assert jobs.claim("w") is None
    jobs.queue(job)
    claimed = jobs.claim("w")
    assert claimed
    assert claimed["id"] == job


def test_each_job_is_claimed_once_and_a_base_has_one_at_a_time(tmp_path: Path) -> None:
    with closing(server_database(tmp_path)) as database:
        jobs = Jobs(database, str.isdigit)
        expected = {queue_job(jobs, base) for base in ("a", "a", "b", "c", "c")}
    claimed: list[str] = []
    busy: dict[str, str] = {}

    def run_worker(name: str) -> None:
        with closing(server_database(tmp_path)) as database:
            jobs = Jobs(database, str.isdigit)
            while row := jobs.claim(name):
                assert busy.setdefault(row["base"], name) == name
                claimed.append(row["id"])
                del busy[row["base"]]
                jobs.finish(row["id"], name, "done")

    threads = [threading.Thread(target=run_worker, args=(str(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run_worker("9")
    assert sorted(claimed) == sorted(expected)


def test_the_job_of_a_dead_worker_is_requeued_and_finally_fails(jobs: Jobs, alive: set[str]) -> None:
    job = queue_job(jobs)
    assert jobs.claim("w")
    assert jobs.claim("other") is None
    assert jobs.is_running("a")
    alive.clear()
    assert not jobs.is_running("a")
    for _ in range(MAX_ATTEMPTS - 1):
        assert jobs.claim("w")
    assert jobs.claim("w") is None
    row = jobs.get(job)
    assert row
    assert row["state"] == "failed"
    assert f"{MAX_ATTEMPTS} times" in row["error"]


def test_a_requeued_job_costs_no_attempt(jobs: Jobs) -> None:
    job = queue_job(jobs)
    for _ in range(3 * MAX_ATTEMPTS):
        assert jobs.claim("w")
        jobs.requeue(job, "w")
    assert state(jobs, job) == "queued"


def test_a_worker_learns_whether_its_job_should_continue(jobs: Jobs) -> None:
    job = queue_job(jobs)
    assert not jobs.should_continue(job, "w")
    assert jobs.claim("w")
    assert jobs.should_continue(job, "w")
    assert not jobs.should_continue(job, "other")
    jobs.cancel(job)
    assert not jobs.should_continue(job, "w")
    assert state(jobs, job) == "running"  # until its worker has let go


def test_cancelling_ends_waiting_jobs_and_uploads(jobs: Jobs) -> None:
    ended = queue_job(jobs, "b")
    assert jobs.claim("w")
    jobs.finish(ended, "w", "done")
    waiting, uploading = queue_job(jobs), jobs.create_upload("a", "r")
    for job in (waiting, uploading, ended):
        jobs.cancel(job)
    assert [state(jobs, job) for job in (waiting, uploading, ended)] == [
        "cancelled", "cancelled", "done",
    ]  # fmt: skip
    assert [row["state"] for row in jobs.files(waiting)] == ["cancelled"]


def test_outcomes_are_stored_with_their_parse_report_or_reason(jobs: Jobs) -> None:
    job = queue_job(jobs, files=2)
    jobs.record_outcome(job, 0, FileOutcome("x", "added", 10, 3, ParseReport("txt", "gb18030", 2)))
    jobs.record_outcome(job, 1, FileOutcome("y", "refused", problem=Unreadable("a key needs a scope")))
    jobs.add_file(job, Upload("z.txt", "", 0), UserError("too large"))
    first, second, third = jobs.files(job)
    assert '"gb18030"' in first["receipt"]
    assert (second["state"], second["problem_zh"]) == ("refused", "密钥需要至少一个权限")
    assert (third["name"], third["state"], third["position"]) == ("z.txt", "refused", 2)


def test_an_upload_is_deleted_unless_a_job_needs_it(jobs: Jobs) -> None:
    dropped: list[str] = []
    digest = f"{0:064x}"
    job, other = queue_job(jobs), queue_job(jobs)
    for but in ("", job):
        jobs.delete_unless_needed("a", digest, dropped.append, ignore=but)
    assert dropped == []
    assert jobs.claim("w")
    jobs.finish(job, "w", "done")
    jobs.delete_unless_needed("a", digest, dropped.append, ignore=other)
    assert dropped == [digest]


def test_two_files_with_one_name_in_an_upload_are_an_error(jobs: Jobs) -> None:
    job = jobs.create_upload("a", "r")
    jobs.add_file(job, Upload("a.txt", "", 0), UserError("too large"))
    jobs.add_file(job, Upload("a.txt", "1" * 64, 1))
    with pytest.raises(UserError, match=r"another file of this upload is called a\.txt"):
        jobs.add_file(job, Upload("a.txt", "2" * 64, 1))
    assert [row["digest"] for row in jobs.files(job)] == ["", "1" * 64]


def test_a_purge_is_queued_once(jobs: Jobs) -> None:
    for _ in range(5):
        jobs.queue_purge("a")
    assert jobs.waiting == 1


def test_uploads_to_dead_servers_are_cancelled_with_a_reason(jobs: Jobs) -> None:
    alive, dead = (jobs.create_upload("a", server) for server in ("r", "dead"))
    complete = jobs.create_upload("a", "dead")
    jobs.queue(complete)
    jobs.cancel_abandoned_uploads()
    assert [state(jobs, job) for job in (alive, dead, complete)] == [
        "receiving", "cancelled", "queued",
    ]  # fmt: skip
    row = jobs.get(dead)
    assert row
    assert row["error"] == "the upload was interrupted; try again"


def test_a_worker_finishes_only_its_own_jobs(jobs: Jobs) -> None:
    job = queue_job(jobs)
    assert jobs.claim("w")
    jobs.finish(job, "other", "failed", UserError("gone"))
    jobs.requeue(job, "other")
    row = jobs.get(job)
    assert row
    assert (row["state"], row["worker"]) == ("running", "w")
    jobs.finish(job, "w", "done")
    assert state(jobs, job) == "done"


def test_a_death_counts_only_without_progress(jobs: Jobs, alive: set[str]) -> None:
    alive.clear()
    job = queue_job(jobs, files=3 * MAX_ATTEMPTS)
    for number in range(3 * MAX_ATTEMPTS):
        assert jobs.claim("w")
        jobs.record_outcome(job, number, FileOutcome("x", "added", 10, 3))
    assert jobs.claim("w")


def test_the_jobs_of_a_quiet_base_are_listed_despite_a_busy_one(jobs: Jobs) -> None:
    quiet = jobs.create_upload("quiet", "r")
    for _ in range(LIST_LIMIT + 1):
        jobs.create_upload("busy", "r")
    assert [row["id"] for row in jobs.newest(["quiet"])] == [quiet]
    assert len(jobs.newest(["busy", "quiet"])) == LIST_LIMIT
    assert jobs.newest([]) == []
