"""/knowledge-bases, their documents, and /jobs."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import sleep
from typing import Annotated, Literal

from fastapi import APIRouter, File, Path, Query, Response, UploadFile
from fastapi.responses import FileResponse

from ingest.errors import UserError
from ingest.store import Store
from ingest.types import Document
from server import schemas
from server.error_responses import responses
from server.errors import NotFound
from server.fair_queue import in_thread
from server.middleware import Context
from server.options import ServerOptions
from server.uploads import SOURCE_PREFIX, PageImage, Upload, Uploads, ingested_file, printable_name

router = APIRouter(prefix="/knowledge-bases", tags=["knowledge bases"])
jobs_router = APIRouter(prefix="/jobs", tags=["jobs"])
Name = Annotated[str, Path(pattern=schemas.NAME_PATTERN)]
Id = Annotated[str, Path(pattern="^[0-9a-f]{24}$")]
Offset = Annotated[int, Query(ge=0, le=2**53)]
MAX_TEXT = 200_000  # characters of one response
POLL_INTERVAL = 0.05  # seconds between two checks whether a worker has stopped


@router.get("")
def list_bases(context: Context) -> schemas.KnowledgeBaseListResponse:
    """The knowledge bases that the key may read."""
    bases = context.state.knowledge_bases.describe_all(context.who, context.say)
    return schemas.KnowledgeBaseListResponse(knowledge_bases=bases)


@router.post("", status_code=201, responses=responses(409))
def create_base(body: schemas.CreateKnowledgeBaseRequest, context: Context) -> schemas.KnowledgeBaseResponse:
    """Create an empty knowledge base."""
    context.require("admin", body.name)
    context.state.knowledge_bases.create(body)
    return context.state.knowledge_bases.describe(body.name, context.who)


@router.get("/{knowledge_base}", responses=responses(503))
def get_base(knowledge_base: Name, context: Context) -> schemas.KnowledgeBaseResponse:
    context.require("read", knowledge_base)
    return context.state.knowledge_bases.describe(knowledge_base, context.who)


@router.patch("/{knowledge_base}", responses=responses(409, 503))
def change_base(
    knowledge_base: Name, body: schemas.ChangeKnowledgeBaseRequest, context: Context,
) -> schemas.KnowledgeBaseResponse:  # fmt: skip
    """Change the instruction or the adapter. Fields that are left out stay as they are."""
    context.require("admin", knowledge_base)
    context.state.knowledge_bases.change(knowledge_base, body)
    return context.state.knowledge_bases.describe(knowledge_base, context.who)


@router.delete("/{knowledge_base}", status_code=204, responses=responses(503))
def delete_base(knowledge_base: Name, context: Context) -> None:
    """Delete it with its documents, uploads and traces, and cancel its jobs."""
    context.require("admin", knowledge_base)
    bases, jobs = context.state.knowledge_bases, context.state.jobs
    bases.path(knowledge_base)
    jobs.cancel_all(knowledge_base)
    # A running job would continue in a new knowledge base of the same name.
    while jobs.is_running(knowledge_base):
        sleep(POLL_INTERVAL)
        jobs.cancel_all(knowledge_base)
    bases.delete(knowledge_base)
    context.state.traces.delete_knowledge_base(knowledge_base)


def documents_router(options: ServerOptions) -> APIRouter:
    """The routes of documents, with the operator's limits of uploads."""
    routes = APIRouter(prefix="/knowledge-bases/{knowledge_base}/documents", tags=["documents"])
    routes.post(
        "", status_code=202, responses=responses(503), max_body_size=options.largest_batch,
        form_limits={"max_files": options.most_files, "max_fields": 100},
    )(upload)  # fmt: skip
    routes.get("")(list_documents)
    routes.get("/{document}")(get_document)
    routes.get("/{document}/text")(get_text)
    routes.get("/{document}/file", response_class=FileResponse)(get_file)
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
    context: Context,
) -> schemas.JobResponse:
    """Receive files and return the job that ingests them. A file replaces the document of the same
    name."""
    context.require("write", knowledge_base)
    state, jobs = context.state, context.state.jobs
    uploads = Uploads(state.knowledge_bases.path(knowledge_base))
    job = jobs.create_upload(knowledge_base, state.replica.name)
    try:
        for file in files:
            try:
                uploads.save(
                    file.filename or "",
                    file.file,
                    limit=state.options.largest_upload,
                    register=lambda upload: jobs.add_file(job, upload),
                )
            except UserError as problem:
                jobs.add_file(job, Upload(printable_name(file.filename or ""), "", 0), problem)
        jobs.queue(job)
    except BaseException:
        jobs.cancel(job)
        raise
    return get_job(job, context)


@router.post("/{knowledge_base}/reread", status_code=202, responses=responses(503))
def reread(knowledge_base: Name, body: schemas.RereadRequest, context: Context) -> schemas.JobResponse:
    """Read uploaded documents again, though their bytes are the same. Others are left out."""
    context.require("write", knowledge_base)
    jobs, bases = context.state.jobs, context.state.knowledge_bases
    with bases.open(knowledge_base) as pipeline:
        heads = [head for each in body.documents if (head := pipeline.store.by_id(each))]
    job = jobs.create_upload(knowledge_base, context.state.replica.name, "reread")
    for head in heads:
        status = Uploads(bases.path(knowledge_base)).status(head)
        if status and head.source.startswith(SOURCE_PREFIX):
            jobs.add_file(job, Upload(head.source.removeprefix(SOURCE_PREFIX), head.digest, status[0]))
    jobs.queue(job)
    return get_job(job, context)


def list_documents(
    knowledge_base: Name, context: Context,
    q: Annotated[str, Query(max_length=200, description="Part of a name or title")] = "",
    sort: Literal["name", "size", "added"] = "name",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100, offset: Offset = 0,
) -> schemas.DocumentListResponse:  # fmt: skip
    """The documents, sorted by name, or the largest or newest first."""
    context.require("read", knowledge_base)
    with context.state.knowledge_bases.open(knowledge_base) as pipeline:
        store, part = pipeline.store, q.casefold()
        names = {each: schemas.name_of(each.source) for each in store.documents()}
        found = [each for each in names if part in f"{names[each]}\n{each.title}".casefold()]
        found.sort(key=lambda each: names[each].casefold())
        status = Uploads(context.state.knowledge_bases.path(knowledge_base)).status
        if sort != "name":
            found.sort(
                key=lambda each: (status(each) or (0, each.report.ingested))[sort == "added"], reverse=True
            )
        documents = [
            schemas.DocumentResponse.of(each, store.length(each.id), status(each), context.say)
            for each in found[offset : offset + limit]
        ]
        return schemas.DocumentListResponse(documents=documents, total=len(found))


def get_document(knowledge_base: Name, document: Id, context: Context) -> schemas.DocumentResponse:
    with _open_document(knowledge_base, document, context) as (store, head):
        uploads = Uploads(context.state.knowledge_bases.path(knowledge_base))
        return schemas.DocumentResponse.of(head, store.length(head.id), uploads.status(head), context.say)


def get_file(knowledge_base: Name, document: Id, context: Context) -> FileResponse:
    """The file that was read, to be downloaded: its bytes are not to be trusted."""
    with _open_document(knowledge_base, document, context) as (_, head):
        path = ingested_file(context.state.knowledge_bases.path(knowledge_base), head)
        return FileResponse(
            path, media_type="application/octet-stream", filename=schemas.name_of(head.source)
        )


def get_text(
    knowledge_base: Name, document: Id, context: Context, start: Offset = 0,
    end: Annotated[int | None, Query(ge=0, le=2**53)] = None,
) -> schemas.TextResponse:  # fmt: skip
    """Characters [start, end) of the text, at most 200,000; the response has the actual `end`."""
    with _open_document(knowledge_base, document, context) as (store, head):
        length = store.length(head.id)
        start = min(start, length)
        end = max(start, min(length if end is None else end, length, start + MAX_TEXT))
        text = store.text(head.id, start, end)
        return schemas.TextResponse(text=text, start=start, end=end, length=length)


async def get_page(
    knowledge_base: Name, document: Id, number: Annotated[int, Path(ge=1, le=1_000_000)],
    context: Context, start: Offset = 0, end: Offset = 0,
) -> Response:  # fmt: skip
    """A page as a picture, with characters [start, end) of the text marked if they are found.
    `X-Mark-Top` is the part of the height above the mark, `X-Pages` the number of pages."""

    def draw() -> PageImage:
        with _open_document(knowledge_base, document, context) as (store, head):
            passage = store.text(head.id, start, min(end, start + MAX_TEXT)) if end > start else ""
            folder = context.state.knowledge_bases.path(knowledge_base)
            return context.state.pages.draw(folder, head, number, passage)

    async with context.state.page_queue.slot(context.who.id):
        png, pages, top = await in_thread(draw)
    headers = {"X-Pages": str(pages)} | ({} if top is None else {"X-Mark-Top": f"{top:.4f}"})
    return Response(png, media_type="image/png", headers=headers)


def delete_document(knowledge_base: Name, document: Id, context: Context) -> None:
    """Delete a document, its uploaded file and the traces that quote it. Nothing finds it any more;
    a job removes its remaining words from the indexes."""
    context.require("write", knowledge_base)
    with _open_document(knowledge_base, document, context) as (store, head):
        with store.change(reason="remove") as change:
            if store.by_id(head.id) is None:  # replaced while another process held the lock
                raise KeyError(head.id)
            change.remove(head.source)
        context.state.traces.delete_documents(knowledge_base, [head.id])

        def delete(digest: str) -> None:
            if all(other.digest != digest for other in store.documents()):
                Uploads(context.state.knowledge_bases.path(knowledge_base)).delete(digest)

        context.state.jobs.delete_unless_needed(knowledge_base, head.digest, delete)
    context.state.jobs.queue_purge(knowledge_base)


@contextmanager
def _open_document(name: str, document: str, context: Context) -> Iterator[tuple[Store, Document]]:
    """The store and the document. Raises `NotFound`, also if it is deleted during the block."""
    context.require("read", name)
    missing = NotFound("there is no document {document}", document=document)
    with context.state.knowledge_bases.open(name) as pipeline:
        head = pipeline.store.by_id(document)
        if head is None:
            raise missing
        try:
            yield pipeline.store, head
        except KeyError as error:
            raise missing from error


@jobs_router.get("")
def list_jobs(
    context: Context, knowledge_base: Annotated[str | None, Query(pattern=schemas.NAME_PATTERN)] = None
) -> schemas.JobListResponse:
    """The newest 200 jobs that the key may read, newest first."""
    jobs = context.state.jobs
    bases = [knowledge_base] if knowledge_base else context.state.knowledge_bases.names()
    rows = jobs.newest(base for base in bases if context.who.may("read", base))
    found = [schemas.JobResponse.of(row, jobs.files(row["id"]), context.say) for row in rows]
    return schemas.JobListResponse(jobs=found)


@jobs_router.get("/{job}")
def get_job(job: Id, context: Context) -> schemas.JobResponse:
    row = context.state.jobs.get(job)
    if row is None or not context.who.may("read", row["base"]):
        raise NotFound("there is no job {job}", job=job)
    return schemas.JobResponse.of(row, context.state.jobs.files(job), context.say)


@jobs_router.post("/{job}/cancel")
def cancel_job(job: Id, context: Context) -> schemas.JobResponse:
    """End a job soon. Documents that were ingested stay; an ended job does not change."""
    context.require("write", get_job(job, context).knowledge_base)
    context.state.jobs.cancel(job)
    return get_job(job, context)
