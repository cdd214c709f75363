"""What is logged: one JSON object a line, of which none holds what was asked, answered, uploaded or keyed."""

import json
import logging
import sys
import traceback

QUIET = ("uvicorn", "uvicorn.error", "mcp", "httpx", "httpx2", "asyncio")


class JsonLines(logging.Formatter):
    """A traceback names places in the code and kinds of errors; their messages may hold text of
    documents, and are left out."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        line = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "event": record.getMessage().strip(),
            **fields,
        }
        if record.exc_info and record.exc_info[1]:
            line["traceback"] = _places(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False)


def _places(error: BaseException) -> str:
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    first = f"{_places(before)}then\n" if before else ""
    return f"{first}{''.join(traceback.format_tb(error.__traceback__))}{type(error).__qualname__}\n"


def log_json(level: int) -> None:
    """All logging of this process to standard error, from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
