"""/knowledge-bases/{name}/documents."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import sleep
from typing import Annotated

from fastapi import APIRouter, File, Path, Query, Response, UploadFile

from ingest.errors import UserError
from ingest.store import Store
from ingest.types import Document
from server import schemas, serializers
from server.error_responses import responses
from server.errors import Unknown
from server.fair_queue import in_thread
from server.options import ServerOptions
from server.state import Asking, By, Server, State
from server.uploads import Drawn, Originals

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


Id = Annotated[str, Path(pattern="^[0-9a-f]{24}$")]
Offset = Annotated[int, Query(ge=0, le=2**53)]
MOST_TEXT = 200_000  # characters of one answer
PIECE = 1 << 20
PREFIX = "/knowledge-bases/{knowledge_base}/documents"


def documents_router(options: ServerOptions) -> APIRouter:
    """The routes, with what may be uploaded as the operator has set it."""
    routes = APIRouter(prefix=PREFIX, tags=["documents"])
    routes.post(
        "",
        status_code=202,
        responses=responses(503),
        max_body_size=options.largest_batch,
        form_limits={"max_files": options.most_files, "max_fields": 100},
    )(upload)
    routes.get("")(list_documents)
    routes.get("/{document}")(get_document)
    routes.get("/{document}/text")(get_text)
    routes.get(
        "/{document}/pages/{number}",
        response_class=Response,
        responses={200: {"content": {"image/png": {"schema": {"type": "string"}}}}},
    )(get_page)
    routes.delete("/{document}", status_code=204, responses=responses(503))(delete_document)
    return routes


def upload(
    knowledge_base: Name,
    files: Annotated[list[UploadFile], File(min_length=1, description="Documents, many at once")],
    server: Server,
    by: By,
) -> schemas.Job:
    """Take files in; the job that is returned reads them. A file of a name that is there already
    takes the place of that document."""
    by.must("write", knowledge_base)
    originals = Originals(server.bases.path(knowledge_base))
    job = server.jobs.receive(knowledge_base, server.member.name)
    seen: dict[str, str] = {}
    try:
        for file in files:
            _take(file, server, originals, job, seen)
        server.jobs.queue(job)
    except BaseException:
        server.jobs.cancel(job)
        raise
    return _job(server, by, job)


def _take(
    file: UploadFile, server: State, originals: Originals, job: str, seen: dict[str, str]
) -> None:
    name = file.filename or ""
    try:
        stored = originals.keep(
            name,
            iter(lambda: file.file.read(PIECE), b""),
            most=server.options.largest_upload,
            noted=lambda stored: server.jobs.file(job, stored, once=seen),
        )
        seen[stored.name] = stored.digest
    except UserError as problem:
        server.jobs.refused(job, serializers.shown(name), problem)


def _job(server: State, by: Asking, job: str) -> schemas.Job:
    row = server.jobs.get(job)
    assert row
    return serializers.job(row, server.jobs.files(job), by.say)


def list_documents(
    knowledge_base: Name,
    server: Server,
    by: By,
    q: Annotated[str, Query(max_length=200, description="Part of a name or title")] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Offset = 0,
) -> schemas.DocumentList:
    """By name."""
    by.must("read", knowledge_base)
    wanted = q.casefold()
    with server.bases.reading(knowledge_base) as pipeline:
        heads = [
            head
            for head in pipeline.store.documents()
            if wanted in f"{serializers.name_of(head.source)}\n{head.title}".casefold()
        ]
        heads.sort(key=lambda head: serializers.name_of(head.source).casefold())
        page = heads[offset : offset + limit]
        return schemas.DocumentList(
            documents=[_shape(pipeline.store, head) for head in page], total=len(heads)
        )


def get_document(knowledge_base: Name, document: Id, server: Server, by: By) -> schemas.Document:
    with _head(knowledge_base, document, server, by) as (store, head):
        return _shape(store, head)


def get_text(
    knowledge_base: Name,
    document: Id,
    server: Server,
    by: By,
    start: Offset = 0,
    end: Annotated[int | None, Query(ge=0, le=2**53)] = None,
) -> schemas.Text:
    """Characters [start, end) of the text, at most 200,000 of them; `end` says how far it went."""
    with _head(knowledge_base, document, server, by) as (store, head):
        length = store.length(head.id)
        start = min(start, length)
        end = max(start, min(length if end is None else end, length, start + MOST_TEXT))
        text = store.text(head.id, start, end)
        return schemas.Text(text=text, start=start, end=end, length=length)


async def get_page(
    knowledge_base: Name,
    document: Id,
    number: Annotated[int, Path(ge=1, le=1_000_000)],
    server: Server,
    by: By,
    start: Offset = 0,
    end: Offset = 0,
) -> Response:
    """A page as a picture, with characters [start, end) of the text marked where they are found."""

    def draw() -> Drawn:
        with _head(knowledge_base, document, server, by) as (store, head):
            passage = store.text(head.id, start, min(end, start + MOST_TEXT)) if end > start else ""
            return server.pages.draw(server.bases.path(knowledge_base), head, number, passage)

    async with server.drawing.turn(by.who.id):
        png, marked = await in_thread(draw)
    return Response(png, media_type="image/png", headers={"X-Marked": str(marked).lower()})


def delete_document(knowledge_base: Name, document: Id, server: Server, by: By) -> None:
    """Remove it for good: from now on nothing finds it. What indexes still hold of its words goes
    with the job that this sets going; so do its original and the traces that quote it, now."""
    by.must("write", knowledge_base)
    with _head(knowledge_base, document, server, by) as (store, head):
        with store.change(reason="remove") as change:
            if store.by_id(head.id) is None:  # while the lock was another's, a new version came
                raise KeyError(head.id)
            change.remove(head.source)
        server.traces.forget_document(knowledge_base, head.id)

        def drop(digest: str) -> None:
            if all(other.digest != digest for other in store.documents()):
                Originals(server.bases.path(knowledge_base)).drop(digest)

        server.jobs.drop_unwanted(knowledge_base, head.digest, drop)
    server.jobs.purge(knowledge_base)


@contextmanager
def _head(name: str, document: str, server: State, by: Asking) -> Iterator[tuple[Store, Document]]:
    """The store, and the document's head; what is gone by now, or goes meanwhile, is unknown."""
    by.must("read", name)
    unknown = Unknown("there is no document {document}", document=document)
    with server.bases.reading(name) as pipeline:
        head = pipeline.store.by_id(document)
        if head is None:
            raise unknown
        try:
            yield pipeline.store, head
        except KeyError as gone:
            raise unknown from gone


def _shape(store: Store, head: Document) -> schemas.Document:
    return serializers.document(head, store.length(head.id))
