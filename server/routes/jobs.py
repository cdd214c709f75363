"""/jobs."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from server import schemas, serializers
from server.errors import Unknown
from server.state import By, Server

router = APIRouter(prefix="/jobs", tags=["jobs"])
Id = Annotated[str, Path(pattern="^[0-9a-f]{24}$")]


@router.get("")
def list_jobs(
    server: Server,
    by: By,
    knowledge_base: Annotated[str | None, Query(pattern=schemas.NAME)] = None,
) -> schemas.JobList:
    """The newest 200 of those that the key may read, newest first."""
    bases = [knowledge_base] if knowledge_base else server.jobs.bases()
    rows = server.jobs.newest(base for base in bases if by.who.may("read", base))
    return schemas.JobList(
        jobs=[serializers.job(row, server.jobs.files(row["id"]), by.say) for row in rows]
    )


@router.get("/{job}")
def get_job(job: Id, server: Server, by: By) -> schemas.Job:
    row = server.jobs.get(job)
    if row is None or not by.who.may("read", row["base"]):
        raise Unknown(f"there is no job {job}", zh=f"没有任务 {job}")
    return serializers.job(row, server.jobs.files(job), by.say)


@router.post("/{job}/cancel")
def cancel_job(job: Id, server: Server, by: By) -> schemas.Job:
    """End it soon. Files that were read by then stay; a job that has ended stays as it is."""
    by.must("write", get_job(job, server, by).knowledge_base)
    server.jobs.cancel(job)
    return get_job(job, server, by)
