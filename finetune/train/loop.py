"""The training loop: steps, evaluations, checkpoints; the same bytes whether it was stopped or not.

It is ours, on accelerate for processes and devices: see docs/decisions/013-training.md.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from finetune.data.dataset import Counts
from finetune.options import TrainOptions
from finetune.train.batches import Plan, Stream, pack
from finetune.train.checkpoint import (
    BASE,
    LOG_FILE,
    LOG_PICTURE,
    Log,
    TrainingState,
    check_same,
    checkpoints,
    draw_log,
    identity,
    load_tensors,
    save_checkpoint,
)
from finetune.train.lora import TunedModel
from finetune.train.loss import evaluate, finite_loss
from finetune.types import TokenRow, TokenRows
from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.chatglm.adapter_files import Contract, fingerprint
from rag.chatglm.configuration import generation_of


@dataclass(frozen=True, slots=True)
class Sets:
    """The rows to learn (`general` are mixed in), and those that are only measured."""

    train: TokenRows
    dev: TokenRows | None = None
    general: TokenRows | None = None
    general_dev: TokenRows | None = None
    counts: Mapping[str, Counts] = field(default_factory=dict)
    """By the names of the files' options: how many of their examples are used."""

    @property
    def _all(self) -> dict[str, TokenRows | None]:
        names = ("train", "dev", "general", "general_dev")
        return {name: getattr(self, name) for name in names}

    @property
    def sizes(self) -> dict[str, int]:
        """The number of rows of each set."""
        return {name: len(rows or ()) for name, rows in self._all.items()}

    @property
    def measured(self) -> dict[str, TokenRows]:
        """By the names of their losses."""
        named = {"dev_loss": self.dev, "general_loss": self.general_dev}
        return {name: rows for name, rows in named.items() if rows is not None}

    @property
    def digests(self) -> dict[str, str]:
        return {name: rows.digest for name, rows in self._all.items() if rows is not None}

    def of(self, plan: Plan, number: int) -> list[TokenRow]:
        """The rows that step `number` takes."""
        own, general = plan.step(number)
        rows = [self.train[int(i)] for i in own]
        return rows + [self.general[int(i)] for i in general] if self.general is not None else rows


def enable_checkpointing(base: Any) -> None:
    """Let the base compute its layers again in the backward pass."""
    renamed = getattr(base, "activation_checkpointing_enable", None)  # in transformers 5.24
    (renamed or base.gradient_checkpointing_enable)({"use_reentrant": False})


def plan(sets: Sets, options: TrainOptions, devices: int) -> Plan:
    """The rows that each step takes, of all devices together."""
    size = options.per_device_train_batch_size * options.gradient_accumulation_steps * devices
    general = sets.general
    return Plan(
        Stream(len(sets.train), options.seed),
        size,
        options.num_train_epochs,
        options.max_steps,
        Stream(len(general), options.seed + 1) if general is not None else None,
        options.mix if general is not None else 0.0,
    )


SMALLEST_SCALE = 1.0
"""Of a float16 loss: if gradients are still infinite, the scale is not the cause."""
LEARNT = 1e-6
"""A smaller loss leaves no gradient: there is nothing more to learn."""


class Optimizer:
    """AdamW over an adapter's parameters: float16's loss scale, clipping, gradients of all devices."""

    def __init__(
        self, trainable: Mapping[str, nn.Parameter], options: TrainOptions, accelerator: Accelerator
    ) -> None:
        self.trainable, self.options, self.accelerator = trainable, options, accelerator
        self.params = list(trainable.values())
        self.adamw = torch.optim.AdamW(self.params, options.learning_rate, weight_decay=options.weight_decay)
        self.scaler = torch.amp.GradScaler(  # type: ignore[attr-defined]
            accelerator.device.type, enabled=options.dtype == "float16"
        )
        self.scaler.scale(torch.zeros((), device=accelerator.device))  # a device may have no rows

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self, number: int, rate: float, loss: float) -> float:
        """Update the parameters in step `number`, from 1; returns the gradients' norm before clipping.

        In float16, a step with infinite gradients is skipped (returns 0) and the next has a smaller
        scale. Raises `UserError` if all gradients are zero, or not finite otherwise.
        """
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self._gather()
        self.scaler.unscale_(self.adamw)
        norm = float(nn.utils.clip_grad_norm_(self.params, self.options.max_grad_norm or math.inf))
        scale, half = self.scaler.get_scale(), self.scaler.is_enabled()
        if norm == 0 and loss > LEARNT:
            cause = Translatable("no gradient arrives")
            if half:
                cause = Translatable("gradients vanish in float16, even scaled by {scale:g}", scale=scale)
            raise UserError(
                "step {step}: all gradients are zero: {cause}; train with --bf16 or --fp32, and see that "
                "answers are not empty (rag finetune check)",
                step=number,
                cause=cause,
            )
        if not math.isfinite(norm):
            if not half or scale <= SMALLEST_SCALE:
                way_out = Translatable("use a smaller --learning-rate, or --max-grad-norm 1")
                if half:
                    way_out = Translatable("train with --bf16 or --fp32, or {otherwise}", otherwise=way_out)
                raise UserError(
                    "step {step}: the gradients are NaN or infinite in {dtype}; {way_out}",
                    step=number, dtype=self.options.dtype, way_out=way_out,
                )  # fmt: skip
            norm = 0.0
        self.scaler.step(self.adamw)
        self.scaler.update()
        self.adamw.zero_grad(set_to_none=True)
        return norm

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all devices."""
        if self.accelerator.num_processes == 1:
            return value
        total: Any = self.accelerator.reduce(value.to(self.accelerator.device), "sum")
        return total

    def _gather(self) -> None:
        """Sum the gradients of all devices in one message; an adapter has a few megabytes of them."""
        for param in self.params:
            if param.grad is None:
                param.grad = torch.zeros_like(param)
        if self.accelerator.num_processes == 1:
            return
        grads = [param.grad for param in self.params if param.grad is not None]
        vector_to_parameters(self.sum(parameters_to_vector(grads)), grads)

    def tensors(self) -> dict[str, Tensor]:
        """The parameters and AdamW's state, by name: `value.NAME`, `exp_avg.NAME`, …."""
        tensors: dict[str, Tensor] = {}
        for name, param in self.trainable.items():
            tensors |= {f"{key}.{name}": t for key, t in self.adamw.state.get(param, {}).items()}
            tensors[f"value.{name}"] = param
        return tensors

    def scale(self) -> dict[str, float]:
        """The state of the loss scale; empty without one."""
        return {key: float(value) for key, value in self.scaler.state_dict().items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], scale: Mapping[str, float]) -> None:
        """Restore what `tensors` and `scale` returned."""
        for name, param in self.trainable.items():
            end = f".{name}"
            state = {k.removesuffix(end): t for k, t in tensors.items() if k.endswith(end)}
            param.copy_(state.pop("value"))
            self.adamw.state[param] = {
                key: t if key == "step" else t.to(param.device) for key, t in state.items()
            }
        if scale:
            counts = {k: int(scale[k]) for k in ("growth_interval", "_growth_tracker")}
            self.scaler.load_state_dict({**scale, **counts})


def learning_rate(options: TrainOptions, step: int, steps: int) -> float:
    """The rate of a step, from 0, as in transformers' `get_scheduler`."""
    warm = options.warmup_steps or math.ceil(steps * options.warmup_ratio)
    if step < warm:
        return options.learning_rate * step / warm
    if options.lr_scheduler_type == "constant":
        return options.learning_rate
    done = (step - warm) / max(1, steps - warm)
    if options.lr_scheduler_type == "cosine":
        return options.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    return options.learning_rate * max(0.0, 1 - done)


@dataclass(frozen=True, slots=True)
class StepReport:
    """The progress after some steps; the loss is a mean over them."""

    step: int
    steps: int
    loss: float
    speed: float
    """Tokens a second of training, including those that are not learnt."""
    left: float
    """Seconds, including evaluations."""
    losses: Mapping[str, float]
    """Of the sets that were measured in this step, by their names."""
    stopped: str
    """The reason for an end before the last step, or ""."""


@dataclass
class Training:
    """A training in the folder `out`."""

    tuned: TunedModel
    sets: Sets
    options: TrainOptions
    out: Path
    accelerator: Accelerator
    state: TrainingState = field(default_factory=TrainingState, init=False)

    def __post_init__(self) -> None:
        options = self.options
        self.optimizer = Optimizer(self.tuned.trainable, options, self.accelerator)
        self.plan = plan(self.sets, options, self.accelerator.num_processes)
        if options.gradient_checkpointing:
            enable_checkpointing(self.tuned.base)
        self.tuned.model.train()

    @property
    def identity(self) -> dict[str, Any]:
        rest = identity(self.sets.digests, self.options, self.accelerator)
        return rest | {BASE: fingerprint(self.tuned.base)}

    @property
    def contract(self) -> Contract:
        """The prompts that the adapter is trained for."""
        base = self.tuned.base
        return Contract(generation_of(base.config), self.options.template, base=fingerprint(base))

    def run(self, *, resume: bool = False) -> Iterator[StepReport]:
        """Train; yields a report every `logging_steps` steps and after each evaluation.

        With `resume` it continues from the newest checkpoint in `out`, if there is one. Raises
        `UserError` if data, options or base differ from those that it was started with, the disk is
        full, or a loss is not finite.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        if resume:
            self._restore()
        main, state = self.accelerator.is_main_process, self.state
        with Log(self.out, size=state.log, step=state.step) if main else nullcontext() as log:
            yield from self._steps(log, state)

    def _steps(self, log: Log | None, state: TrainingState) -> Iterator[StepReport]:
        options, steps = self.options, self.plan.steps
        start, tokens, seconds, first = monotonic(), 0, 0.0, state.step
        if state.step == 0 and (measured := self._evaluate()):
            state.losses = {f"{name}_before": value for name, value in measured.items()} | measured
            if log:
                log.row({"step": 0, "epoch": 0.0, **measured})
        while state.step < steps and not state.stopped:
            step_start = monotonic()
            loss, norm, count = self.step(state.step)
            state.step += 1
            tokens, seconds = tokens + count, seconds + monotonic() - step_start
            loss, norm, logged = state.sums = state.sums[0] + loss, state.sums[1] + norm, state.sums[2] + 1
            last = state.step == steps
            measured: dict[str, float] = {}
            if state.step % options.eval_steps == 0 or last:
                measured = self._evaluate()
                self._record_losses(measured)
            report = None
            if state.step % options.logging_steps == 0 or last or measured:
                if logged == state.step and loss <= LEARNT * logged:
                    raise UserError(
                        "the loss of the first {steps} steps is 0: the base already gives every answer of "
                        "the data; look at it with rag finetune check DATA --row 1",
                        steps=logged,
                    )
                mean, speed = loss / logged, tokens / seconds
                left = (monotonic() - start) / (state.step - first) * (steps - state.step)
                report = StepReport(state.step, steps, mean, speed, left, measured, state.stopped)
                if log:
                    values = {"step": state.step, "epoch": self.plan.epoch(state.step), "loss": mean}
                    values["learning_rate"] = learning_rate(options, state.step - 1, steps)
                    values["grad_norm"] = norm / logged
                    log.row(values | measured, speed=speed)
                state.sums = (0.0, 0.0, 0)
            if state.step % options.save_steps == 0 or last or state.stopped:
                self._save(log)
            if report:
                yield report

    def step(self, number: int) -> tuple[float, float, int]:
        """Do one update; returns the mean loss, the gradients' norm, its tokens."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        seed = np.random.SeedSequence((self.options.seed, number, rank)).generate_state(1)[0]
        torch.manual_seed(int(seed))
        rows = self.sets.of(self.plan, number)[rank::world]
        batches = [batch for batch in pack(rows, self.options.pack_length) if batch.learnt]
        counts = torch.tensor([(b.learnt, b.ids.numel(), len(b.rejected)) for b in batches] or [(0, 0, 0)])
        learnt, read, pairs = (int(n) for n in self.optimizer.sum(counts.double().sum(0)))
        # ORPO: the mean over tokens of the chosen answers, and over pairs of the odds' term.
        odds = self.options.orpo_beta * learnt / max(1, pairs)
        if not learnt:
            raise UserError(
                "step {number}: no token of its rows counts in the loss: their answers are empty or cut "
                "off; see rag finetune check",
                number=number + 1,
            )
        total = torch.zeros((), dtype=torch.float64)
        with self._together():
            for batch in batches:
                loss = finite_loss(self.tuned.model, batch.to(self.accelerator.device), number + 1, odds)
                total += float(loss.detach())
                self.optimizer.backward(loss / learnt)
        mean = float(self.optimizer.sum(total)) / learnt
        rate = learning_rate(self.options, number, self.plan.steps)
        return mean, self.optimizer.step(number + 1, rate, mean), read

    @contextmanager
    def _together(self) -> Iterator[None]:
        """If a device has an error, raise one on all of them: they would wait for it."""
        problem: UserError | None = None
        try:
            yield
        except UserError as error:
            problem = error
        if self.optimizer.sum(torch.tensor(float(problem is not None))):
            raise problem or UserError("another device stopped, and says why")

    def _evaluate(self) -> dict[str, float]:
        """The losses of the measured sets."""
        part = slice(self.accelerator.process_index, None, self.accelerator.num_processes)
        length, step = self.options.pack_length, self.state.step
        measured: dict[str, float] = {}
        for name, rows in self.sets.measured.items():
            sums = torch.zeros(2, dtype=torch.float64)
            with self._together():
                sums = evaluate(self.tuned.model, rows, length=length, step=step, part=part)
            loss, count = (float(n) for n in self.optimizer.sum(sums))
            if count:
                measured[name] = loss / count
        return measured

    def _record_losses(self, measured: dict[str, float]) -> None:
        """Record the last and the best losses; stop if the forgetting budget is exceeded."""
        state = self.state
        state.losses |= measured
        if (loss := measured.get("dev_loss", math.inf)) < state.losses.get("dev_best", math.inf):
            state.losses |= {"dev_best": loss, "dev_step": state.step}
        before, now = (state.losses.get(f"general_loss{when}") for when in ("_before", ""))
        budget = self.options.forgetting_budget
        if budget and before is not None and now is not None and now > before * (1 + budget):
            state.stopped = (
                f"general loss {now:.4f} is {now / before - 1:.1%} above the {before:.4f} before "
                f"training, more than the budget of {budget:.1%}"
            )

    def _save(self, log: Log | None) -> None:
        if log:
            state, optimizer = self.state, self.optimizer
            state.log, state.scaler = log.flush(), optimizer.scale()
            state.threads, state.made_of = torch.get_num_threads(), self.identity
            keep = self.options.save_total_limit
            save_checkpoint(self.out, state, optimizer.tensors(), self.write_adapter, keep=keep)
            draw_log(self.out / LOG_FILE, self.out / LOG_PICTURE)
        self.accelerator.wait_for_everyone()

    def write_adapter(self, folder: Path, *, strength: float = 1.0) -> None:
        """Write the adapter's files."""
        self.tuned.write(folder, strength=strength)
        self.contract.write(folder)

    def _restore(self) -> None:
        if folders := checkpoints(self.out):
            folder = folders[-1][1]
            self.state = TrainingState.read(folder)
            check_same(self.state.made_of, self.identity, self.out)
            torch.set_num_threads(self.state.threads)
            self.optimizer.restore(load_tensors(folder), self.state.scaler)
