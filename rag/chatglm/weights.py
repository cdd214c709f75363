"""Upstream's module names -> transformers' own, for ChatGLM2, ChatGLM3 and GLM-4-9B-chat.

Their architecture is transformers' `Glm`: queries, keys and values, one matrix upstream, are three
there, its rows cut in order. Weights, biases, packed codes and LoRA's B matrices are all cut by
rows, so the one table serves them. ChatGLM-6B keeps upstream's names.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, cat, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ingest.errors import UserError
from rag.chatglm.checkpoint import Checkpoint
from rag.chatglm.quantize import BLOCK, HEAD_BLOCK, Packed, from_published, quantize

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


Piece = dict[str, Tensor | Packed]


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint's tensors, asked for by the names of the model here."""

    checkpoint: Checkpoint
    config: PreTrainedConfig
    upstream: bool

    @classmethod
    def open(cls, directory: Path, config: PreTrainedConfig) -> "Source":
        checkpoint = Checkpoint.open(directory)
        return cls(checkpoint, config, is_upstream(set(checkpoint)))

    @property
    def bits(self) -> int | None:
        """4 or 8 where the linear layers are stored as codes."""
        packed = getattr(self.config, "packed", None)
        if packed:
            return int(packed["bits"])
        return getattr(self.config, "quantization_bit", None) or None

    def place(self, module: str) -> Rows:
        return upstream_of(module, self.config) if self.upstream else Rows(module)

    def has(self, module: str, kind: str) -> bool:
        return f"{self.place(module).module}.{kind}" in self.checkpoint

    def read(self, module: str, kind: str) -> Tensor:
        rows = self.place(module)
        name = f"{rows.module}.{kind}"
        if name not in self.checkpoint:
            raise UserError(
                "the checkpoint lacks {name}; it is incomplete, or config.json is another model's",
                name=name,
            )
        return rows.cut(self.checkpoint.read(name))

    def unused(self, modules: set[str]) -> list[str]:
        """Tensors that no module of the model asks for."""
        asked = {self.place(module).module for module in modules}
        return [
            name
            for name in self.checkpoint
            if name.rpartition(".")[0] not in asked and not IGNORED.match(name)
        ]


def pieces(
    model: PreTrainedModel, source: Source, bits: int | None, head: int | None
) -> Iterator[tuple[str, Piece]]:
    """Module by module what it holds: tensors, or codes of its weight.

    Codes are what is stored as such; of floats the layers' linears are made into `bits`, lm_head
    into `head`. A head that is the embedding is left out where it isn't codes.

    `UserError` for a tensor that is missing, left over, of another shape or not finite.
    """
    modules: dict[str, nn.Module] = {
        path: module
        for path, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    }
    left = source.unused(set(modules))
    if left:
        raise UserError(
            "the checkpoint holds {left} ({left_count} such), which a model of its config.json "
            "has no place for; it is of another family",
            left=left[0],
            left_count=len(left),
        )
    words = model.get_input_embeddings()
    embedding = next(path for path, module in modules.items() if module is words)
    for path, module in modules.items():
        origin, wanted = path, None
        if path == "lm_head":
            wanted = head
            if source.config.tie_word_embeddings and not source.has(path, "codes"):
                origin = embedding
                if not (head or source.has(origin, "codes") or source.has(origin, "weight_scale")):
                    continue
        elif isinstance(module, nn.Linear) and ".layers." in path:
            wanted = bits
        block = HEAD_BLOCK if path == "lm_head" else BLOCK
        yield path, _piece(module, origin, source, wanted, block)


def _piece(module: nn.Module, origin: str, source: Source, bits: int | None, block: int) -> Piece:
    piece: Piece = {}
    for kind, parameter in module.named_parameters(recurse=False):
        shape = (parameter.shape[0], parameter.shape[-1])
        codes = codes_of(origin, shape, source) if kind == "weight" else None
        if codes is not None:
            piece[kind] = codes
        else:
            tensor = source.read(origin, kind)
            _check(f"{origin}.{kind}", tensor, tuple(parameter.shape))
            if isinstance(module, nn.Embedding):
                del tensor  # mapped anew, so that only rows looked up take memory
                tensor = source.read(origin, kind)
            piece[kind] = tensor
            if bits and kind == "weight":
                piece[kind] = quantize(tensor, bits=bits, block=block)
    return piece


def codes_of(module: str, shape: tuple[int, int], source: Source) -> Packed | None:
    """A module's weight where it is stored as codes, of which `shape` is (out, in); None: in floats."""
    if source.has(module, "codes"):
        return _stored(module, shape, source)
    return _published(module, shape, source) if source.has(module, "weight_scale") else None


def _stored(module: str, shape: tuple[int, int], source: Source) -> Packed:
    codes, scales = source.read(module, "codes"), source.read(module, "scales")
    of = "head_" if module == "lm_head" else ""
    bits, block = (int(source.config.packed[f"{of}{key}"]) for key in ("bits", "block"))
    padded = -(-shape[1] // block) * block
    _check(f"{module}.codes", codes, (shape[0], padded * bits // 8))
    _check(f"{module}.scales", scales, (shape[0], padded // block))
    return Packed(codes, scales, bits, block, shape)


def _published(module: str, shape: tuple[int, int], source: Source) -> Packed:
    weight, scale = source.read(module, "weight"), source.read(module, "weight_scale")
    bits = source.bits
    if bits not in (4, 8):
        raise UserError(
            "the weights are quantised, but config.json says quantization_bit = {bits}; it is 4 "
            "or 8",
            bits=bits,
        )
    _check(f"{module}.weight", weight, (shape[0], -(-shape[1] * bits // 8)))
    _check(f"{module}.weight_scale", scale, shape[:1])
    return from_published(weight, scale, bits=bits, columns=shape[1])


def _check(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise UserError(
            "{name} has the shape {shape}, config.json makes it {shape_2}; the two belong to "
            "different models",
            name=name,
            shape=tuple(tensor.shape),
            shape_2=shape,
        )
    if tensor.is_floating_point() and not all(value.isfinite() for value in tensor.aminmax()):
        raise UserError(
            "{name} holds NaN or infinite numbers; the checkpoint is damaged, get it again",
            name=name,
        )
