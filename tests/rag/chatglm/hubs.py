"""A hub on 127.0.0.1 with the parts of the interfaces of Hugging Face and ModelScope that we use."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

COMMIT = "0123456789" * 4
NEWER = "9876543210" * 4


@dataclass
class Hub:
    """`owner/model` with these files; `requests` are the fetched files, with their first offsets."""

    files: dict[str, bytes]
    commit: str = COMMIT
    address: str = ""
    cut: int | None = None
    """Bytes of an answer after which the connection ends."""
    pause: float = 0
    """Seconds between pieces of a file."""
    requests: list[tuple[str, int]] = field(default_factory=list)
    sent: int = 0

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.requests]

    @contextmanager
    def serve(self) -> Iterator["Hub"]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                answer(hub, self)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        self.address = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def answer(hub: Hub, request: BaseHTTPRequestHandler) -> None:
    url = urlsplit(request.path)
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    match url.path.strip("/").split("/"):
        case ["api", "models", "owner", "model", *rest] if rest[:1] in ([], ["revision"]):
            if rest and rest[1] not in ("main", hub.commit):
                send_json(request, {}, status=404, code="RevisionNotFound")
                return
            names = [{"rfilename": name} for name in hub.files]
            send_json(request, {"id": "owner/model", "sha": hub.commit, "siblings": names})
        case ["api", "models", "owner", "model", "tree", _]:
            send_json(request, [entry(name, data) for name, data in hub.files.items()])
        case ["owner", "model", "resolve", _, name]:
            send_file(hub, request, name)
        case ["api", "v1", "models", "owner", "model", "repo", "files"]:
            if query["Revision"] not in ("master", "v1"):
                send_json(request, {"Code": 404}, status=404)
                return
            files = [scope_entry(name, data) for name, data in hub.files.items()]
            send_json(request, {"Code": 200, "Data": {"Files": files}})
        case ["api", "v1", "models", "owner", "model", "repo"]:
            send_file(hub, request, query["FilePath"])
        case _:
            send_json(request, {}, status=404, code="RepoNotFound")


def entry(name: str, data: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(data), "oid": sha256(data).hexdigest()[:40]}


def scope_entry(name: str, data: bytes) -> dict[str, object]:
    digest = sha256(data).hexdigest()
    dates = {"CommittedDate": 1700000000 + len(name), "Revision": f"{len(name):040d}"}
    return {"Path": name, "Type": "blob", "Size": len(data), "Sha256": digest} | dates


def send_json(request: BaseHTTPRequestHandler, value: object, *, status: int = 200, code: str = "") -> None:
    body = json.dumps(value).encode()
    request.send_response(status)
    request.send_header("Content-Length", str(len(body)))
    request.send_header("Content-Type", "application/json")
    if code:
        request.send_header("X-Error-Code", code)
    request.end_headers()
    request.wfile.write(body)


def send_file(hub: Hub, request: BaseHTTPRequestHandler, name: str) -> None:
    data = hub.files[name]
    bounds = request.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")
    start = int(bounds[0])
    request.send_response(206 if start else 200)
    request.send_header("ETag", f'"{sha256(data).hexdigest()}"')
    request.send_header("X-Repo-Commit", hub.commit)
    request.send_header("Accept-Ranges", "bytes")
    request.send_header("Content-Length", str(len(data) - start))
    if start:
        request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
    request.end_headers()
    if request.command == "HEAD":
        return
    hub.requests.append((name, start))
    body = data[start:] if hub.cut is None else data[start:][: hub.cut]
    for at in range(0, len(body), 1 << 16):
        try:
            request.wfile.write(body[at : at + (1 << 16)])
        except OSError:  # the client is gone
            break
        hub.sent += len(body[at : at + (1 << 16)])
        time.sleep(hub.pause)
    if len(body) < len(data) - start:
        request.close_connection = True
