"""A real Milvus API on this machine: milvus-lite's server, in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


def start(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Returns when it listens."""
    program = [sys.executable, "-c", "from milvus_lite.cmdline import main; main()"]
    where = ["--data-dir", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    with (folder.parent / "milvus.log").open("ab") as log:
        server = subprocess.Popen([*program, "server", *where], stdout=log, stderr=log)
    while server.poll() is None:
        with socket.socket() as door:
            if door.connect_ex(("127.0.0.1", port)) == 0:
                return server
        time.sleep(0.05)
    raise RuntimeError((folder.parent / "milvus.log").read_text())


@contextmanager
def milvus(folder: Path) -> Iterator[str]:
    """The beginning of addresses on a server that lasts as long as the block."""
    port = free_port()
    server = start(folder / "milvus", port)
    try:
        yield f"milvus://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.kill(server.pid, signal.SIGKILL)
            server.wait()
