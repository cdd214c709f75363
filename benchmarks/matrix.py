"""Run the language model's tests under several versions of transformers; write docs/transformers.md.

    python benchmarks/matrix.py [--folder DIR] [VERSION ...]

Each version goes, with the packages it needs, into a virtual environment of its own, which takes
torch and the rest from this one.
"""

import argparse
import subprocess
import sys
import sysconfig
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = "tests/rag/chatglm"
PAGE = ROOT / "docs" / "transformers.md"
VERSIONS = ("5.0.0", "5.8.0", "5.16.0", "5.24.0")
"""The oldest supported, two between, the newest."""


@dataclass(frozen=True, slots=True)
class Run:
    transformers: str
    hub: str
    passed: int
    skipped: int
    failed: tuple[str, ...]
    """`test_file::test_name: the error's last line`."""
    seconds: float


def environment(folder: Path, wanted: str) -> Path:
    """The python of a virtual environment with this version of transformers."""
    home = folder / wanted
    python = home / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", f"transformers=={wanted}"]
    subprocess.run(install, check=True)
    site = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    shared = sysconfig.get_paths()["purelib"]
    # After the environment's own packages, so that these come first.
    (site / "site-packages" / "shared.pth").write_text(f"{shared}\n", "utf-8")
    return python


def run(python: Path, report: Path) -> Run:
    """The tests under one version."""
    report.unlink(missing_ok=True)
    tests = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS]
    subprocess.run([*tests, f"--junit-xml={report}"], cwd=ROOT, check=False)
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    failed = tuple(_failure(case) for case in suite.iter("testcase") if _problem(case) is not None)
    skipped = int(suite.get("skipped", 0))
    passed = int(suite.get("tests", 0)) - skipped - len(failed)
    versions = [_version(python, package) for package in ("transformers", "huggingface_hub")]
    return Run(versions[0], versions[1], passed, skipped, failed, float(suite.get("time", 0)))


def _problem(case: ElementTree.Element) -> ElementTree.Element | None:
    failure = case.find("failure")
    return case.find("error") if failure is None else failure


def _failure(case: ElementTree.Element) -> str:
    problem = _problem(case)
    assert problem is not None
    why = (problem.get("message") or "").strip().splitlines() or [""]
    return f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}: {why[0][:160]}"


def _version(python: Path, package: str) -> str:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def page(runs: list[Run]) -> str:
    """The table, and what failed."""
    lines = [
        "# transformers",
        "",
        f"`python benchmarks/matrix.py` ran `{TESTS}` (goldens included) on {date.today()} under",
        f"these versions, Python {sys.version.split()[0]}, torch {version('torch')}, peft {version('peft')}.",
        "",
        "| transformers | huggingface_hub | passed | skipped | failed | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for done in runs:
        counts = f"{done.passed} | {done.skipped} | {len(done.failed)} | {done.seconds:.0f}"
        lines.append(f"| {done.transformers} | {done.hub} | {counts} |")
    for done in runs:
        if done.failed:
            lines += ["", f"Failed under {done.transformers}:", ""]
            lines += [f"- `{name}`" for name in done.failed]
    return "\n".join([*lines, ""])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("versions", nargs="*", default=VERSIONS, metavar="VERSION")
    options.add_argument("--folder", type=Path, default=ROOT / ".venv" / "matrix")
    chosen = options.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    runs = []
    for wanted in chosen.versions:
        python = environment(chosen.folder, wanted)
        runs.append(run(python, chosen.folder / f"{wanted}.xml"))
        PAGE.write_text(page(runs), "utf-8")
    sys.stdout.write(PAGE.read_text("utf-8"))


if __name__ == "__main__":
    main()
