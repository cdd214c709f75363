"""LoRA's tensors -> what each linear layer of a model adds to its output.

An adapter may name upstream's modules or transformers' (`weights.py`). If one linear layer of
upstream's is three here, they share A and take the rows of B in order. Forward hooks apply it, so
that a base of any kind (float, packed, bitsandbytes) stays as it is.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.chatglm.weights import UPSTREAM, ModuleRows, upstream_of

Names = str | tuple[str, ...]  # a regular expression for whole module names, or ends of them

# Fields without an effect once an adapter is trained, or whose default is not empty.
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
    """The fields of PEFT's class that have an effect, with the adapter's own names of modules."""

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
    bias: bool = False  # whether B has a bias (PEFT's `lora_bias`)
    base: str = ""  # the path of the base, as the trainer wrote it

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "LoraConfig":
        """From adapter_config.json; raises `UserError` if a field is not supported."""
        _check_fields(data)
        layers, pattern = data.get("layers_to_transform"), data.get("layers_pattern") or ()
        ranks, alphas = (data.get(name) or {} for name in ("rank_pattern", "alpha_pattern"))
        try:
            return cls(
                rank=int(data.get("r", 8)),
                alpha=float(data.get("lora_alpha", 8)),
                # PEFT's own default for a model of type "chatglm"
                targets=_names(data.get("target_modules") or ("query_key_value",)),
                excluded=_names(data.get("exclude_modules") or ()),
                layers=(layers,) if isinstance(layers, int) else tuple(layers) if layers else None,
                layers_pattern=(pattern,) if isinstance(pattern, str) else tuple(pattern),
                rank_pattern={name: int(rank) for name, rank in ranks.items()},
                alpha_pattern={name: float(alpha) for name, alpha in alphas.items()},
                rslora=bool(data.get("use_rslora")),
                dora=bool(data.get("use_dora")),
                bias=bool(data.get("lora_bias")),
                base=str(data.get("base_model_name_or_path") or ""),
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise _unsupported("r, lora_alpha or target_modules", str(error)) from None

    def rank_of(self, module: str) -> int:
        return _by_pattern(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """The factor of BA: alpha / r, or alpha / sqrt(r) for rsLoRA."""
        rank = self.rank_of(module)
        alpha = _by_pattern(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

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
        matches = (re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module) for pattern in patterns)
        return next((int(match[1]) for match in matches if match), None)


def _check_fields(data: Mapping[str, Any]) -> None:
    if (kind := data.get("peft_type", "LORA")) != "LORA":
        raise UserError(
            "adapter_config.json says peft_type {kind!r}; LORA and PREFIX_TUNING are supported, and prefixes in "
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


def _matches(names: Names, module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that matches the name's end, as PEFT's `get_pattern_key`."""
    return next((v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", module)), default)


@dataclass(frozen=True, slots=True)
class Factors:
    """The tensors of one module: W' = W + scale * BA, its rows scaled to `magnitude` for DoRA."""

    a: Tensor  # [rank, in]
    b: Tensor  # [out, rank]
    bias: Tensor | None = None  # [out], of B
    magnitude: Tensor | None = None  # [out], DoRA's

    def tensors(self) -> list[Tensor]:
        return [t for t in (self.a, self.b, self.bias, self.magnitude) if t is not None]


class Delta:
    """A forward hook that adds LoRA's or DoRA's term to a linear layer's output."""

    @torch.no_grad()
    def __init__(self, linear: Any, part: Factors, model: Any) -> None:
        """DoRA's factor of the base's rows is multiplied into B and its bias."""
        a, b, bias, gain = part.a, part.b, part.bias, None
        if part.magnitude is not None:
            gain = _gain(dense_weight(linear, model.dtype).cpu() + b @ a, part.magnitude)
            b, bias = b * gain[:, None], None if bias is None else bias * gain
        place = {"device": model.device, "dtype": model.dtype}
        self.a, self.b = a.to(**place), b.contiguous().to(**place)
        self.bias, self.gain = (None if x is None else x.to(**place) for x in (bias, gain))
        self.called = False  # whether the layer has been called

    def __call__(self, module: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        self.called = True
        x = inputs[0].to(self.a.dtype)
        added = functional.linear(functional.linear(x, self.a), self.b, self.bias)
        if self.gain is not None:
            bare = output if module.bias is None else output - module.bias.to(output.dtype)
            added = added + (self.gain - 1) * bare
        return output + added.to(output.dtype)


def layer_factors(
    model: Any, modules: Mapping[str, Factors], config: LoraConfig
) -> list[tuple[str, Factors]]:
    """The name of each linear layer that the adapter changes, and its factors in float32 with the
    scale multiplied into B. Of the model's weights only the shapes are used.

    Raises `UserError` if a tensor has no place in the model or another shape, if one is missing or
    not finite, or if all of B is zero."""
    linears = {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "in_features") and hasattr(module, "out_features")
    }
    # Each linear's rows of one of the adapter's modules, under upstream's names or transformers'.
    upstream = any(name.startswith(UPSTREAM) for name in modules)
    rows = {n: upstream_of(n, model.config) if upstream else ModuleRows(n) for n in linears}
    _check_names(modules, {part.module for part in rows.values()}, config)
    sizes: dict[str, tuple[int, int]] = {}  # (out, in) of the adapter's modules
    for name, linear in linears.items():
        out, _ = sizes.get(rows[name].module, (0, 0))
        sizes[rows[name].module] = (out + linear.out_features, linear.in_features)
    for name, factors in modules.items():
        _check_tensors(name, factors, sizes[name], config)
    if not any(factors.b.any() for factors in modules.values()):
        raise UserError(
            "all of the adapter's B matrices are zero: it changes nothing; it was saved before "
            "it was trained, or its tensors were lost when it was loaded for further training"
        )
    return [
        (name, _cut(modules[part.module], part, config.scale_of(part.module)))
        for name, part in rows.items()
        if part.module in modules
    ]


def digest(parts: Iterable[tuple[str, Factors]]) -> str:
    """32 hexadecimal digits of `layer_factors`, equal under upstream's and transformers' names."""
    digest = sha256()
    for name, part in sorted(parts, key=lambda each: each[0]):
        digest.update(name.encode())
        for tensor in part.tensors():
            digest.update(tensor.float().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


@torch.no_grad()
def merge_weight(weight: Tensor, part: Factors) -> Tensor:
    """The float32 weight [out, in] with the change of one of `layer_factors`."""
    changed = weight.float() + part.b @ part.a
    if part.magnitude is None:
        return changed
    return changed.mul_(_gain(changed, part.magnitude)[:, None])


@torch.no_grad()
def dense_weight(module: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """The float32 weight [out, in] of a linear layer of any kind.

    bitsandbytes' weight is the product with the unit matrix, computed in `dtype`: the layout of its
    codes differs between devices, and on some processors after the first call."""
    weight = module.weight  # packed layers compute it at each use
    if weight.is_floating_point() and weight.shape == (module.out_features, module.in_features):
        return weight.detach().float()
    product = module(torch.eye(module.in_features, dtype=dtype, device=weight.device))
    return (product if module.bias is None else product - module.bias).T.float()


def _check_names(modules: Mapping[str, Factors], names: set[str], config: LoraConfig) -> None:
    unknown = sorted(set(modules) - names)
    if unknown:
        raise UserError(
            "the adapter changes {unknown} ({count} of its {modules_count} modules are not in this "
            "model): it was made for another model; use it with that one",
            unknown=unknown[0], count=len(unknown), modules_count=len(modules),
        )  # fmt: skip
    missing = sorted({name for name in names if config.targets_module(name)} - set(modules))
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
            "{name}: A has rank {a} and B {b}, but adapter_config.json says {rank}; use the config "
            "that was saved with these tensors",
            name=name, a=factors.a.shape[0], b=factors.b.shape[1], rank=rank,
        )  # fmt: skip
    vectors = [t for t in (factors.bias, factors.magnitude) if t is not None]
    own = (factors.b.shape[0], factors.a.shape[1])
    if own != size or any(vector.shape != (out,) for vector in vectors):
        raise UserError(
            "{name}: the adapter was made for a layer {adapter_in} → {adapter_out}, but this model's "
            "is {width} → {out}: give the model that it was made for",
            name=name, adapter_in=factors.a.shape[1], adapter_out=factors.b.shape[0], width=width, out=out,
        )  # fmt: skip
    for part, expected in (("bias", config.bias), ("magnitude", config.dora)):
        if (getattr(factors, part) is not None) != expected:
            problem = Translatable("lacks") if expected else Translatable("has")
            raise UserError(
                "{name}: the adapter {problem} the tensor {part}, contrary to adapter_config.json; "
                "use the config that was saved with these tensors",
                name=name, problem=problem, part=part,
            )  # fmt: skip
    if not all(torch.isfinite(tensor).all() for tensor in factors.tensors()):
        raise UserError("{name}: the adapter holds NaN or infinite numbers; its training failed", name=name)


def _cut(factors: Factors, rows: ModuleRows, scale: float) -> Factors:
    """One linear layer's factors in float32, with the scale multiplied into B and its bias."""
    bias, magnitude = factors.bias, factors.magnitude
    return Factors(
        factors.a.float(),
        rows.cut(factors.b).float() * scale,
        None if bias is None else rows.cut(bias).float() * scale,
        None if magnitude is None else rows.cut(magnitude).float(),
    )


def _gain(changed: Tensor, magnitude: Tensor) -> Tensor:
    """DoRA's factor of each row of W + BA (`changed`), [out], as PEFT's DoraLinearLayer."""
    return magnitude / changed.norm(dim=1)
