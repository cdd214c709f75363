"""The application: routes, page and tools behind one door."""

import logging
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp

from ingest.errors import UserError
from server import mcp_tools
from server.auth import Keys
from server.error_responses import EVERYWHERE, install
from server.middleware import Attended, Guard, protocol
from server.models import Models, loader
from server.options import ServerOptions
from server.routes import ask, knowledge_bases, openai, system
from server.state import State
from server.telemetry import Spans, log_json
from server.worker import Crew

WEB = Path(__file__).parent / "web"
LARGEST_BODY = 4_000_000  # bytes of a request that is no upload


def application(state: State) -> FastAPI:
    """The API and the page, for whoever is let in."""
    tools = mcp_tools.application(state)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(tools.router.lifespan_context(tools))
            yield

    provider = state.answering.spans.provider
    app = FastAPI(
        title="chatglm-rag",
        version=version("chatglm-rag"),
        description="Questions about your documents, answered with sources.",
        docs_url=None,  # their pages fetch scripts from elsewhere
        redoc_url=None,
        max_body_size=LARGEST_BODY,
        lifespan=lifespan,
        responses=EVERYWHERE,
        generate_unique_id_function=lambda route: route.name,
        telemetry={"tracer_provider": provider} if provider else None,
    )
    app.state.server = state
    described = app.openapi

    def openapi() -> dict[str, Any]:
        """With keys as the way in, where they are in use."""
        document = described()
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}] if state.keys.in_use else [{"key": []}, {}]
        return document

    app.openapi = openapi
    install(app, state.metrics)
    for router in (
        system.router, ask.router, knowledge_bases.router, knowledge_bases.documents_router(state.options), system.jobs_router,
        system.traces_router, openai.router,
    ):  # fmt: skip
        app.include_router(router)

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(WEB / "index.html", headers={"cache-control": "no-cache"})

    app.mount("/web", StaticFiles(directory=WEB), name="web")
    app.router.routes.extend(tools.routes)
    return app


def guarded(app: FastAPI, state: State) -> ASGIApp:
    """The application behind its door."""
    attended = Attended(app, state.options.patience)
    return Guard(attended, state.options, state.keys, state.metrics)


BACKLOG = 512
GRACE = 20  # seconds that answers under way get at the end


def serve(
    options: ServerOptions,
    *,
    spans: Spans,
    told: Callable[[str], None],
    note: Callable[[str], None],
) -> None:
    """Serve until a signal ends it; `told` gets the address once it listens. Answers under way are
    finished, jobs under way wait for the next start."""
    log_json(logging.INFO)
    signal.signal(signal.SIGTERM, _end)  # uvicorn raises it once more when it is done
    crew = Crew(options)
    models = Models(loader(options.cache, note))
    with closing(State.made(options, models, spans=spans, worker_alive=crew.alive)) as state:
        check_door(options, state.keys)
        with closing(listen(options)) as listening, crew:
            tempfile.tempdir = str(state.member.folder)  # uploads wait where there is room for them
            host, port = listening.getsockname()[:2]
            told(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
            uvicorn.Server(configuration(state)).run(sockets=[listening])


def configuration(state: State) -> uvicorn.Config:
    """How uvicorn is to run the application. It believes no header about who the client is."""
    return uvicorn.Config(
        guarded(application(state), state),
        http=protocol(state.options.patience),
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACE,
        ws="none",
    )


def listen(options: ServerOptions) -> socket.socket:
    """A socket at the options' address; `UserError` where that is taken or not this machine's."""
    try:
        family = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][0]
        # Named, so that asyncio knows TCP from others and sends small packets at once (TCP_NODELAY).
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((options.host, options.port))
        listening.listen(BACKLOG)
    except OSError as error:
        why = error.strerror or str(error)
        raise UserError(
            "can't listen at {host} port {port}: {why}; choose another with --port",
            host=options.host,
            port=options.port,
            why=why,
        ) from error
    return listening


def check_door(options: ServerOptions, keys: Keys) -> None:
    """Raises `UserError` where others could come in without a key."""
    if not options.on_loopback and not keys.usable:
        raise UserError(
            "{host} can be reached from other machines and there is no key; make one first: rag "
            "keys create NAME --scope read",
            host=options.host,
        )


def _end(number: int, frame: FrameType | None) -> None:
    """As an end that was asked for: whatever is open is closed on the way out."""
    raise SystemExit(0)
