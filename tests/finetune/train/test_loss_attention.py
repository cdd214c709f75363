"""Attention within each sample alone is that of a mask, and LoRA is trained with it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from finetune.options import LoraOptions
from finetune.train.batches import pack
from finetune.train.lora import Lora
from finetune.train.loss import ROW_ATTENTION, attend, attention_inputs
from tests.finetune.train.trainings import rows, tiny


@pytest.mark.parametrize("lengths", [[1, 1], [7, 5, 5, 5, 1, 1], [3, 8, 3]])
def test_values_and_gradients_equal_those_with_a_mask(lengths: list[int]) -> None:
    dice = torch.Generator().manual_seed(0)
    length = sum(lengths)
    module: Any = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    q, k, v = (
        torch.randn(1, heads, length, 8, generator=dice, dtype=torch.float64, requires_grad=True)
        for heads in (4, 2, 2)
    )
    blocks = [torch.ones(n, n, dtype=torch.bool).tril() for n in lengths]
    mask = torch.block_diag(*blocks).bool()[None, None]
    unused = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    by_mask, _ = sdpa_attention_forward(module, q, k, v, mask, scaling=0.5)
    by_line, _ = attend(module, q, k, v, unused, scaling=0.5, lengths=lengths)
    assert by_line.shape == by_mask.shape == (1, length, 4, 8)
    assert torch.allclose(by_line, by_mask, rtol=0, atol=1e-14)
    along = torch.randn(by_mask.shape, generator=dice, dtype=torch.float64)
    wanted = torch.autograd.grad(by_mask, (q, k, v), along)
    grads = torch.autograd.grad(by_line, (q, k, v), along)
    for found, gradient in zip(grads, wanted, strict=True):
        assert torch.allclose(found, gradient, rtol=0, atol=1e-13)


@pytest.mark.parametrize("generation", [2, 3, 4])
def test_lora_trains_without_a_mask_and_restores_the_model(generation: int) -> None:
    model = tiny(generation)
    before = model.config._attn_implementation
    given = rows(model, 5)
    [batch] = pack(given, 500)
    assert attention_inputs(model, batch)["attention_mask"].shape[-1] == batch.ids.shape[1]
    lora = Lora(model, LoraOptions())
    found = attention_inputs(lora.model, batch)
    assert found["lengths"] == sorted(map(len, given), reverse=True)
    assert found["attention_mask"].numel() == 1
    assert lora.release().config._attn_implementation == before != ROW_ATTENTION
