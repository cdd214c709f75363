"""Servers for tests: the real application at a real port, with a stand-in encoder."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import uvicorn

from ingest.embed import Backend, Embedder
from rag.generate import GenerateOptions
from server.app import configuration, listen
from server.models import Models
from server.options import ServerOptions
from server.schemas import NewKnowledgeBase
from server.state import State
from server.telemetry import Spans
from server.uploads import Originals
from server.worker import Crew, Worker
from tests.fakes import CopyingGenerator, HashEmbedder

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chatglm-rag"
LAW = "第十条 建立劳动关系，应当订立书面劳动合同。\n第十九条 试用期不得超过六个月。\n"
POEM = "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。\n"
RUST = "Cargo 是 Rust 的构建系统和包管理器。\nRust 每六周发布一个新的稳定版本。\n"
PAGES = {"劳动合同法.txt": LAW, "poem.txt": POEM, "rust.md": RUST}


class WideEmbedder(HashEmbedder):
    """With room for chunks of the usual length."""

    max_tokens = 500


def encoders(name: str, backend: Backend) -> Embedder:
    return WideEmbedder()


def options(data: Path, **more: Any) -> ServerOptions:
    return ServerOptions(data=data, cache=data / "cache", port=0, **more)


def state(
    data: Path,
    *,
    generator: CopyingGenerator | None = None,
    spans: Spans | None = None,
    **more: Any,
) -> State:
    """A server's parts; with a `generator`, answers are written by it."""
    made = options(data, **more)
    if generator is not None:
        made = options(data, generate=GenerateOptions(model="copy"), **more)
    return State.made(
        made, Models(lambda options: generator or CopyingGenerator()), opened=encoders, spans=spans
    )


def worker(server: State) -> Worker:
    made = server.options
    return Worker(made.data, made.cache, made.home, ocr=False, opened=encoders)


def work(server: State) -> None:
    """All jobs that wait, one after the other."""
    with closing(worker(server)) as hand:
        while job := hand.jobs.claim(hand.name):
            hand.work(job)


@contextmanager
def running(server: State) -> Iterator[httpx.Client]:
    """A client of the application at a port of the loopback, behind its door."""
    with closing(listen(server.options)) as listening:
        running = uvicorn.Server(configuration(server))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        host, port = listening.getsockname()[:2]
        try:
            wait_for(lambda: running.started)
            with httpx.Client(base_url=f"http://{host}:{port}", timeout=30) as client:
                yield client
        finally:
            running.should_exit = True
            thread.join()


def wait_for(true: Any, seconds: float = 30.0) -> None:
    end = monotonic() + seconds
    while not true():
        assert monotonic() < end, "waited in vain"
        sleep(0.02)


@dataclass(frozen=True)
class Filled:
    """A running server with one knowledge base `mine` that holds `PAGES`."""

    state: State
    client: httpx.Client

    def upload(self, files: dict[str, bytes | str], base: str = "mine") -> dict[str, Any]:
        """The job, when it has ended."""
        parts = [
            ("files", (name, text.encode() if isinstance(text, str) else text))
            for name, text in files.items()
        ]
        answer = self.client.post(f"/knowledge-bases/{base}/documents", files=parts)
        assert answer.status_code == 202, answer.text
        work(self.state)
        return self.client.get(f"/jobs/{answer.json()['id']}").json()

    def documents(self, base: str = "mine") -> dict[str, dict[str, Any]]:
        found = self.client.get(f"/knowledge-bases/{base}/documents").json()["documents"]
        return {each["name"]: each for each in found}

    def ask(self, question: str, **more: Any) -> dict[str, Any]:
        body = {"question": question, "knowledge_base": "mine", **more}
        answer = self.client.post("/ask", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()


@contextmanager
def filled(data: Path, **more: Any) -> Iterator[Filled]:
    with closing(state(data, **more)) as server, running(server) as client:
        assert client.post("/knowledge-bases", json={"name": "mine"}).status_code == 201
        full = Filled(server, client)
        full.upload(dict(PAGES))
        yield full


@contextmanager
def served(data: Path) -> Iterator[tuple[State, Crew]]:
    """A server's parts with a real worker beside them, and the bundled encoder."""

    def none(options: Any) -> Any:
        raise AssertionError("no model is named")

    made = ServerOptions(data=data, cache=CACHE, port=0, ocr=False)
    with Crew(made) as crew, closing(State.made(made, Models(none))) as parts:
        yield parts, crew


def upload(parts: State, files: Mapping[str, bytes | str], base: str = "mine") -> str:
    if base not in parts.bases.names():
        parts.bases.create(NewKnowledgeBase(name=base))
    job = parts.jobs.receive(base, parts.member.name)
    originals = Originals(parts.bases.path(base))
    for name, text in files.items():
        originals.keep(
            name,
            [text.encode() if isinstance(text, str) else text],
            most=10**9,
            noted=lambda stored: parts.jobs.file(job, stored, once={}),
        )
    parts.jobs.queue(job)
    return job


def row(parts: State, job: str) -> Any:
    found = parts.jobs.get(job)
    assert found
    return found


def ended(parts: State, job: str) -> Callable[[], bool]:
    return lambda: row(parts, job)["finished"] is not None
