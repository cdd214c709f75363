"""Documents in, needles found; hostile files in, one error line each out. Two Markdown tables.

    python benchmarks/documents.py FOLDER [--only good|hostile]

FOLDER holds `manifest.jsonl` (records with `file`, and `needles`, `ocr_needles` or `expect`) and
the files. Every file goes through the sandbox, as in `rag ingest`: peak memory is that of the child
while the file was parsed, and after each hostile file the child must still read a small text.
"""

import argparse
import json
import re
import sys
import tempfile
import time
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from ingest.errors import Unreadable
from ingest.sandbox import Sandbox

POLL = 0.01  # seconds between two looks at the child's memory
SECONDS, MEMORY = 20.0, 1.5e9  # that a hostile file may take


@dataclass
class Outcome:
    """What came of one file: its text, or the line that refuses it."""

    record: dict
    text: str = ""
    refusal: str = ""
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    peak: int = 0
    alive: bool = True

    @property
    def missing(self) -> list[str]:
        text = squeezed(self.text)
        needles = self.record.get("needles", []) + self.record.get("ocr_needles", [])
        return [needle for needle in needles if squeezed(needle) not in text]

    @property
    def held(self) -> bool:
        """Whether a hostile file was held off: in words, in time, in memory."""
        return self.alive and self.seconds < SECONDS and self.peak < MEMORY


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text))


def run(folder: Path, records: Iterable[dict]) -> Iterator[Outcome]:
    with Sandbox() as sandbox, tempfile.TemporaryDirectory() as scratch:
        small = Path(scratch, "small.txt")
        small.write_text("文字")
        for record in records:
            outcome = Outcome(record)
            start = time.perf_counter()
            with Watch(sandbox) as watch:
                try:
                    parsed = sandbox.parse(folder / record["file"])
                    outcome.text = "".join(segment.text for segment in parsed.segments)
                    outcome.warnings = parsed.report.warnings
                except Unreadable as error:
                    outcome.refusal = str(error)
            outcome.seconds, outcome.peak = time.perf_counter() - start, watch.peak
            outcome.alive = "".join(s.text for s in sandbox.parse(small).segments) == "文字"
            yield outcome


class Watch:
    """The most memory that the sandbox's child held meanwhile, in bytes."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.peak, self._sandbox, self._done = 0, sandbox, Event()
        self._thread = Thread(target=self._look)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.peak = max(self.peak, self._sandbox.memory)
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(POLL):
            self.peak = max(self.peak, self._sandbox.memory)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def good(folder: Path, records: list[dict]) -> str:
    outcomes = list(run(folder, records))
    rows = [
        [
            o.record["file"],
            f"{len(o.text):,}",
            o.refusal or (f"missing: {o.missing}" if o.missing else "all"),
            f"{o.seconds:.1f}",
            f"{o.peak / 1e6:.0f}",
        ]
        for o in outcomes
    ]
    found = sum(not o.missing for o in outcomes)
    summary = f"{found} of {len(outcomes)} files hold all their needles"
    return f"{table(['file', 'characters', 'needles', 's', 'MB'], rows)}\n\n{summary}"


def hostile(folder: Path, records: list[dict]) -> str:
    outcomes = list(run(folder, records))
    rows = [
        [
            o.record["file"],
            o.refusal or f"{len(o.text):,} characters {'; '.join(o.warnings)}".strip(),
            f"{o.seconds:.1f}",
            f"{o.peak / 1e6:.0f}",
            "yes" if o.alive else "NO",
        ]
        for o in outcomes
    ]
    held = sum(o.held for o in outcomes)
    summary = f"{held} of {len(outcomes)} files held under {SECONDS:.0f} s and {MEMORY / 1e9} GB"
    return f"{table(['file', 'what came of it', 's', 'MB', 'worker alive'], rows)}\n\n{summary}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=("good", "hostile"))
    options = parser.parse_args()
    lines = (options.folder / "manifest.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    for name, show in (("good", good), ("hostile", hostile)):
        if options.only in (None, name):
            chosen = [r for r in records if r["file"].startswith(name)]
            sys.stdout.write(f"{show(options.folder, chosen)}\n\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
