"""Python processes that we start run our packages, whatever files are in the user's folder."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ingest.sandbox import Sandbox

ROOT = Path(__file__).parents[1]
NAMES = ("corpora", "finetune", "ingest", "rag", "server")
PLACES = {
    "ingest/ray_pipeline.py", "ingest/sandbox.py", "server/worker.py",
}  # fmt: skip
"""All modules that start a process. A new one needs a test below, or beside those of the server."""
STARTERS = {"multiprocessing", "subprocess", "runpy", "ProcessPoolExecutor", "num_workers"}
CALLS = {("ray", "init"), ("os", "fork"), ("os", "system"), ("os", "popen")}

ON_RAY = """
from importlib.util import find_spec
from ingest.ray_pipeline import cluster
with cluster(workers=1):
    import ray
    print(ray.get(ray.remote(find_spec).remote("ingest")).origin)
"""


def trees() -> Iterator[tuple[str, ast.Module]]:
    for name in NAMES:
        for path in sorted((ROOT / name).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text("utf-8"))


def starts(node: ast.AST) -> bool:
    """Whether this is how a process is started."""
    match node:
        case ast.Import(names):
            return any(alias.name.partition(".")[0] in STARTERS for alias in names)
        case ast.ImportFrom(module, names):
            used = {(module or "").partition(".")[0], *(alias.name for alias in names)}
            return not STARTERS.isdisjoint(used)
        case ast.Attribute(ast.Name(owner), name):
            return (owner, name) in CALLS or (
                owner == "os" and name.startswith(("exec", "spawn", "posix_spawn"))
            )
        case ast.keyword(name):
            return name in STARTERS
    return False


def test_every_module_that_starts_a_process_is_known() -> None:
    found = {path for path, tree in trees() if any(map(starts, ast.walk(tree)))}
    assert found == PLACES


def test_every_python_child_ignores_the_current_folder() -> None:
    """`-P` comes first wherever a command runs this interpreter."""
    used, safe = 0, 0
    for _, tree in trees():
        for node in ast.walk(tree):
            match node:
                case ast.Attribute(ast.Name("sys"), "executable"):
                    used += 1
                case ast.List([ast.Attribute(ast.Name("sys"), "executable"), ast.Constant("-P"), *_]):
                    safe += 1
    assert used == safe == len(PLACES - {"ingest/ray_pipeline.py"})


def test_the_parser_runs_ours(folder: Path) -> None:
    (folder / "a.txt").write_text("文字", "utf-8")
    with Sandbox(ocr=False) as sandbox:
        assert [each.text for each in sandbox.parse(Path("a.txt")).segments] == ["文字"]


def test_workers_on_ray_import_ours(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-P", "-c", ON_RAY], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == str(ROOT / "ingest" / "__init__.py"), done.stderr
