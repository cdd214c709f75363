"""Exceptions as responses: every 4xx and 5xx has one form and the reader's language."""

import logging
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from ingest.errors import Away, Busy, UserError
from ingest.i18n import Translatable, Translator
from rag.endpoint.engines import EngineFailure, Unreachable
from rag.scope import EmptyScope
from server import schemas
from server.errors import AccessDenied, Conflict, NotFound, error_body
from server.fair_queue import QueueFull
from server.telemetry import Metrics

log = logging.getLogger("rag.server")


class NotReady(UserError):
    """The server is starting."""


LIMITS = ("max_length", "ge", "gt", "le", "lt", "expected")
"""Names of limits in pydantic's errors."""
NO_RETRY = {"X-Should-Retry": "false"}  # OpenAI's client repeats a request after a 409
RETRY_SOON = {"Retry-After": "5"}
STATUSES: dict[type[UserError], tuple[int, str, str, dict[str, str]]] = {
    NotFound: (404, "not_found", "invalid_request_error", {}),
    EmptyScope: (404, "empty_scope", "invalid_request_error", {}),
    Conflict: (409, "conflict", "invalid_request_error", NO_RETRY),
    Busy: (503, "busy", "overloaded", RETRY_SOON),
    Unreachable: (503, "model_unreachable", "overloaded", RETRY_SOON),
    Away: (503, "store_unreachable", "overloaded", RETRY_SOON),
    EngineFailure: (502, "model_failed", "server_error", {}),
    NotReady: (503, "not_ready", "overloaded", {"Retry-After": "2"}),
    UserError: (400, "mistake", "invalid_request_error", {}),
}
"""Status, code, type and headers for each kind of error; the first that matches applies."""

Responses = dict[int | str, dict[str, Any]]
RETRY_AFTER: dict[str, Any] = {
    "Retry-After": {"description": "Seconds", "required": True, "schema": {"type": "integer"}}
}
_EVENT = {"event": {"type": "string"}, "data": {"type": "string", "contentMediaType": "application/json"}}
EVENT_STREAM: dict[str, Any] = {
    "text/event-stream": {"itemSchema": {"type": "object", "properties": _EVENT, "required": ["data"]}}
}


def responses(*statuses: int) -> Responses:
    """The error responses that a route declares in the OpenAPI document."""
    declared: Responses = {status: {"model": schemas.ErrorResponse} for status in statuses}
    for status in {429, 503} & {*statuses}:
        declared[status]["headers"] = RETRY_AFTER
    return declared


COMMON_RESPONSES = responses(400, 401, 403, 404, 413, 421, 422, 429)
"""What the middleware and the validation of a request may answer on any route."""


def error_response(
    say: Translator, status: int, problem: UserError, code: str, kind: str = "invalid_request_error",
    *, param: str | None = None, headers: dict[str, str] | None = None,
) -> JSONResponse:  # fmt: skip
    """The response in the language of `say`."""
    body = error_body(problem, say, code, kind=kind, param=param)
    return JSONResponse(body.model_dump(), status, headers)


@cache
def _wrong_values() -> dict[str, str]:
    return tomllib.loads(Path(__file__).with_name("wrong_values.toml").read_text("utf-8"))


def install_error_handlers(app: FastAPI, routers: Sequence[APIRouter], metrics: Metrics) -> None:
    """A user's mistake is a 4xx; a bug is a 500 without details, its traceback in the log."""
    routes = [route for router in routers for route in router.routes if isinstance(route, Route)]

    def user_error(request: Request, problem: UserError) -> JSONResponse:
        if isinstance(problem, AccessDenied):
            status, code, kind, headers = problem.status, problem.code, "access", problem.headers
        elif isinstance(problem, QueueFull):
            metrics.rejections.labels("queue").inc()
            status, code, kind = 429, "queue_full", "overloaded"
            headers = {"Retry-After": str(problem.seconds)}
        else:
            status, code, kind, headers = next(
                response for error, response in STATUSES.items() if isinstance(problem, error)
            )
        return error_response(request.state.say, status, problem, code, kind, headers=headers)

    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first, names = error.errors()[0], request.scope["route"].path.startswith("/v1/")
        field = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        limit = next((value for name, value in first.get("ctx", {}).items() if name in LIMITS), "")
        words = _wrong_values().get(first["type"], _wrong_values()["other"])
        problem = UserError(
            "{field} {problem}", field=field, problem=Translatable.of(words, {"limit": limit})
        )
        status = 400 if names else 422  # as OpenAI's clients expect
        return error_response(request.state.say, status, problem, "invalid", param=field)

    def http(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        same = [each for each in routes if each.matches(request.scope)[0] is Match.PARTIAL]
        if methods := {method for each in same for method in each.methods or ()}:
            headers["Allow"] = ", ".join(sorted(methods))  # a router knows only those of one route
        problem = UserError("{problem}", problem=error.detail)
        return error_response(request.state.say, error.status_code, problem, "http", headers=headers)

    def bug(request: Request, error: Exception) -> JSONResponse:
        number = request.state.request
        request.state.logged = error  # so that the middleware does not raise it again
        log.error("bug", extra={"fields": {"request": number}}, exc_info=error)
        problem = UserError("internal server error; see request {number} in the log", number=number)
        return error_response(request.state.say, 500, problem, "bug", "server_error")

    for kind, handler in (
        (UserError, user_error), (RequestValidationError, invalid), (HTTPException, http),
        (Exception, bug),
    ):  # fmt: skip
        app.add_exception_handler(kind, handler)  # pyright: ignore[reportArgumentType]
