"""Progress: a bar for a person, lines for a log, nothing if it is to be quiet."""

import re
from io import StringIO

import pytest

from ingest.pipeline import FileOutcome
from rag.cli.console import IngestProgress, Progress, counting, loading


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def watched(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """What a person sees from here on."""
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    return screen


def test_a_log_gets_title_numbers_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("rows", 1200, every=0) as progress:
        progress(300)
        progress(1200, "all of them")
        progress(1200, left=3725)
    with Progress("", every=0) as progress:
        progress(1500)
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"rows: 300/1,200, 0:00:0\d left", lines[0])
    assert lines[1:] == ["rows: all of them, 0:00:00 left", "rows: 1,200/1,200, 1:02:05 left", "1,500"]


def test_a_log_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with counting("rows", 1000) as tick:
        for _ in range(1000):
            tick()
    assert len(capsys.readouterr().err.splitlines()) < 1000
    with loading("a model") as progress:
        progress(0.5)
    assert capsys.readouterr().err.splitlines()[0] == "loading a model"


def test_quiet_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watched(monkeypatch)
    with Progress("rows", 3, quiet=True, every=0) as progress:
        progress(1)
        IngestProgress(progress, 1).file(FileOutcome("a", "added"))
    assert terminal.getvalue() == ""


def test_a_person_sees_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watched(monkeypatch)
    with Progress("rows [b]", 4, every=0, stays=True) as progress:
        progress(3, left=61)
    assert re.search(r"rows \[b\] .*3/4, 0:01:01 left", terminal.getvalue())
