"""/knowledge-bases."""

from typing import Annotated

from fastapi import APIRouter, Path

from server import schemas
from server.problems import responses
from server.state import By, Server

router = APIRouter(prefix="/knowledge-bases", tags=["knowledge bases"])
Name = Annotated[str, Path(pattern=schemas.NAME)]


@router.get("")
def list_bases(server: Server, by: By) -> schemas.BaseList:
    """Those that the key may read."""
    names = [name for name in server.bases.names() if by.who.may("read", name)]
    return schemas.BaseList(knowledge_bases=[server.bases.describe(name, by.who) for name in names])


@router.post("", status_code=201, responses=responses(409))
def create_base(body: schemas.NewBase, server: Server, by: By) -> schemas.Base:
    """A new, empty one."""
    by.must("admin", body.name)
    server.bases.create(body)
    return server.bases.describe(body.name, by.who)


@router.get("/{name}", responses=responses(503))
def get_base(name: Name, server: Server, by: By) -> schemas.Base:
    by.must("read", name)
    return server.bases.describe(name, by.who)


@router.patch("/{name}", responses=responses(503))
def change_base(name: Name, body: schemas.BaseChange, server: Server, by: By) -> schemas.Base:
    """Another prompt or adapter; what is left out stays."""
    by.must("admin", name)
    server.bases.change(name, body)
    return server.bases.describe(name, by.who)


@router.delete("/{name}", status_code=204, responses=responses(503))
def delete_base(name: Name, server: Server, by: By) -> None:
    """Remove it with its documents, originals and traces; its jobs are cancelled."""
    by.must("admin", name)
    server.bases.path(name)
    server.jobs.cancel_all(name)
    server.bases.delete(name)
    server.traces.forget_base(name)
