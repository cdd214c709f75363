"""Servers for tests: the real application at a real port, with a stand-in encoder."""

import io
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import uvicorn

from ingest.embed import Backend, Embedder
from rag.generate import GenerateOptions
from server.app import listen, uvicorn_config
from server.models import Models
from server.options import ServerOptions
from server.schemas import CreateKnowledgeBaseRequest
from server.state import ServerState
from server.uploads import Uploads
from server.worker import Worker, WorkerSupervisor
from tests.encoders import CACHE
from tests.fakes import CopyingGenerator, HashEmbedder

LAW = "第十条 建立劳动关系，应当订立书面劳动合同。\n第十九条 试用期不得超过六个月。\n"
POEM = "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。\n"
RUST = "Cargo 是 Rust 的构建系统和包管理器。\nRust 每六周发布一个新的稳定版本。\n"
PAGES = {"劳动合同法.txt": LAW, "poem.txt": POEM, "rust.md": RUST}


class WideEmbedder(HashEmbedder):
    """Its window holds chunks of the usual length."""

    max_tokens = 500


def encoders(name: str, backend: Backend) -> Embedder:
    return WideEmbedder()


def options(data: Path, **more: Any) -> ServerOptions:
    return ServerOptions(data=data, cache=data / "cache", port=0, **more)


def state(data: Path, *, generator: CopyingGenerator | None = None, **more: Any) -> ServerState:
    """A server's state; a `generator`, if given, writes the answers."""
    server_options = options(data, **more)
    if generator is not None:
        server_options = options(data, generate=GenerateOptions(model="copy"), **more)

    def load(options: GenerateOptions, reading: Callable[[float], None]) -> CopyingGenerator:
        writer = generator or CopyingGenerator()
        writer.on_read = reading
        return writer

    return ServerState(server_options, Models(load), open_encoder=encoders)


def open_worker(server: ServerState) -> Worker:
    return Worker(replace(server.options, ocr=False), open_encoder=encoders)


def run_jobs(server: ServerState) -> None:
    """Run all waiting jobs, one after the other."""
    with closing(open_worker(server)) as worker:
        while job := worker.jobs.claim(worker.name):
            worker.work(job)


@contextmanager
def run_server(server: ServerState) -> Iterator[httpx.Client]:
    """A client of the application at a port of the loopback, with its middleware."""
    with closing(listen(server.options)) as listening:
        running = uvicorn.Server(uvicorn_config(server))
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
class SampleServer:
    """A running server with one knowledge base `mine` that holds `PAGES`."""

    state: ServerState
    client: httpx.Client

    def upload(self, files: dict[str, bytes | str], base: str = "mine") -> dict[str, Any]:
        """The job, when it has ended."""
        parts = [
            ("files", (name, text.encode() if isinstance(text, str) else text))
            for name, text in files.items()
        ]
        answer = self.client.post(f"/knowledge-bases/{base}/documents", files=parts)
        assert answer.status_code == 202, answer.text
        run_jobs(self.state)
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
def sample_server(data: Path, **more: Any) -> Iterator[SampleServer]:
    with closing(state(data, **more)) as server, run_server(server) as client:
        assert client.post("/knowledge-bases", json={"name": "mine"}).status_code == 201
        full = SampleServer(server, client)
        full.upload(dict(PAGES))
        yield full


@contextmanager
def server_with_worker(data: Path) -> Iterator[tuple[ServerState, WorkerSupervisor]]:
    """A server's state with a real worker and the bundled encoder."""

    def none(options: Any, reading: Any) -> Any:
        raise AssertionError("no model is named")

    server_options = ServerOptions(data=data, cache=CACHE, port=0, ocr=False)
    with (
        WorkerSupervisor(server_options) as supervisor,
        closing(ServerState(server_options, Models(none))) as parts,
    ):
        yield parts, supervisor


def upload(parts: ServerState, files: Mapping[str, bytes | str], base: str = "mine") -> str:
    if base not in parts.knowledge_bases.names():
        parts.knowledge_bases.create(CreateKnowledgeBaseRequest(name=base))
    job = parts.jobs.create_upload(base, parts.replica.name)
    uploads = Uploads(parts.knowledge_bases.path(base))
    for name, text in files.items():
        uploads.save(
            name,
            io.BytesIO(text.encode() if isinstance(text, str) else text),
            limit=10**9,
            register=lambda upload: parts.jobs.add_file(job, upload),
        )
    parts.jobs.queue(job)
    return job


def job_row(parts: ServerState, job: str) -> Any:
    found = parts.jobs.get(job)
    assert found
    return found


def worker_pid(supervisor: WorkerSupervisor) -> int:
    assert supervisor.process
    return supervisor.process.pid


def has_ended(parts: ServerState, job: str) -> Callable[[], bool]:
    return lambda: job_row(parts, job)["finished"] is not None
