"""LoRA by PEFT, and P-Tuning, on any generation, with upstream's module names.

Upstream's `query_key_value` is one matrix, which ChatGLM2, ChatGLM3 and GLM-4 hold as three here. A
LoRA on it has one A and the rows of B in order: so the three share their A, and the number of
trained parameters is that of upstream (1,949,696 at rank 8 of ChatGLM2-6B).
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn.functional import dropout

from finetune.options import LoraOptions, PrefixOptions
from finetune.train.loss import ROW_ATTENTION
from ingest.errors import UserError
from rag.chatglm.adapter import PREFIX_ATTENTION, PrefixEncoder
from rag.chatglm.adapter_files import write_lora, write_prefix
from rag.chatglm.configuration import generation_of
from rag.chatglm.quantize import DequantizedLinear
from rag.chatglm.weights import RENAMING

FUSED = "query_key_value"
ADAPTER = "default"
"""PEFT's name of the one adapter."""

STATED = ("peft_type", "r", "lora_alpha", "lora_dropout", "bias", "inference_mode")
"""Fields of adapter_config.json that are written even if they have their default."""


def stated(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that say something: a default doesn't, and older versions of PEFT do not know all fields."""
    defaults = LoraConfig().to_dict()
    return {name: value for name, value in config.items() if name in STATED or value != defaults.get(name)}


class LoraOfCodes(Linear):
    """PEFT's layer around a linear layer whose weights are held as codes."""

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        assert isinstance(module, DequantizedLinear)
        return module.in_features, module.out_features


class Lora:
    """A model with LoRA on it, of which only LoRA is trained. The model's own weights stay."""

    def __init__(self, model: Any, options: LoraOptions, *, seed: int = 0) -> None:
        """Raises `UserError` if a target is not a linear module of the model."""
        self.base, self.options = model, options
        config = LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha,  # type: ignore[arg-type]  # a float serves as well
            lora_dropout=options.dropout,
            target_modules=native_targets(model, options.targets),
            use_rslora=options.rslora,
            use_dora=options.dora,
            task_type="CAUSAL_LM",
        )
        config._register_custom_module({DequantizedLinear: LoraOfCodes})
        # PEFT uses a name of transformers that is deprecated from version 5.24 on, with a warning.
        with torch.random.fork_rng(), warnings.catch_warnings(action="ignore", category=FutureWarning):
            torch.manual_seed(seed)
            self.model: Any = get_peft_model(model, config)
        if FUSED in options.targets and generation_of(model.config) > 1:
            _share_a(self.model)
        self.attention = model.config._attn_implementation
        if generation_of(model.config) > 1:
            model.set_attn_implementation(ROW_ATTENTION)
        # Shared parameters occur once, by their first name.
        self.trainable: dict[str, nn.Parameter] = {
            name: value for name, value in self.model.named_parameters() if value.requires_grad
        }

    def scale(self, strength: float) -> None:
        """Multiply the adapter's change of the model by `strength`."""
        for module in self.model.modules():
            if isinstance(module, Linear):
                module.set_scale(ADAPTER, strength)

    def write(self, folder: Path, *, strength: float = 1.0) -> None:
        """Write PEFT's files, which load into plain PEFT on this model, and into `rag`."""
        config = self.model.peft_config[ADAPTER].to_dict() | {
            "base_model_name_or_path": Path(self.base.config._name_or_path).name,
            "inference_mode": True,
            "lora_alpha": self.options.alpha * strength,
        }
        # Otherwise PEFT would ask a hub whether embeddings were resized.
        how: Any = {"adapter_name": ADAPTER, "save_embedding_layers": False}
        write_lora(folder, stated(config), get_peft_model_state_dict(self.model, **how))

    def release(self) -> Any:
        """The model as it was before, without LoRA; this object can't be used any more."""
        if generation_of(self.base.config) > 1:
            self.base.set_attn_implementation(self.attention)
        return self.model.unload()


def native_targets(model: Any, targets: tuple[str, ...]) -> list[str]:
    """The last parts of this model's module names for `targets`, which may have upstream's names."""
    linears = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if hasattr(module, "in_features") and ".layers." in name
    }
    by_name: dict[str, list[str]] = {name: [name] for name in linears}
    for upstream, native in RENAMING:
        upstream_end, end = upstream.rpartition(".")[2], native.rpartition(".")[2]
        if end in linears and upstream_end not in linears:
            by_name.setdefault(upstream_end, []).append(end)
    known = ", ".join(sorted(by_name))
    if not targets:
        raise UserError("--lora-targets names no module; choose from: {known}", known=known)
    if unknown := [target for target in targets if target not in by_name]:
        raise UserError(
            "{name} is not a linear module of this model; choose targets from: {known}",
            name=unknown[0],
            known=known,
        )
    return [end for target in targets for end in by_name[target]]


def _share_a(model: nn.Module) -> None:
    """Let queries, keys and values of each layer share one A."""
    for module in model.modules():
        parts = [getattr(module, name, None) for name in ("q_proj", "k_proj", "v_proj")]
        if isinstance(parts[0], Linear):
            for part in parts[1:]:
                part.lora_A[ADAPTER] = parts[0].lora_A[ADAPTER]  # type: ignore[union-attr]


DROPOUT = 0.1
"""As upstream's PrefixEncoder."""
NAME = "transformer.prefix_encoder."


class PrefixTuning(nn.Module):
    """A model with a prefix (P-Tuning v2), of which only the prefix is trained."""

    def __init__(self, model: Any, options: PrefixOptions, *, seed: int = 0) -> None:
        super().__init__()
        self.base, self.config = model.requires_grad_(False), model.config
        self.attention = model.config._attn_implementation
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.encoder = PrefixEncoder(
                model.config, options.pre_seq_len, projection=options.prefix_projection
            ).to(model.device)
        self._attach()
        self.trainable: dict[str, nn.Parameter] = {
            NAME + name: value for name, value in self.encoder.named_parameters()
        }

    @property
    def model(self) -> nn.Module:
        return self

    @property
    def device(self) -> torch.device:
        return self.base.device

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if generation_of(self.base.config) > 1:
            past: Tensor = dropout(self.encoder(), DROPOUT, self.training)
            for layer, prefix in zip(self.base.model.layers, past, strict=True):
                layer.self_attn.prefix = prefix
        return self.base(*args, **kwargs)

    def write(self, folder: Path, *, strength: float = 1.0) -> None:
        """Write upstream's checkpoint: only the prefix, and its lengths."""
        assert strength == 1.0, "a prefix has no strength"
        write_prefix(folder, dict(self.encoder.named_parameters()))

    def _attach(self) -> None:
        if generation_of(self.base.config) == 1:
            self.base.transformer.prefix_encoder = self.encoder
        else:
            self.base.set_attn_implementation(PREFIX_ATTENTION)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Use the base without the prefix, as PEFT's method of this name."""
        self.release()
        try:
            yield
        finally:
            self._attach()

    def release(self) -> Any:
        """The model as it was before."""
        if generation_of(self.base.config) == 1:
            self.base.transformer.prefix_encoder = None
        else:
            self.base.set_attn_implementation(self.attention)
        return self.base


TunedModel = Lora | PrefixTuning
"""A model of which only an adapter's parameters are trained."""
