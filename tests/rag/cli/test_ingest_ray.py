"""`rag ingest --ray` as a person types it, with the bundled encoder and real documents."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.ingest.ray_run import contents

ROOT = Path(__file__).parents[3]
LAW = ROOT / "corpora" / "laws" / "docs" / "劳动合同法.md"


def rag(*words: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", "from rag.cli.app import main; main()", *map(str, words)]
    whole = os.environ | {"LC_ALL": "C.UTF-8"} | environment
    return subprocess.run(command, capture_output=True, text=True, env=whole, timeout=300)


def records(done: "subprocess.CompletedProcess[str]") -> list[dict[str, Any]]:
    """The lines of output, without the time of each."""
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for line in lines:
        (line["receipt"] or {}).pop("ingested", None)
    return lines


def statuses(done: "subprocess.CompletedProcess[str]") -> set[str]:
    return {line["status"] for line in records(done)}


def test_the_knowledge_base_is_that_of_a_run_without(tmp_path: Path) -> None:
    docs, one, many = (tmp_path / name for name in ("docs", "one", "many"))
    shutil.copytree(ROOT / "tests" / "data" / "documents", docs)
    shutil.copy(LAW, docs)
    words = [docs, "--no-ocr", "--json", "--kb"]
    alone, spread = rag("ingest", *words, one), rag("ingest", *words, many, "--ray", "--workers", 2)
    assert (alone.returncode, spread.returncode) == (0, 0), spread.stderr
    assert (records(spread), spread.stderr) == (records(alone), "")
    assert statuses(spread) == {"added", "refused"}
    # A run that takes long commits more often, by the clock.
    assert contents(many) | {"changes": []} == contents(one) | {"changes": []}
    before = contents(many)
    assert statuses(rag("ingest", *words, many)) == {"unchanged", "refused"}
    assert contents(many) == before


def test_mistakes_end_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("文字", "utf-8")
    for words, address, told in (
        (["--workers", "2"], "", "--workers needs --ray"),
        (["--ray"], "127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1"),
        (["--ray"], "ray://127.0.0.1:10001", "run this on a machine of the cluster"),
    ):
        done = rag("ingest", tmp_path, "--kb", tmp_path / "kb", *words, RAY_ADDRESS=address)
        assert done.returncode == 1
        assert told in done.stderr
        assert ("no file was read; " in done.stderr) == ("--ray" in words)
        assert "Traceback" not in done.stderr
