"""adapter_config.json of PEFT -> what it says of rank, scaling and targets; the rest is refused.

A field that this does not know may change what an adapter computes; it is refused unless it is
empty.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ingest.errors import UserError

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
            f"adapter_config.json says peft_type {kind!r}; LORA is supported, and prefixes in "
            "upstream's P-Tuning layout (pytorch_model.bin with prefix_encoder)",
            zh=f"adapter_config.json 的 peft_type 为 {kind!r}；仅支持 LORA，以及官方 P-Tuning 格式"
            "（含 prefix_encoder 的 pytorch_model.bin）",
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
        f"adapter_config.json: {name} = {value!r} is not supported; merge the adapter with PEFT "
        "and use the merged model instead",
        zh=f"adapter_config.json：不支持 {name} = {value!r}；请用 PEFT 合并适配器后使用合并的模型",
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
