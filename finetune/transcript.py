"""All that an evaluation found, as one JSON value: figures, verdict, and every reply to read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isnan
from typing import Any

from finetune.evaluate.compare import Comparison
from finetune.evaluate.run import Asked
from finetune.judge import Reply
from finetune.verdict import Verdict
from ingest.errors import readable


def record(
    about: Mapping[str, Any],
    results: Sequence[Sequence[Asked]],
    comparisons: Sequence[Comparison],
    verdict: Verdict,
) -> bytes:
    """JSON in UTF-8. A value that is undefined is null."""
    value = {
        "about": dict(about),
        "verdict": asdict(verdict),
        "figures": [_defined(asdict(comparison)) for comparison in comparisons],
        "replies": [_asked(asked) for cases in results for asked in cases],
    }
    text = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False)
    return f"{readable(text)}\n".encode()


def _defined(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _defined(each) for name, each in value.items()}
    return None if isinstance(value, float) and isnan(value) else value


def _asked(asked: Asked) -> dict[str, Any]:
    case = asked.case
    return {
        "id": case.question.id,
        "condition": case.condition,
        "question": case.question.text,
        "answers": case.question.answers,
        "refusal_is_right": case.refuse,
        "passages": [
            {
                "number": number,
                "source": source.hit.chunk.source,
                "label": source.passage.label,
                "answers": number in case.gold,
                "text": source.passage.text,
            }
            for number, source in enumerate(case.sources, start=1)
        ],
        "base": _reply(asked.base),
        "adapter": _reply(asked.adapter),
    }


def _reply(reply: Reply) -> dict[str, Any]:
    return {
        "text": reply.text,
        "refused": reply.refused,
        "cited": reply.cited,
        "unsupported": [reply.text[start:end] for start, end in reply.unsupported],
        "scores": dict(reply.columns),
    }
