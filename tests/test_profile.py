"""One question, one document and one request go through few files of the product."""

from pathlib import Path

from tests.profile_files import ROOT, figures

MOST = {"ask": 24, "ask --model": 36, "ingest": 28, "POST /ask": 28}
"""Before the moves it was 45, 64, 47 and 42 to 56."""


def test_few_files_run(tmp_path: Path) -> None:
    found = figures(ROOT, tmp_path)
    assert {use: files for use, files in found.items() if len(files) > MOST[use]} == {}
