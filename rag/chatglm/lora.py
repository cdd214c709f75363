"""LoRA's tensors -> what each linear layer of a model adds to its output.

An adapter may name upstream's modules or transformers' (`weights.py`): where upstream's one linear
is three here, they share A and have the rows of B in order. It is applied by forward hooks, so that
a base of any kind (float, packed, bitsandbytes) is left as it is.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ingest.errors import UserError
from rag.chatglm.weights import Rows, upstream_of

Names = str | tuple[str, ...]
"""A regular expression for whole module names, or ends of them."""

# Fields that change nothing once an adapter is trained, or whose default is not empty.
WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "lora_dropout", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "task_type",
}  # fmt: skip
USED = {
    "alpha_pattern", "exclude_modules", "layers_pattern", "layers_to_transform", "lora_alpha",
    "lora_bias", "r", "rank_pattern", "target_modules", "use_dora", "use_rslora",
}  # fmt: skip
# Initialisations that leave the base as it is; PiSSA, OLoRA and others change it.
PLAIN = (None, True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """What is kept of PEFT's class of this name. Module names are those the adapter was made on."""

    rank: int
    alpha: float
    targets: Names
    excluded: Names = ()
    layers: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    dora: bool = False
    bias: bool = False
    """Whether B has a bias (PEFT's `lora_bias`)."""
    base: str = ""
    """Where the base was, as the trainer wrote it."""

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "LoraConfig":
        """`UserError` names a field that is not supported."""
        _refuse(data)
        try:
            return cls._of(data)
        except (TypeError, ValueError, AttributeError) as error:
            raise _unsupported("r, lora_alpha or target_modules", str(error)) from None

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> "LoraConfig":
        layers = data.get("layers_to_transform")
        return cls(
            rank=int(data.get("r", 8)),
            alpha=float(data.get("lora_alpha", 8)),
            # PEFT's own default for a model of type "chatglm"
            targets=_names(data.get("target_modules") or ("query_key_value",)),
            excluded=_names(data.get("exclude_modules") or ()),
            layers=(layers,) if isinstance(layers, int) else tuple(layers) if layers else None,
            layers_pattern=_listed(data.get("layers_pattern") or ()),
            rank_pattern={str(k): int(v) for k, v in (data.get("rank_pattern") or {}).items()},
            alpha_pattern={str(k): float(v) for k, v in (data.get("alpha_pattern") or {}).items()},
            rslora=bool(data.get("use_rslora")),
            dora=bool(data.get("use_dora")),
            bias=bool(data.get("lora_bias")),
            base=str(data.get("base_model_name_or_path") or ""),
        )

    def rank_of(self, module: str) -> int:
        return _by_pattern(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """What BA is multiplied by: alpha / r, or alpha / sqrt(r) of rsLoRA."""
        rank = self.rank_of(module)
        return _by_pattern(self.alpha_pattern, module, self.alpha) / (
            math.sqrt(rank) if self.rslora else rank
        )

    def targets_module(self, module: str) -> bool:
        """Whether PEFT would adapt a linear module of this name (`check_target_module_exists`)."""
        if self.excluded and _matches(self.excluded, module):
            return False
        if self.targets == "all-linear":
            return not module.endswith(("lm_head", "output_layer"))
        if not _matches(self.targets, module):
            return False
        exact = isinstance(self.targets, str) or module in self.targets
        return exact or self.layers is None or self._layer_of(module) in self.layers

    def _layer_of(self, module: str) -> int | None:
        patterns = self.layers_pattern or (r"[^.]*",)
        found = (re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module) for pattern in patterns)
        return next((int(match[1]) for match in found if match), None)


def _refuse(data: Mapping[str, Any]) -> None:
    kind = data.get("peft_type", "LORA")
    if kind != "LORA":
        raise UserError(
            "adapter_config.json says peft_type {kind!r}; LORA is supported, and prefixes in "
            "upstream's P-Tuning layout (pytorch_model.bin with prefix_encoder)",
            kind=kind,
        )
    if data.get("bias", "none") != "none":
        raise _unsupported("bias", data["bias"])
    start = data.get("init_lora_weights")
    if start not in PLAIN:
        raise _unsupported("init_lora_weights (it changes the base's weights)", start)
    for name in sorted(set(data) - WITHOUT_EFFECT - USED):
        if data[name]:
            raise _unsupported(name, data[name])


def _unsupported(name: str, value: object) -> UserError:
    return UserError(
        "adapter_config.json: {name} = {value!r} is not supported; merge the adapter with "
        "PEFT and use the merged model instead",
        name=name,
        value=value,
    )


def _names(value: str | Iterable[str]) -> Names:
    return value if isinstance(value, str) else tuple(value)


def _listed(value: str | Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _matches(names: Names, module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that ends the name, as PEFT's `get_pattern_key`."""
    return next((v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", module)), default)


UPSTREAM = ("transformer.encoder.", "transformer.output_layer")
"""How upstream's names of ChatGLM2, ChatGLM3 and GLM-4 begin."""


@dataclass(frozen=True, slots=True)
class Factors:
    """The tensors of one module: W' = W + scale * BA; of DoRA, its rows scaled to `magnitude`."""

    a: Tensor
    """[rank, in]"""
    b: Tensor
    """[out, rank]"""
    bias: Tensor | None = None
    """[out]: B's own."""
    magnitude: Tensor | None = None
    """[out]: DoRA's."""

    def tensors(self) -> list[Tensor]:
        return [t for t in (self.a, self.b, self.bias, self.magnitude) if t is not None]


class Delta:
    """A linear layer's forward hook: adds what LoRA or DoRA adds to its output."""

    def __init__(self, a: Tensor, b: Tensor, bias: Tensor | None, gain: Tensor | None) -> None:
        self.a, self.b, self.bias = a, b, bias
        self.gain = gain
        """[out]: the factor that DoRA gives the base's rows; None for LoRA."""
        self.used = False
        """Whether the layer was called since."""

    def __call__(self, module: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        self.used = True
        x = inputs[0].to(self.a.dtype)
        added = functional.linear(functional.linear(x, self.a), self.b, self.bias)
        if self.gain is not None:
            bare = output if module.bias is None else output - module.bias.to(output.dtype)
            added = added + (self.gain - 1) * bare
        return output + added.to(output.dtype)


def deltas(
    model: Any, modules: Mapping[str, Factors], config: LoraConfig
) -> list[tuple[nn.Module, Delta]]:
    """The hook of each linear layer that the adapter changes; `UserError` as `placed`."""
    linears = ((model.get_submodule(name), part) for name, part in placed(model, modules, config))
    return [(linear, _delta(linear, part, model)) for linear, part in linears]


def placed(
    model: Any, modules: Mapping[str, Factors], config: LoraConfig
) -> list[tuple[str, Factors]]:
    """The linear layers that the adapter changes: of each its name, and its rows in float32 with
    the scale multiplied into B. The model's weights are not looked at, only their shapes.

    `UserError` where a tensor has no place in the model or another shape, where one is missing or
    not finite, or where all of B is zero.
    """
    linears = {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "in_features") and hasattr(module, "out_features")
    }
    # Rows of the adapter's modules that each linear is; also where it names transformers' own.
    upstream = any(name.startswith(UPSTREAM) for name in modules)
    rows = {name: upstream_of(name, model.config) if upstream else Rows(name) for name in linears}
    _check_names(modules, {part.module for part in rows.values()}, config)
    sizes = _sizes(linears, rows)
    for name, factors in modules.items():
        _check_tensors(name, factors, sizes[name], config)
    if not any(factors.b.any() for factors in modules.values()):
        raise UserError(
            "all of the adapter's B matrices are zero: it changes nothing; it was saved before "
            "it was trained, or its tensors were lost when it was loaded for further training"
        )
    return [
        (name, _share(modules[rows[name].module], rows[name], config.scale_of(rows[name].module)))
        for name in linears
        if rows[name].module in modules
    ]


def digest(parts: Iterable[tuple[str, Factors]]) -> str:
    """What stands for `placed` parts, 32 hexadecimal digits: the same for one adapter under
    upstream's names and transformers'."""
    found = sha256()
    for name, part in sorted(parts, key=lambda each: each[0]):
        found.update(name.encode())
        for tensor in part.tensors():
            found.update(tensor.float().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:32]


@torch.no_grad()
def merged(weight: Tensor, part: Factors) -> Tensor:
    """The float32 weight [out, in] that a `placed` part turns a layer's weight into."""
    changed = weight.float() + part.b @ part.a
    gain = _gain(changed, part)
    return changed if gain is None else changed.mul_(gain[:, None])


@torch.no_grad()
def dense_weight(module: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """The float32 weight [out, in] of a linear layer of any kind.

    bitsandbytes' is the product with the unit matrix, computed in `dtype`: how it keeps its codes
    differs between devices, and on some processors from the first call on.
    """
    weight = module.weight  # of packed layers, computed anew
    if weight.is_floating_point() and weight.shape == (module.out_features, module.in_features):
        return weight.detach().float()
    product = module(torch.eye(module.in_features, dtype=dtype, device=weight.device))
    return (product if module.bias is None else product - module.bias).T.float()


def _sizes(linears: Mapping[str, Any], rows: Mapping[str, Rows]) -> dict[str, tuple[int, int]]:
    """(out, in) of the adapter's modules."""
    sizes: dict[str, tuple[int, int]] = {}
    for name, linear in linears.items():
        module = rows[name].module
        out = sizes.get(module, (0, 0))[0] + linear.out_features
        sizes[module] = (out, linear.in_features)
    return sizes


def _check_names(modules: Mapping[str, Factors], known: set[str], config: LoraConfig) -> None:
    strange = sorted(set(modules) - known)
    if strange:
        raise UserError(
            "the adapter changes {strange} ({strange_count} of its {modules_count} modules are "
            "not in this model): it was made for another model; name that one",
            strange=strange[0],
            strange_count=len(strange),
            modules_count=len(modules),
        )
    missing = sorted({name for name in known if config.targets_module(name)} - set(modules))
    if missing:
        raise UserError(
            "the adapter lacks {missing} ({missing_count} modules that its adapter_config.json "
            "targets are missing): its file is cut short, or the model has more layers than its "
            "own",
            missing=missing[0],
            missing_count=len(missing),
        )


def _check_tensors(name: str, factors: Factors, size: tuple[int, int], config: LoraConfig) -> None:
    rank, (out, width) = config.rank_of(name), size
    if {factors.a.shape[0], factors.b.shape[1]} != {rank}:
        raise UserError(
            "{name}: A has rank {shape} and B {shape_2}, but adapter_config.json says {rank}; "
            "take the config that was saved with these tensors",
            name=name,
            shape=factors.a.shape[0],
            shape_2=factors.b.shape[1],
            rank=rank,
        )
    if (factors.b.shape[0], factors.a.shape[1]) != size or any(
        t.shape != (out,) for t in (factors.bias, factors.magnitude) if t is not None
    ):
        raise UserError(
            "{name}: the adapter was made for a layer {shape} → {shape_2}, but this model's is "
            "{width} → {out}: name the model that it was made for",
            name=name,
            shape=factors.a.shape[1],
            shape_2=factors.b.shape[0],
            width=width,
            out=out,
        )
    for part, wanted in (("bias", config.bias), ("magnitude", config.dora)):
        if (getattr(factors, part) is not None) != wanted:
            held = "lacks" if wanted else "has"
            raise UserError(
                "{name}: the adapter {held} the tensor {part}, against adapter_config.json; take the "
                "config that was saved with these tensors",
                name=name,
                held=held,
                part=part,
            )
    if not all(torch.isfinite(tensor).all() for tensor in factors.tensors()):
        raise UserError(
            "{name}: the adapter holds NaN or infinite numbers; its training failed", name=name
        )


def _share(factors: Factors, rows: Rows, scale: float) -> Factors:
    """The rows that are one linear layer's, float32, the scale multiplied into B and its bias."""
    bias, magnitude = factors.bias, factors.magnitude
    return Factors(
        factors.a.float(),
        rows.cut(factors.b).float() * scale,
        None if bias is None else rows.cut(bias).float() * scale,
        None if magnitude is None else rows.cut(magnitude).float(),
    )


def _gain(changed: Tensor, part: Factors) -> Tensor | None:
    """What DoRA multiplies the rows of W + BA (`changed`) by, [out], as PEFT's DoraLinearLayer."""
    return None if part.magnitude is None else part.magnitude / changed.norm(dim=1)


@torch.no_grad()
def _delta(linear: Any, part: Factors, model: Any) -> Delta:
    """DoRA's factor is multiplied into B."""
    b, bias, gain = part.b, part.bias, None
    if part.magnitude is not None:
        gain = _gain(dense_weight(linear, model.dtype).cpu() + b @ part.a, part)
        assert gain is not None
        b, bias = b * gain[:, None], None if bias is None else bias * gain
    place = {"device": model.device, "dtype": model.dtype}
    parts = (None if value is None else value.to(**place) for value in (bias, gain))
    return Delta(part.a.to(**place), b.contiguous().to(**place), *parts)
