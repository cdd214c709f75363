"""Write docs/cli.md and docs/cli.zh-CN.md from the commands' own help: python docs/generate.py."""

import os
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parent
PAGES = {"cli.md": "en_US.UTF-8", "cli.zh-CN.md": "zh_CN.UTF-8"}


def page() -> str:
    """The help of every command in the language of this process."""
    from rag.cli.app import commands

    lines = ["# rag", ""]

    def walk(command, context) -> None:
        text = command.get_help(context)
        lines.extend([f"## {context.command_path}", "", "```text", text, "```", ""])
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, inner.make_context(name, [], parent=context, resilient_parsing=True))

    root = commands()
    walk(root, root.make_context("rag", [], resilient_parsing=True))
    return "\n".join(lines)


def rendered(locale: str) -> str:
    """The page as a reader with `locale` gets it, from a process of its own."""
    environment = {**os.environ, "LC_ALL": locale, "COLUMNS": "100", "HOME": "~"}
    command = [sys.executable, str(Path(__file__).resolve()), "--print"]
    done = subprocess.run(command, env=environment, capture_output=True, check=True, cwd=DOCS.parent)
    return done.stdout.decode()


def main() -> None:
    if "--print" in sys.argv:
        sys.stdout.buffer.write(page().encode())
        return
    for name, locale in PAGES.items():
        (DOCS / name).write_text(rendered(locale), "utf-8")


if __name__ == "__main__":
    main()
