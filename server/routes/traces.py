"""/traces."""

from typing import Annotated

from fastapi import APIRouter, Path

from server import schemas
from server.errors import Unknown
from server.state import By, Server

router = APIRouter(prefix="/traces", tags=["questions"])


@router.get("/{trace}")
def get_trace(
    trace: Annotated[str, Path(pattern="^[0-9a-f]{24}$")], server: Server, by: By
) -> schemas.Trace:
    """How an answer came about. With keys, this is for who administers the knowledge base: it holds
    what others have asked."""
    found = server.traces.get(trace)
    if found is None or not by.who.may("admin", found.knowledge_base):
        raise Unknown(f"there is no answer {trace}", zh=f"没有回答 {trace}")
    return found
