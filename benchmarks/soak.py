"""A server under everything at once: python benchmarks/soak.py [--minutes 20] [--folder DIR]

Documents are uploaded, replaced, asked for and deleted, jobs cancelled, the worker and, in the first quarter,
the server killed with SIGKILL. Each document tells the number of one warehouse. Ends with 1 where

- a document is missing whose job was done, or whose job was taken in and not cancelled; or one is
  there that was deleted
- an answer lacks the question's number, or a citation is not the text of its document at its place
- a request fails otherwise than by 429, 503, or by the server's death
- the server's memory has grown by more than a tenth in the second half
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from ingest.store import open_store

ROOT = Path(__file__).parents[1]
BASE = "soak"
ASKERS = 3
GONE = (httpx.TransportError,)  # the server is dead, or dies meanwhile
LATER = (429, 503)


@dataclass
class Truth:
    """What ought to be there. Names in `doubtful` are being changed, or a change of them was cut off."""

    texts: dict[str, str] = field(default_factory=dict)
    doubtful: set[str] = field(default_factory=set)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def sure(self, dice: random.Random) -> tuple[str, str] | None:
        with self.lock:
            names = sorted(self.texts.keys() - self.doubtful)
            return (name := dice.choice(names), self.texts[name]) if names else None

    def take(self, names: list[str]) -> list[str]:
        """Those of `names` that nobody else changes, from now on doubtful."""
        with self.lock:
            free = [name for name in names if name not in self.doubtful]
            self.doubtful.update(free)
            return free

    def settle(self, texts: dict[str, str | None]) -> None:
        with self.lock:
            for name, text in texts.items():
                self.doubtful.discard(name)
                if text is None:
                    self.texts.pop(name, None)
                else:
                    self.texts[name] = text


@dataclass
class Soak:
    folder: Path
    seconds: float
    truth: Truth = field(default_factory=Truth)
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)
    port: int = 0
    process: subprocess.Popen[str] | None = None

    @property
    def passed(self) -> float:
        """The share of the time."""
        return (time.monotonic() - self.begun) / self.seconds

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "XDG_DATA_HOME": str(self.folder), "LC_ALL": "C.UTF-8"}
        command = [sys.executable, "-m", "rag", "serve", "--no-ocr", "--port", str(self.port)]
        log = (self.folder / "server.telemetry").open("a")
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
        assert self.process.stdout
        found = re.search(r":(\d+)/", self.process.stdout.readline())
        assert found, (self.folder / "server.telemetry").read_text()[-2000:]
        self.port = int(found[1])

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def complain(self, what: str) -> None:
        self.wrong.append(what)
        sys.stdout.write(f"WRONG: {what}\n")
        sys.stdout.flush()

    def call(
        self, client: httpx.Client, method: str, path: str, expected: tuple[int, ...], **more: object
    ) -> httpx.Response | None:
        """The answer, or None where the server is gone or has no time."""
        try:
            answer = client.request(method, path, **more)  # type: ignore[arg-type]
        except GONE:
            self.counts["cut off"] += 1
            time.sleep(0.2)
            return None
        if answer.status_code in LATER:
            self.counts[str(answer.status_code)] += 1
            time.sleep(0.5)
            return None
        if answer.status_code not in expected:
            self.complain(f"{method} {path}: {answer.status_code} {answer.text[:200]}")
            return None
        return answer

    # What goes on at the same time

    def upload(self, client: httpx.Client, dice: random.Random) -> None:
        """Some new documents and some that take another's place, in one job, now and then cancelled."""
        names = self.truth.take([f"仓库{dice.randrange(400):03}.txt" for _ in range(dice.randint(1, 6))])
        names = sorted(set(names))
        texts = {name: told(name, dice) for name in names}
        files = [("files", (name, text.encode())) for name, text in texts.items()]
        if not names:
            return
        path = f"/knowledge-bases/{BASE}/documents"
        answer = self.call(client, "POST", path, (202,), files=files)
        if answer is None:  # perhaps it was taken in, perhaps not
            self.counts["uploads in doubt"] += 1
            return
        job = answer.json()["id"]
        if dice.random() < 0.15:
            self.call(client, "POST", f"/jobs/{job}/cancel", (200, 202, 409))
        ended = self.ended(client, job)
        if ended is None:
            return
        settled: dict[str, str | None] = {}
        for each in ended["files"]:
            self.counts[f"files {each['state']}"] += 1
            if each["state"] in ("added", "changed", "unchanged"):
                settled[each["name"]] = texts[each["name"]]
            elif each["state"] == "cancelled":
                with self.truth.lock:
                    settled[each["name"]] = self.truth.texts.get(each["name"])
            else:
                self.complain(f"{each['name']} of {job}: {each['state']} {each['problem']}")
        self.truth.settle(settled)
        if ended["state"] not in ("done", "cancelled"):
            self.complain(f"job {job}: {ended['state']} {ended['error']}")

    def ended(self, client: httpx.Client, job: str) -> dict | None:
        limit = time.monotonic() + 180
        while time.monotonic() < limit:
            answer = self.call(client, "GET", f"/jobs/{job}", (200,))
            if answer and answer.json()["finished"] is not None:
                return answer.json()
            time.sleep(0.2)
        self.complain(f"job {job} has not ended in 180 s")
        return None

    def ask(self, client: httpx.Client, dice: random.Random) -> None:
        chosen = self.truth.sure(dice)
        if chosen is None:
            time.sleep(0.5)
            return
        name, text = chosen
        body = {"question": f"{name[:-4]}的编号是多少？", "knowledge_base": BASE}
        answer = self.call(client, "POST", "/ask", (200,), json=body)
        with self.truth.lock:
            if answer is None or self.truth.texts.get(name) != text or name in self.truth.doubtful:
                return  # it was changed meanwhile
        said = answer.json()
        self.counts["refused" if said["refused"] else "answered"] += 1
        if not said["refused"] and number_of(text) not in said["answer"]:
            self.complain(f"{name}: {number_of(text)} is not in {said['answer']!r}")
        for cited in said["citations"]:
            with self.truth.lock:
                whole = self.truth.texts.get(cited["name"])
                changing = cited["name"] in self.truth.doubtful
            if changing or whole is None:  # another one, which comes or goes at this moment
                self.counts["citations not checked"] += 1
            elif whole[cited["start"] : cited["end"]] == cited["quote"]:
                self.counts["citations right"] += 1
            elif cited["name"] == name:
                self.complain(f"{name}: {cited['quote']!r} does not stand at {cited['start']}")
            else:
                self.counts["citations not checked"] += 1  # it has changed since the answer

    def delete(self, client: httpx.Client, dice: random.Random) -> None:
        time.sleep(dice.uniform(0.5, 3))
        chosen = self.truth.sure(dice)
        if chosen is None or not (names := self.truth.take([chosen[0]])):
            return
        path, name = f"/knowledge-bases/{BASE}/documents", names[0]
        found = self.call(client, "GET", path, (200,), params={"q": name})
        if found is None:
            self.truth.settle({name: chosen[1]})
            return
        listed = [each for each in found.json()["documents"] if each["name"] == name]
        if not listed:
            self.complain(f"{name} is lost")
            return
        gone = self.call(client, "DELETE", f"{path}/{listed[0]['id']}", (204,))
        if gone is None:
            return  # in doubt
        self.counts["deleted"] += 1
        body = {"question": f"{name[:-4]}的编号是多少？", "knowledge_base": BASE}
        after = self.call(client, "POST", "/search", (200,), json=body)
        if after and any(hit["name"] == name for hit in after.json()["hits"]):
            self.complain(f"{name} is found after it was deleted")
        self.truth.settle({name: None})

    def kill(self, client: httpx.Client, dice: random.Random) -> None:
        time.sleep(dice.uniform(10, 30))
        assert self.process
        if self.passed < 0.25 and dice.random() < 0.5:
            self.process.kill()
            self.process.wait()
            self.counts["servers killed"] += 1
            self.start()
            return
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        for pid in children.split():
            if b"server.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(int(pid), signal.SIGKILL)
                self.counts["workers killed"] += 1

    def look(self, client: httpx.Client, dice: random.Random) -> None:
        time.sleep(2)
        assert self.process
        held = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
        if held and self.passed > 0.5:
            self.memory.append((self.passed, int(held[1])))

    def run(self) -> None:
        self.start()
        with self.client() as client:
            client.post("/knowledge-bases", json={"name": BASE}).raise_for_status()
        parts = [self.upload, self.delete, self.kill, self.look, *[self.ask] * ASKERS]
        threads = [
            threading.Thread(target=self.again, args=(part, random.Random(number)))
            for number, part in enumerate(parts)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.settle()

    def again(self, part: Callable[[httpx.Client, random.Random], None], dice: random.Random) -> None:
        with self.client() as client:
            while self.passed < 1:
                try:
                    part(client, dice)
                except FileNotFoundError:
                    pass  # of /proc, of a process that has ended
                except Exception as problem:  # noqa: BLE001  # told, and the others go on
                    self.complain(f"{part.__name__}: {problem!r}")

    def settle(self) -> None:
        """When all is quiet: the truth, document by document."""
        with self.client() as client:
            while any(job["finished"] is None for job in client.get("/jobs").json()["jobs"]):
                time.sleep(0.5)
            there = {}
            path = f"/knowledge-bases/{BASE}/documents"
            for each in client.get(path, params={"limit": 1000}).json()["documents"]:
                there[each["name"]] = client.get(f"{path}/{each['id']}/text").json()["text"]
        for name, text in self.truth.texts.items():
            if name not in self.truth.doubtful and there.get(name, "").strip() != text.strip():
                self.complain(f"{name}: {there.get(name)!r} instead of {text!r}")
        for name in there.keys() - self.truth.texts.keys() - self.truth.doubtful:
            self.complain(f"{name} is there")
        self.counts["documents at the end"] = len(there)
        assert self.process
        self.process.terminate()
        self.process.wait(60)
        with open_store(self.folder / "chatglm-rag" / BASE) as store:
            for problem in store.verify():
                self.complain(problem)


def told(name: str, dice: random.Random) -> str:
    filler = "".join(f"第{n}排货架存放编目资料，每月清点一次。" for n in range(dice.randint(0, 30)))
    return f"{filler}\n\n{name[:-4]}的编号是{dice.randrange(10**6):06}。\n"


def number_of(text: str) -> str:
    found = re.search(r"编号是(\d+)", text)
    assert found
    return found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        soak = Soak(options.folder or Path(temporary), options.minutes * 60)
        try:
            soak.run()
        finally:
            if soak.process and soak.process.poll() is None:
                soak.process.kill()
        for what, count in sorted(soak.counts.items()):
            sys.stdout.write(f"{what}: {count}\n")
        if soak.memory:
            third = len(soak.memory) // 3
            early, late = (
                sorted(held for _, held in part)[len(part) // 2] / 1024
                for part in (soak.memory[: third or 1], soak.memory[-third or None :])
            )
            sys.stdout.write(f"memory {early:.0f} MB, then {late:.0f} MB\n")
            if late > early * 1.1:
                soak.complain("memory has grown by more than a tenth")
        sys.stdout.write(f"{len(soak.wrong)} wrong\n")
        sys.exit(1 if soak.wrong else 0)


if __name__ == "__main__":
    main()
