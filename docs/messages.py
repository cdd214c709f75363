"""Collect the messages of the code into the Chinese catalog and compile it: `make messages`.

A new message stands in the catalog without a translation, and tests fail until it has one.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from babel.messages import Catalog
from babel.messages.extract import extract_from_file
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

ROOT = Path(__file__).parents[1]
CATALOG = ROOT / "ingest" / "locale" / "zh_CN" / "LC_MESSAGES" / "chatglm_rag.po"
PACKAGES = ("finetune", "ingest", "rag", "server")


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def keywords() -> dict[str, None]:
    """What is called with a template first: `Translatable`, `say`, and every kind of `UserError`."""
    names = {"Translatable", "say", "UserError"}
    classes = [
        (node.name, {base.id for base in node.bases if isinstance(base, ast.Name)})
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    errors = {"UserError"}
    while more := {name for name, bases in classes if bases & errors} - errors:
        errors |= more
    return dict.fromkeys(names | errors)


def templates() -> Iterator[str]:
    """The English template of every message in the code."""
    calls = keywords()
    for path in sources():
        for _, message, _, _ in extract_from_file("python", path, keywords=calls):
            yield message if isinstance(message, str) else message[0]


def updated() -> Catalog:
    """The catalog with the translations that it has, for the templates that the code has."""
    with CATALOG.open("rb") as file:
        known = read_po(file, locale="zh_CN")
    catalog = Catalog(locale="zh_CN", project="chatglm-rag", fuzzy=False)
    for template in sorted(set(templates())):
        message = known.get(template)
        catalog.add(template, message.string if message else "")
    return catalog


def main() -> None:
    catalog = updated()
    with CATALOG.open("wb") as file:
        write_po(file, catalog, width=0, omit_header=True)
    with CATALOG.with_suffix(".mo").open("wb") as file:
        write_mo(file, catalog)


if __name__ == "__main__":
    main()
