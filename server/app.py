"""The application (routes, page, MCP tools, middleware) and the process that serves it."""

import logging
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from ingest.errors import UserError
from ingest.files import FORMATS
from server import mcp_tools, schemas
from server.error_responses import COMMON_RESPONSES, NotReady, install_error_handlers, responses
from server.middleware import AccessMiddleware, Context, DisconnectMiddleware, protocol
from server.models import Models, model_loader
from server.options import ServerOptions, adapter_names
from server.routes import ask, knowledge_bases, openai
from server.state import ServerState
from server.telemetry import SPANS, log_json
from server.worker import WorkerSupervisor

WEB = Path(__file__).parent / "web"
MAX_BODY = 4_000_000  # bytes of a request that is not an upload
BACKLOG = 512
SHUTDOWN_TIMEOUT = 20  # seconds that running answers get at the end

router = APIRouter(tags=["server"])
NO_KEY: dict[str, Any] = {"security": []}


@router.get("/healthz", openapi_extra=NO_KEY)
async def healthz() -> schemas.StatusResponse:
    """Whether the process answers."""
    return schemas.StatusResponse(status="ok")


@router.get("/readyz", responses=responses(503), openapi_extra=NO_KEY)
async def readyz(context: Context) -> schemas.StatusResponse:
    """Whether questions are answered and jobs are worked on."""
    if not context.state.ready():
        raise NotReady("the server is starting; try again soon")
    return schemas.StatusResponse(status="ready")


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(context: Context) -> Response:
    """Metrics in the text format of Prometheus."""
    context.require("read")
    return Response(context.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/session")
def session(context: Context) -> schemas.SessionResponse:
    """What the key may do, and what this server offers."""
    options, who = context.state.options, context.who
    return schemas.SessionResponse(
        key=who.name or None, scopes=who.highest, embedders=list(options.embedders),
        adapters=adapter_names(options.adapters), formats=sorted(FORMATS),
        largest_upload=options.largest_upload, most_files=options.most_files,
        version=version("chatglm-rag"),
    )  # fmt: skip


def create_app(state: ServerState) -> FastAPI:
    """The API, the page and the MCP tools, without middleware."""
    tools = mcp_tools.http_app(state)
    app = FastAPI(
        title="chatglm-rag", version=version("chatglm-rag"),
        description="Questions about your documents, answered with sources.",
        docs_url=None, redoc_url=None,  # those pages load scripts from other sites; ours is docs.html
        max_body_size=MAX_BODY, responses=COMMON_RESPONSES,
        lifespan=lambda _: tools.router.lifespan_context(tools),  # pyright: ignore[reportArgumentType]
        generate_unique_id_function=lambda route: route.name,
        telemetry=SPANS,
    )  # fmt: skip
    app.state.server = state
    default_openapi = app.openapi

    def openapi() -> dict[str, Any]:
        """The default document, and keys as the security scheme: required if there are any."""
        document = default_openapi()
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}] if state.keys.in_use else [{"key": []}, {}]
        return document

    app.openapi = openapi
    documents = knowledge_bases.documents_router(state.options)
    routers = (
        router, ask.router, knowledge_bases.router, documents, knowledge_bases.jobs_router, openai.router,
    )  # fmt: skip
    install_error_handlers(app, routers, state.metrics)
    for each in routers:
        app.include_router(each)

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(WEB / "index.html", headers={"cache-control": "no-cache"})

    @app.get("/docs", include_in_schema=False)
    def reference() -> FileResponse:
        return FileResponse(WEB / "docs.html", headers={"cache-control": "no-cache"})

    app.mount("/web", StaticFiles(directory=WEB), name="web")
    app.router.routes.extend(tools.routes)
    return app


def serve(
    options: ServerOptions, *, on_ready: Callable[[str], None], note: Callable[[str], None], prepare: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Serve until a signal arrives; `on_ready` gets the address. Running answers are finished;
    unfinished jobs wait for the next start. `prepare` runs beside it; the server is not ready before
    that has ended. Raises `UserError` if other machines could use the server without a key."""
    log_json(logging.INFO)
    # An exception closes everything. uvicorn raises the signal again after its own shutdown.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    supervisor = WorkerSupervisor(options)
    models = Models(model_loader(options.cache, note))
    preparation = threading.Thread(target=prepare, daemon=True)

    def ready() -> bool:
        return supervisor.alive() and not preparation.is_alive()

    with closing(ServerState(options, models, ready=ready)) as state:
        if not options.on_loopback and not state.keys.usable:
            raise UserError(
                "{host} can be reached from other machines and there is no key; create one first: "
                "rag keys create NAME --scope read",
                host=options.host,
            )
        with closing(listen(options)) as listener, supervisor:
            tempfile.tempdir = str(state.replica.folder)  # uploads need the data folder's space
            host, port = listener.getsockname()[:2]
            preparation.start()
            on_ready(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
            uvicorn.Server(uvicorn_config(state)).run(sockets=[listener])


def uvicorn_config(state: ServerState) -> uvicorn.Config:
    """How uvicorn runs the application. Headers about the client's address are ignored."""
    app: ASGIApp = AccessMiddleware(create_app(state), state.options, state.keys, state.metrics)
    if origins := state.options.origins:
        app = CORSMiddleware(app, origins, allow_methods=["*"], allow_headers=["*"])
    return uvicorn.Config(
        DisconnectMiddleware(app, state.options.patience),
        http=protocol(state.options.patience), ws="none", access_log=False, log_config=None,
        server_header=False, proxy_headers=False, timeout_keep_alive=30,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT,
    )  # fmt: skip


def listen(options: ServerOptions) -> socket.socket:
    """A listening socket. Raises `UserError` if the address is in use or not of this machine."""
    try:
        family = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][0]
        # asyncio sends small packets at once (TCP_NODELAY) only if it knows that this is TCP.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((options.host, options.port))
        listener.listen(BACKLOG)
    except OSError as error:
        raise UserError(
            "can't listen at {host} port {port}: {reason}; choose another port with --port",
            host=options.host, port=options.port, reason=error.strerror or str(error),
        ) from error  # fmt: skip
    return listener
