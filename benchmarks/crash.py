"""Kills a writer with SIGKILL again and again; every open must find the old or the new state.

    python benchmarks/crash.py [--kills 200] [--seed 0]

The writer adds, replaces and removes two documents a transaction and rebuilds the indexes now and
then (`tests/ingest/store/writer.py`); `verify` and searches run after each kill.
"""

import argparse
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

from ingest.store import open_store
from tests.ingest.store.test_local import run_and_kill
from tests.ingest.store.writer import check


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    states: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        for kill in range(options.kills):
            told = run_and_kill(Path(scratch, "kb"), rng.random())
            with open_store(Path(scratch, "kb")) as store:
                found = check(store)
            states["old" if found == told else "new" if found == told + 1 else "other"] += 1
            sys.stderr.write(f"\r{kill + 1} kills, at step {found}   ")
    sys.stdout.write(f"\n| {options.kills} x SIGKILL | {dict(states)} |\n")
    sys.exit(states["other"] > 0)


if __name__ == "__main__":
    main()
