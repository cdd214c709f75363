"""Through how many files of the product a command or a request goes.

A file counts if one of its functions runs. The code of a module and of a class does not count, and
neither does what they call while the module is imported: such as the texts of options.

    python -m tests.profile_files TREE HOME

HOME is a folder for knowledge bases and caches.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.encoders import link_encoders

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "golden" / "tiny"
PACKAGES = ("finetune", "ingest", "rag", "server")
FIRST = "经济补偿按什么标准支付？"  # a server opens the knowledge base for it
QUESTION = "试用期最长不得超过几个月？"
RUN = '''
import inspect, json, os, signal, sys, threading, time, urllib.request
from pathlib import Path

tree, found, request, words = (json.loads(word) for word in sys.argv[1:])
files, active = set(), found and request is None

def importing(frame):
    while frame := frame.f_back:
        code = frame.f_code
        if code.co_name == "<module>" and code.co_filename.startswith(tree):
            return True
    return False

def hook(frame, event, _):
    """Is called for functions in Python alone, and asks not to be called for their lines."""
    code = frame.f_code
    if active and code.co_filename not in files:
        function = code.co_flags & inspect.CO_OPTIMIZED  # not a module or a class
        if function and code.co_filename.startswith(tree) and not importing(frame):
            files.add(code.co_filename)

def send():
    """Send the request as soon as the server listens, then end the server."""
    global active
    try:
        for attempt in range(600):
            try:
                urllib.request.urlopen(request["base"] + "/openapi.json").read()
                break
            except OSError:
                time.sleep(0.2)
        for body in request["bodies"]:
            active = body is request["bodies"][-1]
            post = urllib.request.Request(
                request["base"] + request["path"],
                json.dumps(body).encode(),
                {"content-type": "application/json"},
            )
            urllib.request.urlopen(post).read()
        active = False
    finally:
        os.kill(os.getpid(), signal.SIGTERM)

if found:
    threading.settrace(hook)
    sys.settrace(hook)
if request:
    threading.Thread(target=send, daemon=True).start()
sys.argv = ["rag", *words]
from rag.cli.app import main
try:
    main()
finally:
    sys.settrace(None)
    if found:
        names = [str(Path(file).relative_to(tree)) for file in files]
        Path(found).write_text(json.dumps(sorted(names)), "utf-8")
'''


def files_of(
    *words: object,
    environment: Mapping[str, str],
    tree: Path = ROOT,
    request: Mapping[str, Any] | None = None,
    profile: bool = True,
) -> set[str]:
    """The files, relative to `tree`, in which a function runs for `rag WORDS...`.

    With a `request` (`base`, `path` and `bodies` to post), `words` start a server, and only what
    runs for the last body counts. Child processes do not count. Without `profile` the command runs as
    ever, and none is found.
    """
    found = Path(environment["XDG_CACHE_HOME"], "files.json")
    found.unlink(missing_ok=True)
    result = str(found) if profile else None
    given = (str(tree.resolve()) + os.sep, result, request, [str(word) for word in words])
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(json.dumps, given)],
        env={**os.environ, **environment, "PYTHONPATH": str(tree)},
        cwd=tree, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    if done.returncode not in (0, -15) or profile > found.exists():
        raise RuntimeError(f"rag {words}: {done.returncode}\n{done.stderr[-3000:]}")
    if not profile:
        return set()
    names = json.loads(found.read_text("utf-8"))
    return {name for name in names if name.partition("/")[0] in PACKAGES}


def figures(tree: Path, home: Path, model: Path = TINY) -> dict[str, list[str]]:
    """The files of four uses: of one question, of one with a model, of a document, of a request."""
    environment = {"XDG_DATA_HOME": str(home / "data"), "XDG_CACHE_HOME": str(home / "cache")}
    home.mkdir(parents=True, exist_ok=True)
    link_encoders(home / "cache")
    texts = home / "texts"
    texts.mkdir(exist_ok=True)
    laws = tree / "corpora/laws/docs"
    for name, number in (("甲", "493872"), ("乙", "161638")):
        (texts / f"{name}厂.txt").write_text(f"{name}厂的编号是{number}。\n", "utf-8")
    for folder, base in ((laws / "劳动合同法.md", "laws"), (texts, "texts")):
        files_of("ingest", folder, "--kb", base, environment=environment, tree=tree, profile=False)
    ask = ("ask", "--kb")
    found = {
        "ingest": files_of(
            "ingest", laws / "著作权法.docx", "--kb", "docx", environment=environment, tree=tree
        ),
        "ask": files_of(*ask, "laws", QUESTION, environment=environment, tree=tree),
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    request = {
        "base": f"http://127.0.0.1:{port}",
        "path": "/ask",
        "bodies": [{"question": text, "knowledge_base": "laws"} for text in (FIRST, QUESTION)],
    }
    found["POST /ask"] = files_of(
        "serve", "--port", port, environment=environment, tree=tree, request=request
    )
    generate = ("--model", model, "--quant", "none", "--max-new-tokens", 30, "--temperature", 0)
    found["ask --model"] = files_of(
        *ask, "texts", *generate, "甲厂的编号是多少？", environment=environment, tree=tree
    )
    return {name: sorted(files) for name, files in found.items()}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(figures(*map(Path, sys.argv[1:])), indent=1))
