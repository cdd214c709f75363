"""Retrieval-aware training against plain training, and preference pairs against both (ORPO), on a made
key-value task (tests/finetune/keyvalues.py).

    python benchmarks/grounding.py [--seeds N]

All adapters begin on one small ChatGLM3 (tests/tiny.py) that reads passages, but was never asked in
the words of this task, and see as many rows in as many steps.
"""

import argparse
import sys
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory

sys.path[0] = str(Path(__file__).parents[1])  # the tests are there; here is another "finetune"

from tests.finetune.keyvalues import SEEDS, TRAININGS, Scores, compared  # noqa: E402  (behind the line above)
from tests.tiny import FOLDER  # noqa: E402  (likewise)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    given = parser.parse_args()
    found: dict[str, list[Scores]] = {}
    with TemporaryDirectory() as folder:
        for seed in range(given.seeds):
            for rows, scores in compared(FOLDER, seed, Path(folder), list(TRAININGS)).items():
                found.setdefault(rows, []).append(scores)
                sys.stderr.write(f"seed {seed}, {rows}: {scores}\n")
    sys.stdout.write("| rows | exact match, three distractors | refusal F1 |\n| --- | --- | --- |\n")
    for rows, each in found.items():
        right, refused = spread([s.exact for s in each]), spread([s.refusal_f1 for s in each])
        sys.stdout.write(f"| {rows} | {right} | {refused} |\n")


def spread(values: list[float]) -> str:
    wide = f" +- {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{wide}"


if __name__ == "__main__":
    main()
