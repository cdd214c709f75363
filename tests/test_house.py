"""The house rules that a machine can check."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("finetune", "ingest", "rag", "server")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TOP = {
    ".ci", ".gitignore", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "README.zh-CN.md", "benchmarks",
    "constraints.txt", "corpora", "docs", "finetune", "ingest", "pyproject.toml", "rag", "server",
    "tests",
}  # fmt: skip
MOST_LINES, MOST_FILES = 36_600, 175
"""More lines than the 36,000 that were agreed: docs/decisions/026-reader.md says why. It may only fall."""
LONGEST, SHORTEST = 500, 60  # lines of a file
MAY_BE_SHORT = {"__init__", "__main__", "errors"}
MOST_PARAMETERS = 12
DRAWERS = re.compile(
    r"^(utils?|helpers?|managers?|handlers?|services?|base|common|misc|core|factory)$", re.IGNORECASE
)
HEAVY = (
    "torch", "transformers", "sentence_transformers", "faiss", "tantivy", "onnxruntime", "onnx",
    "kreuzberg", "rapidocr", "numpy", "tokenizers", "rjieba", "matplotlib", "peft", "pyarrow",
    "fastapi", "starlette", "pydantic", "uvicorn", "mcp", "httpx", "httpx2", "openai", "prometheus_client", "opentelemetry",
    "pypdfium2", "PIL", "pymilvus", "pandas", "ray", "modelscope_hub",
)  # fmt: skip


def trees() -> list[tuple[str, ast.Module]]:
    return [(str(path.relative_to(ROOT)), ast.parse(path.read_text("utf-8"))) for path in MODULES]


def loaded_after(code: str) -> set[str]:
    """The top-level modules in a fresh interpreter after `code`."""
    script = f"{code}\nimport sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_top_level_is_the_agreed_list() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode == 0:
        assert {line.partition("/")[0].strip('"') for line in tracked.stdout.splitlines()} == TOP


def test_no_modules_import_each_other_in_a_circle() -> None:
    """At the top or inside of functions; only imports for type checkers are left out."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    assert len(graph.modules) >= len(MODULES)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("package", PACKAGES)
def test_an_import_name_belongs_to_this_distribution_alone(package: str) -> None:
    assert set(packages_distributions()[package]) == {"chatglm-rag"}
    assert (ROOT / package / "py.typed").is_file()


def test_every_module_says_what_it_is() -> None:
    assert [name for name, tree in trees() if not (ast.get_docstring(tree) or "").strip()] == []


def test_the_house_is_of_its_size() -> None:
    lines = {str(path.relative_to(ROOT)): path.read_text("utf-8").count("\n") for path in MODULES}
    assert sum(lines.values()) <= MOST_LINES
    assert len(lines) <= MOST_FILES
    assert {name: count for name, count in lines.items() if count > LONGEST} == {}
    short = {name for name, count in lines.items() if count < SHORTEST}
    assert {name for name in short if Path(name).stem not in MAY_BE_SHORT} == set()


def test_functions_take_few_parameters() -> None:
    many = {
        f"{name}:{node.name}"
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs) > MOST_PARAMETERS
    }
    assert many == set()


def test_a_class_has_its_name_alone() -> None:
    places: dict[str, list[str]] = {}
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(name)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_drawers() -> None:
    names = [path.stem for path in MODULES]
    for _, tree in trees():
        names += [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert [name for name in names if DRAWERS.match(name)] == []


def test_no_broad_except_pickle_or_eval() -> None:
    bad: list[str] = []
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "everything"
                raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
                if caught in ("everything", "Exception") or (caught == "BaseException" and not raises):
                    bad.append(f"{name}:{node.lineno} catches {caught}")
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("eval", "exec", "print"):
                bad.append(f"{name}:{node.lineno} calls {ast.unparse(node.func)}")
            if isinstance(node, ast.Import) and {a.name for a in node.names} & {"pickle", "marshal"}:
                bad.append(f"{name}:{node.lineno} imports pickle")
    assert bad == []


def test_the_environment_is_read_by_the_command_line_alone() -> None:
    reading = [
        name
        for name, tree in trees()
        if not name.startswith(("rag/cli/", "finetune/cli/", "server/cli/"))
        and any(
            isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv")
            for node in ast.walk(tree)
        )
    ]
    assert reading == [
        "ingest/ray_pipeline.py",  # tells Ray what it takes from nowhere else, and takes it back
        "ingest/sandbox.py",  # hands a cleaned environment to its child
        "ingest/store/milvus/client.py",  # a key is read where it is sent, so that no option holds it
        "rag/endpoint/generator.py",  # the same
    ]


def test_help_loads_nothing_heavy() -> None:
    assert loaded_after("import rag.cli.app") & set(HEAVY) == set()


def test_reading_and_writing_load_what_they_need_later() -> None:
    code = "import rag.load, rag.pipeline, ingest.pipeline, ingest.sandbox"
    later = {"torch", "transformers", "sentence_transformers", "faiss", "rjieba"}
    assert loaded_after(code) & later == set()
