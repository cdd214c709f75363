"""Several real servers on one data folder, clients that put load on them, and checks of all answers."""

import json
import os
import random
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import httpx

from ingest.types import Document, ParseReport
from server.uploads import SOURCE_PREFIX
from tests.server.servers import wait_for

ROOT = Path(__file__).parents[2]
NAMES = ["梅花", "兰草", "翠竹", "秋菊", "青松", "白鹤", "黄鹂", "锦鲤", "骆驼", "荷叶"]
LOOK = 0.004  # seconds between two looks at what a knowledge base holds
LONGEST = 120.0  # seconds that a job may take

LOG = """
CREATE TABLE transitions (number INTEGER PRIMARY KEY, job TEXT, base TEXT, state TEXT, worker TEXT);
CREATE TRIGGER transition AFTER UPDATE OF state ON jobs BEGIN
    INSERT INTO transitions (job, base, state, worker) VALUES (new.id, new.base, new.state, new.worker);
END;
"""


@dataclass
class ServerProcess:
    """One process of `rag serve`; `ending` is true once it is stopped or killed."""

    process: subprocess.Popen[str]
    address: str
    ending: bool = False

    def kill(self) -> None:
        self.ending = True
        self.process.kill()
        self.process.wait(60)

    def end(self) -> None:
        """Stop it like `systemctl stop`; it finishes running answers."""
        self.ending = True
        self.process.terminate()
        assert self.process.wait(60) == 0


@contextmanager
def fleet(folder: Path, count: int) -> Iterator[list[ServerProcess]]:
    """Servers on the knowledge bases in `folder`. More can be started and put into the list."""
    servers: list[ServerProcess] = []
    try:
        servers += start(folder, count)
        yield servers
    finally:
        for server in servers:
            server.process.terminate()
        for server in servers:
            server.process.communicate(timeout=60)


def start(folder: Path, count: int = 1) -> list[ServerProcess]:
    """Listening servers, which were started at the same moment."""
    environment = {**os.environ, "XDG_DATA_HOME": str(folder), "LC_ALL": "C.UTF-8"}
    command = [sys.executable, "-m", "rag", "serve", "--port", "0", "--no-ocr", "--queue", "1000"]
    with (folder / "log").open("a") as log, ExitStack() as unless_all_listen:
        servers = []
        for _ in range(count):
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
            unless_all_listen.callback(process.kill)
            servers.append(ServerProcess(process, ""))
        for server in servers:
            assert server.process.stdout
            found = re.search(r"http://[\d.]+:\d+", server.process.stdout.readline())
            assert found, (folder / "log").read_text("utf-8")[-2000:]
            server.address = found[0]
        unless_all_listen.pop_all()
    return servers


class History:
    """What a knowledge base held after each change: ids of documents by sequence. Looks often, and
    may miss changes that come at once."""

    def __init__(self, base: Path) -> None:
        self.truth = base / "kb.sqlite"
        self.documents: dict[int, frozenset[str]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "History":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        with closing(sqlite3.connect(self.truth, isolation_level=None, timeout=10)) as sql:
            seen = None
            while not self._stop.wait(LOOK):
                (version,) = sql.execute("PRAGMA data_version").fetchone()
                if version == seen:
                    continue
                sql.execute("BEGIN")
                sequence = _newest(sql)
                ids = frozenset(row for (row,) in sql.execute("SELECT id FROM documents"))
                sql.execute("COMMIT")
                self.documents[sequence], seen = ids, version

    def possible(self, document: str, sequence: int, later: int) -> bool:
        """Whether a document that an answer of `sequence` quotes, which came at `later`, was not gone
        before and was there at some time until then, as far as that was seen."""
        there = [number for number, ids in self.documents.items() if document in ids]
        if not there:
            return False
        removal = min((number for number in self.documents if number > max(there)), default=sequence + 1)
        before = max((number for number in self.documents if number < min(there)), default=-1)
        return removal > sequence and before < later


def newest(base: Path) -> int:
    """The number of its newest change."""
    with closing(sqlite3.connect(base / "kb.sqlite", timeout=10)) as sql:
        return _newest(sql)


def _newest(sql: sqlite3.Connection) -> int:
    return sql.execute("SELECT coalesce(max(seq), 0) FROM changes").fetchone()[0]


@dataclass(frozen=True)
class CheckedAnswer:
    """An answer, with the newest changes before the question and after the answer."""

    base: str
    name: str
    body: dict[str, Any]
    before: int
    after: int


@dataclass
class Load:
    """Clients of `servers`; each takes the next server with every request.

    `texts` holds all that was ever uploaded, by the id that it has as a document.
    """

    data: Path
    servers: list[ServerProcess]
    pause: float = 0.0
    texts: dict[str, str] = field(default_factory=dict)
    answers: list[CheckedAnswer] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    durations: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        with closing(self.sql()) as sql:
            sql.executescript(LOG)

    def sql(self) -> sqlite3.Connection:
        """The database of jobs."""
        return sqlite3.connect(self.data / ".server" / "server.sqlite", timeout=10)

    @contextmanager
    def running(self, changed: list[str], askers: int) -> Iterator[None]:
        """Clients that change knowledge bases and `askers` that ask them, as long as the block lasts.
        Those that change the same one change other documents of it."""
        ways = Counter(changed)
        work = [(self._change, base, NAMES[changed[:at].count(base) :: ways[base]])
                for at, base in enumerate(changed)]  # fmt: skip
        work += [(self._ask, changed[at % len(changed)], NAMES) for at in range(askers)]
        threads = [
            threading.Thread(target=self._again, args=(*each, random.Random(number)))
            for number, each in enumerate(work)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stop.set()
            for thread in threads:
                thread.join()

    def wait_for_progress(self, answers: int) -> None:
        """Wait for this number of further answers and for one further upload."""
        count_before, jobs = len(self.answers), len(self.jobs)
        wait_for(lambda: len(self.answers) >= count_before + answers and len(self.jobs) > jobs, 120)

    def _again(self, part: Any, base: str, names: list[str], dice: random.Random) -> None:
        with Client(self, dice) as client:
            while not self.stop.is_set():
                try:
                    part(client, base, names, dice)
                except (AssertionError, httpx.TransportError) as problem:
                    self.wrong.append(repr(problem))

    def _ask(self, client: "Client", base: str, names: list[str], dice: random.Random) -> None:
        time.sleep(self.pause)
        name = dice.choice(names)
        request = {"question": question(name), "knowledge_base": base}
        messages = [{"role": "user", "content": question(name)}]
        path, body = dice.choice(
            [
                ("/search", request),
                ("/ask", request),
                ("/ask", {**request, "stream": True}),
                ("/v1/chat/completions", {"model": base, "messages": messages}),
            ]
        )
        before, start_time = newest(self.data / base), time.perf_counter()
        answer = client.call("POST", path, json=body)
        if answer is None:
            return
        self.durations.append(time.perf_counter() - start_time)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text[:300]}"
        self.answers.append(CheckedAnswer(base, name, _body(answer), before, newest(self.data / base)))

    def _change(self, client: "Client", base: str, names: list[str], dice: random.Random) -> None:
        """Upload new documents, replace others, and delete one."""
        self.upload(client, base, {name: page(name, dice) for name in dice.sample(names, 2)})
        self.delete(client, base, dice.choice(names))

    def fill(self, bases: list[str]) -> None:
        """Create the knowledge bases, each with one document for every name."""
        with Client(self, random.Random(0)) as client:
            for base in bases:
                answer = client.call("POST", "/knowledge-bases", json={"name": base})
                assert answer
                assert answer.status_code == 201, answer.text
                dice = random.Random(base)
                self.upload(client, base, {name: page(name, dice) for name in NAMES}, wait=False)
            for job in self.jobs:
                self.wait(client, job)

    def upload(self, client: "Client", base: str, pages: dict[str, str], *, wait: bool = True) -> None:
        self.texts |= {identity(name, text): text for name, text in pages.items()}
        files = [("files", (f"{name}.txt", text.encode())) for name, text in pages.items()]
        answer = client.call("POST", f"/knowledge-bases/{base}/documents", files=files)
        if answer is None:
            return
        assert answer.status_code == 202, f"upload: {answer.status_code} {answer.text[:300]}"
        self.jobs.append(answer.json()["id"])
        if wait:
            self.wait(client, answer.json()["id"])

    def wait(self, client: "Client", job: str) -> None:
        end = time.monotonic() + LONGEST
        while time.monotonic() < end:
            answer = client.call("GET", f"/jobs/{job}")
            if answer is not None:
                assert answer.status_code == 200, f"job: {answer.status_code} {answer.text[:300]}"
                if answer.json()["finished"] is not None:
                    return
            time.sleep(0.05)
        raise AssertionError(f"job {job} has not ended in {LONGEST:g} s")

    def delete(self, client: "Client", base: str, name: str) -> None:
        """No server finds what another one has deleted."""
        path = f"/knowledge-bases/{base}/documents"
        found = client.call("GET", path, params={"q": name})
        if found is None or not found.json()["documents"]:
            return
        [document] = found.json()["documents"]
        removal = client.call("DELETE", f"{path}/{document['id']}")
        if removal is None:
            return
        assert removal.status_code == 204, f"delete: {removal.status_code} {removal.text[:300]}"
        self.counts["deleted"] += 1
        for _ in self.servers:
            request = {"question": question(name), "knowledge_base": base}
            if after := client.call("POST", "/search", json=request):
                assert document["id"] not in {hit["document"] for hit in after.json()["hits"]}

    def check(self, histories: dict[str, History]) -> None:
        """Raises `AssertionError` if an answer or a job is wrong."""
        assert not self.wrong, self.wrong[:5]
        for base, history in histories.items():
            with closing(sqlite3.connect(history.truth)) as sql:
                exist = {number for (number,) in sql.execute("SELECT seq FROM changes")}
            for answer in (each for each in self.answers if each.base == base):
                assert answer.body["sequence"] in exist
                self._check(answer, history)

    def _check(self, answer: CheckedAnswer, history: History) -> None:
        body, sequence = answer.body, answer.body["sequence"]
        assert answer.before <= sequence <= answer.after
        cited = body.get("citations", [])
        for choice in body.get("choices", []):
            cited = [each["citation"] for each in choice["message"]["annotations"]]
        for each in cited:
            assert self.texts[each["document"]][each["start"] : each["end"]] == each["quote"]
        for hit in body["hits"]:
            assert self.texts[hit["document"]][hit["start"] : hit["end"]] == hit["text"]
        quoted = {each["document"] for each in (*cited, *body["hits"])}
        for document in quoted:
            assert history.possible(document, sequence, answer.after), (document, sequence)
        self.counts["citations"] += len(cited)
        if (documents := history.documents.get(sequence)) is not None:
            self.counts["at rest" if quoted <= documents else "between"] += 1
            expected = {key for key in documents if answer.name in self.texts[key]}
            assert expected <= quoted, f"{answer.name} was there at {sequence} and is not found"

    def check_jobs(self) -> None:
        """Each accepted upload was done once, and never two at a time in one knowledge base."""
        with closing(self.sql()) as sql:
            log = sql.execute("SELECT base, job, state FROM transitions ORDER BY number").fetchall()
            ended = dict(sql.execute("SELECT id, state FROM jobs"))
        assert {job: ended[job] for job in self.jobs} == dict.fromkeys(self.jobs, "done")
        finished = Counter(job for _, job, state in log if state == "done")
        assert set(finished.values()) == {1}
        assert set(self.jobs) <= set(finished)
        working: dict[str, str] = {}
        for base, job, state in log:
            if state == "running":
                assert working.setdefault(base, job) == job
            elif working.get(base) == job:
                del working[base]


class Client:
    """A client of all servers of a load, one after the other."""

    def __init__(self, load: Load, dice: random.Random) -> None:
        self._load, self._turn = load, dice.randrange(len(load.servers))
        self._http = httpx.Client(timeout=60)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def call(self, method: str, path: str, **more: Any) -> httpx.Response | None:
        """The answer of the next running server; None if that ends in the meantime."""
        living = [server for server in self._load.servers if not server.ending]
        self._turn += 1
        server = living[self._turn % len(living)]
        try:
            return self._http.request(method, server.address + path, **more)
        except httpx.TransportError:
            if not server.ending:
                raise
            self._load.counts["cut off"] += 1
            return None


def _body(answer: httpx.Response) -> dict[str, Any]:
    """The last event of a streamed answer, which is the whole answer."""
    if answer.headers["content-type"].startswith("application/json"):
        return answer.json()
    *_, last = answer.text.strip().split("\n\n")
    event, _, data = last.partition("\n")
    assert event == "event: citations", last
    return json.loads(data.removeprefix("data: "))


def page(name: str, dice: random.Random) -> str:
    filler = "".join(f"第{n}排货架存放编目资料，每月清点一次。" for n in range(dice.randint(0, 9)))
    return f"{filler}\n\n{name}仓的编号是{dice.randrange(10**9):09}。\n"


def question(name: str) -> str:
    return f"{name}仓的编号是多少？"


def identity(name: str, text: str) -> str:
    """The id of the document that an upload becomes."""
    digest = blake2b(text.encode(), digest_size=32).hexdigest()
    return Document(f"{SOURCE_PREFIX}{name}.txt", "", digest, ParseReport("txt")).id
