"""Rows with passages teach to read passages; rows without teach to answer from thin air."""

from pathlib import Path
from statistics import mean

from tests.finetune.keyvalues import SEEDS, compared


def test_retrieval_aware_rows_beat_plain_ones_over_five_seeds(tiny: Path, tmp_path: Path) -> None:
    """In exact match with three distractors, and in F1 of refusals, by a good deal on average.

    How much exactly depends on the processor's arithmetic: docs/log.md, 2026-11-27.
    """
    found = [compared(tiny, seed, tmp_path) for seed in range(SEEDS)]
    for score in ("exact", "refusal_f1"):
        plain, aware = (
            mean(getattr(scores[rows], score) for scores in found)
            for rows in ("plain", "retrieval-aware")
        )
        assert aware > plain + 0.2, (score, found)
