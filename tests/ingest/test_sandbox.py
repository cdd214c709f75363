"""The child process: what it answers, and that nothing a file does reaches the parent."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ingest.errors import Unreadable
from ingest.i18n import Translatable, translate
from ingest.sandbox import Limits, Sandbox
from ingest.types import ParsedFile, ParseReport
from tests.ingest.documents import paragraph, parse, word

DATA = Path(__file__).parents[1] / "data" / "documents"


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(ocr=False) as sandbox:
        yield sandbox


def contents(parsed: ParsedFile) -> tuple[str, list, ParseReport]:
    return parsed.title, list(parsed.segments), parsed.report


@pytest.mark.parametrize("name", ["zh-demo.xlsx", "ocr_test.docx", "issue-1113-evil-xobjects.pdf"])
def test_the_child_gives_what_the_parser_gives(box: Sandbox, name: str) -> None:
    assert contents(box.parse(DATA / name)) == contents(parse(DATA / name, ocr=False))


def test_one_child_serves_many_files_also_after_errors(box: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("文字", encoding="gbk")
    box.parse(tmp_path / "a.txt")
    child = box._child
    with pytest.raises(Unreadable, match="needs a password") as caught:
        box.parse(DATA / "password-aes-256.pdf")
    assert "密码" in translate(caught.value.message, "zh")
    with pytest.raises(Unreadable, match="could not be read"):
        box.parse(tmp_path)
    assert "".join(s.text for s in box.parse(tmp_path / "a.txt").segments) == "文字"
    assert box._child is child


def test_spool_files_are_gone_once_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("文字" * 1000)
    with Sandbox(ocr=False) as sandbox:
        folder = Path(sandbox._folder.name)
        parsed = sandbox.parse(tmp_path / "a.txt")
        assert list(folder.glob("*.jsonl"))
        list(parsed.segments)
        assert not list(folder.glob("*.jsonl"))
        child = sandbox._child
    assert not folder.exists()
    assert child
    assert child.poll() is not None


def test_memory_is_limited_and_the_next_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("文字")
    large = word(tmp_path / "large.docx", paragraph("字") * 300_000)
    with Sandbox(ocr=False, limits=Limits(memory=150_000_000)) as sandbox:
        with pytest.raises(Unreadable, match=r"large\.docx took .* GB of memory") as caught:
            sandbox.parse(large)
        assert "内存" in translate(caught.value.message, "zh")
        assert "".join(s.text for s in sandbox.parse(tmp_path / "a.txt").segments) == "文字"


def test_processor_time_is_limited_and_the_next_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("文字")
    long = word(tmp_path / "long.docx", paragraph("字") * 200_000)
    with Sandbox(ocr=False, limits=Limits(seconds=0, rate=1e9)) as sandbox:
        sandbox.limits = replace(sandbox.limits, seconds=9)
        assert list(sandbox.parse(tmp_path / "a.txt").segments)
        sandbox.limits = replace(sandbox.limits, seconds=0.1)
        with pytest.raises(Unreadable, match="not parsed within 0 s of processor time"):
            sandbox.parse(long)
        sandbox.limits = replace(sandbox.limits, seconds=9)
        assert "".join(s.text for s in sandbox.parse(tmp_path / "a.txt").segments) == "文字"


def test_a_child_that_waits_is_no_busy_child(tmp_path: Path) -> None:
    """A pipe without a writer: no work is done, so the time limit never comes, but the other one does."""
    os.mkfifo(tmp_path / "never.txt")
    with (
        Sandbox(ocr=False, limits=Limits(idle=1.5)) as sandbox,
        pytest.raises(Unreadable, match="made no progress for 2 s"),
    ):
        sandbox.parse(tmp_path / "never.txt")


def test_a_stopped_child_loses_no_time(tmp_path: Path) -> None:
    """As on a machine that gives it no processor for longer than the limit."""
    path = word(tmp_path / "a.docx", paragraph("字") * 20_000)
    with Sandbox(ocr=False, limits=Limits(seconds=2)) as sandbox:
        thread = threading.Thread(target=_pause, args=(sandbox, 2.5))
        thread.start()
        text = "".join(segment.text for segment in sandbox.parse(path).segments)
        thread.join()
    assert text.count("字") == 20_000


def _pause(sandbox: Sandbox, seconds: float) -> None:
    while sandbox._child is None:
        time.sleep(0.01)
    os.kill(sandbox._child.pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(sandbox._child.pid, signal.SIGCONT)


def _kill_soon(sandbox: Sandbox) -> threading.Thread:
    def kill() -> None:
        while sandbox._child is None:
            time.sleep(0.01)
        os.kill(sandbox._child.pid, signal.SIGSEGV)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_a_crash_names_the_signal_and_costs_one_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "crash.txt")
    (tmp_path / "a.txt").write_text("文字")
    with Sandbox(ocr=False) as sandbox:
        thread = _kill_soon(sandbox)
        with pytest.raises(Unreadable, match=r"crash\.txt ended its parser \(killed by SIGSEGV"):
            sandbox.parse(tmp_path / "crash.txt")
        thread.join()
        assert "".join(s.text for s in sandbox.parse(tmp_path / "a.txt").segments) == "文字"


@pytest.mark.parametrize(("recycle", "count"), [(1, 3), (10**9, 1)])
def test_a_child_that_has_grown_is_replaced(tmp_path: Path, recycle: int, count: int) -> None:
    (tmp_path / "a.txt").write_text("文字")
    with Sandbox(ocr=False, limits=Limits(recycle=recycle)) as sandbox:
        children = []
        for _ in range(3):
            list(sandbox.parse(tmp_path / "a.txt").segments)
            children.append(sandbox._child.pid if sandbox._child else 0)
    assert len(set(children)) == count


def test_an_interrupt_leaves_no_child(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "never.txt")
    with Sandbox(ocr=False) as sandbox:

        def interrupt() -> None:
            while sandbox._child is None:
                time.sleep(0.01)
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            sandbox.parse(tmp_path / "never.txt")
        thread.join()
        assert sandbox._child is None


def test_the_child_has_no_network(tmp_path: Path) -> None:
    """The audit hook that the child installs refuses connections in that process."""
    import subprocess
    import sys

    code = (
        "from ingest.sandbox import _refuse_network; import socket; _refuse_network()\n"
        "try: socket.create_connection(('127.0.0.1', 9), 1)\n"
        "except PermissionError as error: raise SystemExit(str(error))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert "no network" in done.stderr


def test_nesting_beyond_the_stack_is_an_error_line(box: Sandbox, tmp_path: Path) -> None:
    deep = "<w:tbl><w:tr><w:tc>" * 3000 + paragraph("x") + "</w:tc></w:tr></w:tbl>" * 3000
    with pytest.raises(Unreadable, match="nested too deeply"):
        box.parse(word(tmp_path / "deep.docx", deep))


def test_a_name_that_is_not_utf8_passes(box: Sandbox, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xba\xcf.txt"))
    path.write_text("文字")
    assert box.parse(path).title == "\\xba\\xcf"
    path.write_bytes(b"")
    with pytest.raises(Unreadable, match=r"\\xba\\xcf.txt is empty") as caught:
        box.parse(path)
    translate(caught.value.message, "zh").encode()


def test_the_report_covers_the_last_line_of_a_large_file(box: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    path.write_text((json.dumps({"a": "字" * 1000}, ensure_ascii=False) + "\n") * 3500 + "broken\n")
    parsed = box.parse(path)
    assert parsed.report.warnings == ("1 lines are not JSON, the last is line 3501",)
    assert len(list(parsed.segments)) > 2


def test_warnings_come_back_translatable(tmp_path: Path) -> None:
    (tmp_path / "wide.csv").write_text("a," * 1200 + "b\n")
    with Sandbox(ocr=False) as sandbox:
        (warning,) = sandbox.parse(tmp_path / "wide.csv").report.warnings
    assert isinstance(warning, Translatable)
    assert warning.fields == {"row": 1, "columns": 1201, "most": 1000}
