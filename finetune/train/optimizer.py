"""AdamW over an adapter's numbers: loss scale of float16, clipping, all devices' gradients summed."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from finetune.options import TrainOptions
from finetune.train.loss import infinite_gradient, no_gradient

SMALLEST_SCALE = 1.0
"""Of a float16 loss: where gradients are infinite even so, it is not the scale."""

LEARNT = 1e-6
"""A loss so small leaves no gradient: there is nothing more to learn."""


class Optimizer:
    """The trained numbers by name, and what moves them."""

    def __init__(
        self, trained: Mapping[str, nn.Parameter], options: TrainOptions, accelerator: Accelerator
    ) -> None:
        self.trained, self.options, self.accelerator = trained, options, accelerator
        self.params = list(trained.values())
        self.adamw = torch.optim.AdamW(
            self.params, options.learning_rate, weight_decay=options.weight_decay
        )
        self.dtype: torch.dtype = getattr(torch, options.dtype)
        self.scaler = torch.amp.GradScaler(  # type: ignore[attr-defined]
            accelerator.device.type, enabled=self.dtype == torch.float16
        )
        self.scaler.scale(torch.zeros((), device=accelerator.device))  # a device may have no rows

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self, number: int, rate: float, loss: float) -> float:
        """Move the numbers in step `number`, from 1; the norm of the gradients before clipping.

        Of float16, a step whose gradients are infinite is passed over (0 comes back) and the next
        has a smaller scale. `UserError` where no gradient arrives, or none that is a number.
        """
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self._gather()
        self.scaler.unscale_(self.adamw)
        norm = float(nn.utils.clip_grad_norm_(self.params, self.options.max_grad_norm or math.inf))
        scale = self.scaler.get_scale()
        if norm == 0 and loss > LEARNT:
            raise no_gradient(number, self.dtype, scale)
        if not math.isfinite(norm):
            if not self.scaler.is_enabled() or scale <= SMALLEST_SCALE:
                raise infinite_gradient(number, self.dtype)
            norm = 0.0
        self.scaler.step(self.adamw)
        self.scaler.update()
        self.adamw.zero_grad(set_to_none=True)
        return norm

    def sum(self, value: Tensor) -> Tensor:
        """Over all devices."""
        if self.accelerator.num_processes == 1:
            return value
        total: Any = self.accelerator.reduce(value.to(self.accelerator.device), "sum")
        return total

    def _gather(self) -> None:
        """Sum the gradients of all devices in one message: an adapter's are a few megabytes."""
        for param in self.params:
            if param.grad is None:
                param.grad = torch.zeros_like(param)
        if self.accelerator.num_processes == 1:
            return
        grads = [param.grad.flatten() for param in self.params if param.grad is not None]
        parts = self.sum(torch.cat(grads)).split([len(grad) for grad in grads])
        for param, part in zip(self.params, parts, strict=True):
            param.grad = part.view_as(param)

    def numbers(self) -> dict[str, Tensor]:
        """The trained numbers and AdamW's own, by name: `value.NAME`, `exp_avg.NAME`, …."""
        numbers: dict[str, Tensor] = {}
        for name, param in self.trained.items():
            numbers |= {f"{key}.{name}": t for key, t in self.adamw.state.get(param, {}).items()}
            numbers[f"value.{name}"] = param
        return numbers

    def scale(self) -> dict[str, float]:
        """The state of the loss scale; empty without one."""
        return {key: float(value) for key, value in self.scaler.state_dict().items()}

    @torch.no_grad()
    def restore(self, numbers: Mapping[str, Tensor], scale: Mapping[str, float]) -> None:
        """What `numbers` and `scale` gave."""
        for name, param in self.trained.items():
            held = {
                k.removesuffix(f".{name}"): t for k, t in numbers.items() if k.endswith(f".{name}")
            }
            param.copy_(held.pop("value"))
            self.adamw.state[param] = {
                key: value if key == "step" else value.to(param.device)
                for key, value in held.items()
            }
        if scale:
            whole = {
                key: int(value) if key in ("growth_interval", "_growth_tracker") else value
                for key, value in scale.items()
            }
            self.scaler.load_state_dict(whole)


def learning_rate(options: TrainOptions, step: int, steps: int) -> float:
    """Of a step, from 0, as transformers' `get_scheduler` has it."""
    warm = options.warmup_steps or math.ceil(steps * options.warmup_ratio)
    if step < warm:
        return options.learning_rate * step / warm
    if options.lr_scheduler_type == "constant":
        return options.learning_rate
    done = (step - warm) / max(1, steps - warm)
    if options.lr_scheduler_type == "cosine":
        return options.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    return options.learning_rate * max(0.0, 1 - done)
