"""Each formula against what is really held: tensors of the model, and a peak while a batch runs."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GlmForCausalLM

from finetune.cli.train import show_memory
from finetune.options import LoraOptions, PrefixOptions, TrainOptions
from finetune.train.batches import Batch, pack
from finetune.train.loop import Sets, enable_checkpointing
from finetune.train.loss import summed_loss
from finetune.train.preview import Estimator, Size, measure_time
from finetune.types import IGNORED, TokenRow
from ingest.errors import UserError
from ingest.i18n import translate
from rag.chatglm.configuration import ChatGLM2Config, Glm1Config
from rag.chatglm.loading import load, read_model_config
from rag.chatglm.memory import RUNTIME, MemoryBudget
from rag.chatglm.modeling_chatglm import ChatGLM2ForCausalLM, Glm1ForCausalLM
from tests.finetune.memory_rows import MemoryRows
from tests.finetune.train.trainings import METHODS, tiny, training, tuned

from .allocations import Allocations

LORA, PREFIX = LoraOptions(), PrefixOptions(16)
ALL = LoraOptions(targets=("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"))


def config(generation: int, **shape: Any) -> Any:
    """Wide enough that activations are more than what the formulas leave out."""
    if generation == 1:
        held: dict[str, Any] = {
            "hidden_size": 128, "inner_hidden_size": 512, "num_layers": 5, "vocab_size": 600,
            "num_attention_heads": 4, "bos_token_id": 590, "eos_token_id": 591,
            "mask_token_id": 588, "gmask_token_id": 589,
        }  # fmt: skip
        return Glm1Config(**(held | shape))
    held = {
        "generation": generation, "vocab_size": 600, "hidden_size": 128, "intermediate_size": 512,
        "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        "pad_token_id": 0, "eos_token_id": 2, "attention_bias": True, "tie_word_embeddings": False,
    }  # fmt: skip
    return ChatGLM2Config(**(held | shape))


def rows(lengths: list[int], learnt: int) -> MemoryRows:
    """Rows that end in `learnt` tokens to learn, with ChatGLM-6B's [gMASK] <sop> before them."""
    made: list[TokenRow] = []
    for length in lengths:
        ids = np.arange(5, 5 + length, dtype=np.int32)
        ids[length - learnt - 2 : length - learnt] = 589, 590
        labels = ids.copy()
        labels[: length - learnt] = IGNORED
        made.append(TokenRow(ids, labels))
    return MemoryRows(made)


def measured(shape: Any, options: TrainOptions, batch: Batch) -> int:
    """The most bytes beside weights that forward and backward of the batch hold."""
    kind: Any = Glm1ForCausalLM if shape.generation == 1 else GlmForCausalLM
    made = tuned(kind(shape).to(getattr(torch, options.dtype)), options)
    if options.gradient_checkpointing:
        enable_checkpointing(made.base)
    made.model.train()
    with Allocations() as count:
        summed_loss(made.model, batch).backward()
    return count.peak


SHORT, LONG = ([110, 90, 70], 5), ([140, 120, 100, 80], 5)
MANY_WORDS = ([90, 80], 60)
"""Lengths, and learnt tokens."""
CASES = [
    *product((1, 3), (LORA, PREFIX), (False, True), (SHORT, LONG, MANY_WORDS), ("float32",)),
    *product((1, 3), (LORA, PREFIX, ALL), (False,), (LONG,), ("bfloat16",)),
    *product((1, 3), (ALL, LoraOptions(dora=True), LoraOptions(dropout=0)), (False,), (LONG,),
             ("float32",)),
]  # fmt: skip


@pytest.mark.parametrize(("generation", "method", "again", "data", "dtype"), CASES)
def test_a_peak_is_estimated_within_a_tenth(
    generation: int, method: LoraOptions | PrefixOptions, again: bool, data: tuple[list[int], int], dtype: Any
) -> None:
    lengths, learnt = data
    shape = config(generation, **({"vocab_size": 6000} if data is MANY_WORDS else {}))
    options = TrainOptions(method, pack_length=512, gradient_checkpointing=again, dtype=dtype)
    (batch,) = pack(rows(lengths, learnt), options.pack_length)
    estimate = Estimator(shape, options, "cpu").train(Size.of(batch))
    # The moments are made later, by the optimiser; the trained numbers are there already.
    made = estimate.total - estimate.weights - estimate.runtime - estimate.adapter * 3 // 4
    assert made == pytest.approx(measured(shape, options, batch), rel=0.1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("generation", [1, 2, 3, 4])
def test_trainable_parameters_are_counted(generation: int, method: str) -> None:
    base, options = tiny(generation), TrainOptions(METHODS[method])
    wanted = sum(value.numel() for value in tuned(base, options).trainable.values())
    assert Estimator(base.config, options, "cpu").trainable == wanted


def test_the_lora_of_the_published_model() -> None:
    shape = {"hidden_size": 4096, "num_attention_heads": 32, "head_dim": 128}
    shape |= {"intermediate_size": 13696, "vocab_size": 65024, "num_hidden_layers": 28}
    assert Estimator(config(3, **shape), TrainOptions(), "cpu").trainable == 1_949_696


@pytest.mark.parametrize("generation", [1, 3])
@pytest.mark.parametrize("quant", ["none", "int8", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_size_of_weights_equals_the_loaded_model(
    generation: int, quant: Any, dtype: Any, tmp_path: Path
) -> None:
    made = {1: Glm1ForCausalLM, 3: ChatGLM2ForCausalLM}[generation](config(generation))
    made.half().save_pretrained(tmp_path)
    base = load(tmp_path, quant=quant, dtype=getattr(torch, dtype), device="cpu", kernels=False)
    held = {t.untyped_storage()._cdata: t.nbytes for t in [*base.parameters(), *base.buffers()]}
    options = TrainOptions(quant=quant, dtype=dtype)
    estimate = Estimator(read_model_config(tmp_path), options, "cpu").weights
    assert estimate == pytest.approx(sum(held.values()), rel=0.001)


def test_the_peak_of_a_whole_training() -> None:
    options = TrainOptions(per_device_train_batch_size=2)
    sets = Sets(rows([200, 190, 60], 5))
    some, many = (Estimator(config(3, vocab_size=n), options, "cpu") for n in (600, 60000))
    assert some.peak(sets) == some.train(Size(390, 10))
    learnt = Sets(MemoryRows([*sets.train, *rows([150, 150], 140)]))  # shorter, but more is learnt
    assert many.peak(learnt) == many.train(Size(300, 280))
    dev = Sets(sets.train, rows([400] * 40, 390))
    assert many.peak(dev) == many.evaluate(Size(800, 780))
    wide = Estimator(config(3, vocab_size=10**6), options, "cpu")
    assert wide.peak(Sets(rows([10], 1))).work >= 2 * 128 * 10**6  # loading


@settings(max_examples=25)
@given(st.integers(1, 300), st.integers(0, 10**9))
def test_the_largest_batch_is_the_last_that_fits(length: int, room: int) -> None:
    estimator = Estimator(SHAPE, TrainOptions(), "cpu")
    sets = Sets(rows([length + 3], 1))
    room += estimator.weights + RUNTIME["cpu"]
    count = estimator.largest(sets, room)

    def total(count: int) -> int:
        return estimator.train(Size(count * (length + 3), count)).total

    assert count == 0 or total(count) <= room
    assert total(count + 1) > room or (count + 1) * (length + 3) > 1 << 16


SHAPE = config(3)


def test_a_row_that_does_not_fit_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, sets = Path(__file__).parents[2] / "golden/v3/tiny_safetensors", Sets(rows([400], 5))
    monkeypatch.setattr(MemoryBudget, "here", lambda: MemoryBudget(None, 0))
    show_memory(model, sets, TrainOptions(), device="cpu")
    assert "? free" in capsys.readouterr().err
    monkeypatch.setattr(MemoryBudget, "here", lambda: MemoryBudget(1 << 28, 0))
    with pytest.raises(UserError, match=r"400 tokens needs 0\.5.* GB .*0\.25 GB are free") as caught:
        show_memory(model, sets, TrainOptions(), device="cpu")
    for way in ("--gradient-checkpointing", "--quant int8", "--max-length 200"):
        assert way in str(caught.value)
        assert way in translate(caught.value.message, "zh")
    options = TrainOptions(replace(LORA, targets=("nothing",)))
    with pytest.raises(UserError, match="nothing is not a linear module"):
        show_memory(model, sets, options, device="cpu")


def test_time_is_measured_and_nothing_is_written(tmp_path: Path) -> None:
    options = TrainOptions(per_device_train_batch_size=3, max_steps=20, eval_steps=8)
    made = training(tmp_path / "out", tiny(3), options)
    found = measure_time(made)
    assert found.total > 20 * found.step > 0
    tokens = 20 * 3 * float(made.sets.train.lengths.mean())
    assert found.speed * found.step * 20 == pytest.approx(tokens)
    assert not list(tmp_path.iterdir())
