"""The training loop: steps, evaluations, checkpoints; the same bytes whether it was stopped or not.

It is ours, on accelerate for processes and devices: see docs/decisions/013-training.md.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from finetune.options import TrainOptions
from finetune.train.batches import Batch, Plan, Stream, laid_out
from finetune.train.checkpoint import BASE, State, found, made_of, numbers_of, same, save_checkpoint
from finetune.train.logs import FILE, PICTURE, Log, Silent, draw
from finetune.train.loss import evaluated, not_finite, nothing_to_learn, summed
from finetune.train.optimizer import LEARNT, Optimizer, learning_rate
from finetune.types import Row, Rows
from ingest.errors import UserError
from rag.chatglm.adapter_files import Contract, fingerprint


class Tuned(Protocol):
    """A model of which a few numbers are trained (lora.py, ptuning.py)."""

    base: Any
    trained: dict[str, nn.Parameter]

    @property
    def model(self) -> Any: ...
    def write(self, folder: Path, *, strength: float = 1.0) -> None: ...
    def released(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Sets:
    """What is learnt, and what is only measured (or mixed in, of `general`)."""

    train: Rows
    dev: Rows | None = None
    general: Rows | None = None
    general_dev: Rows | None = None

    @property
    def measured(self) -> dict[str, Rows]:
        """By the names that their losses have."""
        named = {"dev_loss": self.dev, "general_loss": self.general_dev}
        return {name: rows for name, rows in named.items() if rows is not None}

    @property
    def digests(self) -> dict[str, str]:
        named = {"train": self.train, "dev": self.dev, "general": self.general}
        named["general_dev"] = self.general_dev
        return {name: rows.digest for name, rows in named.items() if rows is not None}

    def of(self, plan: Plan, number: int) -> list[Row]:
        """The rows that step `number` takes."""
        own, general = plan.step(number)
        rows = [self.train[int(i)] for i in own]
        if self.general is not None:
            rows += [self.general[int(i)] for i in general]
        return rows


@dataclass(frozen=True, slots=True)
class Report:
    """What is told after some steps; the loss is a mean over them."""

    step: int
    steps: int
    loss: float
    speed: float
    """Tokens a second of training, those that are only read included."""
    left: float
    """Seconds, evaluations included."""
    dev_loss: float | None = None
    general_loss: float | None = None
    stopped: str = ""
    """Why it ended before its last step; empty where it did not."""


@dataclass
class _Sums:
    """Since the last line of the log."""

    loss: float = 0.0
    norm: float = 0.0
    steps: int = 0


@dataclass
class Training:
    """A training in the folder `out`. `contract` travels with each checkpoint."""

    tuned: Tuned
    sets: Sets
    options: TrainOptions
    out: Path
    contract: Contract
    accelerator: Accelerator
    losses: dict[str, float] = field(default_factory=dict, init=False)
    """Of the sets that are measured: before, at best (and in which step), and last."""
    done: int = field(default=0, init=False)
    stopped: str = field(default="", init=False)
    """Why it ended before its last step; empty where it did not."""

    def __post_init__(self) -> None:
        options = self.options
        self.optimizer = Optimizer(self.tuned.trained, options, self.accelerator)
        self.plan = plan(self.sets, options, self.accelerator.num_processes)
        if options.gradient_checkpointing:
            checkpointed(self.tuned.base)
        self.tuned.model.train()

    @property
    def made_of(self) -> dict[str, Any]:
        rest = made_of(self.sets.digests, self.options, self.accelerator)
        return rest | {BASE: fingerprint(self.tuned.base)}

    def run(self, *, resume: bool = False) -> Iterator[Report]:
        """Train; a report every `logging_steps` steps and after each evaluation.

        With `resume` it goes on from the newest checkpoint in `out`, where there is one. `UserError`
        where data, options or base are others than it was begun with, the disk is full, or a loss
        is no number.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        state = self._restore() if resume else None
        sums = _Sums(*state.sums) if state else _Sums()
        main = self.accelerator.is_main_process
        with (
            Log(self.out, size=state.log if state else 0, step=self.done)
            if main
            else Silent() as log
        ):
            yield from self._steps(log, sums)

    def _steps(self, log: Log | Silent, sums: _Sums) -> Iterator[Report]:
        options, steps = self.options, self.plan.steps
        began, tokens, trained, first = monotonic(), 0, 0.0, self.done
        if self.done == 0 and (measured := self._evaluate()):
            self.losses = {f"{name}_before": value for name, value in measured.items()} | measured
            log.row({"step": 0, "epoch": 0.0, **measured})
        while self.done < steps and not self.stopped:
            started = monotonic()
            loss, norm, seen = self.step(self.done)
            self.done += 1
            tokens, trained = tokens + seen, trained + monotonic() - started
            sums.loss, sums.norm, sums.steps = sums.loss + loss, sums.norm + norm, sums.steps + 1
            last = self.done == steps
            measured: dict[str, float] = {}
            if self.done % options.eval_steps == 0 or last:
                measured = self._evaluate()
                self._judge(measured)
            report = None
            if self.done % options.logging_steps == 0 or last or measured:
                if sums.steps == self.done and sums.loss <= LEARNT * sums.steps:
                    raise nothing_to_learn(sums.steps)
                elapsed = monotonic() - began
                report = Report(
                    self.done,
                    steps,
                    sums.loss / sums.steps,
                    tokens / trained,
                    elapsed / (self.done - first) * (steps - self.done),
                    measured.get("dev_loss"),
                    measured.get("general_loss"),
                    self.stopped,
                )
                log.row(self._line(sums, measured), speed=report.speed)
                sums.loss, sums.norm, sums.steps = 0.0, 0.0, 0
            if self.done % options.save_steps == 0 or last or self.stopped:
                self._save(log, sums)
            if report:
                yield report

    def _line(self, sums: _Sums, measured: Mapping[str, float]) -> dict[str, float]:
        return {
            "step": self.done,
            "epoch": self.plan.epoch(self.done),
            "loss": sums.loss / sums.steps,
            "learning_rate": self._rate(self.done - 1),
            "grad_norm": sums.norm / sums.steps,
            **measured,
        }

    def step(self, number: int) -> tuple[float, float, int]:
        """One update: the mean loss of its learnt tokens, the gradients' norm, tokens read."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        seed = np.random.SeedSequence((self.options.seed, number, rank)).generate_state(1)[0]
        torch.manual_seed(int(seed))
        batches = self._batches(number, rank, world)
        counts = torch.tensor([sum(b.learnt for b in batches), sum(b.ids.numel() for b in batches)])
        learnt, read = (int(n) for n in self.optimizer.sum(counts.double()))
        if not learnt:
            raise UserError(
                "step {number}: no token of its rows is learnt: their answers are empty or cut off; "
                "see rag finetune check",
                number=number + 1,
            )
        total, problem = torch.zeros((), dtype=torch.float64), None
        for batch in batches:
            loss = summed(self.tuned.model, batch)
            if not bool(loss.isfinite()):
                problem = not_finite(self.tuned.model, batch, number + 1)
                break
            total += float(loss.detach())
            self.optimizer.backward(loss / learnt)
        self._agree(problem)
        mean = float(self.optimizer.sum(total)) / learnt
        return mean, self.optimizer.step(number + 1, self._rate(number), mean), read

    def _agree(self, problem: UserError | None) -> None:
        """Raise the problem, on the devices that have none as well: they would wait for the others."""
        if self.optimizer.sum(torch.tensor(float(problem is not None))):
            raise problem or UserError("another device stopped, and says why")

    def _rate(self, step: int) -> float:
        return learning_rate(self.options, step, self.plan.steps)

    def _batches(self, number: int, rank: int, world: int) -> list[Batch]:
        made = laid_out(self.sets.of(self.plan, number)[rank::world], self.options)
        return [batch.to(self.accelerator.device) for batch in made if batch.learnt]

    def _evaluate(self) -> dict[str, float]:
        """The losses of the sets that are measured."""
        part = slice(self.accelerator.process_index, None, self.accelerator.num_processes)
        length, step = self.options.pack_length, self.done
        measured: dict[str, float] = {}
        for name, rows in self.sets.measured.items():
            sums, problem = torch.zeros(2, dtype=torch.float64), None
            try:
                sums = evaluated(self.tuned.model, rows, length=length, step=step, part=part)
            except UserError as error:
                problem = error
            self._agree(problem)
            loss, count = (float(n) for n in self.optimizer.sum(sums))
            if count:
                measured[name] = loss / count
        return measured

    def _judge(self, measured: dict[str, float]) -> None:
        """Keep what was measured and what was best of it; stop where the budget is overdrawn."""
        self.losses |= measured
        if (loss := measured.get("dev_loss", math.inf)) < self.losses.get("dev_best", math.inf):
            self.losses |= {"dev_best": loss, "dev_step": self.done}
        before, now = (self.losses.get(f"general_loss{when}") for when in ("_before", ""))
        budget = self.options.forgetting_budget
        if budget and before is not None and now is not None and now > before * (1 + budget):
            self.stopped = (
                f"general loss {now:.4f} is {now / before - 1:.1%} above the {before:.4f} before "
                f"training, more than the budget of {budget:.1%}"
            )

    def _save(self, log: Log | Silent, sums: _Sums) -> None:
        if isinstance(log, Log):
            state = State(
                self.done,
                log.flush(),
                (sums.loss, sums.norm, sums.steps),
                self.optimizer.scale(),
                self.losses,
                self.stopped,
                torch.get_num_threads(),
                self.made_of,
            )
            save_checkpoint(
                self.out,
                state,
                self.optimizer.numbers(),
                self._write_adapter,
                keep=self.options.save_total_limit,
            )
            draw(self.out / FILE, self.out / PICTURE)
        self.accelerator.wait_for_everyone()

    def _write_adapter(self, folder: Path) -> None:
        self.tuned.write(folder)
        self.contract.write(folder)

    def _restore(self) -> State | None:
        checkpoints = found(self.out)
        if not checkpoints:
            return None
        folder = checkpoints[-1][1]
        state = State.read(folder)
        same(state.made_of, self.made_of, self.out)
        torch.set_num_threads(state.threads)
        self.optimizer.restore(numbers_of(folder), state.scaler)
        self.losses, self.done, self.stopped = dict(state.losses), state.step, state.stopped
        return state


def checkpointed(base: Any) -> None:
    """Let the base compute its layers anew in the backward pass."""
    renamed = getattr(base, "activation_checkpointing_enable", None)  # in transformers 5.24
    (renamed or base.gradient_checkpointing_enable)({"use_reentrant": False})


def plan(sets: Sets, options: TrainOptions, devices: int) -> Plan:
    """Which rows each step takes, of all devices together."""
    size = options.per_device_train_batch_size * options.gradient_accumulation_steps * devices
    lengths = None if options.packing else sets.train.lengths
    general = sets.general
    own = max(1, size - round(size * options.mix))  # of them meet in a step
    return Plan(
        Stream(len(sets.train), options.seed, lengths=lengths, size=own),
        size,
        options.num_train_epochs,
        options.max_steps,
        Stream(len(general), options.seed + 1) if general is not None else None,
        options.mix if general is not None else 0.0,
    )
