"""`rag serve` under load: python benchmarks/serve.py load|ingest|memory SET [--txtai PYTHON]

SET is a folder with corpus.jsonl and queries.jsonl (`_id`, `text`). `load` asks at 1, 8 and 64 clients,
also txtai's API over the very chunks of our knowledge base where PYTHON is an environment that has
txtai[api] and transformers. txtai reads the bundled encoder's weights as a checkpoint; its /rag
answers by extraction with a model of the same weights below a head for spans, which is untrained:
what is compared is speed. `ingest` compares /search of a knowledge base while documents are read
into it, and while they are read into another, with /search while none are; `memory` looks at the server over many questions. Everything listens at the loopback; no
question is asked twice before all have been asked.
"""

import argparse
import asyncio
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from urllib.parse import quote

import embedding
import numpy as np

from ingest.store import open_store

ROOT = Path(__file__).parents[1]
BASE = "bench"
CLIENTS = (1, 8, 64)
PEERS = {"/search": ("txtai dense", "txtai hybrid"), "/ask": ("txtai rag",)}
Request = Callable[[str], bytes]


def texts(file: Path) -> list[str]:
    return [json.loads(line)["text"] for line in file.read_text("utf-8").splitlines()]


def post(path: str) -> Request:
    def made(question: str) -> bytes:
        body = json.dumps({"question": question, "knowledge_base": BASE}).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    return made


def get(path: str) -> Request:
    def made(question: str) -> bytes:
        return f"GET {path}{quote(question)} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()

    return made


class Connection:
    """One that stays open, and is opened again where the server has closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, sent: bytes) -> int:
        """The status of one request; 0 where the server breaks off."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            writer.write(sent)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            assert length, head
            await reader.readexactly(int(length[1]))
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            await asyncio.sleep(0.1)  # a server that is gone is no fast one
            return 0
        if re.search(rb"connection: close", head, re.IGNORECASE):
            self.close()
        return int(head.split(b" ", 2)[1])

    def close(self) -> None:
        if self._streams:
            self._streams[1].close()
            self._streams = None


async def load(
    port: int, request: Request, questions: Iterator[str], clients: int, seconds: float
) -> tuple[float, list[float], list[int]]:
    """Requests a second, seconds of each, and statuses, where each client asks without pause."""
    spent: list[float] = []
    statuses: list[int] = []
    end = time.perf_counter() + seconds

    async def client() -> None:
        connection = Connection(port)
        while (begun := time.perf_counter()) < end:
            statuses.append(await connection.ask(request(next(questions))))
            spent.append(time.perf_counter() - begun)
        connection.close()

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return len(spent) / (time.perf_counter() - begun), spent, statuses


def told(name: str, found: tuple[float, list[float], list[int]], clients: int) -> float:
    _, spent, statuses = found
    p50, p95 = np.percentile(np.array(spent) * 1000, [50, 95])
    failed = sum(status != 200 for status in statuses)
    rate = found[0] * (1 - failed / len(statuses))
    sys.stdout.write(
        f"{name:<16}{clients:>3} clients {rate:7.1f}/s  p50 {p50:7.1f} ms  p95 {p95:7.1f} ms"
        f"{f'  {failed} not 200: {sorted(set(statuses))}' if failed else ''}\n"
    )
    sys.stdout.flush()
    return rate


@contextmanager
def ours(folder: Path) -> Iterator[tuple[int, int]]:
    """Port and process id of a server over the knowledge bases in `folder`."""
    environment = {**os.environ, "XDG_DATA_HOME": str(folder), "LC_ALL": "C.UTF-8"}
    command = [sys.executable, "-m", "rag", "serve", "--port", "0", "--no-ocr", "--queue", "1000"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout
        address = re.search(r":(\d+)/", process.stdout.readline())
        assert address
        yield int(address[1]), process.pid
    finally:
        process.terminate()
        process.wait(60)


def prepared(folder: Path, corpus: Path) -> Path:
    """The knowledge base of the corpus' texts, a document each."""
    base, documents = folder / "chatglm-rag" / BASE, folder / "documents"
    if not base.exists():
        documents.mkdir(parents=True)
        for number, text in enumerate(texts(corpus)):
            (documents / f"{number:05}.txt").write_text(text, "utf-8")
        environment = {**os.environ, "XDG_DATA_HOME": str(folder)}
        command = [sys.executable, "-m", "rag", "ingest", str(documents), "--kb", BASE]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    return base


def checkpoints(folder: Path) -> tuple[Path, Path]:
    """The bundled encoder's weights as a checkpoint, and below an untrained head for spans."""
    encoder, reader = folder / "encoder", folder / "reader"
    if not reader.exists():
        from transformers import AutoModelForQuestionAnswering, AutoTokenizer

        encoder.mkdir(parents=True)
        embedding.checkpoint(encoder)
        AutoModelForQuestionAnswering.from_pretrained(encoder).save_pretrained(reader)
        AutoTokenizer.from_pretrained(encoder).save_pretrained(reader)
    return encoder, reader


@contextmanager
def txtai(python: str, folder: Path, base: Path, *, hybrid: bool, port: int) -> Iterator[None]:
    """Its API over the chunks of our knowledge base."""
    name = folder / f"txtai-{'hybrid' if hybrid else 'dense'}"
    encoder, reader = checkpoints(folder.parent)
    settings = {
        "path": str(encoder), "instructions": {"query": "query: ", "data": "passage: "},
        "content": True, "hybrid": hybrid, "backend": "faiss",
    }  # fmt: skip
    config = name.with_suffix(".yml")
    if not config.exists():
        with open_store(base) as store:
            chunks = [chunk.text for chunk in store.chunks(store.sample(store.count())).values()]
        made = name.with_suffix(".json")
        made.write_text(json.dumps(chunks), "utf-8")
        code = (
            "import json, sys; from txtai import Embeddings\n"
            f"made = Embeddings({settings!r})\n"
            f"made.index(list(enumerate(json.load(open({str(made)!r})))))\n"
            f"made.save({str(name)!r})"
        )
        subprocess.run([python, "-c", code], check=True)
        api = {
            "path": str(name), "writable": False, "embeddings": settings,
            "rag": {"path": str(reader)},
        }  # fmt: skip
        config.write_text(json.dumps(api), "utf-8")
    served = subprocess.Popen(
        [python, "-m", "uvicorn", "txtai.api:app", "--port", str(port), "--no-access-log"],
        env={**os.environ, "CONFIG": str(config)}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(port)
        yield
    finally:
        served.terminate()
        served.wait(60)


def wait_for(port: int) -> None:
    import socket

    for _ in range(1200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens at {port}")


def compared(folder: Path, options: argparse.Namespace, questions: Iterator[str]) -> None:
    base = prepared(folder, options.set / "corpus.jsonl")
    rates: dict[tuple[str, int], list[float]] = {}

    def measured(name: str, port: int, request: Request) -> None:
        asyncio.run(load(port, request, questions, 4, options.warm))
        for clients in CLIENTS:
            found = asyncio.run(load(port, request, questions, clients, options.seconds))
            rates.setdefault((name, clients), []).append(told(name, found, clients))

    for _ in range(options.rounds):
        with ours(folder) as (port, _pid):
            measured("/search", port, post("/search"))
            measured("/ask", port, post("/ask"))
        for hybrid in (False, True) if options.txtai else ():
            with txtai(options.txtai, folder, base, hybrid=hybrid, port=options.port):
                kind = "hybrid" if hybrid else "dense"
                measured(f"txtai {kind}", options.port, get("/search?limit=5&query="))
                if hybrid:
                    measured("txtai rag", options.port, get("/rag?query="))
    for clients in CLIENTS if options.txtai else ():
        for path, peers in PEERS.items():
            for peer in peers:
                ours_, theirs = (np.median(rates[name, clients]) for name in (path, peer))
                times = f"{ours_ / theirs:.2f} times" if theirs else "no answer any more from"
                sys.stdout.write(f"{path} at {clients}: {times} {peer}\n")


def ingesting(folder: Path, options: argparse.Namespace, questions: Iterator[str]) -> None:
    """p95 of /search with and without a job under way, in turns on one server."""
    import httpx

    base = prepared(folder, options.set / "corpus.jsonl")
    many = texts(options.set / "corpus.jsonl")
    dice = random.Random(0)
    busy = folder / "busy"
    shutil.rmtree(busy, ignore_errors=True)
    shutil.copytree(base, busy / "chatglm-rag" / BASE)  # it grows
    kinds = ("idle", "another", "this one")
    spent: dict[str, list[float]] = {kind: [] for kind in kinds}

    def asked() -> list[float]:
        return asyncio.run(load(port, post("/search"), questions, 1, options.seconds))[1]

    with ours(busy) as (port, _), httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        client.post("/knowledge-bases", json={"name": "other"}).raise_for_status()
        asyncio.run(load(port, post("/search"), questions, 2, 3))
        for _ in range(options.rounds):
            spent["idle"] += asked()
            for kind, name in (("another", "other"), ("this one", BASE)):
                files = [
                    ("files", (f"{dice.random()}.txt", "\n".join(dice.sample(many, 2)))) for _ in range(300)
                ]
                job = client.post(f"/knowledge-bases/{name}/documents", files=files).json()["id"]
                while client.get(f"/jobs/{job}").json()["chunks"] == 0:
                    time.sleep(0.1)
                spent[kind] += asked()
                state = client.get(f"/jobs/{job}").json()
                assert state["finished"] is None, "the job ended first: ask for fewer --seconds"
                sys.stdout.write(f"{name}: {state['files_done']} of 300 files by then\n")
                client.post(f"/jobs/{job}/cancel")
                while client.get(f"/jobs/{job}").json()["finished"] is None:
                    time.sleep(0.2)
    idle = float(np.percentile(spent["idle"], 95))
    for kind, seconds in spent.items():
        p50, p95 = np.percentile(np.array(seconds) * 1000, [50, 95])
        sys.stdout.write(
            f"/search, ingest into {kind:<9} p50 {p50:5.1f}  p95 {p95:5.1f} ms"
            f"  {p95 / idle / 1000:.2f} times\n"
        )


def remembered(folder: Path, options: argparse.Namespace, questions: Iterator[str]) -> None:
    """Resident memory of the server after each tenth of the requests."""
    prepared(folder, options.set / "corpus.jsonl")
    with ours(folder) as (port, pid):

        async def ask(count: int) -> None:
            async def client() -> None:
                connection = Connection(port)
                for _ in range(count // 16):
                    path = "/search" if next(turns) else "/ask"
                    assert await connection.ask(post(path)(next(questions))) == 200
                connection.close()

            turns = cycle((True, False))
            await asyncio.gather(*(client() for _ in range(16)))

        for done in range(options.requests // 10, options.requests + 1, options.requests // 10):
            asyncio.run(ask(options.requests // 10))
            status = Path(f"/proc/{pid}/status").read_text()
            held = re.search(r"VmRSS:\s+(\d+)", status)
            assert held
            sys.stdout.write(f"{done:6} requests: {int(held[1]) / 1024:.0f} MB\n")
            sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", choices=("load", "ingest", "memory"))
    parser.add_argument("set", type=Path)
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench" / "serve")
    parser.add_argument("--txtai", default="")
    parser.add_argument("--port", type=int, default=8901)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--warm", type=float, default=3, help="seconds of asking before")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--requests", type=int, default=20_000)
    options = parser.parse_args()
    folder = options.folder / options.set.name
    questions = cycle(texts(options.set / "queries.jsonl"))
    {"load": compared, "ingest": ingesting, "memory": remembered}[options.part](folder, options, questions)


if __name__ == "__main__":
    main()
