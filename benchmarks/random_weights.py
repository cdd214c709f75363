"""Checkpoints of ChatGLM2-6B's shapes with random weights: upstream's layout, and chatglm.cpp's.

Used by `decode.py`. Names, shapes and file formats are as published; numbers are not a model.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors.torch import save_file

VOCAB, HIDDEN, FFN, HEADS, GROUPS, HEAD = 65024, 4096, 13696, 32, 2, 128
CONFIG = {
    "model_type": "chatglm", "generation": 2, "num_layers": 28, "padded_vocab_size": VOCAB,
    "hidden_size": HIDDEN, "ffn_hidden_size": FFN, "kv_channels": HEAD, "num_attention_heads": HEADS,
    "multi_query_group_num": GROUPS, "seq_length": 32768, "layernorm_epsilon": 1e-5,
    "add_qkv_bias": True, "tie_word_embeddings": False, "torch_dtype": "float16",
}  # fmt: skip
QKV = (HEADS + 2 * GROUPS) * HEAD
EMBEDDING = "transformer.embedding.word_embeddings.weight"
F32, Q4_0 = 0, 2
"""ggml's numbers of its types."""


def shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Upstream's tensors in chatglm.cpp's order."""
    yield EMBEDDING, (VOCAB, HIDDEN)
    for number in range(layers):
        layer = f"transformer.encoder.layers.{number}"
        yield f"{layer}.input_layernorm.weight", (HIDDEN,)
        yield f"{layer}.self_attention.query_key_value.weight", (QKV, HIDDEN)
        yield f"{layer}.self_attention.query_key_value.bias", (QKV,)
        yield f"{layer}.self_attention.dense.weight", (HIDDEN, HEADS * HEAD)
        yield f"{layer}.post_attention_layernorm.weight", (HIDDEN,)
        yield f"{layer}.mlp.dense_h_to_4h.weight", (2 * FFN, HIDDEN)
        yield f"{layer}.mlp.dense_4h_to_h.weight", (HIDDEN, FFN)
    yield "transformer.encoder.final_layernorm.weight", (HIDDEN,)
    yield "transformer.output_layer.weight", (VOCAB, HIDDEN)


def parameters(layers: int, *, embedding: bool = False) -> int:
    """Weights of matrices that a token reads; and of the embedding, of which it reads one row."""
    matrices = (
        np.prod(shape)
        for name, shape in shapes(layers)
        if len(shape) == 2 and (embedding or name != EMBEDDING)
    )
    return int(sum(matrices))


def write_upstream(folder: Path, layers: int) -> None:
    """float16 safetensors, a shard for each layer; every layer gets the same numbers."""
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(0)
    pool = (torch.randn(VOCAB * HIDDEN, generator=random) * 0.02).half()
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for name, shape in shapes(layers):
        words = name.split(".")
        shard = f"layer-{words[3]}" if words[2] == "layers" else words[-2]
        vector = torch.ones(shape) if name.endswith("layernorm.weight") else torch.zeros(shape)
        matrix = len(shape) == 2
        tensor = pool[: int(np.prod(shape))].view(shape).clone() if matrix else vector.half()
        groups.setdefault(shard, {})[name] = tensor
    places: dict[str, str] = {}
    for shard in list(groups):
        tensors = groups.pop(shard)
        save_file(tensors, folder / f"{shard}.safetensors", metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, f"{shard}.safetensors")
    index = json.dumps({"weight_map": places})
    (folder / "model.safetensors.index.json").write_text(index, "utf-8")
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_layers": layers}), "utf-8")


def write_ggml(path: Path, layers: int, tokenizer: bytes) -> None:
    """A q4_0 file as chatglm.cpp 0.4.2's convert.py writes it (`BaseConverter.convert`)."""
    config = (2, Q4_0, VOCAB, HIDDEN, HEADS, GROUPS, layers, FFN, 1e-5, 0, 10000.0, 32768, 2, 0)
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(b"ggml" + struct.pack("i", 2))  # ChatGLM2
        file.write(struct.pack("iiiiiiiififiii", *config))
        file.write(struct.pack("i", len(tokenizer)) + tokenizer)
        for name, shape in shapes(layers):
            _header(file, name, shape, Q4_0 if len(shape) == 2 else F32)
            if len(shape) == 2:
                blocks = np.empty((int(np.prod(shape)) // 32, 18), np.uint8)
                blocks[:, :2] = np.frombuffer(np.float16(0.005).tobytes(), np.uint8)
                blocks[:, 2:] = random.integers(0, 256, (len(blocks), 16), dtype=np.uint8)
                blocks.tofile(file)
            else:
                value = 1 if name.endswith("layernorm.weight") else 0
                np.full(shape, value, np.float32).tofile(file)


def _header(file: BinaryIO, name: str, shape: tuple[int, ...], kind: int) -> None:
    file.write(struct.pack("i", len(name)) + name.encode())
    file.write(struct.pack("i" * (2 + len(shape)), len(shape), *shape, kind))
    file.seek(-(-file.tell() // 16) * 16)  # tensors are aligned
