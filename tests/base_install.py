"""Run `rag` commands as in a base install: python -m tests.base_install < commands.json > results.json.

With `--with-extras` everything can be imported.

What only an extra brings can't be imported. Each command runs in a fork of this process.
"""

import json
import os
import re
import sys
import tempfile
import traceback
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Any

NAME = re.compile(r"[\w.-]+")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def base_distributions() -> set[str]:
    """The distributions that a plain `pip install chatglm-rag` brings: dependencies of dependencies
    too, of extras only those that a dependency names."""
    found: set[str] = set()
    waiting = ["chatglm-rag"]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue  # for another platform
        waiting += [
            canonical(match[0]) for line in lines if "extra ==" not in line and (match := NAME.match(line))
        ]
    return found


def hide_extras() -> None:
    base = base_distributions()
    hidden = {
        module
        for module, names in packages_distributions().items()
        if not base & set(map(canonical, names)) and module not in sys.modules
    }
    find = PathFinder.find_spec.__func__  # type: ignore[attr-defined]

    def spec(cls: type, name: str, *rest: Any) -> Any:
        return None if name.partition(".")[0] in hidden else find(cls, name, *rest)

    PathFinder.find_spec = classmethod(spec)  # type: ignore[method-assign,assignment]


def run(words: list[str]) -> tuple[int, str]:
    """The exit code of a command without input, and all that it printed."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            code = 1
            try:
                from rag.cli.app import main

                sys.argv = ["rag", *words]
                main()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0
            except Exception:  # noqa: BLE001  # shown as the interpreter would show it
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read().decode()


if __name__ == "__main__":
    if "--with-extras" not in sys.argv:
        hide_extras()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    for module in ("rag.cli.app", "rag.load", "onnxruntime", "tantivy", "faiss"):  # once for all commands
        import_module(module)
    json.dump([run(words) for words in json.load(sys.stdin)], sys.stdout)
