"""One to three servers on one data folder: python benchmarks/replicas.py [--seconds 60] [--askers 8]

Documents are uploaded, replaced and deleted while clients ask, each request of the next server. First
one, two and three servers are compared; then, of three, one is killed with SIGKILL or told to end every
few seconds and another started in its place. All answers and jobs are checked as in
tests/server/test_replicas.py: no status that is not promised, quotes exact, each answer of a change that
was there, each job done once. What is not as promised ends it with 1.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path[0] = str(Path(__file__).parents[1])  # the tests are there

from tests.server.fleet import History, Load, ServerProcess, fleet, start  # noqa: E402  (behind the line above)

BASES = ["甲", "乙"]
EVERY = 8.0  # seconds between two ends of a server


def measured(folder: Path, count: int, options: argparse.Namespace, *, ending: bool) -> None:
    with fleet(folder, count) as servers:
        load = Load(folder / "chatglm-rag", servers)
        load.fill(BASES)
        first, second = (History(load.data / base) for base in BASES)
        with first, second, load.running([*BASES, *BASES], options.askers):
            begun, told = time.monotonic(), len(load.answers)
            while (passed := time.monotonic() - begun) < options.seconds:
                if not ending:
                    time.sleep(options.seconds - passed)
                    continue
                time.sleep(EVERY)
                replace(servers, folder, load)
            rate = (len(load.answers) - told) / (time.monotonic() - begun)
        load.check(dict(zip(BASES, (first, second), strict=True)))
        load.check_jobs()
    p50, p95 = np.percentile(np.array(load.durations) * 1000, [50, 95])
    what = "ended and killed in turn" if ending else ""
    changes = len(first.documents) + len(second.documents)
    sys.stdout.write(
        f"{count} servers {rate:6.1f} answers/s  p50 {p50:6.1f} ms  p95 {p95:6.1f} ms  "
        f"{len(load.jobs)} uploads, {changes} changes seen  {dict(load.counts)} {what}\n"
    )
    sys.stdout.flush()


def replace(servers: list[ServerProcess], folder: Path, load: Load) -> None:
    dice = random.Random(len(servers))
    gone = dice.choice([server for server in servers if not server.ending])
    servers += start(folder)
    gone.kill() if dice.random() < 0.5 else gone.end()
    load.counts["servers replaced"] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--askers", type=int, default=8)
    options = parser.parse_args()
    for count, ending in ((1, False), (2, False), (3, False), (3, True)):
        with tempfile.TemporaryDirectory() as folder:
            measured(Path(folder), count, options, ending=ending)


if __name__ == "__main__":
    main()
