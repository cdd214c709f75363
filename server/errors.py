"""Errors that have an HTTP status of their own, and how errors are shown to clients."""

import logging
import re
from pathlib import Path

from ingest.errors import Away, UserError
from ingest.i18n import Translatable, Translator
from ingest.store import SCHEMES
from server import schemas

log = logging.getLogger("rag.server")


class NotFound(UserError):
    """There is no such knowledge base, document, job or answer."""


class Conflict(UserError):
    """The request contradicts the present state of the knowledge base or the server."""


class AccessDenied(UserError):
    """A request that the middleware or a route rejects with `status`."""

    def __init__(self, status: int, code: str, message: Translatable, **headers: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def unknown_base(name: str) -> NotFound:
    return NotFound("there is no knowledge base {name}", name=name[:80])


def missing_scope(scope: str) -> AccessDenied:
    message = Translatable("this needs a key with the scope {scope}", scope=scope)
    return AccessDenied(403, "insufficient_scope", message)


_ADDRESS = re.compile(rf"(?:{'|'.join(map(re.escape, SCHEMES))})://")


def hide_locations(problem: UserError, folder: Path) -> None:
    """Rewrite the fields of an error that clients will see: no server's address, and no path to
    the data folder. The reason why a server does not answer is only logged."""
    if isinstance(problem, Away):
        log.warning("store", extra={"fields": {"problem": str(problem)}})
        problem.message = Translatable(
            "the server that keeps this knowledge base does not answer; try again later"
        )
        problem.args = (str(problem.message),)
        return

    def hide(value: object) -> object:
        if isinstance(value, int | float):
            return value
        if _ADDRESS.search(str(value)):
            return Translatable("its server")
        return str(value).replace(f"{folder}/", "")

    problem.replace_fields(hide)


def error_body(
    problem: UserError, say: Translator, code: str, *, kind: str = "invalid_request_error",
    param: str | None = None,
) -> schemas.ErrorResponse:  # fmt: skip
    message = " ".join(say(problem.message).split())
    detail = schemas.ErrorDetail(message=message, type=kind, param=param, code=code)
    return schemas.ErrorResponse(error=detail)
