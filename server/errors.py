"""Mistakes that have a status of their own."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from ingest.errors import Away, UserError
from ingest.i18n import Language, Translatable, Translator
from ingest.store import SCHEMES
from server import schemas


class Unknown(UserError):
    """There is no such knowledge base, document, job or answer."""


class Taken(UserError):
    """There is one of that name already."""


class Conflict(UserError):
    """What is wanted does not fit the knowledge base or the server as they are."""


def no_base(name: str) -> Unknown:
    return Unknown("there is no knowledge base {name}", name=name[:80])


log = logging.getLogger("rag.server")

_ADDRESS = re.compile(rf"(?:{'|'.join(map(re.escape, SCHEMES))})://[\w.:/?=\[\]-]+")


def speaker(headers: Mapping[str, str]) -> Translator:
    """What `Accept-Language` prefers: Chinese where it is named before English, else English."""
    return Translator(preferred(headers.get("accept-language", "")))


def preferred(accepted: str) -> Language:
    weights: dict[str, float] = {}
    for part in accepted.split(",")[:20]:
        tag, _, weight = part.strip().partition(";q=")
        language = tag.partition("-")[0].lower()
        try:
            weights.setdefault(language, float(weight or 1))
        except ValueError:
            continue
    return "zh" if weights.get("zh", 0) > weights.get("en", 0) else "en"


def below(folder: Path, problem: UserError) -> None:
    """Name what a problem names in `folder` as seen from there, and no server: clients are told.

    Why a server does not answer stands in the log alone.
    """
    if isinstance(problem, Away):
        log.warning("store", extra={"fields": {"problem": str(problem)}})
        problem.message = Translatable(
            "the server that keeps this knowledge base does not answer; try again later"
        )
        problem.args = (str(problem.message),)
        return

    def hidden(value: object) -> object:
        if isinstance(value, int | float):
            return value
        text = str(value)
        if _ADDRESS.fullmatch(text):
            return Translatable("its server")
        return _ADDRESS.sub("…", text.replace(f"{folder}/", ""))

    problem.replace_fields(hidden)


def failure(
    problem: UserError, say: Translator, *, kind: str, code: str, param: str | None = None
) -> schemas.Failure:
    message = " ".join(say(problem.message).split())
    return schemas.Failure(
        error=schemas.Problem(message=message, type=kind, param=param, code=code)
    )
