"""ChatGLM-6B: padded, packed, cached or alone, a sample gets the same numbers."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from rag.chatglm.configuration import CACHE
from rag.chatglm.loading import load
from tests.rag.chatglm.golden import COPY

MASK, GMASK, BOS, PAD = 1000, 1001, 1004, 3
SAMPLES = [
    [15, 27, GMASK, BOS, 31, 42, 53],
    [5, 6, MASK, 7, 8, 9, BOS, 61, 62],
    [71, MASK, 72, 73, GMASK, BOS, 81, 82, 83, 84],
    [GMASK, BOS, 90],
]


@pytest.fixture
def model() -> Any:
    return load(COPY / "v1" / "tiny_safetensors", quant="none", dtype=torch.float32)


def padded(side: str) -> tuple[Tensor, Tensor]:
    """The samples as rows of one batch, and their mask."""
    length = max(map(len, SAMPLES))
    ids = torch.full((len(SAMPLES), length), PAD)
    mask = torch.zeros_like(ids)
    for row, sample in enumerate(SAMPLES):
        there = slice(None, len(sample)) if side == "right" else slice(length - len(sample), None)
        ids[row, there], mask[row, there] = torch.tensor(sample), 1
    return ids, mask


def packed(samples: list[list[int]] = SAMPLES) -> tuple[Tensor, Tensor]:
    """The samples in one row, and which of them each token belongs to; some padding at the end."""
    ids = [index for sample in samples for index in sample] + [PAD, PAD]
    numbers = [n for n, sample in enumerate(samples, 1) for _ in sample] + [0, 0]
    return torch.tensor([ids]), torch.tensor([numbers])


def alone(model: Any) -> list[Tensor]:
    with torch.no_grad():
        return [model(torch.tensor([sample])).logits[0] for sample in SAMPLES]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_is_the_sample_alone(model: Any, side: str) -> None:
    ids, mask = padded(side)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
    assert logits.isfinite().all()
    for row, wanted in enumerate(alone(model)):
        assert (logits[row][mask[row] == 1] - wanted).abs().max() < 1e-4


def test_a_packed_row_is_its_samples_alone(model: Any) -> None:
    ids, numbers = packed()
    with torch.no_grad():
        logits = model(ids, attention_mask=numbers).logits[0]
    places = model.positions(ids, numbers)[0]
    for number, (sample, wanted) in enumerate(zip(SAMPLES, alone(model), strict=True), 1):
        mine = numbers[0] == number
        assert torch.equal(places[:, mine], model.positions(torch.tensor([sample]))[0])
        assert (logits[mine] - wanted).abs().max() < 1e-4


def test_a_packed_sample_sees_no_other(model: Any) -> None:
    before, numbers = packed()
    disturbed = [[index + 100 if index < 900 else index for index in SAMPLES[0]], *SAMPLES[1:]]
    after, _ = packed(disturbed)
    with torch.no_grad():
        difference = (model(before, numbers).logits - model(after, numbers).logits)[0].abs()
    assert difference[numbers[0] == 1].max() > 0.1
    assert difference[numbers[0] > 1].max() < 1e-6


def trained(model: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The summed loss of the words after each sample's `<sop>`, and its gradients."""
    model.zero_grad()
    model.train()
    labels = torch.where(model.positions(ids, mask)[:, 1] > 1, ids, -100)
    count = (labels[:, 1:] != -100).sum()
    loss = model(ids, attention_mask=mask, labels=labels).loss * count
    loss.backward()
    model.eval()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}


def test_packing_changes_no_gradient(model: Any) -> None:
    loss, gradients = trained(model, *packed())
    one_by_one = [
        trained(model, ids, torch.ones_like(ids)) for ids in map(torch.tensor, zip(SAMPLES, strict=True))
    ]
    assert abs(loss - sum(part for part, _ in one_by_one)) < 1e-4
    for name, gradient in gradients.items():
        summed = sum(part[name] for _, part in one_by_one)
        assert (gradient - summed).norm() <= 1e-5 * summed.norm(), name


def test_checkpointing_changes_no_gradient(model: Any) -> None:
    loss, gradients = trained(model, *padded("right"))
    enable = getattr(model, "activation_checkpointing_enable", None)  # its name in newer versions
    (enable or model.gradient_checkpointing_enable)()
    runs: list[int] = []
    model.transformer.layers[0].attention.register_forward_hook(lambda *_: runs.append(1))
    again, others = trained(model, *padded("right"))
    assert len(runs) == 2  # the second for its gradients
    assert torch.allclose(loss, again)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, others[name], atol=1e-6), name


@pytest.mark.parametrize("sample", SAMPLES[:3])
@pytest.mark.parametrize("first", [4, 6])
def test_a_cache_changes_nothing(model: Any, sample: list[int], first: int) -> None:
    """Of a prompt in one piece and words one by one, or in pieces of several words."""
    first = max(first, sample.index(BOS) + 1)
    ids = torch.tensor([[*sample, 33, 44, 55, 66, 77]])
    places = model.positions(ids)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        for width in (1, 3):
            cache, logits = DynamicCache(), []
            cuts = [0, *range(first, ids.shape[1], width), ids.shape[1]]
            for start, end in pairwise(cuts):
                piece = slice(start, end)
                out = model(ids[:, piece], position_ids=places[..., piece], use_cache=True, **{CACHE: cache})
                logits.append(out.logits)
            assert cache.get_seq_length() == ids.shape[1]
            assert (torch.cat(logits, dim=1) - whole).abs().max() < 1e-4


def test_a_cache_of_several_padded_rows(model: Any) -> None:
    ids, mask = padded("left")
    with torch.no_grad():
        options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
        out = model.generate(ids, attention_mask=mask, **options)
        for row, sample in enumerate(SAMPLES):
            own = model.generate(torch.tensor([sample]), **options)
            assert torch.equal(out[row, -6:], own[0, -6:])


def test_logits_to_keep_limits_the_logits(model: Any) -> None:
    ids = torch.tensor([SAMPLES[0]])
    with torch.no_grad():
        whole, last = model(ids).logits, model(ids, logits_to_keep=2).logits
    assert last.shape[1] == 2
    assert torch.allclose(last, whole[:, -2:], atol=1e-5)


@pytest.mark.parametrize(
    ("ids", "options", "says"),
    [
        ([[5, 6, GMASK, 7]], {}, r"row 0 .* no <sop> \(id 1004\)"),
        ([[5, GMASK, BOS], [5, 6, BOS]], {}, r"row 1 .* neither \[MASK\] .* nor \[gMASK\]"),
        ([[5, BOS, GMASK]], {}, r"row 0 .* neither"),
        ([[5, GMASK, BOS]], {"position_ids": torch.zeros(1, 3).long()}, r"\[1, 3\].*\[1, 2, 3\]"),
        ([[5, GMASK, BOS]], {"attention_mask": torch.ones(1, 1, 3, 3)}, r"\[1, 1, 3, 3\]; pass \[B, S\]"),
    ],
)
def test_sequences_without_positions_are_refused(
    model: Any, ids: list[list[int]], options: dict[str, Tensor], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        model(torch.tensor(ids), **options)


def test_a_prompt_with_padding_on_the_right_is_refused(model: Any) -> None:
    ids, mask = padded("right")
    with pytest.raises(ValueError, match="padded on the right"):
        model.generate(ids, attention_mask=mask, max_new_tokens=2)


def test_positions_are_not_taken_by_generate(model: Any) -> None:
    ids = torch.tensor([SAMPLES[0]])
    with pytest.raises(ValueError, match="leave them out"):
        model.generate(ids, position_ids=model.positions(ids), max_new_tokens=2)


def test_beams_of_padded_rows_are_those_of_the_rows_alone(model: Any) -> None:
    ids, mask = padded("left")
    options = {"max_new_tokens": 4, "num_beams": 2, "do_sample": False, "eos_token_id": None}
    out = model.generate(ids, attention_mask=mask, **options)
    for row, sample in enumerate(SAMPLES):
        own = model.generate(torch.tensor([sample]), **options)
        assert torch.equal(out[row, -4:], own[0, -4:])
