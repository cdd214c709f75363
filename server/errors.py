"""Mistakes that have a status of their own."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from ingest.errors import Away, UserError
from ingest.store import SCHEMES
from rag.i18n import Language, Speaker
from server import schemas


class Unknown(UserError):
    """There is no such knowledge base, document, job or answer."""


class Taken(UserError):
    """There is one of that name already."""


class Unfit(UserError):
    """What is wanted does not fit the knowledge base or the server as they are."""


def no_base(name: str) -> Unknown:
    return Unknown(f"there is no knowledge base {name[:80]}", zh=f"没有知识库 {name[:80]}")


log = logging.getLogger("rag.server")

_ADDRESS = re.compile(rf"(?:{'|'.join(map(re.escape, SCHEMES))})://[\w.:/?=\[\]-]+")


def speaker(headers: Mapping[str, str]) -> Speaker:
    """What `Accept-Language` prefers: Chinese where it is named before English, else English."""
    return Speaker(preferred(headers.get("accept-language", "")))


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
        problem.args = (
            "the server that keeps this knowledge base does not answer; try again later",
        )
        problem.zh = "存放该知识库的服务器没有响应；请稍后再试"
        return
    problem.args = (_ADDRESS.sub("its server", str(problem).replace(f"{folder}/", "")),)
    problem.zh = _ADDRESS.sub("其服务器", problem.zh.replace(f"{folder}/", ""))


def failure(
    problem: UserError, say: Speaker, *, kind: str, code: str, param: str | None = None
) -> schemas.Failure:
    message = " ".join(say(str(problem), problem.zh).split())
    return schemas.Failure(
        error=schemas.Problem(message=message, type=kind, param=param, code=code)
    )
