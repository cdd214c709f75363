"""Ingestion on a Ray cluster of two workers makes the knowledge base that it makes without one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from ingest.pipeline import FileOutcome
from ingest.store import open_store
from tests.ingest.ray_run import ALWAYS, EMBEDDED_ALWAYS, EMBEDDED_ONCE, ONCE, contents, serial

ROOT = Path(__file__).parents[2]
FAIL = """
import sys
from dataclasses import replace
from pathlib import Path
from ingest.ray_pipeline import cluster
from ingest.errors import UserError
from ingest.files import FoundFile, walk
from ingest.i18n import translate
from ingest.ray_pipeline import ingest_on_ray
from tests.ingest.ray_run import create_store, mortal

docs, kb, deaths = map(Path, sys.argv[1:])
gone = [FoundFile(docs / "gone.txt"), FoundFile(docs / "a.txt" / "b.txt")]
with cluster(workers=1) as workers, create_store(kb) as store:
    tools = mortal(deaths)
    for outcome in ingest_on_ray(gone, store, tools, workers=workers):
        print(outcome.status, outcome.problem, translate(outcome.problem.message, "zh"), sep="|")
    for each in (replace(tools, encoder="another"), tools):
        try:
            list(ingest_on_ray(walk([docs]), store, each, workers=workers))
        except UserError as problem:
            print(type(problem).__name__, problem, translate(problem.message, "zh"), sep="|")
    print(store.info().documents)
"""
WITH_TESTS = os.environ | {"PYTHONPATH": str(ROOT)}
"""Workers start in an empty folder, and `-P` keeps the current one from being searched."""

LOOPBACK = {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def text_of(number: int, articles: int = 12) -> str:
    return "".join(f"第{i}条 第{number}号文件规定的第{i * 7919}件事。\n" for i in range(articles))


@contextmanager
def on_ray(docs: Path, kb: Path, deaths: Path, *stop: str) -> "Iterator[subprocess.Popen[str]]":
    """A process that ingests on a cluster; if it ends by itself it leaves no file behind."""
    deaths.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.ingest.ray_run", docs, kb, deaths, *stop]
    with (
        tempfile.TemporaryDirectory() as scratch,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=WITH_TESTS | {"TMPDIR": scratch}
        ) as process,
    ):
        yield process
        process.wait()
        if process.returncode == 0:
            assert os.listdir(scratch) == []


@dataclass
class Runs:
    """The same documents, ingested without a cluster (`one`) and on one whose workers died (`many`)."""

    one: Path
    many: Path
    deaths: Path
    serial: list[FileOutcome]
    on_cluster: dict[str, list[object]]
    last: dict[str, object]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A knowledge base of before, of which some documents stay, one grows, one moves, many come."""
    home = tmp_path_factory.mktemp("ray")
    docs, one, many = home / "docs", home / "one", home / "many"
    docs.mkdir()
    for number in range(8):
        (docs / f"{number:02}.txt").write_text(text_of(number), "utf-8")
    serial(docs, one)
    shutil.copytree(one, many)
    (docs / "01.txt").write_text(text_of(1, 14), "utf-8")
    (docs / "moved").mkdir()
    (docs / "02.txt").rename(docs / "moved" / "02.txt")
    for number in range(10, 50):
        (docs / f"{number:02}.txt").write_text(text_of(number), "utf-8")
    (docs / "20.txt").write_text(f"{ONCE}。\n{text_of(20)}", "utf-8")
    (docs / "30.txt").write_text(f"{text_of(30)}{EMBEDDED_ONCE}。\n", "utf-8")
    (docs / "35.txt").write_bytes(b"\xff\xfe\x00")
    (docs / "40.txt").write_text(text_of(40, 2000), "utf-8")  # comes in many parts
    outcomes = serial(docs, one)
    (docs / "99.txt").write_text(ALWAYS, "utf-8")  # no process without a cluster would survive it
    with on_ray(docs, many, home / "deaths") as process:
        assert process.stdout
        *lines, last = map(json.loads, process.stdout)
    assert process.returncode == 0
    return Runs(one, many, home / "deaths", outcomes, {line[0]: line for line in lines}, last)


def test_the_knowledge_base_is_the_serial_one_byte_for_byte(runs: Runs) -> None:
    assert contents(runs.many) == contents(runs.one)
    with open_store(runs.many) as store:
        assert store.verify() == []


def test_outcomes_are_the_serial_ones_in_the_same_order(runs: Runs) -> None:
    rest = [line for source, line in runs.on_cluster.items() if not source.endswith("/99.txt")]
    assert rest == [[o.source, o.status, o.chunks, str(o.problem or "")] for o in runs.serial]
    statuses = [outcome.status for outcome in runs.serial]
    assert {name: statuses.count(name) for name in set(statuses)} == {
        "unchanged": 6,
        "changed": 1,
        "added": 40,
        "refused": 1,
    }


def test_workers_died_and_one_file_that_kills_each_is_left_out(runs: Runs) -> None:
    deaths = {record.name: len(record.read_text().split()) for record in runs.deaths.iterdir()}
    assert deaths == {"once": 1, "embedded": 1, "always": 3}
    (line,) = (line for source, line in runs.on_cluster.items() if source.endswith("/99.txt"))
    assert line[1:] == ["refused", 0, "99.txt ended 3 workers that read it; it is left out"]


def test_a_cluster_of_this_machine_listens_on_the_loopback_alone(runs: Runs) -> None:
    assert runs.last["workers"] == 2
    assert set(runs.last["open"]) <= LOOPBACK


def test_a_killed_command_is_continued(tmp_path: Path) -> None:
    docs, one, many = tmp_path / "docs", tmp_path / "one", tmp_path / "many"
    docs.mkdir()
    for number in range(60):
        (docs / f"{number:02}.txt").write_text(text_of(number, 60), "utf-8")
    with on_ray(docs, many, tmp_path / "deaths", "5") as process:
        assert process.stdout
        reported = {json.loads(next(process.stdout))[0] for _ in range(5)}
        below = psutil.Process(process.pid).children(recursive=True)
        agents = [each for each in below if "Agent" in each.name()]
        process.send_signal(signal.SIGKILL)
    assert len(below) > 4
    assert psutil.wait_procs(set(below) - set(agents), timeout=60)[1] == []
    for each in agents:  # they try for a minute to tell the dead, then end as well
        with suppress(psutil.NoSuchProcess):
            each.kill()
    with open_store(many) as store:
        assert store.verify() == []
        written = {document.source for document in store.documents()}
    assert reported <= written
    outcomes = serial(docs, many)
    assert len(outcomes) == 60
    added = {outcome.source for outcome in outcomes if outcome.status == "added"}
    assert added == {outcome.source for outcome in outcomes} - written != set()
    serial(docs, one)
    assert contents(many) | {"changes": []} == contents(one) | {"changes": []}


def test_a_task_that_no_worker_can_do_ends_the_run_with_a_message(tmp_path: Path) -> None:
    docs, deaths = tmp_path / "docs", tmp_path / "deaths"
    docs.mkdir()
    deaths.mkdir()
    (docs / "a.txt").write_text(f"{EMBEDDED_ALWAYS}。", "utf-8")
    command = [sys.executable, "-c", FAIL, docs, tmp_path / "kb", deaths]
    done = subprocess.run(command, capture_output=True, text=True, env=WITH_TESTS, timeout=300)
    gone, barred, mismatch, deaths, documents = (line.split("|") for line in done.stdout.splitlines())
    assert gone[0] == barred[0] == "refused"
    assert "gone.txt is not on" in gone[1]
    assert "上没有 gone.txt" in gone[2]
    assert barred[1] == "b.txt can't be read: Not a directory"
    assert mismatch[0] == "Mismatch"
    assert "has the encoder hash-bigrams, not another" in mismatch[1]
    assert "编码器是 hash-bigrams，不是 another" in mismatch[2]
    assert deaths[0] == "UserError"
    assert deaths[1].startswith(f"3 workers died while they embedded {docs}/a.txt")
    assert "向量化" in deaths[2]
    assert documents == ["0"]
    assert done.stderr == ""
