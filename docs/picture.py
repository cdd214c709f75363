"""Record real answers as terminal pictures: python docs/picture.py (after `make demo`)."""

import os
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

DOCS = Path(__file__).parent
PICTURES = {
    "ask.svg": (
        "en_US.UTF-8",
        "How long must an online shop announce its closing in advance?",
        "Who won the football World Cup in 2026?",
    ),
    "ask.zh-CN.svg": (
        "zh_CN.UTF-8",
        "入职半年没签书面合同，每月能拿几倍工资？",
        "2026年世界杯决赛在哪座城市举行？",
    ),
}


def main() -> None:
    """Ask the demo's knowledge base one question that it answers and one that it refuses."""
    from rich.console import Console

    for name, (locale, *questions) in PICTURES.items():
        console = Console(record=True, width=96, file=StringIO())
        for question in questions:
            environment = {**os.environ, "LC_ALL": locale}
            command = [sys.executable, "-m", "rag", "ask", "--kb", "demo", question]
            answer = subprocess.run(command, env=environment, capture_output=True, check=True)
            console.print(f'$ rag ask --kb demo "{question}"', style="bold", highlight=False)
            console.print(answer.stdout.decode(), highlight=False, markup=False)
        svg = console.export_svg(title="rag ask")
        # The template fetches its fonts from elsewhere; the reader's own will do.
        svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
        (DOCS / name).write_text(svg, "utf-8")


if __name__ == "__main__":
    main()
