"""A deliberately faulty engine: it speaks as OpenAI's API until it is told to drop, stall or babble.

Each chat request takes the next act of those that it was given, the last one again and again. What it
answers at other paths is a table, in the shapes of the engines' own sources.
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Act = Callable[["Call"], None]
PATIENCE = 60.0  # seconds for a client to leave: far more than any takes
MODELS = {"data": [{"id": "glm", "owned_by": "vllm", "max_model_len": 8192}]}


class Call(BaseHTTPRequestHandler):
    """One request, and what may be done to it."""

    protocol_version = "HTTP/1.1"

    @property
    def faulty(self) -> "Faulty":
        assert isinstance(self.server, Server)
        return self.server.faulty

    def do_GET(self) -> None:
        self._act()

    def do_POST(self) -> None:
        self._act()

    def _act(self) -> None:
        faulty, path = self.faulty, self.path
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        faulty.seen.append(Seen(path, dict(self.headers), json.loads(body) if body else None))
        self.close_connection = True
        try:
            if path.endswith("/chat/completions"):
                faulty.next_act()(self)
            elif path in faulty.paths:
                self.value(faulty.paths[path])
            else:
                self.value({"error": {"message": "Not Found"}}, 404)
        except (BrokenPipeError, ConnectionResetError):
            faulty.gone.set()

    def value(self, value: Any, status: int = 200, **headers: str) -> None:
        """A JSON value; a function is asked for it, with the request's own."""
        if callable(value):
            value = value(self.faulty.seen[-1].body)
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, said in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), said)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def begin(self, kind: str = "text/event-stream") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def packet(self, content: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
        self.wfile.flush()

    def end(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def wait_until_left(self) -> None:
        """Say nothing until the client has hung up."""
        self.connection.settimeout(PATIENCE)
        if self.connection.recv(1) == b"":
            self.faulty.gone.set()

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@dataclass
class Seen:
    """A request as it came."""

    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Faulty:
    """`gone` is set when a client has left before its answer was complete."""

    acts: list[Act]
    paths: dict[str, Any] = field(default_factory=lambda: {"/v1/models": MODELS})
    seen: list[Seen] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)
    address: str = ""

    def next_act(self) -> Act:
        self.begun.set()
        return self.acts.pop(0) if len(self.acts) > 1 else self.acts[0]

    @property
    def chats(self) -> list[Seen]:
        return [each for each in self.seen if each.path.endswith("/chat/completions")]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    faulty: Faulty

    def handle_error(self, request: Any, client_address: Any) -> None:
        """An act that fails fails its test: it never answers."""


@contextmanager
def faulty(*acts: Act, paths: Mapping[str, Any] | None = None) -> Iterator[Faulty]:
    with Server(("127.0.0.1", 0), Call) as server:
        made = Faulty(list(acts))
        made.paths |= paths or {}
        made.address = f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.faulty = made
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()


# What chunks look like


def chunk(text: str | None = None, *, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    said = delta if text is None else {"content": text, **delta}
    return {"choices": [{"index": 0, "delta": said, "finish_reason": finish}]}


def event(value: Any, line: str = "\n") -> bytes:
    said = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"data: {said}{line}{line}".encode()


ROLE = chunk(role="assistant", content="")
USAGE = {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}}


def reply(*pieces: str, finish: str = "stop") -> bytes:
    """A whole and faultless stream."""
    chunks = [ROLE, *map(chunk, pieces), chunk(finish=finish), USAGE, "[DONE]"]
    return b"".join(map(event, chunks))


# Acts


def says(content: bytes, *, size: int = 0, ends: bool = True) -> Act:
    """This stream, in packets of `size` bytes; without an end, the connection drops."""

    def act(call: Call) -> None:
        call.begin()
        for start in range(0, len(content), size or len(content)):
            call.packet(content[start : start + (size or len(content))])
        if ends:
            call.end()

    return act


def answers(*pieces: str) -> Act:
    return says(reply(*pieces))


def drops(call: Call) -> None:
    """Hangs up without a byte."""


def fails(status: int, message: str = "sorry", **headers: str) -> Act:
    return lambda call: call.value({"error": {"message": message}}, status, **headers)


def stalls(content: bytes = b"") -> Act:
    """Falls silent, before the first byte or behind this much of a stream."""

    def act(call: Call) -> None:
        if content:
            call.begin()
            call.packet(content)
        call.wait_until_left()

    return act


def never_ends(call: Call) -> None:
    call.begin()
    while True:
        call.packet(event(chunk("又")))
