"""Parses in a child process, so that a hostile file costs one line of error and never the run.

The child (`python -m ingest.sandbox`) reads one request per line, writes the text as JSON Lines to a
spool file, and answers with the title and the parse report. The system kills it when it has used up
its processor time, the parent at the other limits; the next file gets a new child. The limits count
work, so that a busy machine reads what an idle one reads. Nothing is pickled, and the child can't reach
the network.
"""

import contextlib
import ctypes
import json
import math
import os
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ingest.errors import Unreadable
from ingest.i18n import Translatable, from_json, to_json
from ingest.types import Mark, ParsedFile, ParseReport, Segment


def write(segments: Iterable[Segment], spool: Path) -> None:
    with spool.open("w", encoding="utf-8", errors="replace") as lines:
        for segment in segments:
            marks = [(m.start, m.kind, m.label, m.level) for m in segment.marks]
            lines.write(json.dumps((segment.text, marks), ensure_ascii=False) + "\n")


def read(spool: Path) -> Iterator[Segment]:
    """The segments of the file, lazily; the file is removed once they are read."""
    try:
        with spool.open(encoding="utf-8") as lines:
            for line in lines:
                text, marks = json.loads(line)
                yield Segment(text, tuple(Mark(*mark) for mark in marks))
    finally:
        spool.unlink(missing_ok=True)


POLL = 0.02  # seconds between two checks of the child


@dataclass(frozen=True, slots=True)
class Limits:
    """What one file may cost, and when a child is replaced."""

    memory: int = 1_400_000_000
    """Resident bytes of the child; it can take some more between two checks."""
    seconds: float = 20.0
    """Processor time until the file's text is complete, without the time for its size and for OCR."""
    rate: float = 1e6
    """Bytes of a file for which one more second is allowed."""
    idle: float = 60.0
    """Wall time in which the child makes no progress: it uses no processor time."""
    recycle: int = 1_000_000_000
    """Resident bytes of the child, above which the next file gets a new one: parsers leak memory."""


class Sandbox(AbstractContextManager["Sandbox"]):
    """`with Sandbox() as sandbox: sandbox.parse(path)`; one child serves many files."""

    def __init__(self, *, ocr: bool = True, limits: Limits | None = None) -> None:
        self.ocr, self.limits = ocr, limits or Limits()
        self._folder = tempfile.TemporaryDirectory(prefix="rag-parse-")
        self._child: subprocess.Popen[str] | None = None
        self._spools = 0

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._folder.cleanup()

    def parse(self, path: Path) -> ParsedFile:
        """The text of a file; its segments are read from the spool file while you iterate, once.

        Raises `Unreadable` with the parser's reason, the exceeded limit, or what ended the child.
        """
        self._spools += 1
        place = Path(self._folder.name, f"{self._spools}.jsonl")
        try:
            answer = self._ask(path, spool=str(place))
        except BaseException:
            place.unlink(missing_ok=True)
            raise
        return ParsedFile(answer["title"], read(place), ParseReport.from_json(answer["report"]))

    def draw(self, path: Path, page: int, passage: str) -> tuple[bytes, int, float | None]:
        """`ingest.parse.pdf.draw` in the child. Raises as `parse` does."""
        place = Path(self._folder.name, "page.png")
        try:
            answer = self._ask(path, page=page, passage=passage, picture=str(place))
            return place.read_bytes(), answer["pages"], answer["top"]
        finally:
            place.unlink(missing_ok=True)

    @property
    def memory(self) -> int:
        """Resident bytes of the child now; 0 if there is none."""
        return _resident(self._child.pid) if self._child else 0

    def _ready(self) -> "subprocess.Popen[str]":
        """The child; a new one if there is none or the old one has grown."""
        child = self._child
        if child is not None and child.poll() is None:
            if _resident(child.pid) < self.limits.recycle:
                return child
            self._stop()
        with Path(self._folder.name, "errors").open("wb") as errors:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "ingest.sandbox", "--ocr" if self.ocr else "--no-ocr"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=self._folder.name,
                env=_environment() | {"TMPDIR": self._folder.name},
                encoding="utf-8",
                start_new_session=True,
            )
        return self._child

    def _ask(self, path: Path, **request: object) -> Any:
        """Send a request and return the child's answer; `Unreadable` if the child fails or dies."""
        child = self._ready()
        assert child.stdin
        seconds = self.limits.seconds + path.stat().st_size / self.limits.rate
        request |= {"path": str(path.absolute()), "seconds": seconds}
        try:
            child.stdin.write(json.dumps(request) + "\n")
            child.stdin.flush()
            line = self._wait(child, path)
        except BrokenPipeError:
            line = ""
        except BaseException:
            self._stop()  # a Ctrl-C leaves no child behind
            raise
        if not line:
            status = child.wait()
            reason = self._cause_of_death(status)
            self._stop()
            if status == -signal.SIGXCPU:
                raise Unreadable(
                    "{name} was not parsed within {seconds:.0f} s of processor time; split it",
                    name=path.name, seconds=seconds,
                )  # fmt: skip
            raise Unreadable(
                "{name} ended its parser ({reason}); it is left out", name=path.name, reason=reason
            )
        answer = json.loads(line)
        if "error" in answer:
            raise Unreadable(from_json(answer["error"]))
        return answer

    def _wait(self, child: "subprocess.Popen[str]", path: Path) -> str:
        """The child's answer, or "" if it died; kills the child at its limits."""
        assert child.stdout
        work, since = 0.0, time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while not selector.select(POLL):
                used, limit = _resident(child.pid) / 1e9, self.limits.memory / 1e9
                if used > limit:
                    self._stop()
                    raise Unreadable(
                        "{name} took {used:.1f} GB of memory to parse; the limit is {limit:.1f} GB",
                        name=path.name, used=used, limit=limit,
                    )  # fmt: skip
                before, work = work, _processor_time(child.pid)
                since = time.monotonic() if work != before else since
                if time.monotonic() - since > self.limits.idle:
                    self._stop()
                    raise Unreadable(
                        "{name} made no progress for {seconds:.0f} s; check the disk that it is on",
                        name=path.name, seconds=self.limits.idle,
                    )  # fmt: skip
        return child.stdout.readline()

    def _cause_of_death(self, status: int) -> Translatable:
        """The signal or the exit status, and the child's last line: of a traceback, the exception."""
        lines = Path(self._folder.name, "errors").read_text("utf-8", "replace").strip().split("\n")
        last = f": {lines[-1][:200]}" if lines[-1] else ""
        if status < 0:
            name = signal.Signals(-status).name
            return Translatable("killed by {signal}{last}", signal=name, last=last)
        return Translatable("exit status {status}{last}", status=status, last=last)

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        for stream in filter(None, (child.stdin, child.stdout)):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def _environment() -> dict[str, str]:
    """The child's environment: this package importable, thread pools small and not spinning."""
    root = str(Path(__file__).resolve().parents[1])
    own = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    return own | {
        "PYTHONPATH": os.pathsep.join(filter(None, (root, own.get("PYTHONPATH")))),
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "passive",
        "MALLOC_ARENA_MAX": "2",
    }


def _resident(pid: int) -> int:
    """Bytes of memory that a process holds; 0 if it has ended."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _processor_time(pid: int) -> float:
    """Seconds that a process has worked; where the system does not report it, the time that passes."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def allow(seconds: float, least: float = 0.0) -> None:
    """Let this process work for so many more seconds, at least until `least` in all; then the system
    ends it by SIGXCPU."""
    spent = time.process_time() + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(max(spent, least)), resource.RLIM_INFINITY))


def _serve(requests: TextIO, answers: TextIO, *, ocr: bool) -> None:
    """The child's loop: parse a file, spool its text, answer with its title and report or an error."""
    from ingest.parse import DocumentParser
    from ingest.parse.pdf import draw

    def extend_deadline(seconds: float) -> None:
        allow(seconds, least=resource.getrlimit(resource.RLIMIT_CPU)[0])

    parser = DocumentParser(ocr, extend_deadline)
    for line in requests:
        request = json.loads(line)
        path = Path(request["path"])
        allow(request["seconds"])
        try:
            if "picture" in request:
                png, pages, top = draw(path, request["page"], request["passage"])
                Path(request["picture"]).write_bytes(png)
                answer = {"pages": pages, "top": top}
            else:
                parsed = parser.parse(path)
                write(parsed.segments, Path(request["spool"]))
                answer = {"title": parsed.title, "report": parser.report().to_json()}
        except Unreadable as error:
            answer = {"error": to_json(error.message)}
        except RecursionError:
            answer = {"error": to_json(Translatable("{name} is nested too deeply", name=path.name))}
        except (MemoryError, OSError) as error:
            problem = Translatable("{name} could not be read: {why}", name=path.name, why=error)
            answer = {"error": to_json(problem)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _refuse_network() -> None:
    """Our parsers open no connections; a library that tries to (for a remote image) gets an error."""

    def refuse(event: str, _: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo"):
            raise PermissionError("parsers have no network")

    sys.addaudithook(refuse)


def die_with_parent() -> None:
    """On Linux the kernel ends the child when the parent ends, even by `kill -9`; elsewhere the child
    ends when its input ends. A crash leaves no core file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    """Entry point of the child process. Its standard output carries answers only: what a library
    prints goes to standard error."""
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _refuse_network()
    _serve(sys.stdin, answers, ocr="--ocr" in sys.argv)


if __name__ == "__main__":
    main()
