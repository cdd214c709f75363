"""What is counted without memory is what is made with it; what is told follows from it."""

import numpy as np
import pytest
import torch
from torch import nn

from finetune.options import LoraOptions, PrefixOptions, TrainOptions
from finetune.train.allocated import Allocated, bytes_of
from finetune.train.batches import packed, padded
from finetune.train.heaviest import Heaviest
from finetune.train.loop import Sets
from finetune.train.preview import Previewer, counted, need_room
from finetune.train.weightless import checkpointed, weightless
from ingest.errors import UserError
from rag.chatglm.room import Room

from .made import METHODS, rows, tiny, tuned

ALL = LoraOptions(targets=("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"))


def lines(model, options: TrainOptions):
    given = list(rows(model, 6))
    size = options.per_device_train_batch_size
    return (packed(given, options.pack_length) if options.packing else padded(given, size))[0]


@pytest.mark.parametrize("generation", [1, 2, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", [*METHODS, "all"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_without_memory_as_with_it(generation, dtype, method, checkpointing) -> None:
    how = METHODS.get(method, ALL)
    options = TrainOptions(
        how, dtype=dtype, packing=checkpointing, gradient_checkpointing=checkpointing, pack_length=64
    )
    real = tuned(tiny(generation, dtype=getattr(torch, dtype)), options)
    if checkpointing:
        checkpointed(real.base)
    fake = weightless(tiny(generation).config, options)
    line = lines(real.base, options)
    for learn in (True, False):
        found, wanted = counted(fake, line, learn=learn), counted(real, line, learn=learn)
        assert found.peak == wanted.peak
    assert bytes_of(fake.trained.values()) == bytes_of(real.trained.values())
