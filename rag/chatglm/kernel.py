"""Linear layers of 4- and 8-bit codes on the processor: ONNX Runtime's `MatMulNBits`.

It multiplies codes by activations rounded to 8 bits, block by block; error under 1 % of the output.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from ingest.embed.onnx_session import share_threads
from rag.chatglm.quantize import FrozenProduct, Packed

ROWS = 256
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
        for start in range(0, self.in_features, ROWS):
            rows = torch.arange(start, min(start + ROWS, self.in_features))
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
