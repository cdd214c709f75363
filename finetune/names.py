"""LoRA's modules under upstream's names or transformers': the same change of the model.

Upstream's `query_key_value` is q_proj, k_proj and v_proj of transformers. Where these three have one
A, so has the one, and its B is theirs, stacked; else its A is theirs, stacked, and its B has theirs
as blocks. Either is exact, and so is the way back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ingest.errors import UserError
from rag.chatglm.lora import Factors
from rag.chatglm.weights import Rows, natives_of, upstream_of

Layout = Literal["upstream", "native"]


@dataclass(frozen=True, slots=True)
class Lora:
    """The tensors of one module, and what BA is multiplied by."""

    factors: Factors
    scale: float

    @property
    def rank(self) -> int:
        return self.factors.a.shape[0]


def rename(modules: Mapping[str, Lora], config: PreTrainedConfig, *, to: Layout) -> dict[str, Lora]:
    """The same change of the model under other names; those that are such names already stay."""
    made: dict[str, Lora] = {}
    if to == "native":
        for name, lora in modules.items():
            natives = natives_of(name) or [name]
            rows = [upstream_of(native, config) for native in natives]
            cut = split(lora, rows) if len(natives) > 1 else [lora]
            made |= {n: part for n, part in zip(natives, cut, strict=True) if part is not None}
        return made
    for name in modules:
        rows = upstream_of(name, config)
        natives = natives_of(rows.module)
        if len(natives) <= 1 or name == rows.module:
            made[rows.module] = modules[name]
        elif rows.module not in made:
            sizes = [
                (r.end or 0) - (r.start or 0) for r in (upstream_of(n, config) for n in natives)
            ]
            made[rows.module] = fuse(
                [modules.get(native) for native in natives], sizes, rows.module
            )
    return made


def fuse(parts: Sequence[Lora | None], sizes: Sequence[int], name: str) -> Lora:
    """One LoRA whose rows are those of `parts`, `sizes` many each; None adds nothing to its rows.

    `UserError` where DoRA has magnitudes for some of the rows only.
    """
    held = [part for part in parts if part is not None]
    scale = max((part.scale for part in held), key=abs)
    first = held[0].factors
    shared = all(torch.equal(part.factors.a, first.a) for part in held)
    # The parts that a column of B belongs to, side by side.
    columns = [held] if shared else [[part] for part in held]

    def rows(part: Lora | None, size: int) -> Tensor:
        blocks = [
            _scaled(part.factors.b, part.scale, scale)
            if part is not None and any(other is part for other in block)
            else first.b.new_zeros(size, block[0].rank)
            for block in columns
        ]
        return torch.cat(blocks, dim=1)

    def offset(part: Lora | None, size: int) -> Tensor:
        if part is None or part.factors.bias is None:
            return first.b.new_zeros(size)
        return _scaled(part.factors.bias, part.scale, scale)

    pairs = list(zip(parts, sizes, strict=True))
    a = torch.cat([block[0].factors.a for block in columns])
    b = torch.cat([rows(*pair) for pair in pairs])
    bias = None if first.bias is None else torch.cat([offset(*pair) for pair in pairs])
    return Lora(Factors(a, b, bias, _magnitudes(parts, name)), scale)


def _scaled(tensor: Tensor, scale: float, wanted: float) -> Tensor:
    """What needs to be multiplied by `wanted` where `tensor` was to be by `scale`."""
    return tensor if scale == wanted else tensor.float() * (scale / wanted)


def _magnitudes(parts: Sequence[Lora | None], name: str) -> Tensor | None:
    found = [None if part is None else part.factors.magnitude for part in parts]
    held = [magnitude for magnitude in found if magnitude is not None]
    if held and len(held) < len(parts):
        raise UserError(
            f"DoRA gives all rows of {name} a magnitude, but this adapter has none for "
            f"{len(parts) - len(held)} of its {len(parts)} parts; train queries, keys and values, "
            "or merge the adapter",
            zh=f"DoRA 需要 {name} 所有行的幅值，而此适配器缺少其 {len(parts)} 部分中的 "
            f"{len(parts) - len(held)} 个；请同时训练 q、k、v，或合并该适配器",
        )
    return torch.cat(held) if held else None


def split(lora: Lora, rows: Sequence[Rows]) -> list[Lora | None]:
    """The inverse of `fuse`: None for rows that nothing is added to, if there are others."""
    a, whole = lora.factors.a, lora.factors
    b = [part.cut(whole.b) for part in rows]
    bias = [None if whole.bias is None else part.cut(whole.bias) for part in rows]
    magnitude = [None if whole.magnitude is None else part.cut(whole.magnitude) for part in rows]
    empty = [
        whole.magnitude is None and not part.any() and (offset is None or not offset.any())
        for part, offset in zip(b, bias, strict=True)
    ]
    kept = [i for i, nothing in enumerate(empty) if not nothing] or list(range(len(rows)))
    blocks = _blocks([b[i] for i in kept])
    made: list[Lora | None] = [None] * len(rows)
    for place, i in enumerate(kept):
        columns = blocks[place] if blocks else slice(None)
        factors = Factors(a[columns], b[i][:, columns], bias[i], magnitude[i])
        made[i] = Lora(factors, lora.scale)
    return made


def _blocks(parts: Sequence[Tensor]) -> list[slice] | None:
    """The columns of each part where all else of it is zero; None where they share columns."""
    rank, count = parts[0].shape[1], len(parts)
    if count == 1 or rank % count:
        return None
    width = rank // count
    blocks = [slice(i * width, (i + 1) * width) for i in range(count)]
    for part, block in zip(parts, blocks, strict=True):
        if part[:, : block.start].any() or part[:, block.stop :].any():
            return None
    return blocks
