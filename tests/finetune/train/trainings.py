"""Small models of every generation, and trainings of them on random rows."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from finetune.options import LoraOptions, PrefixOptions, TrainOptions
from finetune.train.loop import Sets, Training
from finetune.train.lora import Lora, PrefixTuning, TunedModel
from finetune.types import IGNORED, REJECTED, TokenRow
from rag.chatglm.configuration import ChatGLM2Config
from rag.chatglm.loading import load
from rag.chatglm.modeling_chatglm import ChatGLM2ForCausalLM
from tests.finetune.memory_rows import MemoryRows

GOLDEN = Path(__file__).parents[2] / "golden"
GENERATIONS = (1, 2, 3, 4)


def tiny(generation: int, **options: Any) -> Any:
    """The golden checkpoint of a generation; of GLM-4 one with random weights."""
    if generation < 4:
        wanted = {"quant": "none", "dtype": torch.float32, "device": "cpu"} | options
        return load(GOLDEN / f"v{generation}" / "tiny_safetensors", **wanted)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        config = ChatGLM2Config(
            generation=4, vocab_size=512, hidden_size=64, intermediate_size=96,
            num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
            max_position_embeddings=512, partial_rotary_factor=0.5, attention_bias=True,
            tie_word_embeddings=False, pad_token_id=0, eos_token_id=2, initializer_range=0.2,
        )  # fmt: skip
        return ChatGLM2ForCausalLM(config).to(options.get("dtype", torch.float32)).eval()


def rows(model: Any, count: int, *, seed: int = 0, longest: int = 24) -> MemoryRows:
    """Prompts of random words, whose last ones are the answer."""
    dice = np.random.default_rng(seed)
    config = model.config
    made = []
    for _ in range(count):
        prompt = dice.integers(5, 400, int(dice.integers(3, longest)))
        if hasattr(config, "gmask_token_id"):
            prompt = np.append(prompt, [config.gmask_token_id, config.bos_token_id])
        answer = prompt[: int(dice.integers(1, 6))] + 1
        ids = np.concatenate([prompt, answer]).astype(np.int32)
        labels = ids.copy()
        labels[: len(prompt)] = IGNORED
        made.append(TokenRow(ids, labels))
    return MemoryRows(made)


def pairs(model: Any, count: int) -> MemoryRows:
    """Preference pairs: the better answer counts on from the prompt, the worse one ends it in reverse."""
    made = []
    for row in rows(model, count):
        start = int((row.labels == IGNORED).sum())
        ids, labels = (
            np.concatenate([v, v[:start], v[start:][::-1], v[-1:] + 1]) for v in (row.ids, row.labels)
        )
        labels[len(row)] = REJECTED
        made.append(TokenRow(ids, labels))
    return MemoryRows(made)


def tuned(model: Any, options: TrainOptions) -> TunedModel:
    if isinstance(options.method, LoraOptions):
        return Lora(model, options.method, seed=options.seed)
    return PrefixTuning(model, options.method, seed=options.seed)


def training(out: Path, model: Any, options: TrainOptions, **sets: MemoryRows | None) -> Training:
    """On 30 rows, with 8 held out, unless `sets` say otherwise."""
    given: dict[str, Any] = {"train": rows(model, 30), "dev": rows(model, 8, seed=1)} | sets
    return Training(tuned(model, options), Sets(**given), options, out, Accelerator(cpu=True))


def result_files(out: Path) -> dict[str, bytes]:
    """Everything that a training writes, except for TensorBoard's files, which hold times."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and "tensorboard" not in path.parts
    }


SHORT = TrainOptions(
    max_steps=12, learning_rate=1e-2, logging_steps=3, eval_steps=6, save_steps=4, pack_length=80
)
METHODS = {
    "lora": LoraOptions(dropout=0.1),
    "rslora": LoraOptions(rslora=True, targets=("query_key_value", "dense_4h_to_h")),
    "dora": LoraOptions(dora=True),
    "prefix": PrefixOptions(6),
    "projected": PrefixOptions(4, prefix_projection=True),
}
