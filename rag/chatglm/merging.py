"""Weights as an adapter changes them, in the precision wanted: what a merge and an export write."""

from typing import Any

import torch
from torch import Tensor

from ingest.errors import UserError
from rag.chatglm.lora import Factors, merged


class Merging:
    """Weights as the adapter changes them, and how much rounding took from them."""

    def __init__(self, parts: dict[str, Factors], dtype: torch.dtype | None) -> None:
        self.parts, self.dtype = parts, dtype
        self.used: torch.dtype = torch.float32
        """Of the weight merged last."""
        self.missed = self.total = 0.0

    @property
    def rounding(self) -> float:
        return (self.missed / self.total) ** 0.5 if self.total else 0.0

    def __call__(self, path: str, piece: dict[str, Any]) -> dict[str, Tensor]:
        """A module's tensors, changed where the adapter changes them, in the precision wanted."""
        part = self.parts.get(path)
        if part is None:
            return {kind: self._rounded(path, tensor, tensor) for kind, tensor in piece.items()}
        exact = merged(piece["weight"], part)
        weight = self._rounded(path, exact, piece["weight"])
        self.used = weight.dtype
        self.missed += float((weight.float() - exact).square().sum())
        self.total += float(exact.square().sum())
        made = {"weight": weight}
        if "bias" in piece:
            bias = piece["bias"].float() + (0 if part.bias is None else part.bias)
            made["bias"] = self._rounded(path, bias, piece["bias"])
        elif part.bias is not None:
            raise UserError(
                f"the adapter adds a bias to {path}, which has none in this model: the merged "
                "model has no place for it; use the adapter beside the model",
                zh=f"适配器给 {path} 加了偏置，而此模型的该层没有偏置，无处合并；请将适配器与模型一同使用",
            )
        return made

    def _rounded(self, path: str, tensor: Tensor, stored: Tensor) -> Tensor:
        rounded = tensor.to(self.dtype or stored.dtype)
        if rounded is not stored and not all(value.isfinite() for value in rounded.aminmax()):
            name = spelled(rounded.dtype)
            raise UserError(
                f"{path}: a weight of {float(tensor.abs().max()):.3g} is too large for {name}; "
                "say --dtype bfloat16 or --dtype float32",
                zh=f"{path}：权重达 {float(tensor.abs().max()):.3g}，超出 {name} 的范围；"
                "请用 --dtype bfloat16 或 --dtype float32",
            )
        return rounded


def spelled(dtype: torch.dtype) -> str:
    """`float16` and the like, as it is said on the command line."""
    return str(dtype).removeprefix("torch.")
