"""What reaches the terminal: answers on stdout, everything else on stderr, in the reader's language."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from ingest.errors import UserError
from rag.i18n import Speaker, language_of

say = Speaker(language_of(os.environ))


def out(text: str = "") -> None:
    """A line of the result, for a person or a pipe."""
    sys.stdout.write(text + "\n")


def out_piece(text: str) -> None:
    """A piece of a line of the result, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def note(text: str) -> None:
    """A line about the work, kept out of the result."""
    sys.stderr.write(text + "\n")


def error(problem: UserError) -> None:
    """A user's mistake in one line."""
    line = " ".join(say(str(problem), problem.zh).split())
    note(say(f"rag: {line}", f"rag：{line}"))


def out_json(value: Any) -> None:
    """One JSON value on one line; text as it is, not escaped."""
    out(json.dumps(value, ensure_ascii=False))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    view = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        view.add_column(column, overflow="fold")
    for row in rows:
        view.add_row(*(Text(str(cell)) for cell in row))
    Console().print(view)
