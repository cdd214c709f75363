"""/knowledge-bases."""

from time import sleep
from typing import Annotated

from fastapi import APIRouter, Path

from server import schemas
from server.error_responses import responses
from server.state import By, Server

router = APIRouter(prefix="/knowledge-bases", tags=["knowledge bases"])
Name = Annotated[str, Path(pattern=schemas.NAME)]
PAUSE = 0.05  # seconds between two looks whether a worker has let go


@router.get("")
def list_bases(server: Server, by: By) -> schemas.BaseList:
    """Those that the key may read."""
    return schemas.BaseList(knowledge_bases=server.bases.listed(by.who, by.say))


@router.post("", status_code=201, responses=responses(409))
def create_base(body: schemas.NewKnowledgeBase, server: Server, by: By) -> schemas.KnowledgeBase:
    """A new, empty one."""
    by.must("admin", body.name)
    server.bases.create(body)
    return server.bases.describe(body.name, by.who)


@router.get("/{knowledge_base}", responses=responses(503))
def get_base(knowledge_base: Name, server: Server, by: By) -> schemas.KnowledgeBase:
    by.must("read", knowledge_base)
    return server.bases.describe(knowledge_base, by.who)


@router.patch("/{knowledge_base}", responses=responses(409, 503))
def change_base(
    knowledge_base: Name, body: schemas.KnowledgeBaseChange, server: Server, by: By
) -> schemas.KnowledgeBase:
    """Another prompt or adapter; what is left out stays."""
    by.must("admin", knowledge_base)
    server.bases.change(knowledge_base, body)
    return server.bases.describe(knowledge_base, by.who)


@router.delete("/{knowledge_base}", status_code=204, responses=responses(503))
def delete_base(knowledge_base: Name, server: Server, by: By) -> None:
    """Remove it with its documents, originals and traces; its jobs are cancelled."""
    by.must("admin", knowledge_base)
    server.bases.path(knowledge_base)
    server.jobs.cancel_all(knowledge_base)
    while server.jobs.at_work(knowledge_base):  # it would go on in one that is made of this name
        sleep(PAUSE)
        server.jobs.cancel_all(knowledge_base)
    server.bases.delete(knowledge_base)
    server.traces.forget_base(knowledge_base)
