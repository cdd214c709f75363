"""Linear layers with 4- or 8-bit codes, from float weights or from published checkpoints.

A row of the weight is cut into blocks of columns. A block has one float16 scale; its weights are
`scale * (code - zero)`, where zero is the middle of the codes (8 or 128). `PackedLinear` computes
with the codes; `DequantizedLinear` is its slow twin.
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

from ingest.embed.e5_graph import share_threads

BLOCK = 128  # columns that share a scale, of the layers' matrices; a power of two, at least 16
HEAD_BLOCK = 32  # the same for the head, whose errors affect the choice of tokens directly
ROWS = 32  # rows quantised at a time, so that intermediate values stay in the processor's cache
SHRINK = (1.0, 0.95, 0.9, 0.85)
"""Factors of the scale tried for four bits: clipping a block's largest weight may help the others."""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """The weight [out, in] of a linear layer as codes."""

    codes: Tensor  # uint8 [out, padded * bits / 8]; with 4 bits, the low nibble is the even column
    scales: Tensor  # float16 [out, padded / block]; may be negative
    bits: int  # 4 or 8
    block: int  # columns per scale; `padded` is `in` rounded up to whole blocks
    shape: tuple[int, int]  # (out, in) without padding


def quantize(weight: Tensor, *, bits: int, block: int = BLOCK) -> PackedWeight:
    """The nearest codes of a float16, bfloat16 or float32 weight [out, in]. With four bits, each block
    gets the scale with the least squared error among a few."""
    parts = [_quantize(rows.float(), bits, block) for rows in weight.split(ROWS)]
    codes, scales = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return PackedWeight(codes, scales, bits, block, (weight.shape[0], weight.shape[1]))


def from_published(
    weight: Tensor, scale: Tensor, *, bits: int, columns: int | None = None, block: int = BLOCK
) -> PackedWeight:
    """Upstream's int8 `weight` [out, in * bits / 8] and float16 `weight_scale` [out], exactly.

    `columns` is `in`, needed if it is odd: upstream's last byte is then half empty. Upstream has
    even columns in the high nibble, in two's complement, and one scale per row, here repeated."""
    signed = weight.view(torch.int8)
    if bits == 4:
        signed = torch.stack((signed >> 4, (signed << 4) >> 4), dim=-1).flatten(1)
    signed = signed[:, :columns]
    zero = 1 << (bits - 1)
    levels = _pad((signed.to(torch.int16) + zero).to(torch.uint8), block, zero)
    scales = scale.to(torch.float16)[:, None].repeat(1, levels.shape[1] // block)
    return PackedWeight(_pack(levels, bits), scales, bits, block, (signed.shape[0], signed.shape[1]))


def dequantize(packed: PackedWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight [out, in]: `q * scale` in float32, rounded to `dtype`."""
    codes = packed.codes
    if packed.bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(1)
    signed = codes.float() - (1 << (packed.bits - 1))
    signed = signed.view(len(codes), -1, packed.block)
    weight = (signed * packed.scales[:, :, None].float()).flatten(1)
    return weight[:, : packed.shape[1]].to(dtype)


class FrozenProduct(torch.autograd.Function):
    """input @ weight.T with a gradient for the input only. Autograd's own product would keep each
    layer's float weight until the backward pass."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: Any) -> Tensor:
        ctx.layer = layer
        return layer.product(input)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        [gradient] = gradients
        return gradient @ ctx.layer.weight.to(gradient.dtype), None


class LinearOfCodes(nn.Module):
    """A frozen linear layer whose weight is stored as codes, with gradients for its input."""

    def __init__(self, packed: PackedWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.shape
        self.bits, self.block = packed.bits, packed.block
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def product(self, input: Tensor) -> Tensor:
        """input [..., in] @ weight.T, in the input's dtype."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] to [..., out] of the input's dtype."""
        output = cast(Tensor, FrozenProduct.apply(input, self))
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"


class DequantizedLinear(LinearOfCodes):
    """Computes the float weight at each use; slow, but it runs on any device."""

    def __init__(self, packed: PackedWeight, bias: Tensor | None = None) -> None:
        super().__init__(packed, bias)
        self.codes, self.scales = nn.Buffer(packed.codes), nn.Buffer(packed.scales)

    @property
    def packed(self) -> PackedWeight:
        shape = (self.out_features, self.in_features)
        return PackedWeight(self.codes, self.scales, self.bits, self.block, shape)

    @property
    def weight(self) -> Tensor:
        """float32 [out, in], computed at each use."""
        return dequantize(self.packed)

    def product(self, input: Tensor) -> Tensor:
        return functional.linear(input, dequantize(self.packed, input.dtype))


class PackedEmbedding(nn.Module):
    """An embedding that is stored as codes; a row is computed when it is looked up."""

    def __init__(self, packed: PackedWeight, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = packed.shape
        self.bits, self.block, self.dtype = packed.bits, packed.block, dtype
        self.codes, self.scales = nn.Buffer(packed.codes), nn.Buffer(packed.scales)

    def forward(self, input: Tensor) -> Tensor:
        """Ids [...] to rows [..., embedding_dim]."""
        ids = input.flatten()
        shape = (len(ids), self.embedding_dim)
        rows = PackedWeight(self.codes[ids], self.scales[ids], self.bits, self.block, shape)
        return dequantize(rows, self.dtype).view(*input.shape, self.embedding_dim)


def _quantize(rows: Tensor, bits: int, block: int) -> tuple[Tensor, Tensor]:
    """Codes and scales of float32 rows [n, in]."""
    zero = 1 << (bits - 1)
    blocks = _pad(rows, block, 0).view(len(rows), -1, block)
    scales = (blocks.abs().amax(-1, keepdim=True) / 127).half() if bits == 8 else _search(blocks)
    levels = _levels(blocks, scales, zero) + zero
    return _pack(levels.flatten(1).to(torch.uint8), bits), scales.squeeze(-1)


def _search(blocks: Tensor) -> Tensor:
    """The float16 scales of four bits with the least squared error, [n, blocks, 1]. Codes reach from -8
    to 7, so the largest weight gets the end that reaches further (as ggml's q4_0); some candidates clip
    it."""
    low, high = blocks.aminmax(dim=-1, keepdim=True)
    reach = torch.where(-low >= high, -low, -high) / 8
    least = torch.full_like(reach, torch.inf)
    best = reach.half()
    for factor in SHRINK:
        scales = (reach * factor).half()
        error = (blocks - _levels(blocks, scales, 8) * scales.float()).square().sum(-1, True)
        best = torch.where(error < least, scales, best)
        least = torch.where(error < least, error, least)
    return best


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


UNIT_ROWS = 256  # rows of the unit matrix that are multiplied at a time to compute the weight


class PackedLinear(LinearOfCodes):
    """Computes with the codes. Only ONNX Runtime holds them, in an order of its own: `state_dict()`
    lacks them, and copies share them."""

    def __init__(self, packed: PackedWeight, bias: Tensor | None = None) -> None:
        super().__init__(packed, bias)
        self.kernel = Kernel(packed)

    @property
    def weight(self) -> Tensor:
        """float32 [out, in]: the product with the unit matrix, as slow as a batch of `in` rows."""
        weight = torch.empty(self.out_features, self.in_features)
        for rows in torch.arange(self.in_features).split(UNIT_ROWS):
            unit = functional.one_hot(rows, self.in_features).float()
            weight[:, rows] = self.product(unit).T
        return weight

    def product(self, input: Tensor) -> Tensor:
        rows = input.detach().reshape(-1, self.in_features).to(torch.float32).contiguous()
        output = self.kernel(rows).view(*input.shape[:-1], self.out_features)
        return output.to(input.dtype)


class Kernel:
    """Products with one packed weight, which never changes; so a copy is the same object."""

    def __init__(self, packed: PackedWeight) -> None:
        one_pool()
        self.out, self.columns = packed.shape
        blocks = packed.scales.shape[1]
        # Needed only until the session has reordered them.
        arrays = {
            "codes": packed.codes.view(self.out, blocks, -1).contiguous().numpy(),
            "scales": packed.scales.float().contiguous().numpy(),
        }
        options = onnxruntime.SessionOptions()
        options.use_per_session_threads = False
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
        options.add_external_initializers(list(arrays), values)
        self.session = onnxruntime.InferenceSession(
            _graph(packed, arrays), options, providers=["CPUExecutionProvider"]
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
    """Give torch's threads to ONNX Runtime, in one pool for all layers. Threads wait for work by
    spinning, so several pools would compete for the processor: with a pool for each session, a token
    takes ten times as long."""
    share_threads(torch.get_num_threads())
    torch.set_num_threads(1)


def _graph(packed: PackedWeight, arrays: dict[str, np.ndarray]) -> bytes:
    """y = MatMulNBits(x), whose codes and scales are external data."""
    out, columns = packed.shape
    options: dict[str, Any] = {"bits": packed.bits, "block_size": packed.block, "K": columns, "N": out}
    options["accuracy_level"] = 4  # int8 activations
    node = helper.make_node("MatMulNBits", ["x", *arrays], ["y"], domain="com.microsoft", **options)
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
        for name, size in (("x", columns), ("y", out))
    )
    graph = helper.make_graph([node], "linear", [x], [y])
    for name, array in arrays.items():
        tensor = graph.initializer.add(name=name, dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        for key, value in {"location": name, "offset": "0", "length": str(array.nbytes)}.items():
            tensor.external_data.add(key=key, value=value)
    versions = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=versions, ir_version=10).SerializeToString()
