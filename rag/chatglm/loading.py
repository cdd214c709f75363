"""A model's directory -> the model: module by module, so that no more than one is held twice."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from ingest.errors import UserError
from rag.chatglm.checkpoint import Checkpoint
from rag.chatglm.configuration import generation_of
from rag.chatglm.quantize import (
    DequantizedLinear,
    Packed,
    PackedEmbedding,
    from_published,
    quantize,
)
from rag.chatglm.weights import IGNORED, Rows, is_upstream, to_upstream, upstream_of

Quant = Literal["none", "int4", "int8", "nf4"]
Progress = Callable[[float], None]
Piece = dict[str, Tensor | Packed]
HEAD_BITS = 8  # of lm_head, in a model quantised here: it decides between words directly


def load(
    directory: Path,
    *,
    quant: Quant | None = None,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> PreTrainedModel:
    """The model in evaluation mode. `quant` None keeps what is stored.

    `int4` and `int8` compute from codes, made here unless they are stored; on CUDA `int8` and `nf4`
    of float checkpoints are bitsandbytes'. `none` computes in floats, without rounding activations,
    also from stored codes. `dtype` is that of everything else: float32 on CPU, else the
    checkpoint's. `progress` is told the share done, 0 to 1. `UserError` where the directory is
    incomplete, damaged, of another family, or holds other codes than asked for.
    """
    config = read_config(directory)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.float32 if device == "cpu" else config.dtype or torch.float16)
    source = Source.open(directory, config)
    stored = source.bits
    if stored and quant not in (None, "none", f"int{stored}"):
        raise UserError(
            f"{directory} holds int{stored} weights, which can't be made {quant}; leave --quant "
            f"out, or name the directory of the float16 model",
            zh=f"{directory} 存有 int{stored} 权重，无法转为 {quant}；请去掉 --quant，或指定 float16 模型目录",
        )
    if not stored and (quant == "nf4" or (quant == "int8" and device != "cpu")):
        return _bitsandbytes(directory, config, quant, dtype, device)
    bits = {"int4": 4, "int8": 8}.get(quant or "", None) if not stored else None
    packed = device == "cpu" and (bits or (stored and quant != "none"))
    model = empty(config)
    fill_in(model, pieces(model, source, bits), dtype=dtype, packed=bool(packed), progress=progress)
    return _finish(model, directory, dtype).to(device)  # type: ignore[arg-type]  (a stub of torch's)


def read_config(directory: Path) -> PreTrainedConfig:
    """The config.json as a config object; `UserError` where it is missing, broken or unknown."""
    if not (directory / "config.json").is_file():
        raise UserError(
            f"{directory} holds no model: config.json is missing",
            zh=f"{directory} 中没有模型：缺少 config.json",
        )
    try:
        config = AutoConfig.from_pretrained(directory)
    except (OSError, ValueError, TypeError, KeyError) as error:
        why = str(error).splitlines()[0]
        raise UserError(
            f"{directory}/config.json cannot be read: {why}",
            zh=f"无法读取 {directory}/config.json：{why}",
        ) from None
    generation_of(config)
    return config


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
                f"the checkpoint lacks {name}; it is incomplete, or config.json is another model's",
                zh=f"权重中缺少 {name}；文件不完整，或 config.json 属于另一个模型",
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


def empty(config: PreTrainedConfig) -> PreTrainedModel:
    """The model without weights: its parameters have shapes but no memory."""
    with init_empty_weights():
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)


def pieces(model: PreTrainedModel, source: Source, bits: int | None) -> Iterator[tuple[str, Piece]]:
    """Module by module what it holds: tensors, and codes of linear layers if `bits` or if stored.

    `UserError` for a tensor that is missing, left over, of another shape or not finite.
    """
    modules = {
        path: module
        for path, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    }
    left = source.unused(set(modules))
    if left:
        raise UserError(
            f"the checkpoint holds {left[0]} ({len(left)} such), which a model of its config.json "
            "has no place for; it is of another family",
            zh=f"权重中有 {left[0]}（共 {len(left)} 个），config.json 所述模型没有对应参数；"
            "该权重属于另一类模型",
        )
    for path, module in modules.items():
        origin, head_bits = path, _bits_of(path, module, bits)
        if path == "lm_head" and source.config.tie_word_embeddings:
            origin = _path_of(model.get_input_embeddings(), modules)
            if not (head_bits or source.has(origin, "codes") or source.has(origin, "weight_scale")):
                continue
        yield path, _piece(module, origin, source, head_bits)


def fill_in(
    model: PreTrainedModel,
    parts: Iterator[tuple[str, Piece]],
    *,
    dtype: torch.dtype,
    packed: bool,
    progress: Progress | None = None,
) -> None:
    """Give the modules their tensors as `dtype`; linear layers of codes become `PackedLinear`,
    or `DequantizedLinear` where not `packed`."""
    total = sum(parameter.numel() for parameter in model.parameters())
    done = 0
    for path, piece in parts:
        module = model.get_submodule(path)
        done += sum(parameter.numel() for parameter in module.parameters(recurse=False))
        weight = piece.get("weight")
        if isinstance(weight, Packed):
            bias = piece.get("bias")
            new = _of_codes(module, weight, bias, dtype=dtype, packed=packed)
            model.set_submodule(path, new)
        elif isinstance(module, nn.Embedding) and packed:
            model.set_submodule(path, StoredEmbedding(weight, module.padding_idx, dtype))
        else:
            for kind, tensor in piece.items():
                assert isinstance(tensor, Tensor)
                floating = tensor.is_floating_point()
                setattr(module, kind, nn.Parameter(tensor.to(dtype) if floating else tensor))
        if progress:
            progress(done / total)


class StoredEmbedding(nn.Embedding):
    """Rows are cast when they are looked up, so that the table may stay a mapped file."""

    def __init__(self, weight: Any, padding_idx: int | None, dtype: torch.dtype) -> None:
        super().__init__(*weight.shape, padding_idx=padding_idx, _weight=weight, _freeze=True)
        self.dtype = dtype

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).to(self.dtype)


class Native:
    """`from_pretrained` and `save_pretrained` of both layouts, for a `PreTrainedModel`."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any):
        """As transformers', also from upstream's directories; a float or stored-code checkpoint.

        Stored codes are computed with in floats; `load` has the fast kernels.
        """
        directory = Path(pretrained_model_name_or_path or "")
        if pretrained_model_name_or_path is None or not (directory / "config.json").is_file():
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)  # type: ignore[misc]
        config = kwargs.pop("config", None) or read_config(directory)
        source = Source.open(directory, config)
        if kwargs.get("quantization_config") or kwargs.get("device_map"):
            return _through_transformers(cls, source, kwargs)
        dtype = kwargs.get("dtype", kwargs.get("torch_dtype")) or "auto"
        dtype = (config.dtype or torch.float32) if dtype == "auto" else dtype
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        if kwargs.get("attn_implementation"):
            config._attn_implementation = kwargs["attn_implementation"]
        with init_empty_weights():
            model: Any = cls(config)  # type: ignore[call-arg]
        fill_in(model, pieces(model, source, None), dtype=dtype, packed=False)
        model = _finish(model, directory, dtype)
        return (model, {}) if kwargs.get("output_loading_info") else model

    def save_pretrained(
        self, save_directory: Any, *args: Any, upstream: bool = False, **kwargs: Any
    ):
        """As transformers'; `upstream` writes upstream's names, shapes and config keys."""
        model: Any = self
        if upstream and model.config.generation > 1:
            kwargs["state_dict"] = to_upstream(model.state_dict(), model.config)
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        if upstream:
            model.config.save_upstream(save_directory)


def _piece(module: nn.Module, origin: str, source: Source, bits: int | None) -> Piece:
    piece: Piece = {}
    for kind, parameter in module.named_parameters(recurse=False):
        shape = (parameter.shape[0], parameter.shape[-1])
        if kind == "weight" and source.has(origin, "codes"):
            piece[kind] = _stored(origin, shape, source)
        elif kind == "weight" and source.has(origin, "weight_scale"):
            piece[kind] = _published(origin, shape, source)
        else:
            tensor = source.read(origin, kind)
            _check(f"{origin}.{kind}", tensor, tuple(parameter.shape))
            piece[kind] = quantize(tensor, bits=bits) if bits and kind == "weight" else tensor
    return piece


def _stored(module: str, shape: tuple[int, int], source: Source) -> Packed:
    codes, scales = source.read(module, "codes"), source.read(module, "scales")
    block = int(source.config.packed["block"])
    padded = -(-shape[1] // block) * block
    bits = codes.shape[1] * 8 // padded
    _check(f"{module}.codes", codes, (shape[0], padded * bits // 8))
    _check(f"{module}.scales", scales, (shape[0], padded // block))
    return Packed(codes, scales, bits, block, shape)


def _published(module: str, shape: tuple[int, int], source: Source) -> Packed:
    weight, scale = source.read(module, "weight"), source.read(module, "weight_scale")
    bits = source.bits
    if bits not in (4, 8):
        raise UserError(
            f"the weights are quantised, but config.json says quantization_bit = {bits}; it is 4 or 8",
            zh=f"权重已量化，但 config.json 中 quantization_bit = {bits}；应为 4 或 8",
        )
    _check(f"{module}.weight", weight, (shape[0], -(-shape[1] * bits // 8)))
    _check(f"{module}.weight_scale", scale, shape[:1])
    return from_published(weight, scale, bits=bits, columns=shape[1])


def _check(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise UserError(
            f"{name} has the shape {tuple(tensor.shape)}, config.json makes it {shape}; the two "
            "belong to different models",
            zh=f"{name} 的形状为 {tuple(tensor.shape)}，而按 config.json 应为 {shape}；二者不属于同一模型",
        )
    if tensor.is_floating_point() and not all(value.isfinite() for value in tensor.aminmax()):
        raise UserError(
            f"{name} holds NaN or infinite numbers; the checkpoint is damaged, get it again",
            zh=f"{name} 中有 NaN 或无穷大；权重已损坏，请重新获取",
        )


def _path_of(module: nn.Module, modules: dict[str, nn.Module]) -> str:
    return next(path for path, candidate in modules.items() if candidate is module)


def _bits_of(path: str, module: nn.Module, bits: int | None) -> int | None:
    """How many bits a module is quantised to: the layers' linears and the head, nothing else."""
    if not isinstance(module, nn.Linear) or not bits:
        return None
    if path == "lm_head":
        return HEAD_BITS
    return bits if ".layers." in path else None


def _of_codes(
    module: nn.Module, weight: Packed, bias: Any, *, dtype: torch.dtype, packed: bool
) -> nn.Module:
    if isinstance(module, nn.Embedding):
        return PackedEmbedding(weight, dtype)
    bias = None if bias is None else bias.to(dtype)
    if not packed:
        return DequantizedLinear(weight, bias)
    from rag.chatglm.kernel import PackedLinear  # loads onnxruntime

    return PackedLinear(weight, bias)


def _finish(model: PreTrainedModel, directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    if model.config.tie_word_embeddings and isinstance(model.get_output_embeddings(), nn.Linear):
        model.tie_weights()
    model.config.dtype = dtype
    model.config._name_or_path = str(directory)
    if (directory / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(directory)
    return model.eval()


def _bitsandbytes(
    directory: Path, config: PreTrainedConfig, quant: str | None, dtype: torch.dtype, device: str
) -> PreTrainedModel:
    how = BitsAndBytesConfig(
        load_in_8bit=quant == "int8",
        load_in_4bit=quant == "nf4",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
    )
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    options = {"config": config, "dtype": dtype, "device_map": {"": device}}
    return kind.from_pretrained(directory, quantization_config=how, **options).eval()


def _through_transformers(kind: Any, source: Source, options: dict[str, Any]) -> Any:
    """transformers' own loading, over a table of this checkpoint's tensors by native names."""
    if source.bits:
        raise UserError(
            f"the checkpoint is int{source.bits} already; leave quantization_config and device_map out",
            zh=f"该权重已是 int{source.bits}；请去掉 quantization_config 与 device_map",
        )
    with init_empty_weights():
        model = kind(source.config)
    state = {
        f"{path}.{name}": tensor
        for path, piece in pieces(model, source, None)
        for name, tensor in piece.items()
    }
    for known in ("_from_auto", "adapter_kwargs", "trust_remote_code", "output_loading_info"):
        options.pop(known, None)
    return super(Native, kind).from_pretrained(
        None, config=source.config, state_dict=state, **options
    )
