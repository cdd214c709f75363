"""Is it alive, is it ready, how is it doing; and who am I to it."""

from importlib.metadata import version
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from prometheus_client import CONTENT_TYPE_LATEST

from ingest.files import FORMATS
from server import schemas, serializers
from server.error_responses import UNREADY, NotReady
from server.errors import Unknown
from server.state import By, Server

router = APIRouter(tags=["server"])
OPEN = {"security": []}
"""Needs no key."""


@router.get("/healthz", openapi_extra=OPEN)
async def healthz() -> schemas.Status:
    """The process answers."""
    return schemas.Status(status="ok")


@router.get("/readyz", responses=UNREADY, openapi_extra=OPEN)
async def readyz(server: Server) -> schemas.Status:
    """Questions are answered and jobs are worked on."""
    if not server.worker_alive():
        raise NotReady
    return schemas.Status(status="ready")


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(server: Server, by: By) -> Response:
    """Prometheus' text format."""
    by.must("read")
    return Response(server.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/session")
def session(server: Server, by: By) -> schemas.Session:
    """What the key may do, and what this server allows."""
    return schemas.Session(
        key=by.who.name or None,
        scopes=by.who.highest,
        embedders=list(server.options.embedders),
        adapters=server.bases.adapters(),
        formats=sorted(FORMATS),
        largest_upload=server.options.largest_upload,
        most_files=server.options.most_files,
        version=version("chatglm-rag"),
    )


jobs_router = APIRouter(prefix="/jobs", tags=["jobs"])
Id = Annotated[str, Path(pattern="^[0-9a-f]{24}$")]


@jobs_router.get("")
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


@jobs_router.get("/{job}")
def get_job(job: Id, server: Server, by: By) -> schemas.Job:
    row = server.jobs.get(job)
    if row is None or not by.who.may("read", row["base"]):
        raise Unknown("there is no job {job}", job=job)
    return serializers.job(row, server.jobs.files(job), by.say)


@jobs_router.post("/{job}/cancel")
def cancel_job(job: Id, server: Server, by: By) -> schemas.Job:
    """End it soon. Files that were read by then stay; a job that has ended stays as it is."""
    by.must("write", get_job(job, server, by).knowledge_base)
    server.jobs.cancel(job)
    return get_job(job, server, by)


traces_router = APIRouter(prefix="/traces", tags=["questions"])


@traces_router.get("/{trace}")
def get_trace(
    trace: Annotated[str, Path(pattern="^[0-9a-f]{24}$")], server: Server, by: By
) -> schemas.Trace:
    """How an answer came about. With keys, this is for who administers the knowledge base: it holds
    what others have asked."""
    found = server.traces.get(trace)
    if found is None or not by.who.may("admin", found.knowledge_base):
        raise Unknown("there is no answer {trace}", trace=trace)
    return found
