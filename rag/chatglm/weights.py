"""The tensors of a model's directory, by their own names and by those of transformers' modules.

The architecture of ChatGLM2, ChatGLM3 and GLM-4-9B-chat is transformers' `Glm`: queries, keys and
values, one matrix upstream, are three there, its rows cut in order. Weights, biases, packed codes
and LoRA's B matrices are all cut by rows, so one table serves them. ChatGLM-6B keeps upstream's
names. Files are safetensors, or .bin files that are read as data only.
"""

import logging
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.chatglm.configuration import PointerFile, damaged, read_object, stored_bits
from rag.chatglm.quantize import BLOCK, HEAD_BLOCK, PackedWeight, from_published, quantize

# In the order of preference; an index says which shard holds which tensor.
SINGLE = ("model.safetensors", "pytorch_model.bin")
INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
logger = logging.getLogger(__name__)
# What torch raises for code in a file; nothing is unpickled here.
UNSAFE: type[Exception] = vars(torch.serialization)["pickle"].UnpicklingError


class Checkpoint:
    """The tensors of a directory by name, each read when `read` is called.

    A tensor is a view of the mapped file. The map is released with the last view, so a caller that
    reads tensor by tensor holds one at a time."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.files = files  # of each tensor
        self._shard: tuple[Path, dict[str, Tensor]] | None = None  # the .bin file read last

    @classmethod
    def open(cls, directory: Path) -> "Checkpoint":
        """Raises `UserError` if there are no weights, a shard is missing, or a file is damaged."""
        pointer: PointerFile | None = None
        for single, index in zip(SINGLE, INDEX, strict=True):
            path = directory / single
            try:
                if (directory / index).is_file():
                    files = _indexed(directory, index)
                elif path.is_file():
                    files = dict.fromkeys(_names(path), path)
                else:
                    continue
            except PointerFile as error:
                pointer = pointer or error
                continue
            if pointer:
                logger.warning("%s; %s is read instead", pointer, sorted(set(files.values()))[0].name)
            return cls(files)
        if pointer:
            raise pointer
        files = sorted(path.name for path in directory.iterdir())[:5]
        raise UserError(
            "{directory} holds no weights (model.safetensors or pytorch_model.bin, or shards of "
            "them with an index); it holds {files}",
            directory=directory,
            files=files or Translatable("nothing"),
        )

    def read(self, name: str) -> Tensor:
        """The tensor; raises `UserError` if its file is damaged."""
        path = self.files[name]
        if path.suffix == ".safetensors":
            with _safetensors(path) as file:
                return file.get_tensor(name)
        if self._shard is None or self._shard[0] != path:
            self._shard = path, read_bin(path)
        return self._shard[1][name]


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, mapped; raises `UserError` if it is damaged."""
    with _safetensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)


def read_bin(path: Path) -> dict[str, Tensor]:
    """All tensors of a torch file, mapped. Raises `UserError` if the file is damaged, of the format
    before torch 1.6, or holds code or anything else that is not a tensor."""
    if not zipfile.is_zipfile(path):
        raise damaged(path, Translatable("it has no end, or it has torch's format before 1.6"))
    try:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except UNSAFE:
        raise UserError(
            "{path} holds more than tensors, and code in it is not run; convert it to "
            "safetensors if you trust it",
            path=path,
        ) from None
    except (RuntimeError, EOFError, ValueError) as error:
        raise damaged(path, str(error).splitlines()[0]) from None
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise damaged(path, Translatable("it is not a table of tensors"))
    return state


def _indexed(directory: Path, index: str) -> dict[str, Path]:
    """The file of each tensor that an index lists; every shard must be there and hold its tensors."""
    table = read_object(directory / index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise damaged(directory / index, Translatable("it is not an index"))
    outside = [name for name in table.values() if Path(name).name != name]
    if outside:
        why = Translatable("it names {name!r}, which is not in this folder", name=outside[0])
        raise damaged(directory / index, why)
    shards = sorted(set(table.values()))
    missing = [name for name in shards if not (directory / name).is_file()]
    if missing:
        raise UserError(
            "{directory} lacks {missing_count} of {wanted_count} shards: {missing}; download the "
            "missing ones",
            directory=directory,
            missing_count=len(missing),
            wanted_count=len(shards),
            missing=", ".join(missing),
        )
    names = {shard: _names(directory / shard) for shard in shards}
    for name, shard in table.items():
        if name not in names[shard]:
            why = Translatable("{index} says that it holds {name}", index=index, name=name)
            raise damaged(directory / shard, why)
    return {name: directory / shard for name, shard in table.items()}


def _names(path: Path) -> set[str]:
    """The tensors that a file holds; raises `UserError` if it is damaged."""
    if path.suffix == ".safetensors":
        with _safetensors(path) as file:
            return set(file.keys())
    return set(read_bin(path))


@contextmanager
def _safetensors(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise damaged(path, str(error)) from None


# `{n}` is the layer's number. If several native modules share one of upstream's, they are its rows
# in this order.
RENAMING = (
    ("transformer.embedding.word_embeddings", "model.embed_tokens"),
    ("transformer.encoder.layers.{n}.input_layernorm", "model.layers.{n}.input_layernorm"),
    ("transformer.encoder.layers.{n}.self_attention.query_key_value", "model.layers.{n}.self_attn.q_proj"),
    ("transformer.encoder.layers.{n}.self_attention.query_key_value", "model.layers.{n}.self_attn.k_proj"),
    ("transformer.encoder.layers.{n}.self_attention.query_key_value", "model.layers.{n}.self_attn.v_proj"),
    ("transformer.encoder.layers.{n}.self_attention.dense", "model.layers.{n}.self_attn.o_proj"),
    ("transformer.encoder.layers.{n}.post_attention_layernorm", "model.layers.{n}.post_attention_layernorm"),
    ("transformer.encoder.layers.{n}.mlp.dense_h_to_4h", "model.layers.{n}.mlp.gate_up_proj"),
    ("transformer.encoder.layers.{n}.mlp.dense_4h_to_h", "model.layers.{n}.mlp.down_proj"),
    ("transformer.encoder.final_layernorm", "model.norm"),
    ("transformer.output_layer", "lm_head"),
)  # fmt: skip
NATIVE = {native: upstream for upstream, native in RENAMING}
UPSTREAM = ("transformer.encoder.", "transformer.embedding.", "transformer.output_layer")
CODES = (".codes", ".weight_scale")  # the ends of names beside which a weight is codes
# Stored upstream, computed here
IGNORED = re.compile(r".*rotary(_pos)?_emb\.inv_freq$")


@dataclass(frozen=True, slots=True)
class ModuleRows:
    """Rows of one of upstream's modules; all of them if `start` is None."""

    module: str
    start: int | None = None
    end: int | None = None

    def cut(self, tensor: Tensor) -> Tensor:
        """These rows of a tensor of that module, as a view."""
        return tensor if self.start is None else tensor[self.start : self.end]


def upstream_of(native: str, config: PreTrainedConfig) -> ModuleRows:
    """Where upstream keeps the module `native`; `native` itself if it has no other name there."""
    template, number = _template(native)
    if template not in NATIVE:
        return ModuleRows(native)
    module = NATIVE[template].replace("{n}", number)
    parts = natives_of(module)
    if len(parts) == 1:
        return ModuleRows(module)
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    ends, part = (0, queries, queries + keys, queries + 2 * keys), parts.index(native)
    return ModuleRows(module, ends[part], ends[part + 1])


def natives_of(upstream: str) -> list[str]:
    """The native modules of one of upstream's, in the order of its rows; [] if it is unknown."""
    template, number = _template(upstream)
    return [native.replace("{n}", number) for name, native in RENAMING if name == template]


def _template(name: str) -> tuple[str, str]:
    """`model.layers.3.mlp.down_proj` -> (`model.layers.{n}.mlp.down_proj`, `3`)."""
    match = re.match(r"(.*\.layers\.)(\d+)(\..*)", name)
    return (f"{match[1]}{{n}}{match[3]}", match[2]) if match else (name, "")


Piece = dict[str, Tensor | PackedWeight]


@dataclass(frozen=True, slots=True)
class WeightSource:
    """A checkpoint's tensors, read by the names of the native modules."""

    checkpoint: Checkpoint
    config: PreTrainedConfig
    upstream: bool

    @classmethod
    def open(cls, directory: Path, config: PreTrainedConfig) -> "WeightSource":
        """Raises `UserError` as `Checkpoint.open`. Bits in `config` are taken out if all weights are
        floats, which is what some tools for training save."""
        checkpoint = Checkpoint.open(directory)
        if stored_bits(config) and not any(name.endswith(CODES) for name in checkpoint.files):
            config.packed = config.quantization_bit = None
        upstream = any(name.startswith(UPSTREAM) for name in checkpoint.files)
        return cls(checkpoint, config, upstream)

    @property
    def bits(self) -> int | None:
        """4 or 8 if the linear layers are stored as codes."""
        return stored_bits(self.config)

    def rows(self, module: str) -> ModuleRows:
        return upstream_of(module, self.config) if self.upstream else ModuleRows(module)

    def has(self, module: str, kind: str) -> bool:
        return f"{self.rows(module).module}.{kind}" in self.checkpoint.files

    def read(self, module: str, kind: str) -> Tensor:
        """The tensor of a native module; raises `UserError` if the checkpoint lacks it."""
        rows = self.rows(module)
        name = f"{rows.module}.{kind}"
        if name not in self.checkpoint.files:
            raise UserError(
                "the checkpoint lacks {name}; it is incomplete, or config.json is another model's", name=name
            )
        return rows.cut(self.checkpoint.read(name))


def embedding_path(model: PreTrainedModel) -> str:
    """The name of the module that embeds tokens."""
    words = model.get_input_embeddings()
    return next(path for path, module in model.named_modules() if module is words)


def pieces(
    model: PreTrainedModel,
    source: WeightSource,
    bits: int | None = None,
    head: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Iterator[tuple[str, Piece]]:
    """Each module's path and its tensors; stored codes of a weight stay codes.

    Float weights of the layers' linear modules are quantised to `bits`, lm_head to `head`; None
    leaves them. A head that is the embedding is left out, unless it is codes. `progress` takes the
    share that the caller is done with, 0 to 1. Raises `UserError` for a tensor that is missing, left
    over, of another shape or not finite."""
    modules = {path: module for path, module in model.named_modules() if [*module.parameters(recurse=False)]}
    used = {source.rows(module).module for module in modules}
    names = (name for name in source.checkpoint.files if not IGNORED.match(name))
    if unused := [name for name in names if name.rpartition(".")[0] not in used]:
        raise UserError(
            "the checkpoint holds {unused} ({count} such), which a model of its config.json has no "
            "place for; it is of another family",
            unused=unused[0],
            count=len(unused),
        )
    total, count, embedding = model.num_parameters(), 0, embedding_path(model)
    for path, module in modules.items():
        origin, to_bits = path, None
        if path == "lm_head":
            to_bits = head
            if source.config.tie_word_embeddings and not source.has(path, "codes"):
                origin = embedding
                if not (head or source.has(origin, "codes") or source.has(origin, "weight_scale")):
                    continue
        elif isinstance(module, nn.Linear) and ".layers." in path:
            to_bits = bits
        block = HEAD_BLOCK if path == "lm_head" else BLOCK
        count += sum(parameter.numel() for parameter in module.parameters(recurse=False))
        yield path, _piece(module, origin, source, to_bits, block)
        if progress:
            progress(count / total)


def _piece(module: nn.Module, origin: str, source: WeightSource, bits: int | None, block: int) -> Piece:
    piece: Piece = {}
    for kind, parameter in module.named_parameters(recurse=False):
        shape = (parameter.shape[0], parameter.shape[-1])
        codes = codes_of(origin, shape, source) if kind == "weight" else None
        if codes is not None:
            piece[kind] = codes
            continue
        tensor = source.read(origin, kind)
        _check(f"{origin}.{kind}", tensor, tuple(parameter.shape))
        if isinstance(module, nn.Embedding):
            del tensor  # mapped again, so that only rows that are looked up take memory
            tensor = source.read(origin, kind)
        piece[kind] = tensor
        if bits and kind == "weight":
            piece[kind] = quantize(tensor, bits=bits, block=block)
    return piece


def codes_of(module: str, shape: tuple[int, int], source: WeightSource) -> PackedWeight | None:
    """The codes of a module's weight, whose `shape` is (out, in); None if it is stored in floats."""
    out, columns = shape
    if source.has(module, "codes"):
        codes, scales = source.read(module, "codes"), source.read(module, "scales")
        prefix = "head_" if module == "lm_head" else ""
        bits, block = (int(source.config.packed[f"{prefix}{key}"]) for key in ("bits", "block"))
        padded = -(-columns // block) * block
        _check(f"{module}.codes", codes, (out, padded * bits // 8))
        _check(f"{module}.scales", scales, (out, padded // block))
        return PackedWeight(codes, scales, bits, block, shape)
    if not source.has(module, "weight_scale"):
        return None
    weight, scale = source.read(module, "weight"), source.read(module, "weight_scale")
    bits = source.bits
    if bits not in (4, 8):
        raise UserError(
            "the weights are quantised, but config.json says quantization_bit = {bits}; it is 4 or 8",
            bits=bits,
        )
    _check(f"{module}.weight", weight, (out, -(-columns * bits // 8)))
    _check(f"{module}.weight_scale", scale, (out,))
    return from_published(weight, scale, bits=bits, columns=columns)


def _check(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise UserError(
            "{name} has the shape {found}, but config.json makes it {expected}; the two belong to "
            "different models",
            name=name, found=tuple(tensor.shape), expected=shape,
        )  # fmt: skip
    if tensor.is_floating_point() and not all(value.isfinite() for value in tensor.aminmax()):
        raise UserError(
            "{name} holds NaN or infinite numbers; the checkpoint is damaged, download it again", name=name
        )
