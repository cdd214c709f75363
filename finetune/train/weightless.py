"""A config.json and options -> the model to train, of tensors that have shapes and no memory.

It is built and trained by the very code that trains the real one, so that what that code would take
can be counted (allocated.py) before a weight is read.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from transformers import PreTrainedConfig

from finetune.options import LoraOptions, TrainOptions
from finetune.train.loop import Tuned, checkpointed
from finetune.train.lora import Lora
from finetune.train.ptuning import PrefixTuning
from rag.chatglm.loading import empty, fill_in
from rag.chatglm.memory import stored_bits
from rag.chatglm.quantize import BLOCK, HEAD_BLOCK, Packed
from rag.chatglm.source import Piece


def weightless(
    config: PreTrainedConfig, options: TrainOptions, *, bitsandbytes: bool = False
) -> Tuned:
    """What `open_tuned` would give on a CPU, in training mode. Tensors that are passed to it may be
    real ones; what it computes with them has no memory.

    Linear layers of bitsandbytes are stood in for by plain ones. `UserError` where a target of LoRA
    is no linear module of the model.
    """
    dtype = getattr(torch, options.dtype)
    with torch.device("meta"):
        base: Any = empty(deepcopy(config))
        codes = _Codes.of(config, options, bitsandbytes=bitsandbytes)
        fill_in(base, _pieces(base, codes, dtype), dtype=dtype, packed=False)
        if config.tie_word_embeddings and isinstance(base.lm_head, nn.Linear):
            base.tie_weights()
        base.config.dtype = dtype
        tuned = (
            Lora(base, options.method)
            if isinstance(options.method, LoraOptions)
            else PrefixTuning(base, options.method)
        )
    _pretend(tuned)
    if options.gradient_checkpointing:
        checkpointed(base)
    tuned.model.train()
    return tuned


def _pretend(tuned: Tuned) -> None:
    """Put fake tensors that say they are on a CPU in place of those on "meta", on which torch would
    choose other kernels."""
    made: dict[int, Any] = {}

    def fake(value: Tensor) -> Any:
        if id(value) not in made:
            made[id(value)] = torch.empty(value.shape, dtype=value.dtype, device="cpu")
            if isinstance(value, nn.Parameter):
                made[id(value)] = nn.Parameter(made[id(value)], value.requires_grad)
        return made[id(value)]

    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in tuned.model.modules():
            for held in (module._parameters, module._buffers):
                held |= {name: fake(v) for name, v in held.items() if v is not None and v.is_meta}
    tuned.trained = {name: made[id(value)] for name, value in tuned.trained.items()}


@dataclass(frozen=True, slots=True)
class _Codes:
    """Bits of what is held as codes; 0 where it is floats."""

    linears: int = 0
    head: int = 0
    words: int = 0

    @classmethod
    def of(cls, config: PreTrainedConfig, options: TrainOptions, *, bitsandbytes: bool) -> "_Codes":
        if packed := getattr(config, "packed", None):
            return cls(int(packed["bits"]), int(packed.get("head_bits", 0)))
        if bits := stored_bits(config):  # upstream's own
            words = bits if config.quantization_embeddings else 0
            return cls(bits, words, words)
        bits = 0 if bitsandbytes else {"int8": 8, "int4": 4}.get(options.quant, 0)
        return cls(bits, bits)


def _pieces(model: Any, codes: _Codes, dtype: torch.dtype) -> Iterator[tuple[str, Piece]]:
    """What `rag.chatglm.source.pieces` would read, without numbers."""
    for path, module in model.named_modules():
        shapes = {name: value.shape for name, value in module.named_parameters(recurse=False)}
        if not shapes:
            continue
        bits, block = codes.linears if ".layers." in path else 0, BLOCK
        if path == "lm_head":
            bits, block = codes.head, HEAD_BLOCK
            if not bits and model.config.tie_word_embeddings:
                continue
        elif isinstance(module, nn.Embedding):
            bits = codes.words
        piece: Piece = {name: torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}
        if bits and isinstance(module, nn.Linear | nn.Embedding):
            rows, columns = shapes["weight"]
            padded = -(-columns // block) * block
            held = torch.empty(rows, padded * bits // 8, dtype=torch.uint8)
            scales = torch.empty(rows, padded // block, dtype=torch.float16)
            piece["weight"] = Packed(held, scales, bits, block, (rows, columns))
        yield path, piece
