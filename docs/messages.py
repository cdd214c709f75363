"""Collect the messages of the code into the Chinese catalog and compile it: `make messages`.

A new message stands in the catalog without a translation, and tests fail until it has one.
"""

import ast
from pathlib import Path

from babel.messages import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

ROOT = Path(__file__).parents[1]
CATALOG = ROOT / "ingest" / "locale" / "zh_CN" / "LC_MESSAGES" / "chatglm_rag.po"
PACKAGES = ("finetune", "ingest", "rag", "server")


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def templates() -> set[str]:
    """The English template of every message in the code.

    It is the first argument of `Translatable`, of `say`, or of any kind of `UserError`.
    """
    nodes = [node for path in sources() for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    names = {"UserError"}
    while more := {c.name for c in classes if names & set(map(_name, c.bases))} - names:
        names |= more
    calls = [node for node in nodes if isinstance(node, ast.Call) and node.args]
    return {
        call.args[0].value
        for call in calls
        if _name(call.func) in names | {"Translatable", "say"}
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[0].value, str)
    }


def updated() -> Catalog:
    """The catalog with the translations that it has, for the templates that the code has."""
    with CATALOG.open("rb") as file:
        known = read_po(file, locale="zh_CN")
    catalog = Catalog(locale="zh_CN", project="chatglm-rag", fuzzy=False)
    for template in sorted(templates()):
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
