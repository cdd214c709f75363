"""A model's directory -> the model: module by module, so that no more than one is held twice."""

import ctypes
import json
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
from rag.chatglm.configuration import generation_of, stored_dtype, upstream_config
from rag.chatglm.quantize import DequantizedLinear, Packed, PackedEmbedding
from rag.chatglm.weights import Piece, Source, pieces, to_upstream

Quant = Literal["none", "int4", "int8", "nf4"]
Progress = Callable[[float], None]
LAST = ("down_proj", "dense_4h_to_h")  # a layer's last linear
MAKERS = 2
"""Layers that ONNX Runtime puts in its own order at a time; each is held twice meanwhile."""
# What transformers reports of a loading; ours raises where there is anything to report.
NOTHING_LEFT = dict.fromkeys(
    ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"), ()
)


def load(
    directory: Path,
    *,
    quant: Quant | None = None,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    kernels: bool = True,
    progress: Progress | None = None,
) -> PreTrainedModel:
    """The model in evaluation mode. `quant` None keeps what is stored.

    `int4` and `int8` compute from codes, made here unless they are stored; on CUDA `int8` and `nf4`
    of float checkpoints are bitsandbytes'. `none` computes in floats, without rounding activations,
    also from stored codes. `dtype` is that of everything else: float32 on CPU, else the
    checkpoint's. Without `kernels` codes are made floats for each product, which training needs:
    its backward pass has the weight at hand, which a kernel computes slowly. `progress` is told the
    share done, 0 to 1. `UserError` where the directory is incomplete, damaged, of another family,
    or holds other codes than asked for.
    """
    config = read_config(directory)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.float32 if device == "cpu" else stored_dtype(config))
    source = Source.open(directory, config)
    stored = source.bits
    if stored and quant not in (None, "none", f"int{stored}"):
        raise UserError(
            "{directory} holds int{stored} weights, which can't be made {quant}; leave --quant "
            "out, or name the directory of the float16 model",
            directory=directory,
            stored=stored,
            quant=quant,
        )
    if not stored and (quant == "nf4" or (quant == "int8" and device != "cpu")):
        model = _bitsandbytes(directory, config, quant, dtype, device)
        _keep_order(model, kernels=kernels)
        return model
    bits = {"int4": 4, "int8": 8}.get(quant or "") if not stored else None
    packed = kernels and device == "cpu" and (bits or (stored and quant != "none"))
    # Published checkpoints leave the head in floats, the largest matrix of all.
    head = bits or (8 if packed else None)
    model = empty(config)
    parts = pieces(model, source, bits, head)
    fill_in(model, parts, dtype=dtype, packed=bool(packed), progress=progress)
    return _finish(model, directory, dtype).to(device)  # type: ignore[arg-type]  (a stub of torch's)


def read_config(directory: Path) -> PreTrainedConfig:
    """The config.json as a config object; `UserError` where it is missing, broken or unknown."""
    if not (directory / "config.json").is_file():
        raise UserError("{directory} holds no model: config.json is missing", directory=directory)
    try:
        config = AutoConfig.from_pretrained(directory)
    except (OSError, ValueError, TypeError, KeyError) as error:
        why = str(error).splitlines()[0]
        raise UserError(
            "{directory}/config.json cannot be read: {why}", directory=directory, why=why
        ) from None
    generation_of(config)
    return config


def empty(config: PreTrainedConfig) -> PreTrainedModel:
    """The model without weights: its parameters have shapes but no memory."""
    with init_empty_weights():
        return _class_of(config)(config)


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
    if packed:
        from rag.chatglm.quantize import one_pool

        one_pool()  # before threads ask for it
    total = sum(parameter.numel() for parameter in model.parameters())
    done = 0
    making: deque[tuple[str, Future[nn.Module]]] = deque()
    with ThreadPoolExecutor(MAKERS) as makers:
        for path, piece in parts:
            module, weight = model.get_submodule(path), piece.get("weight")
            done += sum(parameter.numel() for parameter in module.parameters(recurse=False))
            if isinstance(weight, Packed):
                _tell_codes(model.config, path, weight)
                made = makers.submit(_of_codes, module, weight, piece.get("bias"), dtype, packed)
                making.append((path, made))
            elif isinstance(module, nn.Embedding) and packed:
                model.set_submodule(path, StoredEmbedding(weight, module.padding_idx, dtype))
            else:
                for kind, tensor in piece.items():
                    assert isinstance(tensor, Tensor)
                    floating = tensor.is_floating_point()
                    setattr(module, kind, nn.Parameter(tensor.to(dtype) if floating else tensor))
            if len(making) > MAKERS:
                path, made = making.popleft()
                model.set_submodule(path, made.result())
                if packed and path.endswith(LAST):
                    _give_back()
            if progress:
                progress(done / total)
        for path, made in making:
            model.set_submodule(path, made.result())


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
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As transformers', also from upstream's directories; a float or stored-code checkpoint.

        Stored codes are computed with in floats; `load` has the fast kernels.
        """
        directory = Path(pretrained_model_name_or_path or "")
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *args, **kwargs)  # type: ignore[misc]
        if not directory.is_dir():
            raise UserError(
                "there is no folder {directory}; fetch the model first (rag.chatglm.hub.fetch), and "
                "give its folder",
                directory=directory,
            )
        config = kwargs.pop("config", None) or read_config(directory)
        source = Source.open(directory, config)
        if kwargs.get("quantization_config") or kwargs.get("device_map"):
            return _through_transformers(cls, source, kwargs)
        dtype = kwargs.get("dtype", kwargs.get("torch_dtype")) or "auto"
        dtype = stored_dtype(config) if dtype == "auto" else dtype
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        if kwargs.get("attn_implementation"):
            config._attn_implementation = kwargs["attn_implementation"]
        with init_empty_weights():
            model: Any = cls(config)  # type: ignore[call-arg]
        fill_in(model, pieces(model, source, None, None), dtype=dtype, packed=False)
        model = _finish(model, directory, dtype)
        return (model, dict(NOTHING_LEFT)) if kwargs.get("output_loading_info") else model

    def save_pretrained(
        self, save_directory: Any, *args: Any, upstream: bool = False, **kwargs: Any
    ):
        """As transformers'; `upstream` writes upstream's names, shapes and config keys."""
        model: Any = self
        if upstream and model.config.packed:
            raise UserError(
                "upstream's layout has no place for blocks of codes; save without upstream"
            )
        if upstream and model.config.generation > 1:
            kwargs["state_dict"] = to_upstream(model.state_dict(), model.config)
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        if upstream:
            text = json.dumps(upstream_config(model.config), indent=2, default=str)
            (Path(save_directory) / "config.json").write_text(text, "utf-8")


def _class_of(config: PreTrainedConfig) -> Any:
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def _give_back() -> None:
    """Return to the system what malloc keeps of freed buffers: a quarter of what loading holds.

    (Where malloc is glibc's; others return it themselves.)
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def _tell_codes(config: PreTrainedConfig, path: str, weight: Packed) -> None:
    """Let the config say how its weights are stored, as `save_pretrained` will write it."""
    of = "head_" if path == "lm_head" else ""
    codes = {f"{of}bits": weight.bits, f"{of}block": weight.block}
    config.packed = (getattr(config, "packed", None) or {}) | codes


def _of_codes(
    module: nn.Module, weight: Packed, bias: Any, dtype: torch.dtype, packed: bool
) -> nn.Module:
    if isinstance(module, nn.Embedding):
        return PackedEmbedding(weight, dtype)
    bias = None if bias is None else bias.to(dtype)
    if not packed:
        return DequantizedLinear(weight, bias)
    from rag.chatglm.quantize import PackedLinear  # loads onnxruntime

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
    options = {"config": config, "dtype": dtype, "device_map": {"": device}}
    return _class_of(config).from_pretrained(directory, quantization_config=how, **options).eval()


def _keep_order(model: PreTrainedModel, *, kernels: bool) -> None:
    """Let bitsandbytes leave its codes in order, where it would fail or compute wrongly otherwise.

    On CPUs with AVX512-BF16 a 4-bit layer reorders them when it first answers, for a kernel that
    takes 32 rows and 64 columns at a time, and its backward pass reads them as if they had stayed.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            linear: Any = module
            whole = linear.out_features % 32 == 0 and linear.in_features % 64 == 0
            linear.support_avx512bf16_for_cpu &= kernels and whole


def _through_transformers(kind: Any, source: Source, options: dict[str, Any]) -> Any:
    """transformers' own loading, over a table of this checkpoint's tensors by native names."""
    if source.bits:
        raise UserError(
            "the checkpoint is int{bits} already; leave quantization_config and device_map out",
            bits=source.bits,
        )
    with init_empty_weights():
        model = kind(source.config)
    state = {
        f"{path}.{name}": tensor
        for path, piece in pieces(model, source, None, None)
        for name, tensor in piece.items()
    }
    for known in ("_from_auto", "adapter_kwargs", "trust_remote_code", "output_loading_info"):
        options.pop(known, None)
    parent: Any = super(Native, kind)
    return parent.from_pretrained(None, config=source.config, state_dict=state, **options)
