"""Counts for a person: how many of a known number are done, and what became of data."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

from rag.cli.console import note, say

if TYPE_CHECKING:
    from finetune.data.frames import Counts

EVERY = 5.0  # seconds between lines where no one watches


@contextmanager
def counting(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar where a person watches, else a line every few seconds; call it as each is done."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda: bar.advance(task)
        return
    done, begun = 0, monotonic()
    told = begun

    def tick() -> None:
        nonlocal done, told
        done += 1
        if (now := monotonic()) - told > EVERY:
            told, left = now, (now - begun) * (total / done - 1)
            count = f"{done}/{total} {title}"
            note(say(f"{count}, {left:.0f} s left", f"{count}，剩余约 {left:.0f} 秒"))

    yield tick


def fates(counts: "Counts") -> list[str]:
    """What became of data that is not learnt as it is; nothing where all is."""
    rows = "row" if counts.bad == 1 else "rows"
    told = (
        (counts.shortened, "shortened", "条被截短"),
        (counts.left_out, "left out", "条被略去"),
        (counts.bad, f"bad {rows} skipped", "个错误行被跳过"),
    )
    return [
        *(say(f"{number} {what}", f"{number} {zh}") for number, what, zh in told if number),
        *(
            say(
                f"the file breaks at {row}, what follows is lost",
                f"文件在 {row} 处损坏，其后内容丢失",
            )
            for row in counts.ended
        ),
    ]
