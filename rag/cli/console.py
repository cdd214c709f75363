"""What reaches the terminal: answers on stdout, everything else on stderr, in the reader's language."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any, LiteralString, Self

from ingest.errors import UserError
from ingest.i18n import Translatable, Translator, language_of, translate

if TYPE_CHECKING:
    from rich.console import Console

    from ingest.chunk import Span
    from ingest.pipeline import FileOutcome

say = Translator(language_of(os.environ))


def out(text: str = "") -> None:
    """A line of the result, for a person or a pipe."""
    sys.stdout.write(text + "\n")


def out_piece(text: str) -> None:
    """A piece of a line of the result, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def bold(text: str, span: "Span | None") -> str:
    """The text with characters [start, end) in bold, if a person reads it on a terminal."""
    if not span or not sys.stdout.isatty():
        return text
    start, end = span
    return f"{text[:start]}\x1b[1m{text[start:end]}\x1b[22m{text[end:]}"


def note(text: str) -> None:
    """A line about the work, kept out of the result; a message in the reader's language."""
    sys.stderr.write(translate(text, say.language) + "\n")


def out_message(template: LiteralString | Translatable, /, **fields: object) -> None:
    """A line of the result in the reader's language."""
    out(say(template, **fields))


def note_message(template: LiteralString | Translatable, /, **fields: object) -> None:
    """A line about the work in the reader's language."""
    note(say(template, **fields))


def error(problem: UserError) -> None:
    """A user's mistake in one line."""
    line = " ".join(say(problem.message).split())
    note_message("rag: {line}", line=line)


def out_json(value: Any) -> None:
    """One JSON value on one line; text as it is, not escaped."""
    out(json.dumps(value, ensure_ascii=False))


def console(*, stderr: bool = False) -> "Console":
    """rich's terminal, for what needs colours or redraws itself."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout; cells that are messages in the reader's language."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    view = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        view.add_column(column, overflow="fold")
    for row in rows:
        view.add_row(
            *(Text(translate(cell if isinstance(cell, str) else str(cell), say.language)) for cell in row)
        )
    console().print(view)


class Progress:
    """A bar if a person watches stderr, else a line at most every `every` seconds.

    Both hold the title, how much is done, and the time left. `total` None: it is not known how much
    there is to do. Nothing is shown if `quiet`. `stays`: the bar is left on the screen at the end.
    """

    def __init__(
        self,
        title: str,
        total: float | None = None,
        *,
        quiet: bool = False,
        every: float = 5.0,
        stays: bool = False,
    ) -> None:
        self.title, self.total, self.quiet = title, total, quiet
        self.start = self.shown = monotonic()
        self.every = every
        self.bar = None
        if sys.stderr.isatty() and not quiet:
            from rich import progress

            self.every = min(every, 0.1)
            self.bar = progress.Progress(
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(),
                progress.TextColumn("{task.fields[text]}", markup=False),
                console=console(stderr=True),
                transient=not stays,
            )
            self.task = self.bar.add_task(title, total=total, text="")

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def __call__(self, done: float, text: str = "", *, left: float | None = None) -> None:
        """So much of `total` is done. `text` says it in words, default: the numbers. `left`: seconds
        to go, default: by the speed so far."""
        now = monotonic()
        if self.quiet or now - self.shown < self.every:
            return
        self.shown = now
        text = text or (f"{done:,.0f}/{self.total:,.0f}" if self.total else f"{done:,.0f}")
        if left is None and self.total and done:
            left = (now - self.start) * (self.total / done - 1)
        if left is not None:
            text += say(", {clock} left", clock=timedelta(seconds=int(left)))
        if self.bar:
            self.bar.update(self.task, completed=done, total=self.total, text=text)
        else:
            note(say("{title}: {text}", title=self.title, text=text) if self.title else text)


@contextmanager
def counting(title: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """Shows how many of `total` are done; call what it gives as each is done."""
    with Progress(title, total) as progress:
        numbers = count(1)
        yield lambda: progress(next(numbers))


@contextmanager
def loading(name: str) -> Iterator[Callable[[float], None]]:
    """Shows that a model is being loaded; call what it gives with the share done, 0 to 1."""
    title = say("loading {name}", name=name)
    with Progress(title, 1.0) as progress:
        if not progress.bar:
            note(title)
        yield lambda share: progress(share, f"{share:.0%}")


class ReadingProgress:
    """Shows how much of its prompt a language model has read; nothing once it has read all."""

    def __init__(self) -> None:
        self.progress: Progress | None = None

    def __call__(self, share: float) -> None:
        if not self.progress and share < 1:
            self.progress = Progress(say("reading the passages"), 1.0).__enter__()
        if self.progress:
            self.progress(share, f"{share:.0%}")
        if self.progress and share == 1:
            self.progress.__exit__()
            self.progress = None


@dataclass
class IngestProgress:
    """Shows on `bar` how many of the files are done, and how many chunks are embedded. Its total are the
    bytes of all files."""

    bar: Progress
    files: int
    done: int = 0
    read: int = 0
    embedded: int = 0

    def chunks(self, count: int) -> None:
        """`count` more chunks have been embedded."""
        self.embedded += count
        self._show()

    def file(self, outcome: "FileOutcome") -> None:
        """One more file is dealt with."""
        self.done += 1
        self.read += outcome.size
        self._show()

    def _show(self) -> None:
        rate = self.embedded / max(1e-9, monotonic() - self.bar.start)
        text = say(
            "{done}/{files} files, {embedded} chunks embedded, {rate:.1f}/s",
            done=self.done,
            files=self.files,
            embedded=self.embedded,
            rate=rate,
        )
        self.bar(self.read, text)
