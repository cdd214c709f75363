"""A model's directory -> the model, or a directory with packed codes, which loads in seconds.

Both go module by module, so that at most one is held twice."""

import ctypes
import json
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from ingest.errors import UserError
from ingest.store.atomic import new_folder
from rag.chatglm import quantize
from rag.chatglm.configuration import Quant, generation_of, read_object, stored_dtype, tokenizer_generation
from rag.chatglm.weights import Piece, WeightSource, pieces

LAST = ("down_proj", "dense_4h_to_h")  # a layer's last linear
THREADS = 2  # layers that ONNX Runtime reorders at the same time; each is held twice meanwhile
# What transformers reports of loading; all of it is empty here, since ours raises instead.
REPORT = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


def load(
    directory: Path,
    *,
    quant: Quant | None = None,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    kernels: bool = True,
    progress: Callable[[float], None] | None = None,
) -> PreTrainedModel:
    """The model in evaluation mode. If `quant` is None, weights stay as they are stored.

    `int4` and `int8` compute with codes, which are made here unless they are stored; on CUDA, `int8`
    and `nf4` of float checkpoints are bitsandbytes'. `none` computes in floats, without rounding
    activations, also from stored codes. `dtype` is that of everything else: float32 on the CPU,
    otherwise the checkpoint's. Without `kernels`, codes become floats for each product, which
    training needs: its backward pass takes the weight, which a kernel computes slowly. `progress`
    takes the share that is loaded, 0 to 1. Raises `UserError` if the directory is incomplete,
    damaged, of another family, or holds codes of other bits."""
    config = read_model_config(directory)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.float32 if device == "cpu" else stored_dtype(config))
    source = WeightSource.open(directory, config)
    stored = source.bits
    if stored and quant not in (None, "none", f"int{stored}"):
        raise UserError(
            "{directory} holds int{stored} weights, which can't be converted to {quant}; leave "
            "--quant out, or give the folder of the float16 model",
            directory=directory, stored=stored, quant=quant,
        )  # fmt: skip
    if not stored and (quant == "nf4" or (quant == "int8" and device != "cpu")):
        options = {"config": config, "dtype": dtype, "device_map": {"": device}}
        return _bitsandbytes(directory, quant == "int8", kernels, **options)
    bits = {"int4": 4, "int8": 8}.get(quant or "") if not stored else None
    packed = kernels and device == "cpu" and (bits or (stored and quant != "none"))
    # Published checkpoints leave the head in floats, the largest matrix of all.
    head = bits or (8 if packed else None)
    model = empty(config)
    fill_in(model, pieces(model, source, bits, head, progress), dtype=dtype, packed=bool(packed))
    return _finish(model, directory, dtype).to(device)  # type: ignore[arg-type]  (a stub of torch's)


def read_model_config(directory: Path) -> PreTrainedConfig:
    """The config.json as a config object; raises `UserError` if it is missing, broken or unknown."""
    if not (directory / "config.json").is_file():
        raise UserError("{directory} holds no model: config.json is missing", directory=directory)
    data = read_object(directory / "config.json")
    try:
        config = AutoConfig.from_pretrained(directory)
    except (OSError, ValueError, TypeError, KeyError) as error:
        why = str(error).splitlines()[0]
        raise UserError(
            "{directory}/config.json cannot be read: {why}", directory=directory, why=why
        ) from None
    generation, path = generation_of(config), directory / "tokenizer_config.json"
    if generation in (2, 3) and not data.get("generation") and path.is_file():
        other = tokenizer_generation(read_object(path))
        if other not in (None, generation):
            raise UserError(
                "{directory}: config.json is of ChatGLM{generation}, but tokenizer_config.json of "
                'ChatGLM{other}; add "generation": {generation} or {other} to config.json',
                directory=directory, generation=generation, other=other,
            )  # fmt: skip
    return config


def empty(config: PreTrainedConfig) -> PreTrainedModel:
    """The model without weights: its parameters have shapes but no memory."""
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with init_empty_weights():
        return kind(config)


def fill_in(
    model: PreTrainedModel, parts: Iterator[tuple[str, Piece]], *, dtype: torch.dtype, packed: bool
) -> None:
    """Give the modules their tensors as `dtype`. `packed` layers of codes compute with the codes."""

    def of_codes(module: nn.Module, weight: quantize.PackedWeight, bias: Any) -> nn.Module:
        if isinstance(module, nn.Embedding):
            return quantize.PackedEmbedding(weight, dtype)
        kind = quantize.PackedLinear if packed else quantize.DequantizedLinear
        return kind(weight, None if bias is None else bias.to(dtype))

    if packed:
        quantize.one_pool()  # before threads need it
    pending: deque[tuple[str, Future[nn.Module]]] = deque()
    with ThreadPoolExecutor(THREADS) as threads:
        for path, piece in parts:
            module, weight = model.get_submodule(path), piece.get("weight")
            if isinstance(weight, quantize.PackedWeight):
                prefix = "head_" if path == "lm_head" else ""  # as `save_pretrained` will write it
                codes = {f"{prefix}bits": weight.bits, f"{prefix}block": weight.block}
                model.config.packed = (getattr(model.config, "packed", None) or {}) | codes
                layer = threads.submit(of_codes, module, weight, piece.get("bias"))
                pending.append((path, layer))
            elif isinstance(module, nn.Embedding) and packed:
                model.set_submodule(path, StoredEmbedding(weight, module.padding_idx, dtype))
            else:
                for kind, tensor in piece.items():
                    assert isinstance(tensor, Tensor)
                    floating = tensor.is_floating_point()
                    setattr(module, kind, nn.Parameter(tensor.to(dtype) if floating else tensor))
            if len(pending) > THREADS:
                path, layer = pending.popleft()
                model.set_submodule(path, layer.result())
                if packed and path.endswith(LAST):
                    _trim_heap()
        for path, layer in pending:
            model.set_submodule(path, layer.result())


class StoredEmbedding(nn.Embedding):
    """Casts rows when they are looked up, so that the table may stay a mapped file."""

    def __init__(self, weight: Any, padding_idx: int | None, dtype: torch.dtype) -> None:
        super().__init__(*weight.shape, padding_idx=padding_idx, _weight=weight, _freeze=True)
        self.dtype = dtype

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).to(self.dtype)


class Native:
    """`from_pretrained` and `save_pretrained` in both layouts, for a `PreTrainedModel`."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As transformers', also from upstream's directories. Stored codes become floats for each
        product; `load` has the fast kernels."""
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *args, **kwargs)  # type: ignore[misc]
        directory = Path(pretrained_model_name_or_path)
        if not directory.is_dir():
            raise UserError(
                "there is no folder {directory}; fetch the model first (rag.chatglm.hub.fetch), and "
                "give its folder",
                directory=directory,
            )
        config = kwargs.pop("config", None) or read_model_config(directory)
        source = WeightSource.open(directory, config)
        if kwargs.get("quantization_config") or kwargs.get("device_map"):
            return _through_transformers(cls, source, kwargs)
        dtype = kwargs.get("dtype", kwargs.get("torch_dtype")) or "auto"
        dtype = stored_dtype(config) if dtype == "auto" else dtype
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        if kwargs.get("attn_implementation"):
            config._attn_implementation = kwargs["attn_implementation"]
        with init_empty_weights():
            model: Any = cls(config)  # type: ignore[call-arg]
        fill_in(model, pieces(model, source), dtype=dtype, packed=False)
        model = _finish(model, directory, dtype)
        return (model, dict.fromkeys(REPORT, ())) if kwargs.get("output_loading_info") else model


def _trim_heap() -> None:
    """Return freed buffers that glibc's malloc keeps to the system: a quarter of what loading holds."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def _finish(model: PreTrainedModel, directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    if model.config.tie_word_embeddings and isinstance(model.get_output_embeddings(), nn.Linear):
        model.tie_weights()
    model.config.dtype = dtype
    model.config._name_or_path = str(directory)
    if (path := directory / "generation_config.json").is_file():
        read_object(path)
        model.generation_config = GenerationConfig.from_pretrained(directory)
    return model.eval()


def _bitsandbytes(directory: Path, int8: bool, kernels: bool, **options: Any) -> PreTrainedModel:
    from transformers import BitsAndBytesConfig

    nf4: Any = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": options["dtype"]}
    quantization = BitsAndBytesConfig(load_in_8bit=int8, load_in_4bit=not int8, **nf4)
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(options["config"])]
    model = kind.from_pretrained(directory, quantization_config=quantization, **options).eval()
    # On CPUs with AVX512-BF16, a 4-bit layer reorders its codes at its first call, for a kernel that
    # takes 32 rows and 64 columns at a time, but its backward pass reads them in the original order.
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            whole = module.out_features % 32 == 0 and module.in_features % 64 == 0
            module.support_avx512bf16_for_cpu &= kernels and whole
    return model


def _through_transformers(kind: Any, source: WeightSource, options: dict[str, Any]) -> Any:
    """transformers' own loading, of this checkpoint's tensors by native names."""
    if source.bits:
        raise UserError(
            "the checkpoint is int{bits} already; leave quantization_config and device_map out",
            bits=source.bits,
        )
    with init_empty_weights():
        model = kind(source.config)
    state: dict[str, Any] = {}
    for path, piece in pieces(model, source):
        state |= {f"{path}.{name}": tensor for name, tensor in piece.items()}
    for option in ("_from_auto", "adapter_kwargs", "trust_remote_code", "output_loading_info"):
        options.pop(option, None)
    parent: Any = super(Native, kind)
    return parent.from_pretrained(None, config=source.config, state_dict=state, **options)


SHARD = 1 << 30  # bytes after which the next shard begins; about this much is held in memory
SIDE_FILES = (
    "*.model", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab*",
    "merges.txt", "chat_template*", "generation_config.json", "*LICENSE*", "NOTICE*",
)  # fmt: skip
"""Files that are copied beside the weights: the tokenizer's, and the terms of use."""


def copy_side_files(directory: Path, work: Path, patterns: Sequence[str] = SIDE_FILES) -> None:
    for path in sorted({path for pattern in patterns for path in directory.glob(pattern)}):
        shutil.copyfile(path, work / path.name)


class Shards:
    """Tensors one by one -> safetensors files of about `SHARD` bytes, and their index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._buffer: dict[str, Tensor] = {}
        self._shards: list[list[str]] = []  # the names of their tensors
        self._size = 0

    def add(self, name: str, tensor: Tensor) -> None:
        self._buffer[name] = tensor.contiguous()
        self._size += tensor.nbytes
        if sum(value.nbytes for value in self._buffer.values()) >= SHARD:
            self._flush()

    def close(self) -> None:
        """Give the files their names, which hold their number, and write the index."""
        if self._buffer:
            self._flush()
        files: dict[str, str] = {}
        for number, names in enumerate(self._shards, 1):
            file = f"model-{number:05}-of-{len(self._shards):05}.safetensors"
            (self.folder / f"{number}").rename(self.folder / file)
            files |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self._size}, "weight_map": files}
        path = self.folder / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2), "utf-8")
        for file in set(files.values()):  # safetensors makes them private
            shutil.copymode(path, self.folder / file)

    def _flush(self) -> None:
        self._shards.append(list(self._buffer))
        save_file(self._buffer, self.folder / f"{len(self._shards)}", metadata={"format": "pt"})
        self._buffer = {}


def save_quantized(
    directory: Path, target: Path, *, bits: int, progress: Callable[[float], None] | None = None
) -> None:
    """Write `directory`'s model to the new folder `target`, linear layers as codes of 4 or 8 `bits`.

    Codes published upstream are kept exactly if they have these bits. The folder gets its name when
    it is complete. `progress` takes the share written, 0 to 1. Raises `UserError` if the folder
    exists, the disk is too small, or the source is not a model."""
    config = read_model_config(directory)
    source = WeightSource.open(directory, config)
    if source.bits not in (None, bits):
        raise UserError(
            "{directory} holds int{stored} weights, which can't be converted to int{bits}; give "
            "--bits {stored}, or the folder of the float16 model",
            directory=directory, stored=source.bits, bits=bits,
        )  # fmt: skip
    linears, head = (bits, bits) if source.bits is None else (None, 8)
    with new_folder(target) as work:
        model, shards = empty(config), Shards(work)
        for path, piece in pieces(model, source, linears, head, progress):
            for kind, value in piece.items():
                if isinstance(value, quantize.PackedWeight):
                    shards.add(f"{path}.codes", value.codes)
                    shards.add(f"{path}.scales", value.scales)
                else:
                    shards.add(f"{path}.{kind}", value)
        shards.close()
        config.packed = {
            "bits": bits,
            "block": quantize.BLOCK,
            "head_bits": head,
            "head_block": quantize.HEAD_BLOCK,
        }
        config.quantization_bit, config.quantization_embeddings = None, False
        config.architectures = [type(model).__name__]
        config.save_pretrained(work)
        copy_side_files(directory, work)
