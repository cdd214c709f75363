"""The documentation is generated from, or run against, the program."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
assert SPEC
assert SPEC.loader
generate = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(generate)


@pytest.mark.parametrize("page", generate.PAGES)
def test_the_reference_is_what_help_says(page: str) -> None:
    """Mend with: python docs/generate.py"""
    assert (ROOT / "docs" / page).read_text("utf-8") == generate.rendered(generate.PAGES[page])


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_readme_names_commands_and_files_that_exist(readme: str) -> None:
    text = (ROOT / readme).read_text("utf-8")
    reference = (ROOT / "docs" / "cli.md").read_text("utf-8")
    for command in re.findall(r"^rag ((?:kb |finetune |keys )?[a-z]+)", text, re.MULTILINE):
        assert f"## rag {command}" in reference
    for target in re.findall(r"^make ([a-z]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_readme_shows_every_setting_with_its_default(readme: str, tmp_path: Path) -> None:
    from dataclasses import fields, is_dataclass, replace

    from rag.config import read_config

    [block] = re.findall(r"```toml\n(.*?)```", (ROOT / readme).read_text("utf-8"), re.DOTALL)
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
