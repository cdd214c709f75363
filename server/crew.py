"""The worker process of a server: started, looked after, started again, ended."""

import json
import logging
import subprocess
import sys
import threading
from time import monotonic

from server.options import ServerOptions

PATIENCE = 10.0  # seconds that a worker may take to put its job back
SHORT = 5.0  # a worker that lives less long than this is not started again at once

log = logging.getLogger("rag.server")


class Crew:
    """One worker, as long as the block lasts. It dies with this process, however that ends."""

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self._process: subprocess.Popen[str] | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look_after, name="crew", daemon=True)

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def __enter__(self) -> "Crew":
        self._process = self._start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        process = self._process
        if process and process.poll() is None:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()  # and the job waits again
        self._thread.join()

    def _start(self) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "server.worker"], stdin=subprocess.PIPE, text=True
        )
        options = self.options
        said = {
            "data": str(options.data),
            "cache": str(options.cache),
            "home": str(options.home),
            "ocr": options.ocr,
        }
        assert process.stdin
        process.stdin.write(json.dumps(said) + "\n")
        process.stdin.flush()
        return process

    def _look_after(self) -> None:
        while not self._ending.is_set():
            assert self._process
            begun = monotonic()
            status = self._process.wait()
            if self._process.stdin:
                self._process.stdin.close()
            if self._ending.is_set():
                return
            log.error("worker ended", extra={"fields": {"status": status}})
            if monotonic() - begun < SHORT:
                self._ending.wait(SHORT)
            if not self._ending.is_set():
                self._process = self._start()
