"""Collect the messages of the code into the Chinese catalog and compile it: `make messages`.

A new message stands in the catalog without a translation, and tests fail until it has one.
"""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from babel.messages import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

ROOT = Path(__file__).parents[1]
CATALOG = ROOT / "ingest" / "locale" / "zh_CN" / "LC_MESSAGES" / "chatglm_rag.po"
FIRST = {"Translatable", "say", "with_options", "out_message", "note_message"}
SECOND = {"option", "argument", "flag"}
FILES = {"rag/cli/packages.toml": "use", "rag/cli/typer.toml": "messages", "server/wrong_values.toml": ""}
"""Data files with templates -> the key that holds them; "": every value is one."""
PACKAGES = ("finetune", "ingest", "rag", "server")


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def templates() -> dict[str, list[str]]:
    """The English template of every message in the code, with the files that use it.

    It is the first argument of any kind of `UserError` and of `FIRST`, the second of `SECOND`.
    """
    nodes = [(path, node) for path in sources() for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    classes = [node for _, node in nodes if isinstance(node, ast.ClassDef)]
    errors = {"UserError"}
    while more := {c.name for c in classes if errors & set(map(_name, c.bases))} - errors:
        errors |= more
    places = {**dict.fromkeys(errors | FIRST, 0), **dict.fromkeys(SECOND, 1)}
    found: dict[str, list[str]] = {}
    for path, call in nodes:
        if not isinstance(call, ast.Call):
            continue
        for argument in call.args[places.get(_name(call.func), len(call.args)) :][:1]:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str) and argument.value:
                found.setdefault(argument.value, []).append(path.relative_to(ROOT).as_posix())
    for name, key in FILES.items():
        for value in _texts(tomllib.loads((ROOT / name).read_text("utf-8")), key):
            found.setdefault(value, []).append(name)
    return found


def _texts(table: dict[str, Any], key: str) -> Iterator[str]:
    """The texts of a table below `key`, however deep."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _texts(value, key)
        elif not key or name == key:
            yield from [value] if isinstance(value, str) else value


def updated() -> Catalog:
    """The catalog with the translations that it has, for the templates that the code has."""
    with CATALOG.open("rb") as file:
        known = read_po(file, locale="zh_CN")
    catalog = Catalog(locale="zh_CN", project="chatglm-rag", fuzzy=False)
    for template, files in sorted(templates().items()):
        message = known.get(template)
        catalog.add(template, message.string if message else "", [(name, 0) for name in files])
    return catalog


def main() -> None:
    catalog = updated()
    with CATALOG.open("wb") as file:
        write_po(file, catalog, width=0, include_lineno=False, omit_header=True)
    with CATALOG.with_suffix(".mo").open("wb") as file:
        write_mo(file, catalog)


if __name__ == "__main__":
    main()
