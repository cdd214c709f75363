"""The reader's language, and errors in it."""

from collections.abc import Mapping
from pathlib import Path

from ingest.errors import UserError
from rag.language import Language, Speaker
from server import schemas


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
    """Name what a problem names in `folder` as seen from there: clients are told of it."""
    problem.args = (str(problem).replace(f"{folder}/", ""),)
    problem.zh = problem.zh.replace(f"{folder}/", "")


def failure(
    problem: UserError, say: Speaker, *, kind: str, code: str, param: str | None = None
) -> schemas.Failure:
    message = " ".join(say(str(problem), problem.zh).split())
    return schemas.Failure(
        error=schemas.Problem(message=message, type=kind, param=param, code=code)
    )
