"""Codes stand for their weights, and the fast kernel computes what the slow twin does."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, save
from torch import Tensor

import rag.chatglm  # noqa: F401  (registers the Auto classes)
from ingest.embed import e5_graph
from rag.chatglm.quantize import (
    DequantizedLinear,
    PackedEmbedding,
    PackedLinear,
    PackedWeight,
    dequantize,
    from_published,
    quantize,
)
from tests.rag.chatglm.golden import SETS, arrays


def weight(out: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(out, columns, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 70),
    st.sampled_from([4, 8]),
    st.sampled_from([16, 32, 64]),
    st.integers(0, 9),
)
def test_a_code_is_the_nearest_number_of_its_block(
    out: int, columns: int, bits: int, block: int, seed: int
) -> None:
    plain = weight(out, columns, seed)
    packed = quantize(plain, bits=bits, block=block)
    again = dequantize(packed)
    assert again.shape == plain.shape
    scales = packed.scales.float().repeat_interleave(block, dim=1)[:, :columns, None]
    choices = scales * torch.arange(-(1 << (bits - 1)), 1 << (bits - 1))
    nearest = (choices - plain[..., None]).abs().amin(-1)
    assert ((again - plain).abs() - nearest).max() < 1e-5


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_of_zeros_stay_zeros(bits: int) -> None:
    assert (dequantize(quantize(torch.zeros(3, 40), bits=bits)) == 0).all()


def test_four_bits_are_no_worse_than_ggmls() -> None:
    """q4_0 of ggml: one scale for 32 columns, from the weight of largest size."""
    plain = weight(64, 4096)
    blocks = plain.view(64, -1, 32)
    low, high = blocks.aminmax(dim=-1, keepdim=True)
    scale = torch.where(-low >= high, low, high) / -8
    q4_0 = ((blocks / scale + 8.5).floor().clamp(0, 15) - 8) * scale.half().float()
    ours = dequantize(quantize(plain, bits=4, block=32))
    assert (ours - plain).norm() < (q4_0.flatten(1) - plain).norm()


@pytest.mark.parametrize("root", SETS)
@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("bits", [4, 8])
def test_published_codes_are_read_bit_for_bit(root: Path, version: str, bits: int) -> None:
    golden = {
        name.removeprefix(f"linear.int{bits}."): array
        for name, array in arrays(root / version / "quant_golden.npz").items()
        if name.startswith(f"linear.int{bits}.")
    }
    packed = from_published(golden["weight_packed"], golden["weight_scale"], bits=bits)
    assert torch.equal(dequantize(packed), golden["dequant_fp32"])
    exact = torch.equal(dequantize(packed, torch.float16), golden["dequant_fp16"])
    near = (dequantize(packed, torch.float16) - golden["dequant_fp16"]).abs().max()
    assert exact or near <= golden["dequant_fp16"].abs().max() * 2**-10


def test_minus_eight_is_a_code_upstream_may_have() -> None:
    byte = torch.tensor([[-128]], dtype=torch.int8)  # high nibble 1000, low 0000
    packed = from_published(byte, torch.ones(1, dtype=torch.float16), bits=4)
    assert dequantize(packed).tolist() == [[-8.0, 0.0]]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [32, 128])
@pytest.mark.parametrize("shape", [(24, 64), (64, 160), (50, 96)])
def test_the_kernel_computes_as_dequantized_linear(bits: int, block: int, shape: tuple[int, int]) -> None:
    packed = quantize(weight(*shape), bits=bits, block=block)
    bias = torch.randn(shape[0])
    fast, slow = PackedLinear(packed, bias), DequantizedLinear(packed, bias)
    for size in ((1, shape[1]), (2, 3, shape[1]), (70, shape[1]), (0, shape[1])):
        x = torch.randn(size)
        ours, theirs = fast(x), slow(x)
        assert ours.shape == theirs.shape
        assert (ours - theirs).norm() <= 0.02 * theirs.norm()  # activations are rounded to 8 bits
    assert (fast.weight - slow.weight).abs().max() < 1e-5 * slow.weight.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_output_has_the_inputs_dtype(dtype: torch.dtype) -> None:
    layer = PackedLinear(quantize(weight(8, 32), bits=4))
    assert layer(torch.randn(2, 32, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("kind", [PackedLinear, DequantizedLinear])
def test_gradients_reach_the_input(kind: Any) -> None:
    layer = kind(quantize(weight(8, 32), bits=4))
    x = torch.randn(3, 32, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, layer.weight.sum(0).expand(3, -1), atol=1e-4)
    assert not any(parameter.requires_grad for parameter in layer.parameters())


def test_the_encoder_can_be_opened_after_a_model(tmp_path: Path) -> None:
    """ONNX Runtime refuses a pool for one session where there is one for all."""
    PackedLinear(quantize(weight(8, 32), bits=4))
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    other = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    node = helper.make_node("Neg", ["x"], ["y"])
    graph = helper.make_graph([node], "neg", [value], [other])
    opsets = [helper.make_opsetid("", 21)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "neg.onnx")
    session = e5_graph.open_session(tmp_path / "neg.onnx", threads=2)
    assert session.run(None, {"x": np.ones(1, np.float32)})[0] == -1


def test_a_copy_computes_the_same() -> None:
    layer = PackedLinear(quantize(weight(8, 32), bits=4), torch.randn(8))
    x = torch.randn(2, 32)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_a_packed_embedding_gives_its_rows() -> None:
    packed = quantize(weight(20, 48), bits=4)
    ids = torch.tensor([[3, 19], [0, 3]])
    assert torch.equal(PackedEmbedding(packed)(ids), dequantize(packed)[ids])


def test_quantising_returns_a_packed_weight() -> None:
    packed = quantize(weight(8, 100), bits=4, block=32)
    assert isinstance(packed, PackedWeight)
    assert (packed.codes.shape, packed.scales.shape) == ((8, 64), (8, 4))
