"""Parsing in a child process, so that a hostile file costs one error line and never the run.

The child is a fresh interpreter (`python -m ingest.sandbox`) that takes one request a line on its
standard input, writes the text, JSON Lines, to a spool file in a folder of the parent's and answers
with title and receipt. A watch thread in the parent looks at the child's memory and clock and kills
it at its limit; the next file gets a new child. Nothing is pickled, and the child can't reach the
network.
"""

import contextlib
import ctypes
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TextIO

from ingest.errors import Unreadable
from ingest.i18n import from_json, to_json
from ingest.types import Mark, Parsed, Receipt, Segment


def write(segments: Iterable[Segment], spool: Path) -> None:
    """One after the other, so that a document of any size passes."""
    with spool.open("w", encoding="utf-8", errors="replace") as lines:
        for segment in segments:
            marks = [(m.start, m.kind, m.label, m.level) for m in segment.marks]
            lines.write(json.dumps((segment.text, marks), ensure_ascii=False) + "\n")


def read(spool: Path) -> Iterator[Segment]:
    """The segments again, lazily; the file is removed once they are read."""
    try:
        with spool.open(encoding="utf-8") as lines:
            for line in lines:
                text, marks = json.loads(line)
                yield Segment(text, tuple(Mark(*mark) for mark in marks))
    finally:
        spool.unlink(missing_ok=True)


POLL = 0.02  # seconds between two looks at the child
PATIENCE = "wait "  # a line from the child: so many seconds more, work of known size is under way


@dataclass(frozen=True, slots=True)
class Limits:
    """What one file may cost. `recycle_files` and `recycle_bytes` say when a child that did nothing
    wrong is replaced, between files: parsers leak."""

    memory: int = 1_400_000_000
    """Resident bytes of the child; it can take some more between two looks at it."""
    seconds: float = 15.0
    """Wall time until the file's text is complete, but for `rate` and pictures read by OCR."""
    rate: float = 1e6
    """Bytes of a file that each earn it one more second."""
    recycle_files: int = 500
    recycle_bytes: int = 1_000_000_000


class Sandbox:
    """`with Sandbox() as sandbox: sandbox.parse(path)`; one child serves many files."""

    def __init__(self, *, ocr: bool = True, limits: Limits | None = None) -> None:
        self.ocr, self.limits = ocr, limits or Limits()
        self._folder = tempfile.TemporaryDirectory(prefix="rag-parse-")
        self._child: subprocess.Popen[str] | None = None
        self._served = 0
        self._spools = 0

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()
        self._folder.cleanup()

    def parse(self, path: Path) -> Parsed:
        """The text of a file; its segments are read from the spool while you iterate, once.

        Raises `Unreadable` with the parser's reason, the limit that was exceeded, or the signal
        that ended the child.
        """
        child = self._ready()
        self._spools += 1
        place = Path(self._folder.name, f"{self._spools}.jsonl")
        request = {"path": str(path.absolute()), "spool": str(place)}
        try:
            answer = self._ask(child, json.dumps(request), path)
        except BaseException:
            place.unlink(missing_ok=True)
            raise
        receipt = answer["receipt"] | {"warnings": tuple(answer["receipt"]["warnings"])}
        return Parsed(answer["title"], read(place), Receipt(**receipt))

    def draw(self, path: Path, page: int, passage: str) -> tuple[bytes, bool]:
        """A page of a PDF as PNG, and whether `passage` was found on it and marked.

        Raises `Unreadable` as `parse` does, and where there is no such page.
        """
        child = self._ready()
        place = Path(self._folder.name, "page.png")
        request = {"path": str(path.absolute()), "page": page, "passage": passage}
        try:
            answer = self._ask(child, json.dumps(request | {"picture": str(place)}), path)
            return place.read_bytes(), answer["marked"]
        finally:
            place.unlink(missing_ok=True)

    @property
    def memory(self) -> int:
        """Resident bytes of the child now; 0 where there is none."""
        child = self._child
        return _resident(child.pid) if child else 0

    def _ready(self) -> "subprocess.Popen[str]":
        """The child, started anew where there is none or the old one has grown."""
        child = self._child
        if child is not None and child.poll() is None:
            used = _resident(child.pid)
            if self._served < self.limits.recycle_files and used < self.limits.recycle_bytes:
                return child
            self._stop()
        with Path(self._folder.name, "errors").open("wb") as errors:
            self._child = self._start(errors)
        self._served = 0
        return self._child

    def _start(self, errors: IO[bytes]) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "ingest.sandbox", "--ocr" if self.ocr else "--no-ocr"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=self._folder.name,
            env=_environment(),
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )

    def _ask(self, child: "subprocess.Popen[str]", request: str, path: Path) -> Any:
        """Send a request and return the child's answer; `Unreadable` when the child fails or dies."""
        assert child.stdin
        assert child.stdout
        try:
            child.stdin.write(request + "\n")
            child.stdin.flush()
            answer = self._wait(child, path)
        except BrokenPipeError:
            answer = ""
        except BaseException:
            self._stop()  # a Ctrl-C leaves no child behind
            raise
        if not answer:
            reason = _death(child.wait()) + self._last_words()
            self._stop()
            raise Unreadable(
                "{name} ended its parser ({reason}); it is left out", name=path.name, reason=reason
            )
        self._served += 1
        reply = json.loads(answer)
        if "error" in reply:
            raise Unreadable(from_json(reply["error"]))
        return reply

    def _wait(self, child: "subprocess.Popen[str]", path: Path) -> str:
        """The child's answer line, or "" when it died; kills it at its limits."""
        assert child.stdout
        allowed = self.limits.seconds + path.stat().st_size / self.limits.rate
        end = time.monotonic() + allowed
        with _selector(child.stdout) as waiting:
            while True:
                if waiting(POLL):
                    line = child.stdout.readline()
                    if not line.startswith(PATIENCE):
                        return line
                    end = max(end, time.monotonic() + float(line.removeprefix(PATIENCE)))
                used = _resident(child.pid)
                if used > self.limits.memory:
                    self._stop()
                    raise Unreadable(
                        "{name} took {used:.1f} GB of memory to parse; the limit is {memory:.1f} GB",
                        name=path.name,
                        used=used / 1e9,
                        memory=self.limits.memory / 1e9,
                    )
                if time.monotonic() > end:
                    self._stop()
                    raise Unreadable(
                        "{name} was not parsed within {allowed:.0f} s; split it",
                        name=path.name,
                        allowed=allowed,
                    )

    def _last_words(self) -> str:
        """The last line that the child wrote before it died: of a traceback, the exception."""
        lines = Path(self._folder.name, "errors").read_text("utf-8", "replace").strip().split("\n")
        return f": {lines[-1][:200]}" if lines[-1] else ""

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        for stream in (child.stdin, child.stdout):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


@contextlib.contextmanager
def _selector(stream: IO[str]) -> Iterator[Any]:
    """A function that waits up to some seconds and says whether `stream` can be read."""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        yield selector.select


def _environment() -> dict[str, str]:
    """The child's environment: this package importable, thread pools small and not spinning."""
    root = str(Path(__file__).resolve().parents[1])
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    return kept | {
        "PYTHONPATH": os.pathsep.join(filter(None, (root, kept.get("PYTHONPATH")))),
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "passive",
        "MALLOC_ARENA_MAX": "2",
    }


def _resident(pid: int) -> int:
    """Bytes of memory that a process holds; 0 when it has ended."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _death(status: int) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}"


def _serve(requests: TextIO, answers: TextIO, *, ocr: bool) -> None:
    """The child's loop: parse what is asked for, spool it, answer with its title and receipt or its error."""
    from ingest.parse import Parser

    def patience(seconds: float) -> None:
        answers.write(f"{PATIENCE}{seconds}\n")
        answers.flush()

    parser = Parser(ocr, patience)
    for line in requests:
        request = json.loads(line)
        try:
            if "picture" in request:
                answer = {"marked": _draw(request)}
            else:
                parsed = parser.parse(Path(request["path"]))
                write(parsed.segments, Path(request["spool"]))
                answer = {"title": parsed.title, "receipt": asdict(parser.receipt())}
        except Unreadable as error:
            answer = {"error": to_json(error.message)}
        except RecursionError:
            answer = {"error": f"{Path(request['path']).name} is nested too deeply"}
        except (MemoryError, OSError) as error:
            answer = {"error": f"{Path(request['path']).name} could not be read: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _draw(request: Any) -> bool:
    from ingest.ocr import draw

    png, marked = draw(Path(request["path"]), request["page"], request["passage"])
    Path(request["picture"]).write_bytes(png)
    return marked


def _refuse_network() -> None:
    """No parser of ours opens a connection; one that tries (a remote image) gets an error."""

    def refuse(event: str, _: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo"):
            raise PermissionError("parsers have no network")

    sys.addaudithook(refuse)


def die_with_parent() -> None:
    """On Linux the kernel ends the child when the parent ends, even by `kill -9`; elsewhere the
    child ends with its input. A crash leaves no core file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    """Entry of the child process. Its own standard output is for answers alone: whatever a library
    prints goes to standard error."""
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _refuse_network()
    _serve(sys.stdin, answers, ocr="--ocr" in sys.argv)


if __name__ == "__main__":
    main()
