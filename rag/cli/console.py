"""What reaches the terminal: answers on stdout, everything else on stderr, in the reader's language."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ingest.errors import UserError
from rag.i18n import Speaker, language_of

if TYPE_CHECKING:
    from ingest.pipeline import Outcome


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


class IngestProgress:
    """A bar where a person watches; a line every few seconds where a log does."""

    def __init__(self, files: int, size: int, *, quiet: bool) -> None:
        self.files, self.size, self.quiet = files, max(1, size), quiet
        self.done = self.read = self.embedded = 0
        self.begun = self.said = monotonic()
        self.bar = None
        if sys.stderr.isatty() and not quiet:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[state]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self.task = self.bar.add_task(
                say("ingest", "入库"), total=self.size, state=self._state()
            )

    def __enter__(self) -> "IngestProgress":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar:
            self.bar.stop()

    def chunks(self, count: int) -> None:
        """`count` more chunks have been embedded."""
        self.embedded += count
        self._show()

    def file(self, outcome: "Outcome") -> None:
        """One more file is dealt with."""
        self.done += 1
        self.read += outcome.size
        self._show()

    def _state(self) -> str:
        rate = self.embedded / max(1e-9, monotonic() - self.begun)
        return say(
            f"{self.done}/{self.files} files, {self.embedded} chunks embedded, {rate:.1f}/s",
            f"{self.done}/{self.files} 个文件，已编码 {self.embedded} 块，{rate:.1f} 块/秒",
        )

    def _show(self) -> None:
        if self.bar:
            self.bar.update(self.task, completed=self.read, state=self._state())
        elif not self.quiet and monotonic() - self.said > 5:
            self.said = monotonic()
            left = (self.said - self.begun) * (self.size / self.read - 1) if self.read else None
            eta = "" if left is None else say(f", {left:.0f} s left", f"，剩余约 {left:.0f} 秒")
            note(self._state() + eta)


@contextmanager
def loading(name: str) -> Iterator[Callable[[float], None]]:
    """Shows that a model is being loaded; what comes is to be told the share done, 0 to 1."""
    title = say(f"loading {name}", f"正在载入 {name}")
    if not sys.stderr.isatty():
        note(title)
        yield lambda share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda share: bar.update(task, completed=share)
