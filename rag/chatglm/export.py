"""ChatGLM2, ChatGLM3 and GLM-4-9B-chat in transformers' own `glm` layout, for engines without our code.

Tensors are written one by one and codes become floats. What was written is read back and must answer
a probe as the source does, before it has its name.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationConfig, Glm4Config, GlmConfig, PreTrainedConfig

from ingest.errors import UserError
from ingest.i18n import Translatable
from ingest.store.atomic import new_folder
from rag.chatglm.adapter import check_base, part_of, probe, probe_logits
from rag.chatglm.adapter_files import Adapter, Contract, read_adapter
from rag.chatglm.chat import FORMATS, context_of
from rag.chatglm.configuration import ChatGLM2Config, generation_of, stored_dtype
from rag.chatglm.export_tokenizer import write_tokenizer
from rag.chatglm.loading import empty, read_config
from rag.chatglm.lora import Factors, merged, placed
from rag.chatglm.quantize import Packed, dequantize
from rag.chatglm.save import Shards
from rag.chatglm.tokenization import open_tokenizer
from rag.chatglm.weights import Source, codes_of, pieces


class Merging:
    """Weights as the adapter changes them, and how much rounding took from them."""

    def __init__(self, parts: dict[str, Factors], dtype: torch.dtype | None) -> None:
        self.parts, self.dtype = parts, dtype
        self.used: torch.dtype = torch.float32
        """Of the weight merged last."""
        self.missed = self.total = 0.0

    @property
    def rounding(self) -> float:
        return (self.missed / self.total) ** 0.5 if self.total else 0.0

    def __call__(self, path: str, piece: dict[str, Any]) -> dict[str, Tensor]:
        """A module's tensors, changed where the adapter changes them, in the precision wanted."""
        part = self.parts.get(path)
        if part is None:
            return {kind: self._rounded(path, tensor, tensor) for kind, tensor in piece.items()}
        exact = merged(piece["weight"], part)
        weight = self._rounded(path, exact, piece["weight"])
        self.used = weight.dtype
        self.missed += float((weight.float() - exact).square().sum())
        self.total += float(exact.square().sum())
        made = {"weight": weight}
        if "bias" in piece:
            bias = piece["bias"].float() + (0 if part.bias is None else part.bias)
            made["bias"] = self._rounded(path, bias, piece["bias"])
        elif part.bias is not None:
            raise UserError(
                "the adapter adds a bias to {path}, which has none in this model: the merged model "
                "has no place for it; use the adapter beside the model",
                path=path,
            )
        return made

    def _rounded(self, path: str, tensor: Tensor, stored: Tensor) -> Tensor:
        rounded = tensor.to(self.dtype or stored.dtype)
        if rounded is not stored and not all(value.isfinite() for value in rounded.aminmax()):
            name = spelled(rounded.dtype)
            raise UserError(
                "{path}: a weight of {max:.3g} is too large for {name}; say --dtype bfloat16 or "
                "--dtype float32",
                path=path,
                max=float(tensor.abs().max()),
                name=name,
            )
        return rounded


def spelled(dtype: torch.dtype) -> str:
    """`float16` and the like, as it is said on the command line."""
    return str(dtype).removeprefix("torch.")


TOKENS = 32
"""Of the prompt that is compared."""
BANDS = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""The largest `error` of weights of each precision."""
ROWS = 1024
"""Of a weight that are held in float32 at a time."""


class ReadLinear(nn.Module):
    """A linear layer whose float32 weight is read anew each time."""

    def __init__(self, linear: nn.Linear, source: Source, path: str, origin: str) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.source, self.origin = source, origin
        bias = None if linear.bias is None else source.read(path, "bias").float()
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """[out, in]"""
        return torch.cat(list(self._rows()))

    def forward(self, x: Tensor) -> Tensor:
        """As nn.Linear; some rows of the weight at a time, so that no matrix is held in float32."""
        made = torch.cat([functional.linear(x, rows) for rows in self._rows()], dim=-1)
        return made if self.bias is None else made + self.bias

    def _rows(self) -> Iterator[Tensor]:
        """The weight in float32, some rows at a time."""
        shape = (self.out_features, self.in_features)
        held = codes_of(self.origin, shape, self.source)
        if held is None:
            for rows in self.source.read(self.origin, "weight").split(ROWS):
                yield rows.float()
            return
        for codes, scales in zip(held.codes.split(ROWS), held.scales.split(ROWS), strict=True):
            shape = (len(codes), self.in_features)
            yield dequantize(Packed(codes, scales, held.bits, held.block, shape))


class ReadEmbedding(nn.Module):
    """An embedding of which the rows looked up are read."""

    def __init__(self, source: Source, path: str) -> None:
        super().__init__()
        self.source, self.path = source, path

    def forward(self, ids: Tensor) -> Tensor:
        return self.source.read(self.path, "weight")[ids].float()


def read_model(directory: Path) -> Any:
    """The model in float32 on the CPU, of which little is held at a time.

    Linear layers may be stored as codes, embeddings may not.
    """
    config = read_config(directory)
    source = Source.open(directory, config)
    model = empty(config).eval()
    words = model.get_input_embeddings()
    embedding = next(path for path, module in model.named_modules() if module is words)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Embedding):
            model.set_submodule(path, ReadEmbedding(source, path))
        elif isinstance(module, nn.Linear):
            tied = path == "lm_head" and config.tie_word_embeddings
            model.set_submodule(path, ReadLinear(module, source, path, embedding if tied else path))
        else:
            for kind, _ in list(module.named_parameters(recurse=False)):
                value = source.read(path, kind).float()
                setattr(module, kind, nn.Parameter(value, requires_grad=False))
    return model


def error(logits: Tensor, wanted: Tensor) -> float:
    """The norm of what they are off, over that of what they should be; infinite where not finite."""
    if not logits.isfinite().all():
        return torch.inf
    return float((logits - wanted).norm() / wanted.norm())


@dataclass(frozen=True, slots=True)
class Parity:
    """How far a probe's logits are from those that they should be; norms over all positions."""

    error: float
    """Over the norm of the logits: `error`."""
    lost: float
    """Over the norm of what the adapter changes."""

    @classmethod
    def of(cls, logits: Tensor, wanted: Tensor, before: Tensor) -> "Parity":
        """`before` is without the adapter. Logits that are not finite are infinitely far."""
        off = error(logits, wanted)
        return cls(off, off * float(wanted.norm() / (wanted - before).norm()))


# What `glm` takes as it is here; the rest of its config.json is said in `_glm_config`.
SAME = (
    "attention_bias", "attention_dropout", "head_dim", "hidden_act", "hidden_size",
    "initializer_range", "intermediate_size", "num_attention_heads", "num_hidden_layers",
    "num_key_value_heads", "pad_token_id", "rms_norm_eps", "rope_parameters",
    "tie_word_embeddings", "use_cache", "vocab_size",
)  # fmt: skip
TERMS = ("*LICENSE*", "NOTICE*")
BESIDE = 64 << 20
"""Bytes that all files beside the weights take at most."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What came of an export."""

    generation: int
    dtype: torch.dtype
    error: float
    """What a probe's logits are off, over their norm."""
    layers: int
    """Linear layers that the adapter changed."""
    contract: Contract | None
    """The adapter's. Its stop ids are in generation_config.json; its template a folder can't say."""
    notes: tuple[str, ...] = ()
    """What was assumed of the adapter, to be told to the user."""


def export(
    directory: Path,
    target: Path,
    *,
    adapter: Path | None = None,
    dtype: torch.dtype | None = None,
    alpha: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> Exported:
    """Write `directory`'s model, with the LoRA `adapter` in it, to the new folder `target`.

    `dtype` is that of all weights, None what config.json says. `alpha` is `read_adapter`'s.
    `progress` is told the share written, 0 to 1. `UserError` where the model has no such form or
    has it already, the disk is too small, the adapter does not fit, or what was written answers a
    probe otherwise; then nothing is left.
    """
    config = read_config(directory)
    check_exportable(directory, config)
    source = Source.open(directory, config)
    generation = generation_of(config)
    tokenizer = open_tokenizer(directory)
    _check_words(directory, config, tokenizer)
    read = read_adapter(adapter, alpha=alpha) if adapter else None
    if read and read.kind == "prefix":
        raise UserError(
            "{adapter} is a P-Tuning prefix, which other engines have no place for; use it "
            "beside the model, in rag ask and rag serve",
            adapter=adapter,
        )
    dtype = dtype or stored_dtype(config)
    model = empty(config)
    _check_room(target, model, dtype)
    with new_folder(target) as work:
        stops = FORMATS[generation].stop_ids(tokenizer)
        _write_configs(config, stops + (read.contract.stop_ids if read else ()), dtype, work)
        write_tokenizer(tokenizer, generation, context_of(config), work)
        for path in (path for pattern in TERMS for path in directory.glob(pattern)):
            shutil.copyfile(path, work / path.name)
        _, wanted = answers(directory, read)
        lora = read and read.config
        parts = dict(placed(model, read.modules, lora)) if read and lora else {}
        shards = Shards(work)
        for name, tensor in _tensors(source, model, Merging(parts, dtype), progress):
            shards.add(name, tensor)
        shards.close()
        off = error(probe_logits(read_model(work), TOKENS), wanted)
        _check_answers(off, dtype)
    contract, notes = (read.contract, read.notes) if read else (None, ())
    return Exported(generation, dtype, off, len(parts), contract, notes)


def check_exportable(directory: Path, config: PreTrainedConfig) -> None:
    """`UserError` where the model has no `glm` form, or has it already."""
    if isinstance(config, ChatGLM2Config):
        return
    if isinstance(config, (GlmConfig, Glm4Config)):
        raise UserError(
            "{directory} is in transformers' own layout already; give it to the engine as it is "
            "(an adapter becomes part of it by: rag finetune merge)",
            directory=directory,
        )
    raise UserError(
        "{directory} is ChatGLM-6B, an architecture that neither transformers nor vLLM has; "
        "serve it with: rag serve --model {directory} (its /v1 answers from your knowledge "
        "bases)",
        directory=directory,
    )


def _check_words(directory: Path, config: PreTrainedConfig, tokenizer: Any) -> None:
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            "{directory}: its tokenizer has {tokenizer_count} words, but its config.json makes "
            "{vocab_size} rows of the embedding; the two belong to different models",
            directory=directory,
            tokenizer_count=len(tokenizer),
            vocab_size=config.vocab_size,
        )


def _check_room(target: Path, model: Any, dtype: torch.dtype) -> None:
    """`UserError` where the disk has no room for all that will be written."""
    needed = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize + BESIDE
    there = next(folder for folder in target.resolve().parents if folder.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            "{there} has {free:.1f} GB left and {name} takes {needed:.1f} GB; make room, or name "
            "a folder on another disk",
            there=there,
            free=free / 1e9,
            name=target.name,
            needed=needed / 1e9,
        )


def answers(directory: Path, adapter: Adapter | None) -> tuple[Tensor, Tensor]:
    """The probe's logits [1, S, V] of the model, and with the adapter on it (None: the same again);
    checked as for answering."""
    base = read_model(directory)
    if adapter is None:
        alone = probe_logits(base, TOKENS)
        return alone, alone
    check_base(adapter, base)
    return probe(base, part_of(base, adapter), adapter, TOKENS)


def _tensors(
    source: Source, model: Any, merging: Merging, progress: Callable[[float], None] | None
) -> Iterator[tuple[str, Tensor]]:
    """All that is written, by `glm`'s names, which are this model's."""
    total = sum(parameter.numel() for parameter in model.parameters())
    done = 0
    for path, piece in pieces(model, source, None, None):
        floats = {
            kind: dequantize(value) if isinstance(value, Packed) else value
            for kind, value in piece.items()
        }
        for kind, tensor in merging(path, floats).items():
            yield f"{path}.{kind}", tensor
        done += sum(value.numel() for value in model.get_submodule(path).parameters(recurse=False))
        if progress:
            progress(done / total)


def _write_configs(
    config: PreTrainedConfig, stops: tuple[int, ...], dtype: torch.dtype, work: Path
) -> None:
    """config.json and generation_config.json; also as transformers 4 and older engines read them."""
    made = GlmConfig(
        **{name: getattr(config, name) for name in SAME},
        architectures=["GlmForCausalLM"],
        dtype=dtype,
        eos_token_id=list(stops),
        max_position_embeddings=context_of(config),
    )
    made.save_pretrained(work)
    path = work / "config.json"
    rope: Any = config.rope_parameters
    # Only transformers 5 reads `rope_parameters`; elsewhere the 32k models and GLM-4 would turn by
    # the default base.
    old = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor")}
    data = json.loads(path.read_text("utf-8")) | old
    path.write_text(json.dumps(data, indent=2) + "\n", "utf-8")
    own = FORMATS[generation_of(config)]
    GenerationConfig(
        do_sample=True,
        temperature=own.temperature,
        top_p=own.top_p,
        eos_token_id=list(stops),
        pad_token_id=config.pad_token_id,
    ).save_pretrained(work)


def _check_answers(off: float, dtype: torch.dtype) -> None:
    band = BANDS.get(dtype, BANDS[torch.bfloat16])
    if off > band:
        out = "" if dtype == torch.float32 else Translatable("; say --dtype float32")
        raise UserError(
            "the exported model is not kept: its logits are {off:.1e} from the source's (allowed in "
            "{dtype}: {band:g}){out}",
            off=off,
            dtype=spelled(dtype),
            band=band,
            out=out,
        )
