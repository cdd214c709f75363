"""SIGKILL at random moments, also within a save: what comes out in the end is the same, byte for byte."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
KILLS = 20


def test_killed_twenty_times_it_ends_in_the_same_bytes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.finetune.train.killed", str(tmp_path), "7", str(KILLS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    kills, saving = (int(word) for word in done.stdout.split() if word.isdigit())
    assert kills == KILLS
    assert saving >= 1
