"""A few steps of a training, measured: how much memory, how long all of it will take.

Nothing is written, and the adapter that they begin is of no use.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import torch

from finetune.train.evaluation import evaluated
from finetune.train.heaviest import Heaviest
from finetune.train.loop import Training
from rag.chatglm.memory import RUNTIME

TIMED = 3
"""Steps, spread over the plan, after the heaviest."""
EVALUATED = 16
"""Rows of the dev set that are timed."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What was measured, and what follows from it."""

    peak: int | None
    """Bytes, as `peak` has them."""
    heaviest: float
    """Seconds of the step with the longest lines (it was the first, and may have been slower so)."""
    step: float
    """Seconds of a step, the mean of the whole plan."""
    speed: float
    """Tokens a second, padding included, on all devices."""
    steps: int
    whole: float
    """Seconds of the whole training, its evaluations included."""


def rehearse(training: Training, heaviest: Heaviest) -> Rehearsal:
    """Train on the heaviest step, then on some others, and evaluate some rows.

    Time counts by tokens: a step of twice as many takes twice as long.
    """
    steps = heaviest.plan.steps
    first = _seconds(training, heaviest.steps[0])[0]
    timed = [_seconds(training, steps * i // TIMED) for i in range(TIMED)]
    speed = sum(tokens for _, tokens in timed) / sum(seconds for seconds, _ in timed)
    learning = heaviest.tokens / speed
    return Rehearsal(
        peak(training.accelerator.device.type),
        first,
        learning / steps,
        speed,
        steps,
        learning + _evaluations(training, steps),
    )


def _seconds(training: Training, number: int) -> tuple[float, int]:
    """Of a step, and its tokens."""
    began = monotonic()
    tokens = training._step(number)[2]
    if training.accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    return monotonic() - began, tokens


def _evaluations(training: Training, steps: int) -> float:
    """Seconds of all evaluations: before the first step, each `eval_steps`, and after the last."""
    sets, options = training.sets, training.options
    found = [rows for rows in (sets.dev, sets.general_dev) if rows is not None and len(rows)]
    if not found:
        return 0.0
    began = monotonic()
    evaluated(
        training.tuned.model, found[0],
        length=options.pack_length, step=training.done, part=slice(0, EVALUATED),
    )  # fmt: skip
    spent, seen = monotonic() - began, int(found[0].lengths[:EVALUATED].sum())
    times = 1 + -(-steps // options.eval_steps)
    devices = training.accelerator.num_processes
    return times * sum(int(rows.lengths.sum()) for rows in found) * spent / seen / devices


def forget_peak() -> None:
    """Let `peak` count from now on, where the kernel can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: str) -> int | None:
    """The most bytes that this process has held until now: of memory, as the kernel counts it, or of
    a GPU, what torch reserved and what a context is taken to need. None where it can't be told.
    """
    if device == "cuda":
        return torch.cuda.max_memory_reserved() + RUNTIME["cuda"]
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
