"""Documents in, needles found; hostile files in, one error line each out; questions in, answers out.

    python benchmarks/documents.py FOLDER [--only good|hostile]
    python benchmarks/documents.py QUESTIONS [--cache FOLDER]

QUESTIONS holds `questions.jsonl` and `docs/`, as for `rag eval`: the table has the shares of answers
that are right and short, by kind of question, and of cells whose row and column are in one chunk.

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
from ingest.store import Store
from ingest.types import Chunk
from rag.evaluate import run as evaluation
from rag.evaluate.dataset import Dataset
from rag.evaluate.metrics import answer_end
from rag.evaluate.report import measure_of

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
    """Without spaces, and without the lines between the cells of a table."""
    return re.sub(r"[\s|]+", "", unicodedata.normalize("NFKC", text))


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


GOALS = {
    "short_answer": 0.75,
    "short_answer cell": 0.72,
    "short_answer meta": 0.70,
    "short_answer text": 0.75,
    "short_answer list": 0.80,
    "precise": 0.65,
    "page": 0.98,
}


def answers(folder: Path, cache: Path) -> str:
    """The figures of `rag eval` on real documents with their goals, and those of the chunks."""
    dataset = Dataset.load(folder)
    with evaluation.prepare(dataset, cache / "kb", cache=cache) as pipeline:
        figures = evaluation.report(pipeline, dataset).figures()
        shares = list(cell_shares(folder, pipeline.store))
    rows = [
        [str(measure_of(name).title), str(each.questions), f"{each.value:.3f}", goal(name)]
        for name, each in figures.items()
    ]
    rows += [[name, str(n), f"{share:.3f}", least] for name, n, share, least in shares]
    return table(["measure", "questions", "value", "at least"], rows)


def goal(name: str) -> str:
    return f"{GOALS[name]:.2f}" if name in GOALS else ""


def cell_shares(folder: Path, store: Store) -> Iterator[tuple[str, int, float, str]]:
    """Questions for a cell: its row and column in one chunk with it, its row on its line."""
    chunks: dict[str, list[Chunk]] = {}
    for chunk in store.chunks(store.sample(max(1, store.count()))).values():
        chunks.setdefault(Path(chunk.source).name, []).append(chunk)
    whole, line, cells = 0, 0, 0
    for text in (folder / "questions.jsonl").read_text("utf-8").splitlines():
        record = json.loads(text)
        if record.get("kind") != "cell":
            continue
        cells += 1
        row, column = record["evidence"]["row"], record["evidence"]["col"]
        own = chunks.get(record["doc"], [])
        named = [f"{c.label(c.start)}\n{c.indexed}" for c in own if holds(c.text, record["answers"])]
        whole += any(holds(part, row) and holds(part, column) for part in named)
        lines = [one for c in own for one in c.text.splitlines() if holds(one, record["answers"])]
        line += any(holds(one, row) for one in lines)
    if cells:
        yield "Row, column and value of a cell in one chunk", cells, whole / cells, "0.93"
        yield "Row and value of a cell on one line", cells, line / cells, ""


def holds(text: str, labels: list[str]) -> bool:
    return not labels or answer_end(text, labels) is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir(), "documents"))
    parser.add_argument("--only", choices=("good", "hostile"))
    options = parser.parse_args()
    if (options.folder / "questions.jsonl").exists():
        sys.stdout.write(f"{answers(options.folder, options.cache)}\n")
        return
    lines = (options.folder / "manifest.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    for name, show in (("good", good), ("hostile", hostile)):
        if options.only in (None, name):
            chosen = [r for r in records if r["file"].startswith(name)]
            sys.stdout.write(f"{show(options.folder, chosen)}\n\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
