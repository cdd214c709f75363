"""Is it alive, is it ready, how is it doing; and who am I to it."""

from importlib.metadata import version

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from ingest.formats import FORMATS
from server import schemas
from server.error_responses import UNREADY, NotReady
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
