"""A loss that is no number, or 0, ends the training with its place and its cause."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.options import LoraOptions, PrefixOptions
from finetune.train.batches import pack
from finetune.train.loop import Training
from finetune.train.loss import not_finite
from finetune.types import IGNORED, TokenRow
from ingest.errors import UserError
from tests.finetune.memory_rows import MemoryRows
from tests.finetune.train.trainings import SHORT, rows, tiny, training


def ends(made: Training, match: str) -> str:
    with pytest.raises(UserError, match=match) as caught:
        list(made.run())
    return str(caught.value)


@pytest.mark.parametrize("dev", [{}, {"dev": None}], ids=["measured", "learnt"])
def test_an_overflow_of_float16_is_named(dev: dict[str, Any], tmp_path: Path) -> None:
    model = tiny(3, dtype=torch.float16)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1e4).clamp_(-6e4, 6e4)
    made = training(tmp_path, model, replace(SHORT, dtype="float16"), **dev)
    assert "--bf16" in ends(made, r"layers\.1\.mlp\.down_proj.*beyond float16")


@pytest.mark.parametrize("dev", [{}, {"dev": None}], ids=["measured", "learnt"])
def test_a_damaged_base_is_named(dev: dict[str, Any], tmp_path: Path) -> None:
    model = tiny(3)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(1e38)
    message = ends(training(tmp_path, model, SHORT, **dev), r"mlp\.down_proj.*without the adapter")
    assert "fetch the model again" in message


def test_evaluation_also_checks_for_infinite_losses(tmp_path: Path) -> None:
    """A word that no row to learn holds: its NaN would else stand in the log, and stop no budget."""
    model = tiny(3)
    measured = rows(model, 4, seed=1)
    learnt = rows(model, 30)
    word = next(int(i) for row in measured for i in row.ids if all(i not in r.ids for r in learnt))
    with torch.no_grad():
        model.model.embed_tokens.weight[word] = float("inf")
    ends(training(tmp_path, model, SHORT, train=learnt, dev=measured), "step 0")


@pytest.mark.parametrize("method", [LoraOptions(), PrefixOptions(4)])
@pytest.mark.parametrize("generation", [1, 3])
def test_a_diverged_adapter_and_an_overflowing_base_have_different_errors(
    method: Any, generation: int, tmp_path: Path
) -> None:
    model = tiny(generation, dtype=torch.float16)
    options = replace(SHORT, dtype="float16", method=method)
    made = training(tmp_path, model, options, dev=None)
    with torch.no_grad():
        for value in made.tuned.trainable.values():
            value.fill_(1e4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    [batch, *_] = pack([made.sets.train[i] for i in range(2)], options.pack_length)
    message = str(not_finite(made.tuned.model, batch, 7))
    assert message.startswith("step 7: the adapter has grown")
    assert "--learning-rate" in message
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_error_names_parameters_that_are_not_finite(tmp_path: Path) -> None:
    made = training(tmp_path, tiny(3), SHORT)
    with torch.no_grad():
        next(iter(made.tuned.trainable.values())).fill_(float("nan"))
    ends(made, r"lora_A.*learning-rate")


def test_too_large_steps_are_an_error_in_float32(tmp_path: Path) -> None:
    """The precision that is in use is no way out."""
    made = training(tmp_path, tiny(3), replace(SHORT, learning_rate=900.0, max_grad_norm=0.0))
    message = ends(made, "--learning-rate")
    assert "--fp32" not in message


def test_rows_without_a_learnt_token_are_an_error(tmp_path: Path) -> None:
    empty = MemoryRows([TokenRow(row.ids, np.full_like(row.labels, IGNORED)) for row in rows(tiny(3), 8)])
    ends(training(tmp_path, tiny(3), SHORT, train=empty), "no token of its rows counts in the loss")


def test_a_loss_of_zero_is_an_error(tmp_path: Path) -> None:
    """A head that says one word for certain, and rows that have nothing else to learn."""
    model = tiny(3)
    word = 100
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.model.norm.weight.zero_()
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(model.lm_head.weight)))
        model.lm_head.bias[word] = 1e4
    made = []
    for row in rows(model, 8):
        ids = np.where(row.labels == IGNORED, row.ids, word).astype(np.int32)
        made.append(TokenRow(ids, np.where(row.labels == IGNORED, IGNORED, word).astype(np.int32)))
    ends(training(tmp_path, model, SHORT, train=MemoryRows(made)), "first 3 steps is 0.*already")


def test_a_missing_gradient_is_an_error(tmp_path: Path) -> None:
    made = training(tmp_path, tiny(3), SHORT)
    with torch.no_grad():
        for value in made.tuned.trainable.values():
            value.zero_()  # A and B: neither moves the other
    ends(made, "all gradients are zero")
