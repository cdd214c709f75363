"""The documentation is generated from, or compared with, the program."""

import importlib.util
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from rag.endpoint import KEY

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
assert SPEC
assert SPEC.loader
generate = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(generate)

PACKAGES = ("finetune", "ingest", "rag", "server")
READMES = ("README.md", "README.zh-CN.md")
SETTINGS = ("docs/settings.md", "docs/settings.zh-CN.md")
FIGURES = ("docs/figures.md", "docs/figures.zh-CN.md")
PAGES = sorted(
    str(path.relative_to(ROOT)) for pattern in ("*.md", "docs/**/*.md") for path in ROOT.glob(pattern)
)


def read(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def commands(page: str) -> Iterator[tuple[str, set[str]]]:
    """Each `rag` command in the page's blocks of shell, as (`kb info`, its long options)."""
    for block in re.findall(r"```sh\n(.*?)```", read(page), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            typed = re.split(r"\s#", line)[0]
            if found := re.search(r"(?:^|-m )rag ((?:kb |finetune |keys )?[a-z]+)(.*)", typed):
                yield found[1], set(re.findall(r"--[a-z][a-z-]*", found[2]))


@pytest.mark.parametrize("page", generate.PAGES)
def test_the_reference_is_what_help_says(page: str) -> None:
    """Mend with: python docs/generate.py"""
    assert read(f"docs/{page}") == generate.rendered(generate.PAGES[page])


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_commands_options_and_files_that_exist(page: str) -> None:
    sections = dict(re.findall(r"^## rag ([^\n]+)\n\n```text\n(.*?)```", read("docs/cli.md"), re.M | re.S))
    for command, options in commands(page):
        known = set(re.findall(r"--[a-z][a-z-]*", sections[command]))
        assert options <= known, command
    for target in re.findall(r"^make ([a-z]+)", read(page), re.MULTILINE):
        assert re.search(rf"^{target}:", read("Makefile"), re.MULTILINE)
    for link in re.findall(r"\]\(([^)#:]+)\)", read(page)):
        assert (ROOT / page).parent.joinpath(link).exists(), link


@pytest.mark.parametrize("page", [*READMES, *SETTINGS, *FIGURES, "CONTRIBUTING.md"])
def test_a_page_names_paths_that_exist(page: str) -> None:
    folders = "|".join((*PACKAGES, "benchmarks", "corpora", "docs", "tests"))
    for path in re.findall(rf"(?<![\w/.~:])(?:{folders})/[\w./-]*", read(page)):
        assert (ROOT / path.rstrip(".")).exists(), path


@pytest.mark.parametrize("readme", READMES)
def test_a_readme_takes_five_minutes(readme: str) -> None:
    assert len(read(readme).splitlines()) <= 150
    assert ". .venv/bin/activate" in read(readme)  # how to get `rag` after `make demo`
    extras = set(re.findall(r"^pip install -e '\.\[(\w+)\]'", read(readme), re.M))  # from the checkout
    known = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    assert {"server", "generate", "finetune"} <= extras <= known.keys()
    assert {"make demo", "make test"} <= set(re.findall(r"^make [a-z]+", read(readme), re.M))
    shown = [command.split()[0] for command, _ in commands(readme)]
    assert {"ask", "serve", "doctor", "finetune", "eval", "plan"} <= set(shown)


@pytest.mark.parametrize("page", SETTINGS)
def test_the_settings_are_shown_with_their_defaults(page: str, tmp_path: Path) -> None:
    from dataclasses import fields, is_dataclass, replace

    from rag.config import read_config

    [block] = re.findall(r"```toml\n(.*?)```", read(page), re.DOTALL)
    (tmp_path / "rag.toml").write_text(block, "utf-8")
    config, defaults = read_config(tmp_path), read_config(tmp_path / "none")
    sections = {field.name: getattr(config, field.name) for field in fields(config)[1:]}
    for section, options in sections.items():  # what is unset by default is shown with some value
        unset = {f.name: None for f in fields(options) if f.default is None}
        assert replace(options, **unset) == getattr(defaults, section)

    def named(options: object, section: str) -> None:
        """Every key stands below the name of its section."""
        (keys,) = re.findall(rf"^\[{section}\].*\n((?:.+\n)*)", block, re.MULTILINE)
        for field in fields(options):  # type: ignore[arg-type] - options are dataclasses
            value = getattr(options, field.name)
            if is_dataclass(value):
                named(value, rf"{section}\.{field.name}")
            else:
                assert re.search(rf"^{field.name} = ", keys, re.MULTILINE), field.name

    for section, options in sections.items():
        named(options, section)


@pytest.mark.parametrize("page", SETTINGS)
def test_the_settings_name_every_environment_variable_and_extra(page: str) -> None:
    variables = {KEY, "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for call in (r'environ\.get\("(\w+)"', r'envvar="(\w+)"'):
            variables |= set(re.findall(call, path.read_text("utf-8")))
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    first_cells = re.findall(r"^\| (`.+?) \|", read(page), re.MULTILINE)
    rows = set(re.findall(r"`(\w+)`", " ".join(first_cells)))
    assert variables <= rows
    assert set(extras) <= rows


def test_the_figures_are_printed_by_the_same_commands_in_both_languages() -> None:
    english, chinese = (
        re.findall(r"(?:python benchmarks|pytest tests)/[^`\n]+", read(page)) for page in FIGURES
    )
    assert english == chinese


def test_the_layout_is_that_of_the_tree() -> None:
    [tree] = re.findall(r"## Layout\n\n```\n(.*?)```", read("CONTRIBUTING.md"), re.DOTALL)
    package, shown = "", set()
    for line in tree.splitlines():
        names = re.findall(r"\w+(?:\.py\b|/)", line)
        if not line.startswith(" "):
            package = names[0]
            assert all((ROOT / name).is_dir() for name in names)
            continue
        for name in names:
            assert any((ROOT / package).rglob(name.rstrip("/"))), name
            shown.add(package + name)
    for module in (ROOT / package for package in PACKAGES):
        for inner in module.glob("*/__init__.py"):
            assert f"{module.name}/{inner.parent.name}/" in shown
