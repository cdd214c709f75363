"""Rows with passages teach to read passages; rows without teach to answer from thin air."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny import train

FILE = Path(__file__).parents[2] / "benchmarks" / "grounding.py"
SEED = 3


def test_retrieval_aware_rows_beat_plain_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the five seeds of benchmarks/grounding.py, where the others are."""
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # the script puts the root first
    spec = importlib.util.spec_from_file_location("grounding", FILE)
    assert spec
    assert spec.loader
    grounding = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(grounding)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        base = train(tmp_path / "base", steps=300)
        found = {
            way: grounding.measured(base, way, SEED, 200, tmp_path)
            for way in ("plain", "retrieval-aware")
        }
    finally:
        torch.set_num_threads(threads)
    assert found["retrieval-aware"][0] > found["plain"][0] + 0.3
    assert found["retrieval-aware"][1] > found["plain"][1] + 0.3
