"""What is counted without memory is what is made with it; what is told follows from it."""

import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from finetune.options import LoraOptions, TrainOptions
from finetune.train.batches import Batch, laid_out
from finetune.train.loop import Sets, checkpointed, plan
from finetune.train.preview import (
    Allocated,
    Heaviest,
    Preview,
    Previewer,
    bytes_of,
    counted,
    last_within,
    logits,
    need_room,
    weightless,
)
from finetune.types import IGNORED, Row
from ingest.errors import UserError
from rag.chatglm.configuration import ChatGLM2Config
from rag.chatglm.memory import Room
from tests.finetune.listed import Listed

from .made import METHODS, rows, tiny, tuned

ALL = LoraOptions(targets=("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"))
HOW = METHODS | {"all": ALL}
PACKED, PADDED = {"pack_length": 64}, {"packing": False}
KEPT = {"gradient_checkpointing": True}
BF16 = {"dtype": "bfloat16"}


def deep(layers: int = 6, **options: Any) -> ChatGLM2Config:
    """A model that is never made."""
    shape = {
        "generation": 3, "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0,
        "eos_token_id": 2, "attention_bias": True, "tie_word_embeddings": False,
    }  # fmt: skip
    config = ChatGLM2Config(**{**shape, "num_hidden_layers": layers, **options})
    config.dtype = torch.float16
    return config


def made(lengths: list[int], learnt: int = 5) -> Listed:
    ids = np.arange(5, 500, dtype=np.int32)
    rows = [Row(ids[:length].copy(), ids[:length].copy()) for length in lengths]
    for row in rows:
        row.labels[: len(row) - learnt] = IGNORED
    return Listed(rows)


def line(model: Any, options: TrainOptions) -> Batch:
    return laid_out(list(rows(model, 4)), options)[0]


@pytest.mark.parametrize(
    ("generation", "method", "more"),
    [
        (1, "lora", PACKED),
        (1, "all", PADDED | KEPT | BF16),
        (1, "prefix", PADDED),
        (2, "dora", PACKED | BF16),
        (2, "projected", PACKED | KEPT),
        (3, "all", PACKED | {"quant": "int8"}),
        (3, "lora", PADDED | KEPT | {"quant": "int4"}),
        (4, "all", PADDED),
        (4, "prefix", PACKED | BF16),
    ],
)
def test_without_memory_as_with_it(generation: int, method: str, more: dict[str, Any]) -> None:
    options = TrainOptions(HOW[method], **more)
    held = {"quant": options.quant, "kernels": False, "dtype": getattr(torch, options.dtype)}
    real = tuned(tiny(generation, **held), options)
    if options.gradient_checkpointing:
        checkpointed(real.base)
    fake = weightless(tiny(generation).config, options)
    batch = line(real.base, options)
    for learn in (True, False):
        assert counted(fake, batch, learn=learn) == counted(real, batch, learn=learn)
    sizes = [
        (bytes_of(each.trained.values()), bytes_of(each.base.state_dict().values()))
        for each in (fake, real)
    ]
    assert sizes[0] == sizes[1]


def test_what_is_counted_is_what_is_held() -> None:
    layer, count, given = nn.Linear(10, 100, bias=False), Allocated(), torch.zeros(8, 10)
    size = 4 * 8 * 100
    with count:
        count.stage = "forward"
        kept = layer(given)
        assert count.now == size
        view = kept[2:].view(-1)
        assert count.now == size
        count.stage = "more"
        other = view * 2
        del other
    assert count.peak == {"forward": size, "more": size * 6 // 8}
    del kept
    assert count.now == size
    del view
    assert count.now == 0


@pytest.mark.parametrize(("method", "more"), [("lora", {}), ("dora", KEPT), ("projected", KEPT)])
def test_all_layers_from_a_few(method: str, more: dict[str, Any]) -> None:
    previewer = Previewer(deep(5), TrainOptions(METHODS[method], **more), "cpu")
    batch = line(tiny(3), previewer.options)
    assert previewer._of(batch, learn=True) == previewer._counted(5, batch, learn=True)


def preview(options: TrainOptions, rows: Listed, *, device: Any = "cpu", **shape: Any) -> Preview:
    heaviest = Heaviest(Sets(rows), options)
    return Previewer(deep(**({"layers": 2} | shape)), options, device).preview(heaviest.learnt())


def test_more_takes_more() -> None:
    plain = TrainOptions(packing=False)
    few = preview(plain, made([40] * 4))
    assert few.total == sum(getattr(few, part.name) for part in fields(Preview))
    assert few.trained == few.gradients == few.moments // 2 > 0
    long, many = preview(plain, made([80] * 4)), preview(plain, made([40] * 4, learnt=20))
    assert long.kept > 1.9 * few.kept
    assert many.logits > 3 * few.logits
    assert preview(plain, made([40] * 4), layers=3).weights > few.weights
    half = preview(replace(plain, dtype="bfloat16"), made([40] * 4))
    assert abs(half.weights / few.weights - 0.5) < 1e-3  # tables of angles stay
    assert half.kept < few.kept
    again = preview(replace(plain, gradient_checkpointing=True), made([40] * 4), layers=20)
    assert again.total < preview(plain, made([40] * 4), layers=20).total
    codes = preview(replace(plain, quant="int8"), made([40] * 4))
    assert codes.weights < few.weights * 0.6  # the embedding stays in floats
    on_gpu = preview(replace(plain, quant="nf4", dtype="bfloat16"), made([40] * 4), device="cuda")
    assert on_gpu.weights < half.weights


@pytest.mark.parametrize("case", ["v3 all linears padded 4x128"])
def test_a_peak_is_foreseen_within_a_tenth(case: str, tmp_path: Path) -> None:
    """One of the configurations of benchmarks/preview.py, where the others are."""
    script = Path(__file__).parents[3] / "benchmarks" / "preview.py"
    command = [sys.executable, "-P", str(script), str(tmp_path), case]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    worst = float(done.stdout.splitlines()[-1].removeprefix("worst: ").removesuffix("%"))
    assert worst < 10, done.stdout


def test_the_lora_of_the_published_model() -> None:
    shape = {"hidden_size": 4096, "num_attention_heads": 32, "head_dim": 128}
    shape |= {"intermediate_size": 13696, "vocab_size": 65024, "layers": 28}
    tuned = weightless(deep(**shape), TrainOptions())
    assert sum(value.numel() for value in tuned.trained.values()) == 1_949_696


def test_the_heaviest_lines() -> None:
    dice = np.random.default_rng(0)
    sets = Sets(made([int(n) for n in dice.integers(10, 60, 40)]), made([30, 50]))
    for options in (
        TrainOptions(packing=False, max_steps=30),
        TrainOptions(pack_length=100, max_steps=30),
    ):
        heaviest, order = Heaviest(sets, options), plan(sets, options, 1)
        every = [
            batch
            for number in range(30)
            for batch in laid_out([sets.train[int(i)] for i in order.step(number)[0]], options)
        ]
        found = heaviest.learnt()
        assert max(b.ids.numel() for b in found) == max(b.ids.numel() for b in every)
        assert max(map(logits, found)) <= max(map(logits, every))
        assert round(heaviest.tokens, 6) == sum(b.ids.numel() for b in every)
        assert [b.ids.shape for b in heaviest.measured()] == [(1, 80)]


@given(
    st.integers(1, 10**6), st.integers(1, 10**6), st.integers(0, 1000), st.integers(0, 10**10),
    st.integers(1, 5000),
)  # fmt: skip
def test_the_last_within(start: int, each: int, square: int, room: int, most: int) -> None:
    asked: list[int] = []

    def need(size: int) -> int:
        asked.append(size)
        return start + each * size + square * size * size

    found = last_within(need, room, most)
    exact = next((n for n in range(most, 0, -1) if need(n) <= room), 0) if most < 200 else None
    assert found == 0 or need(found) <= room
    assert (found == 0) == (need(1) > room)
    if exact is not None and found < exact:
        assert room - need(found) <= 0.03 * (room - need(1))
    assert found <= most


def test_the_largest_batch_fits() -> None:
    options = TrainOptions(packing=False)
    heaviest = Heaviest(Sets(made([40, 30, 20])), options)
    previewer = Previewer(deep(2), options, "cpu")
    room = previewer._of(heaviest.line(3), learn=True).total
    assert previewer.largest(heaviest.line, room, most=heaviest.most) == 3


def test_one_row_that_does_not_fit_is_refused() -> None:
    options = TrainOptions()
    previewer = Previewer(deep(2), options, "cpu")
    heaviest = Heaviest(Sets(made([400])), options)
    need_room(previewer, heaviest, Room(None, 0))
    need_room(previewer, heaviest, Room(1 << 40, 0))
    with pytest.raises(
        UserError, match=r"400 tokens needs 0\.5.* GB .*0\.25 GB are free"
    ) as caught:
        need_room(previewer, heaviest, Room(1 << 28, 0))
    for way in ("--gradient-checkpointing", "--quant int8", "--max-length 200"):
        assert way in str(caught.value)
        assert way in caught.value.zh
