"""Upstream's module names -> transformers' own, for ChatGLM2, ChatGLM3 and GLM-4-9B-chat.

Their architecture is transformers' `Glm`: queries, keys and values, one matrix upstream, are three
there, its rows cut in order. Weights, biases, packed codes and LoRA's B matrices are all cut by
rows, so the one table serves them. ChatGLM-6B keeps upstream's names.
"""

import re
from dataclasses import dataclass

from torch import Tensor, cat
from transformers import PreTrainedConfig

# `{n}` is the layer's number. Where several native modules share one of upstream's, they are its
# rows in this order.
RENAMING = (
    ("transformer.embedding.word_embeddings", "model.embed_tokens"),
    ("transformer.encoder.layers.{n}.input_layernorm", "model.layers.{n}.input_layernorm"),
    ("transformer.encoder.layers.{n}.self_attention.query_key_value", "model.layers.{n}.self_attn.q_proj"),
    ("transformer.encoder.layers.{n}.self_attention.query_key_value", "model.layers.{n}.self_attn.k_proj"),
    ("transformer.encoder.layers.{n}.self_attention.query_key_value", "model.layers.{n}.self_attn.v_proj"),
    ("transformer.encoder.layers.{n}.self_attention.dense", "model.layers.{n}.self_attn.o_proj"),
    (
        "transformer.encoder.layers.{n}.post_attention_layernorm",
        "model.layers.{n}.post_attention_layernorm",
    ),
    ("transformer.encoder.layers.{n}.mlp.dense_h_to_4h", "model.layers.{n}.mlp.gate_up_proj"),
    ("transformer.encoder.layers.{n}.mlp.dense_4h_to_h", "model.layers.{n}.mlp.down_proj"),
    ("transformer.encoder.final_layernorm", "model.norm"),
    ("transformer.output_layer", "lm_head"),
)  # fmt: skip

UPSTREAM = {native: upstream for upstream, native in RENAMING}
# Stored upstream, computed here.
IGNORED = re.compile(r".*rotary(_pos)?_emb\.inv_freq$")


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one of upstream's modules; all of them where `start` is None."""

    module: str
    start: int | None = None
    end: int | None = None

    def cut(self, tensor: Tensor) -> Tensor:
        """The rows of a tensor of that module: a view."""
        return tensor if self.start is None else tensor[self.start : self.end]


def upstream_of(native: str, config: PreTrainedConfig) -> Rows:
    """Where upstream keeps what is `native` here; `native` itself where it has no other name."""
    template, number = _template(native)
    upstream = UPSTREAM.get(template)
    if upstream is None:
        return Rows(native)
    module = upstream.replace("{n}", number)
    parts = natives_of(module)
    if len(parts) == 1:
        return Rows(module)
    ends = _ends(config)
    place = parts.index(native)
    return Rows(module, ends[place], ends[place + 1])


def natives_of(upstream: str) -> list[str]:
    """The modules that one of upstream's is here, in the order of its rows; [] if it is none."""
    template, number = _template(upstream)
    return [native.replace("{n}", number) for name, native in RENAMING if name == template]


def is_upstream(names: set[str]) -> bool:
    """Whether tensors of these names are in upstream's layout of ChatGLM2, 3 or GLM-4-9B."""
    return any(
        name.startswith(("transformer.encoder.", "transformer.embedding.")) for name in names
    )


def to_upstream(state: dict[str, Tensor], config: PreTrainedConfig) -> dict[str, Tensor]:
    """Native names and tensors -> upstream's, the inverse of what loading does."""
    fused: dict[str, list[Tensor]] = {}
    for name in sorted(state, key=_order):
        module, _, kind = name.rpartition(".")
        rows = upstream_of(module, config)
        fused.setdefault(f"{rows.module}.{kind}", []).append(state[name])
    return {name: parts[0] if len(parts) == 1 else cat(parts) for name, parts in fused.items()}


def _ends(config: PreTrainedConfig) -> list[int]:
    """Where the rows of queries, keys and values begin and end."""
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    return [0, queries, queries + keys, queries + 2 * keys]


def _template(name: str) -> tuple[str, str]:
    """`model.layers.3.mlp.down_proj` -> (`model.layers.{n}.mlp.down_proj`, `3`)."""
    match = re.match(r"(.*\.layers\.)(\d+)(\..*)", name)
    return (f"{match[1]}{{n}}{match[3]}", match[2]) if match else (name, "")


def _order(name: str) -> tuple[int, int]:
    """Layer by layer, queries before keys before values."""
    template, number = _template(name.rpartition(".")[0])
    natives = [native for _, native in RENAMING]
    return int(number or -1), natives.index(template) if template in natives else len(natives)
