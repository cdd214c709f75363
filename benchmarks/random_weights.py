"""Checkpoints of ChatGLM2-6B's shapes: upstream's layout, and GGUF for llama.cpp.

Used by `decode.py`. Names, shapes and file formats are as published; the numbers are random, except
that what a layer adds is nought and that the head answers the word `t` with the word `t + 1`: every
matrix is computed with, and a prompt of neighbouring numbers is copied.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Upstream's tensors."""
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


ADDS = ("self_attention.dense.weight", "dense_4h_to_h.weight")  # what a layer adds to the residual


def write_upstream(folder: Path, layers: int) -> None:
    """float16 safetensors, a shard for each layer; every layer gets the same numbers."""
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(0)
    pool = (torch.randn(VOCAB * HIDDEN, generator=random) * 0.02).half()
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for name, shape in shapes(layers):
        words = name.split(".")
        shard = f"layer-{words[3]}" if words[2] == "layers" else words[-2]
        if len(shape) == 2:
            tensor = pool[: int(np.prod(shape))].view(shape).clone()
            if name.endswith(ADDS):
                tensor *= 1e-5
            elif name.endswith("output_layer.weight"):
                tensor = tensor.roll(1, 0)
        else:
            tensor = (torch.ones if name.endswith("layernorm.weight") else torch.zeros)(shape).half()
        groups.setdefault(shard, {})[name] = tensor
    places: dict[str, str] = {}
    for shard in list(groups):
        tensors = groups.pop(shard)
        save_file(tensors, folder / f"{shard}.safetensors", metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, f"{shard}.safetensors")
    index = json.dumps({"weight_map": places})
    (folder / "model.safetensors.index.json").write_text(index, "utf-8")
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_layers": layers}), "utf-8")


NAMES = {
    "transformer.embedding.word_embeddings": "token_embd",
    "transformer.encoder.final_layernorm": "output_norm",
    "transformer.output_layer": "output",
    "input_layernorm": "attn_norm", "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.dense_h_to_4h": "ffn_up", "mlp.dense_4h_to_h": "ffn_down",
}  # fmt: skip
"""llama.cpp's names of upstream's modules."""


def write_gguf(path: Path, source: Path, layers: int) -> None:
    """The weights of `write_upstream` in q4_0, and a vocabulary of numbers."""
    import gguf
    from safetensors import safe_open

    writer: Any = gguf.GGUFWriter(path, "chatglm")
    writer.add_context_length(4096)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_block_count(layers)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD // 2)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("chatglm-bpe")
    writer.add_token_list([f"t{number}" for number in range(VOCAB)])
    writer.add_token_types([gguf.TokenType.NORMAL] * VOCAB)
    writer.add_token_merges(["t 0"])
    writer.add_eos_token_id(0)
    files = json.loads((source / "model.safetensors.index.json").read_text("utf-8"))["weight_map"]
    for name, _ in shapes(layers):
        module, _, kind = name.rpartition(".")
        if module.startswith("transformer.encoder.layers."):
            number, _, module = module.removeprefix("transformer.encoder.layers.").partition(".")
            ours = f"blk.{number}.{NAMES[module]}.{kind}"
        else:
            ours = f"{NAMES[module]}.{kind}"
        with safe_open(source / files[name], "numpy") as file:
            value = file.get_tensor(name).astype(np.float32)
        if value.ndim == 2:
            packed = gguf.quants.quantize(value, gguf.GGMLQuantizationType.Q4_0)
            writer.add_tensor(ours, packed, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
        else:
            writer.add_tensor(ours, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
