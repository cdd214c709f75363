"""Why a loss is no number, or teaches nothing: the place where it began, named with its cause."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from finetune.train.batches import Batch
from finetune.train.loss import summed
from ingest.errors import UserError

HALF = 65504.0
"""The largest float16."""


def not_finite(model: Any, batch: Batch, step: int) -> UserError:
    """What to tell of a loss that is NaN or infinite: the module in which it begins and why."""
    broken = [name for name, value in model.named_parameters() if not bool(value.isfinite().all())]
    if broken:
        return UserError(
            f"step {step}: {broken[0]} holds NaN or infinite numbers ({len(broken)} such): the "
            "steps were too large; go on from a checkpoint with a smaller --learning-rate, or with "
            "--warmup-steps",
            zh=f"第 {step} 步：{broken[0]} 中出现 NaN 或无穷大（共 {len(broken)} 个）：步长过大；"
            "请从检查点开始，调小 --learning-rate 或使用 --warmup-steps",
        )
    place, largest, dtype = _first(model, batch)
    if _base_is_finite(model, batch):
        return UserError(
            f"step {step}: the adapter has grown until the output of {place} is NaN or infinite in "
            f"{_short(dtype)}: the steps were too large; go on from a checkpoint with a smaller "
            "--learning-rate, or with --warmup-steps",
            zh=f"第 {step} 步：适配器增长过大，{place} 的输出在 {_short(dtype)} 下为 NaN 或无穷大：步长过大；"
            "请从检查点开始，调小 --learning-rate 或使用 --warmup-steps",
        )
    if dtype == torch.float16:
        return UserError(
            f"step {step}: the output of {place} is beyond float16 (inputs up to {largest:.3g}, "
            f"float16 holds {HALF:.0f}): this model overflows in float16; train with --bf16 or "
            "--fp32",
            zh=f"第 {step} 步：{place} 的输出超出 float16 范围（输入最大 {largest:.3g}，"
            f"float16 上限 {HALF:.0f}）：此模型在 float16 下溢出；请用 --bf16 或 --fp32 训练",
        )
    return UserError(
        f"step {step}: the output of {place} is NaN or infinite in {_short(dtype)} (inputs up to "
        f"{largest:.3g}), also without the adapter: the base's weights are damaged; fetch the model "
        "again",
        zh=f"第 {step} 步：{place} 的输出在 {_short(dtype)} 下为 NaN 或无穷大（输入最大 {largest:.3g}），"
        "不加适配器也是如此：基座权重损坏；请重新下载模型",
    )


def no_gradient(step: int, dtype: torch.dtype, scale: float) -> UserError:
    """What to tell where nothing reaches the trained numbers: all gradients are zero."""
    half = dtype == torch.float16
    cause = f"gradients vanish in float16, also times {scale:g}" if half else "no gradient arrives"
    cause_zh = f"梯度在 float16 下消失（已放大 {scale:g} 倍）" if half else "没有梯度"
    return UserError(
        f"step {step}: all gradients are zero: {cause}; train with --bf16 or --fp32, and see that "
        "answers are not empty (rag finetune check)",
        zh=f"第 {step} 步：全部梯度为零：{cause_zh}；请用 --bf16 或 --fp32 训练，"
        "并确认回答不为空（rag finetune check）",
    )


def infinite_gradient(step: int, dtype: torch.dtype) -> UserError:
    """What to tell where the loss is a number, but its gradients are not."""
    other, other_zh = "", ""
    if dtype == torch.float16:
        other, other_zh = "train with --bf16 or --fp32, or ", "请用 --bf16 或 --fp32 训练，或"
    return UserError(
        f"step {step}: the gradients are NaN or infinite in {_short(dtype)}; {other}use a smaller "
        "--learning-rate, or --max-grad-norm 1",
        zh=f"第 {step} 步：梯度在 {_short(dtype)} 下为 NaN 或无穷大；{other_zh}调小 --learning-rate，"
        "或设 --max-grad-norm 1",
    )


def nothing_to_learn(steps: int) -> UserError:
    """What to tell of a loss of 0 from the first step on."""
    return UserError(
        f"the loss of the first {steps} steps is 0: the base already says all that is to be learnt; "
        "see what that is with rag finetune check DATA --row 1",
        zh=f"前 {steps} 步的损失为 0：要学习的内容基座已全部会答；"
        "请用 rag finetune check 数据 --row 1 查看学习的内容",
    )


@torch.no_grad()
def _base_is_finite(model: Any, batch: Batch) -> bool:
    """Whether the loss is a number without the adapter."""
    with model.disable_adapter():
        return bool(summed(model, batch).isfinite())


@torch.no_grad()
def _first(model: nn.Module, batch: Batch) -> tuple[str, float, torch.dtype]:
    """The innermost module whose output is first not finite, its largest input and dtype."""
    seen: list[tuple[str, float, torch.dtype]] = []
    handles = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            if seen or not isinstance(value, Tensor) or not value.is_floating_point():
                return
            if not value.isfinite().all():
                tensors = [x for x in inputs if isinstance(x, Tensor) and x.is_floating_point()]
                largest = max((float(x.abs().max()) for x in tensors), default=math.nan)
                seen.append((name, largest, value.dtype))

        return hook

    for name, module in model.named_modules():
        if name and not list(module.children()):
            handles.append(module.register_forward_hook(watch(name)))
    try:
        summed(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    # Where every module's output is finite, attention between them or the loss itself is not.
    return seen[0] if seen else ("attention", math.nan, next(model.parameters()).dtype)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
