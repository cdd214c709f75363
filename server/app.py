"""The application: routes, page and tools behind one door."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp

from server import mcp_tools
from server.clients import Attended
from server.error_responses import EVERYWHERE, install
from server.middleware import Guard
from server.routes import ask, bases, jobs, knowledge_bases, openai, system, traces
from server.state import State

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
        system.router, ask.router, bases.router, knowledge_bases.documents_router(state.options), jobs.router,
        traces.router, openai.router,
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
