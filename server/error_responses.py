"""Errors as answers: every 4xx and 5xx has one shape, and one line in the reader's language."""

import logging
import re
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ingest.errors import Away, Busy, UserError
from rag.endpoint.engines import Failed, Unreachable
from server import schemas
from server.errors import Conflict, Taken, Unknown, failure, speaker
from server.fair_queue import Full
from server.middleware import Denied
from server.telemetry import Metrics

log = logging.getLogger("rag.server")


CODES = {Busy: "busy", Unreachable: "model_unreachable", Away: "store_unreachable"}


class NotReady(Exception):
    """Somebody is missing whom the server needs."""


Responses = dict[int | str, dict[str, Any]]
AGAIN: dict[str, Any] = {
    "Retry-After": {"description": "Seconds", "required": True, "schema": {"type": "integer"}}
}


def responses(*statuses: int) -> Responses:
    """What a route declares that it may answer."""
    told: Responses = {status: {"model": schemas.Failure} for status in statuses}
    for status in (429, 503):
        if status in told:
            told[status]["headers"] = AGAIN
    return told


EVENT_STREAM: dict[str, Any] = {
    "text/event-stream": {
        "itemSchema": {
            "type": "object",
            "properties": {
                "event": {"type": "string"},
                "data": {"type": "string", "contentMediaType": "application/json"},
            },
            "required": ["data"],
        }
    }
}
EVERYWHERE = responses(400, 401, 403, 404, 413, 421, 422, 429)
"""What the door and the parsing of a request may answer on any route."""
UNREADY = responses(503)


def answer(
    request: Request, status: int, problem: UserError, code: str, kind: str = "invalid_request_error",
    *, param: str | None = None, headers: dict[str, str] | None = None,
) -> JSONResponse:  # fmt: skip
    said = failure(problem, speaker(request.headers), kind=kind, code=code, param=param)
    return JSONResponse(said.model_dump(), status, headers)


def methods(app: FastAPI, request: Request) -> list[str]:
    """What the path of a request can be asked with; routers know of one route each."""
    wanted = urlsplit(str(request.url)).path
    paths = app.openapi()["paths"]
    for path, operations in paths.items():
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path))
        if re.fullmatch(pattern, wanted):
            return sorted(method.upper() for method in operations)
    return ["GET"]


def install(app: FastAPI, metrics: Metrics) -> None:
    """A user's mistake is a 4xx; a bug is a 500 without details, its traceback in the log."""

    def user_error(request: Request, problem: UserError) -> JSONResponse:
        match problem:
            case Denied():
                return answer(
                    request,
                    problem.status,
                    problem,
                    problem.code,
                    "access",
                    headers=problem.headers,
                )
            case Unknown():
                return answer(request, 404, problem, "not_found")
            case Taken() | Conflict():
                code = "taken" if isinstance(problem, Taken) else "conflict"
                once = {"X-Should-Retry": "false"}  # OpenAI's client tries a 409 again
                return answer(request, 409, problem, code, headers=once)
            case Busy() | Unreachable() | Away():
                code = next(code for kind, code in CODES.items() if isinstance(problem, kind))
                again = {"Retry-After": "5"}
                return answer(request, 503, problem, code, "overloaded", headers=again)
            case Failed():
                return answer(request, 502, problem, "model_failed", "server_error")
        return answer(request, 400, problem, "mistake")

    def full(request: Request, problem: Full) -> JSONResponse:
        metrics.turned_away.labels("queue").inc()
        said = UserError(
            "too many questions are waiting; come again in {seconds} s", seconds=problem.after
        )
        again = {"Retry-After": str(problem.after)}
        return answer(request, 429, said, "queue_full", "overloaded", headers=again)

    def unready(request: Request, problem: NotReady) -> JSONResponse:
        said = UserError("the worker is being started")
        again = {"Retry-After": "2"}
        return answer(request, 503, said, "not_ready", "overloaded", headers=again)

    def invalid(request: Request, problem: RequestValidationError) -> JSONResponse:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        said = UserError("{where}: {first}", where=where, first=first["msg"])
        return answer(request, 422, said, "invalid", param=where)

    def http(request: Request, problem: HTTPException) -> JSONResponse:
        said = UserError("{detail}", detail=problem.detail)
        headers = dict(problem.headers or {})
        if problem.status_code == 405:
            headers["Allow"] = ", ".join(methods(app, request))
        return answer(request, problem.status_code, said, "http", headers=headers)

    def bug(request: Request, problem: Exception) -> JSONResponse:
        request.state.told = problem  # to the log; no one else needs to
        log.error("bug", extra={"fields": {"request": request.state.request}}, exc_info=problem)
        said = UserError(
            "an error of the server, see its log at {request}", request=request.state.request
        )
        return answer(request, 500, said, "bug", "server_error")

    for kind, handler in (
        (UserError, user_error), (Full, full), (NotReady, unready),
        (RequestValidationError, invalid), (HTTPException, http), (Exception, bug),
    ):  # fmt: skip
        app.add_exception_handler(kind, handler)  # pyright: ignore[reportArgumentType]
