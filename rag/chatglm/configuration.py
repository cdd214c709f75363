"""A checkpoint's config.json -> a config object, with its generation of ChatGLM.

Upstream calls the model type of all its generations "chatglm"; their keys tell them apart. A field
that would change the model's results and is not implemented raises an error with its name.
"""

import json
import re
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import GenerationConfig, Glm4Config, GlmConfig, GlmForCausalLM, PreTrainedConfig

from ingest.errors import UserError
from ingest.i18n import Translatable

# The name of the key-value cache in forward and its output: `past_key_values` up to transformers 5.23.
CACHE = "cache" if "cache" in signature(GlmForCausalLM.forward).parameters else "past_key_values"

Quant = Literal["none", "int8", "int4", "nf4"]
"""How the weights are quantised in memory."""
ROPE_BASE = 10000.0
MERGED = "merged_adapters"
"""The field with `rag.chatglm.lora.digest` of each adapter that was merged into the weights."""
# Fields that this package adds in all generations, and their defaults.
ADDED: dict[str, Any] = {
    "pre_seq_len": None, "prefix_projection": False, "quantization_bit": None,
    "quantization_embeddings": False, "packed": None,
}  # fmt: skip
OURS = {*ADDED, "generation", MERGED}
# ChatGLM-6B's fields, and the values of the published model.
GLM1: dict[str, Any] = {
    "hidden_size": 4096, "inner_hidden_size": 16384, "num_layers": 28, "num_attention_heads": 32,
    "vocab_size": 130528, "max_sequence_length": 2048, "layernorm_epsilon": 1e-5,
    "position_encoding_2d": True, "bos_token_id": 130004, "eos_token_id": 130005,
    "pad_token_id": 3, "mask_token_id": 130000, "gmask_token_id": 130001, "use_cache": True,
    "tie_word_embeddings": True,
}  # fmt: skip

# Upstream's name in ChatGLM2/3 and GLM-4-9B -> GlmConfig's.
RENAMED = {
    "add_qkv_bias": "attention_bias",
    "ffn_hidden_size": "intermediate_size",
    "kv_channels": "head_dim",
    "layernorm_epsilon": "rms_norm_eps",
    "multi_query_group_num": "num_key_value_heads",
    "num_layers": "num_hidden_layers",
    "padded_vocab_size": "vocab_size",
    "seq_length": "max_position_embeddings",
}
SAME = {
    "attention_dropout", "bos_token_id", "eos_token_id", "hidden_size", "initializer_range",
    "num_attention_heads", "pad_token_id", "tie_word_embeddings", "use_cache",
}  # fmt: skip
# The only value of each field that is implemented (all published checkpoints have it).
FIXED = {
    "add_bias_linear": False,
    "apply_residual_connection_post_layernorm": False,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "multi_query_attention": True,
    "original_rope": True,
    "post_layer_norm": True,
    "rmsnorm": True,
}
# Fields that do not change upstream's results, and `vocab_size`, which exists beside the padded one.
WITHOUT_EFFECT = {
    "apply_query_key_layer_scaling", "attention_softmax_in_fp32", "bias_dropout_fusion",
    "classifier_dropout", "rope_ratio", "vocab_size",
}  # fmt: skip
# Fields that transformers 4 and 5 write into every config.json, beside those its classes declare.
GENERAL = {
    "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal",
    "_experts_implementation", "_experts_implementation_internal", "_name_or_path",
    "_output_attentions", "add_cross_attention", "attn_implementation", "base_model_pp_plan",
    "base_model_tp_plan", "cls_token_id", "gradient_checkpointing", "is_composition", "loss_type",
    "mask_token_id", "tf_legacy_loss", "unk_token_id", "use_return_dict",
    "xla_device",
    "cross_attention_hidden_size", "decoder_start_token_id", "finetuning_task", "is_decoder",
    "model_type", "name_or_path", "num_labels", "output_attentions", "prefix", "pruned_heads",
    "sep_token_id", "task_specific_params", "tie_encoder_decoder", "tokenizer_class",
    "torch_dtype", "torchscript", "use_bfloat16",
}  # fmt: skip
DROPPED = {"auto_map", "_commit_hash"}  # the source of upstream's code
POINTER = b"version https://git-lfs"


class PointerFile(UserError):
    """A small file of git-lfs is in the place of the real one."""


def damaged(path: Path, why: str) -> UserError:
    """The error that a file of a model's folder can't be read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            return PointerFile(
                "{path} is a pointer of git-lfs ({size} bytes), not the file; run: git lfs pull",
                path=path,
                size=size,
            )
    return UserError(
        "{path} ({size:,} bytes) is damaged: {why}; download it again", path=path, size=size, why=why
    )


def read_object(path: Path) -> dict[str, Any]:
    """A small file of a model's or an adapter's folder, which must be a JSON object."""
    try:
        data = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise damaged(path, Translatable("it is not JSON: {error}", error=str(error))) from None
    if not isinstance(data, dict):
        raise damaged(path, Translatable("it is not a JSON object"))
    return data


class Glm1Config(PreTrainedConfig):
    """ChatGLM-6B, with upstream's names of fields and the published model's values as defaults."""

    model_type = "chatglm"
    attribute_map = {  # noqa: RUF012  (transformers declares it so)
        "num_hidden_layers": "num_layers",
        "intermediate_size": "inner_hidden_size",
        "max_position_embeddings": "max_sequence_length",
    }
    generation = 1

    def __init__(self, **kwargs: Any) -> None:
        kwargs.pop("generation", None)
        kwargs |= {"tie_word_embeddings": True}  # the head is always the embedding
        fields = {name: kwargs.pop(name, value) for name, value in (GLM1 | ADDED).items()}
        super().__init__(**kwargs)
        for name, value in fields.items():
            setattr(self, name, value)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A `Glm1Config`, or a `ChatGLM2Config` if the keys are those of ChatGLM2, 3 or GLM-4.

        Raises `UserError` for a field that is unknown or whose value is not implemented."""
        if _is_glm1(config_dict):
            return super().from_dict(_glm1_fields(config_dict), **kwargs)
        return ChatGLM2Config.from_dict(config_dict, **kwargs)


class ChatGLM2Config(GlmConfig):
    """ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B-chat, with GlmConfig's names of fields.

    `generation` is 2, 3 or 4: ChatGLM2 rounds its rotary table differently."""

    model_type = "chatglm"

    def __init__(self, *, generation: int = 3, **kwargs: Any) -> None:
        fields = {name: kwargs.pop(name, value) for name, value in ADDED.items()}
        super().__init__(**kwargs)
        self.generation = generation
        for name, value in fields.items():
            setattr(self, name, value)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As `Glm1Config.from_dict`; `config_dict` has upstream's keys or GlmConfig's."""
        if _is_glm1(config_dict):
            return Glm1Config.from_dict(config_dict, **kwargs)
        if "padded_vocab_size" in config_dict:
            return super().from_dict(_glm2_fields(config_dict), **kwargs)
        fields = _known_fields(config_dict, set(GlmConfig().to_dict()) | OURS)  # written by this class
        return super().from_dict(fields, **kwargs)


def generation_of(config: PreTrainedConfig) -> int:
    """1 for ChatGLM-6B, 2 and 3 for ChatGLM2/3-6B, 4 for GLM-4 in any layout.

    Raises `UserError` if the config is of another family."""
    if isinstance(config, (Glm1Config, ChatGLM2Config)):
        return config.generation
    if isinstance(config, (GlmConfig, Glm4Config)):
        return 4
    raise UserError(
        "the model type is {kind!r}; this runs ChatGLM-6B, ChatGLM2-6B, ChatGLM3-6B and GLM-4",
        kind=config.model_type,
    )


def stored_dtype(config: PreTrainedConfig) -> torch.dtype:
    """The checkpoint's precision; float32 if its config has none."""
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def stored_bits(config: PreTrainedConfig) -> int | None:
    """4 or 8 if the checkpoint holds codes, upstream's or ours."""
    packed = getattr(config, "packed", None)
    return int(packed["bits"]) if packed else getattr(config, "quantization_bit", None) or None


def upstream_config(config: PreTrainedConfig) -> dict[str, Any]:
    """The config.json of upstream's layout, which upstream's own code can load."""
    data = config.to_dict()
    if isinstance(config, Glm1Config):
        return {name: value for name, value in data.items() if name not in OURS or value}
    return (
        {upstream: data[native] for upstream, native in RENAMED.items()}
        | {name: data[name] for name in SAME if name in data}
        | FIXED
        | {name: data[name] for name in OURS if data.get(name)}
        | {"model_type": "chatglm", "architectures": ["ChatGLMModel"]}
        | {"torch_dtype": data.get("dtype")}
        | {"rope_ratio": data["rope_parameters"]["rope_theta"] / ROPE_BASE}
    )


def _is_glm1(data: Mapping[str, Any]) -> bool:
    return "inner_hidden_size" in data or "position_encoding_2d" in data


def _glm1_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    fields = _known_fields(data, GLM1.keys() | OURS)
    if fields.get("bos_token_id", 0) >= 150000:
        raise UserError(
            "bos_token_id is {id}: this is the ChatGLM-6B of March 2023 with image tokens in its "
            "vocabulary (150528 tokens); get the later release (130528 tokens)",
            id=fields["bos_token_id"],
        )
    _check_implemented(fields, {"position_encoding_2d": True})
    return fields


def _glm2_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    fields = _known_fields(data, {*RENAMED, *SAME, *FIXED, *WITHOUT_EFFECT, *OURS})
    _check_implemented(fields, FIXED)
    ratio = float(fields.get("rope_ratio") or 1)
    rope = {
        "rope_type": "default", "rope_theta": ROPE_BASE * ratio, "partial_rotary_factor": 0.5,
    }  # fmt: skip
    generation = data.get("generation") or _generation(data)
    native = {"attention_bias": False, "eos_token_id": 2, "pad_token_id": 0} | {
        RENAMED.get(name, name): value
        for name, value in fields.items()
        if name not in WITHOUT_EFFECT | FIXED.keys()
    }
    return native | {"rope_parameters": rope, "generation": generation}


def _generation(data: Mapping[str, Any]) -> int:
    """2, 3 or 4: their keys are the same, but the model's name and its date differ."""
    if data["padded_vocab_size"] > 100_000:
        return 4  # GLM-4's vocabulary has 151,552 tokens, the others' 65,024
    if generation := generation_in(str(data.get("_name_or_path") or "")):
        return generation
    # ChatGLM2 was published with transformers 4.27.1, ChatGLM3 with 4.30.2.
    generation = {"4.27.1": 2, "4.30.2": 3}.get(str(data.get("transformers_version")))
    if generation is None:
        raise UserError(
            'config.json does not show whether this is ChatGLM2 or ChatGLM3; add "generation": 2 or 3 to it'
        )
    return generation


def generation_in(name: str) -> int | None:
    """2 or 3 by the last folder of a model's path, or by its name on a hub."""
    match = re.search(r"chatglm([23])[^/\\]*$", name.lower().rstrip("/\\"))
    return int(match[1]) if match else None


def tokenizer_generation(data: Mapping[str, Any]) -> int | None:
    """2 or 3 by a tokenizer_config.json: its own field, its tokens for roles, or its name."""
    if "<|user|>" in str(data.get("added_tokens_decoder", "")):
        return data.get("generation") or 3
    return data.get("generation") or generation_in(str(data.get("name_or_path") or ""))


def _known_fields(data: Mapping[str, Any], fields: set[str]) -> dict[str, Any]:
    """`data` without the source of upstream's code; raises `UserError` for an unknown field."""
    general = set(PreTrainedConfig().to_dict()) | set(GenerationConfig().to_dict())
    unknown = sorted(set(data) - fields - general - GENERAL - DROPPED)
    if unknown:
        raise UserError(
            "config.json has the unknown field {name!r}: {value!r}; remove it if it does not change "
            "the model's results",
            name=unknown[0],
            value=data[unknown[0]],
        )
    return {name: value for name, value in data.items() if name not in DROPPED}


def _check_implemented(fields: Mapping[str, Any], implemented: Mapping[str, Any]) -> None:
    for name, value in implemented.items():
        if fields.get(name, value) != value:
            raise UserError(
                "config.json says {name} = {value!r}; only {implemented!r} is implemented",
                name=name, value=fields[name], implemented=value,
            )  # fmt: skip
