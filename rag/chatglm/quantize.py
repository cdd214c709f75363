"""Linear layers held as 4- or 8-bit codes: made from float weights, or read from published checkpoints.

A row of the weight is cut into blocks of columns; a block has one float16 scale and its weights are
`scale * (code - zero)`, zero being the middle of the codes (8 or 128). `kernel.PackedLinear`
computes with the codes; `DequantizedLinear` here is its slow twin.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional

from ingest.embed.onnx_session import share_threads

BLOCK = 128
"""Columns that share a scale, of the layers' matrices; a power of two, at least 16."""
HEAD_BLOCK = 32
"""The same of the head, which decides between words directly."""
ROWS = 32
"""Rows quantised at a time, so that what is computed in between stays in the cache."""
SHRINK = (1.0, 0.95, 0.9, 0.85)
"""Scales tried for four bits: some clipping of a block's largest weight serves all the others."""


@dataclass(frozen=True, slots=True)
class Packed:
    """The weight of a linear layer, [out, in], as codes."""

    codes: Tensor
    """uint8 [out, padded * bits / 8]; of 4 bits, the low nibble is the even column."""
    scales: Tensor
    """float16 [out, padded / block]; may be negative."""
    bits: int
    """4 or 8."""
    block: int
    """Columns a scale holds for; `padded` is `in` rounded up to whole blocks."""
    shape: tuple[int, int]
    """(out, in) without padding."""


def quantize(weight: Tensor, *, bits: int, block: int = BLOCK) -> Packed:
    """The codes of a float16, bfloat16 or float32 weight [out, in]; each value is a nearest one.

    Four bits choose each block's scale by the least squared error among a few.
    """
    parts = [_quantize(rows.float(), bits, block) for rows in weight.split(ROWS)]
    codes, scales = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Packed(codes, scales, bits, block, (weight.shape[0], weight.shape[1]))


def from_published(
    weight: Tensor, scale: Tensor, *, bits: int, columns: int | None = None, block: int = BLOCK
) -> Packed:
    """Upstream's int8 `weight` [out, in * bits / 8] and float16 `weight_scale` [out], exactly.

    `columns` is `in` where upstream's last byte is half empty (odd `in`). Upstream holds even
    columns in the high nibble, in two's complement, and one scale a row, here repeated.
    """
    signed = weight.view(torch.int8)
    if bits == 4:
        signed = torch.stack((signed >> 4, (signed << 4) >> 4), dim=-1).flatten(1)
    signed = signed[:, :columns]
    zero = 1 << (bits - 1)
    levels = _pad((signed.to(torch.int16) + zero).to(torch.uint8), block, zero)
    scales = scale.to(torch.float16)[:, None].repeat(1, levels.shape[1] // block)
    return Packed(_pack(levels, bits), scales, bits, block, (signed.shape[0], signed.shape[1]))


def dequantize(packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight [out, in]: `q * scale` in float32, rounded to `dtype`."""
    signed = _signed(packed.codes, packed.bits).view(len(packed.codes), -1, packed.block)
    weight = (signed * packed.scales[:, :, None].float()).flatten(1)
    return weight[:, : packed.shape[1]].to(dtype)


class FrozenProduct(torch.autograd.Function):
    """input @ weight.T with a gradient for the input alone; the weight is not kept for it.

    Autograd's own would keep each layer's float weight until backward.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: Any) -> Tensor:
        ctx.layer = layer
        return layer.product(input)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.weight.to(gradient.dtype), None


class DequantizedLinear(nn.Module):
    """A linear layer that computes its weight anew each time: the slow twin, on any device."""

    def __init__(self, packed: Packed, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.shape
        self.bits, self.block = packed.bits, packed.block
        self.codes: Tensor
        self.scales: Tensor
        self.register_buffer("codes", packed.codes)
        self.register_buffer("scales", packed.scales)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def packed(self) -> Packed:
        """What it was made of."""
        shape = (self.out_features, self.in_features)
        return Packed(self.codes, self.scales, self.bits, self.block, shape)

    @property
    def weight(self) -> Tensor:
        """float32 [out, in], computed anew."""
        return dequantize(self.packed)

    def product(self, input: Tensor) -> Tensor:
        """input [..., in] @ weight.T, in the input's dtype."""
        return functional.linear(input, dequantize(self.packed, input.dtype))

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] to [..., out] of the input's dtype."""
        output = cast(Tensor, FrozenProduct.apply(input, self))
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"


class PackedEmbedding(nn.Module):
    """An embedding held as codes, of which a row is computed when it is looked up."""

    def __init__(self, packed: Packed, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = packed.shape
        self.bits, self.block, self.dtype = packed.bits, packed.block, dtype
        self.codes: Tensor
        self.scales: Tensor
        self.register_buffer("codes", packed.codes)
        self.register_buffer("scales", packed.scales)

    def forward(self, input: Tensor) -> Tensor:
        """Ids [...] to rows [..., embedding_dim]."""
        ids = input.flatten()
        shape = (len(ids), self.embedding_dim)
        rows = Packed(self.codes[ids], self.scales[ids], self.bits, self.block, shape)
        return dequantize(rows, self.dtype).view(*input.shape, self.embedding_dim)


def _quantize(rows: Tensor, bits: int, block: int) -> tuple[Tensor, Tensor]:
    """Codes and scales of float32 rows [n, in]."""
    zero = 1 << (bits - 1)
    blocks = _pad(rows, block, 0).view(len(rows), -1, block)
    if bits == 8:
        scales = blocks.abs().amax(-1, keepdim=True) / 127
        scales = scales.half()
    else:
        scales = _search(blocks)
    levels = _levels(blocks, scales, zero) + zero
    return _pack(levels.flatten(1).to(torch.uint8), bits), scales.squeeze(-1)


def _search(blocks: Tensor) -> Tensor:
    """Four bits: the float16 scale of least squared error, [n, blocks, 1].

    Codes reach from -8 to 7, so the weight of largest size is given the end that reaches further
    (as ggml's q4_0); the candidates let it be clipped.
    """
    low, high = blocks.aminmax(dim=-1, keepdim=True)
    reach = torch.where(-low >= high, -low, -high) / 8
    best = torch.full_like(reach, torch.inf)
    chosen = reach.half()
    for factor in SHRINK:
        scales = (reach * factor).half()
        error = (blocks - _levels(blocks, scales, 8) * scales.float()).square().sum(-1, True)
        better = error < best
        best = torch.where(better, error, best)
        chosen = torch.where(better, scales, chosen)
    return chosen


def _levels(blocks: Tensor, scales: Tensor, zero: int) -> Tensor:
    """Signed codes, as floats; those of a block of zeros are zero."""
    steps = scales.float()
    inverse = torch.where(steps == 0, 0, 1 / steps)
    return (blocks * inverse).round().clamp(-zero, zero - 1)


def _pad(rows: Tensor, block: int, value: int) -> Tensor:
    return functional.pad(rows, (0, -rows.shape[1] % block), value=value)


def _pack(levels: Tensor, bits: int) -> Tensor:
    """uint8 levels [n, padded] to codes [n, padded * bits / 8]."""
    return levels if bits == 8 else levels[:, 0::2] | (levels[:, 1::2] << 4)


def _signed(codes: Tensor, bits: int) -> Tensor:
    """float32 [n, padded]: what the codes stand for before scaling."""
    if bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(1)
    return codes.float() - (1 << (bits - 1))


UNPACKED_ROWS = 256
"""Rows of the unit matrix multiplied at a time to get the weight back."""


class PackedLinear(nn.Module):
    """A linear layer that computes with codes; a frozen one, with gradients for its input.

    ONNX Runtime keeps the codes, in an order of its own, and nothing else does: there are none in
    `state_dict()`, and copies share them.
    """

    def __init__(self, packed: Packed, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.shape
        self.bits, self.block = packed.bits, packed.block
        self.kernel = Kernel(packed)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """float32 [out, in]: the product with the unit matrix, so as slow as `in` rows."""
        weight = torch.empty(self.out_features, self.in_features)
        for start in range(0, self.in_features, UNPACKED_ROWS):
            rows = torch.arange(start, min(start + UNPACKED_ROWS, self.in_features))
            unit = torch.zeros(len(rows), self.in_features)
            unit[torch.arange(len(rows)), rows] = 1
            weight[:, rows] = self.product(unit).T
        return weight

    def product(self, input: Tensor) -> Tensor:
        """input [..., in] @ weight.T, in the input's dtype."""
        rows = input.detach().reshape(-1, self.in_features).to(torch.float32).contiguous()
        output = self.kernel(rows).view(*input.shape[:-1], self.out_features)
        return output.to(input.dtype)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] to [..., out] of the input's dtype."""
        output = cast(Tensor, FrozenProduct.apply(input, self))
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"


class Kernel:
    """Products with one packed weight; it never changes, so that copies are itself."""

    def __init__(self, packed: Packed) -> None:
        one_pool()
        self.out, self.columns = packed.shape
        blocks = packed.scales.shape[1]
        # Held only until the session has them in its own order.
        held = {
            "codes": packed.codes.view(self.out, blocks, -1).contiguous().numpy(),
            "scales": packed.scales.float().contiguous().numpy(),
        }
        options = onnxruntime.SessionOptions()
        options.use_per_session_threads = False
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in held.values()]
        options.add_external_initializers(list(held), values)
        self.session = onnxruntime.InferenceSession(
            _graph(packed, held), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, rows: Tensor) -> Tensor:
        """Contiguous float32 [n, in] to [n, out]."""
        output = torch.empty(len(rows), self.out)
        if len(rows):
            binding = self.session.io_binding()
            binding.bind_input("x", "cpu", 0, np.float32, tuple(rows.shape), rows.data_ptr())
            binding.bind_output("y", "cpu", 0, np.float32, tuple(output.shape), output.data_ptr())
            self.session.run_with_iobinding(binding)
        return output

    def __deepcopy__(self, memo: dict[int, Any]) -> Kernel:
        return self


@cache
def one_pool() -> None:
    """Give ONNX Runtime torch's threads: one pool for all layers, and none of torch's beside it.

    Two pools that wait for work by spinning take the processor from each other: with a pool for
    each session a token takes ten times as long.
    """
    share_threads(torch.get_num_threads())
    torch.set_num_threads(1)


def _graph(packed: Packed, held: dict[str, np.ndarray]) -> bytes:
    """y = MatMulNBits(x), whose codes and scales are given to the session from outside."""
    out, columns = packed.shape
    node = helper.make_node(
        "MatMulNBits",
        ["x", *held],
        ["y"],
        domain="com.microsoft",
        K=columns,
        N=out,
        bits=packed.bits,
        block_size=packed.block,
        accuracy_level=4,  # int8 activations
    )
    graph = helper.make_graph(
        [node],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", out])],
        initializer=[_outside(name, array) for name, array in held.items()],
    )
    versions = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=versions, ir_version=10).SerializeToString()


def _outside(name: str, array: np.ndarray) -> TensorProto:
    """A tensor of this shape whose bytes are elsewhere."""
    tensor = TensorProto(name=name, dims=array.shape, data_location=TensorProto.EXTERNAL)
    tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    for key, value in {"location": name, "offset": "0", "length": str(array.nbytes)}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor
