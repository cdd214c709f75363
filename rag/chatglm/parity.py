"""Whether two models compute the same, without holding either: weights are read when a layer is asked.

Both compute in float32, so that what differs is what their files hold.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rag.chatglm.loading import empty, read_config
from rag.chatglm.quantize import Packed, dequantize
from rag.chatglm.source import Source, codes_of

TOKENS = 32
"""Of the prompt that is compared."""
BANDS = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""The largest `error` of weights of each precision."""
ROWS = 1024
"""Of a weight that are held in float32 at a time."""


class ReadLinear(nn.Module):
    """A linear layer whose float32 weight is read anew each time."""

    def __init__(self, linear: nn.Linear, source: Source, path: str, origin: str) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.source, self.origin = source, origin
        bias = None if linear.bias is None else source.read(path, "bias").float()
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """[out, in]"""
        return torch.cat(list(self._rows()))

    def forward(self, x: Tensor) -> Tensor:
        """As nn.Linear; some rows of the weight at a time, so that no matrix is held in float32."""
        made = torch.cat([functional.linear(x, rows) for rows in self._rows()], dim=-1)
        return made if self.bias is None else made + self.bias

    def _rows(self) -> Iterator[Tensor]:
        """The weight in float32, some rows at a time."""
        shape = (self.out_features, self.in_features)
        held = codes_of(self.origin, shape, self.source)
        if held is None:
            for rows in self.source.read(self.origin, "weight").split(ROWS):
                yield rows.float()
            return
        for codes, scales in zip(held.codes.split(ROWS), held.scales.split(ROWS), strict=True):
            shape = (len(codes), self.in_features)
            yield dequantize(Packed(codes, scales, held.bits, held.block, shape))


class ReadEmbedding(nn.Module):
    """An embedding of which the rows looked up are read."""

    def __init__(self, source: Source, path: str) -> None:
        super().__init__()
        self.source, self.path = source, path

    def forward(self, ids: Tensor) -> Tensor:
        return self.source.read(self.path, "weight")[ids].float()


def read_model(directory: Path) -> Any:
    """The model in float32 on the CPU, of which little is held at a time.

    Linear layers may be stored as codes, embeddings may not.
    """
    config = read_config(directory)
    source = Source.open(directory, config)
    model = empty(config).eval()
    words = model.get_input_embeddings()
    embedding = next(path for path, module in model.named_modules() if module is words)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Embedding):
            model.set_submodule(path, ReadEmbedding(source, path))
        elif isinstance(module, nn.Linear):
            tied = path == "lm_head" and config.tie_word_embeddings
            model.set_submodule(path, ReadLinear(module, source, path, embedding if tied else path))
        else:
            for kind, _ in list(module.named_parameters(recurse=False)):
                value = source.read(path, kind).float()
                setattr(module, kind, nn.Parameter(value, requires_grad=False))
    return model


def error(logits: Tensor, wanted: Tensor) -> float:
    """The norm of what they are off, over that of what they should be; infinite where not finite."""
    if not logits.isfinite().all():
        return torch.inf
    return float((logits - wanted).norm() / wanted.norm())


@dataclass(frozen=True, slots=True)
class Parity:
    """How far a probe's logits are from those that they should be; norms over all positions."""

    error: float
    """Over the norm of the logits: `error`."""
    lost: float
    """Over the norm of what the adapter changes."""

    @classmethod
    def of(cls, logits: Tensor, wanted: Tensor, before: Tensor) -> "Parity":
        """`before` is without the adapter. Logits that are not finite are infinitely far."""
        off = error(logits, wanted)
        return cls(off, off * float(wanted.norm() / (wanted - before).norm()))
