"""Record real answers as terminal pictures: python docs/picture.py (after `make demo`)."""

import os
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parent
PICTURES = {
    "ask.svg": ("en_US.UTF-8", "How must a platform mark products that paid for their place in search results?"),
    "ask.zh-CN.svg": ("zh_CN.UTF-8", "给上小学的孩子办一张身份证，能用几年？"),
}
UNANSWERABLE = {"ask.svg": "When is the next total solar eclipse?", "ask.zh-CN.svg": "下一次日全食是什么时候？"}


def main() -> None:
    """Ask the demo's knowledge base one question that it answers and one that it refuses."""
    from rich.console import Console

    for name, (locale, question) in PICTURES.items():
        console = Console(record=True, width=96, file=open(os.devnull, "w"))  # noqa: SIM115
        for asked in (question, UNANSWERABLE[name]):
            environment = {**os.environ, "LC_ALL": locale}
            command = [sys.executable, "-m", "rag", "ask", "--kb", "demo", asked]
            answer = subprocess.run(command, env=environment, capture_output=True, check=True)
            console.print(f"$ rag ask --kb demo \"{asked}\"", style="bold", highlight=False)
            console.print(answer.stdout.decode(), highlight=False, markup=False)
        console.save_svg(str(DOCS / name), title="rag ask")


if __name__ == "__main__":
    main()
