"""`rag` as a person types it, each command in a process of its own.

A fresh interpreter spends ten seconds on importing what trains a model. So commands are forked from a
process that has imported those libraries, and nothing of the command line: that reads its
environment when it is imported.
"""

import atexit
import multiprocessing
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess
from typing import NoReturn

LIBRARIES = ["ingest.embed", "ingest.store", "finetune.train.setup", "finetune.train.loop", "peft"]
PATIENCE = 300  # seconds for one command
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(LIBRARIES)


@dataclass(frozen=True)
class Command:
    """A command under way."""

    words: tuple[str, ...]
    process: BaseProcess
    files: Path
    """What it reads and writes as `in`, `out` and `err`."""

    @property
    def running(self) -> bool:
        return self.process.is_alive()

    def kill(self) -> None:
        self.process.kill()
        self.wait()

    def wait(self) -> CompletedProcess[str]:
        """Its exit code, what it wrote and what it told."""
        self.process.join(PATIENCE)
        if self.running:
            self.process.kill()
            self.process.join()
        out, err = ((self.files / name).read_text("utf-8") for name in ("out", "err"))
        shutil.rmtree(self.files)
        return CompletedProcess(self.words, self.process.exitcode or 0, out, err)


def start(*words: object, environment: Mapping[str, str], stdin: str = "", offline: bool = False) -> Command:
    """Begin `rag WORDS...` with these variables of the environment over this process's own, but
    for the knowledge base that a person may have chosen; `offline`: it may not connect to anything."""
    files = Path(tempfile.mkdtemp())
    (files / "in").write_text(stdin, "utf-8")
    typed = tuple(map(str, words))
    whole = {name: value for name, value in os.environ.items() if name != "RAG_KB"}
    process = processes.Process(target=_main, args=(typed, whole | dict(environment), files, offline))
    process.start()
    return Command(typed, process, files)


def rag(
    *words: object, environment: Mapping[str, str], stdin: str = "", offline: bool = False
) -> CompletedProcess[str]:
    """Run it to its end."""
    return start(*words, environment=environment, stdin=stdin, offline=offline).wait()


def _main(words: tuple[str, ...], environment: dict[str, str], files: Path, offline: bool) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for number, name in enumerate(("in", "out", "err")):
        how = os.O_RDONLY if name == "in" else os.O_WRONLY | os.O_CREAT
        os.dup2(os.open(files / name, how), number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  # not multiprocessing's
    sys.argv = ["rag", *words]
    if offline:
        socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = _shut  # type: ignore
    from rag.cli.app import main

    try:
        main()
    finally:
        atexit._run_exitfuncs()


def _shut(*_: object) -> NoReturn:
    raise AssertionError("asks the network")
