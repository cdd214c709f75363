"""A checkpoint's config.json -> a config object, with its generation of ChatGLM.

Upstream calls the model type of all its generations "chatglm"; their keys tell them apart. A field
that would change the model's results and is not implemented raises an error with its name.
"""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from transformers import GenerationConfig, Glm4Config, GlmConfig, GlmForCausalLM, PreTrainedConfig

from ingest.errors import UserError

# The name of the key-value cache in forward and its output: `past_key_values` up to transformers 5.23.
CACHE = "cache" if "cache" in signature(GlmForCausalLM.forward).parameters else "past_key_values"

ROPE_BASE = 10000.0
MERGED = "merged_adapters"
"""The field with `rag.chatglm.lora.digest` of each adapter that was merged into the weights."""
# Fields of later additions that all generations share.
OURS = {"generation", "packed", "quantization_bit", "quantization_embeddings"}
OURS |= {"pre_seq_len", "prefix_projection", MERGED}

GLM1 = {
    "hidden_size", "inner_hidden_size", "num_layers", "num_attention_heads", "vocab_size",
    "max_sequence_length", "layernorm_epsilon", "position_encoding_2d", "bos_token_id",
    "eos_token_id", "pad_token_id", "mask_token_id", "gmask_token_id", "use_cache",
    "tie_word_embeddings",
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
    "_attn_implementation", "_name_or_path", "add_cross_attention", "attn_implementation",
    "cross_attention_hidden_size", "decoder_start_token_id", "finetuning_task", "is_decoder",
    "model_type", "name_or_path", "num_labels", "output_attentions", "prefix", "pruned_heads",
    "sep_token_id", "task_specific_params", "tie_encoder_decoder", "tokenizer_class",
    "torch_dtype", "torchscript", "use_bfloat16",
}  # fmt: skip
DROPPED = {"auto_map", "_commit_hash"}  # the source of upstream's code


class Glm1Config(PreTrainedConfig):
    """ChatGLM-6B, with upstream's names of fields and the published model's values as defaults."""

    model_type = "chatglm"
    attribute_map = {  # noqa: RUF012  (transformers declares it so)
        "num_hidden_layers": "num_layers",
        "intermediate_size": "inner_hidden_size",
        "max_position_embeddings": "max_sequence_length",
    }
    generation = 1

    def __init__(
        self,
        *,
        hidden_size: int = 4096,
        inner_hidden_size: int = 16384,
        num_layers: int = 28,
        num_attention_heads: int = 32,
        vocab_size: int = 130528,
        max_sequence_length: int = 2048,
        layernorm_epsilon: float = 1e-5,
        position_encoding_2d: bool = True,
        bos_token_id: int = 130004,
        eos_token_id: int = 130005,
        pad_token_id: int = 3,
        mask_token_id: int = 130000,
        gmask_token_id: int = 130001,
        use_cache: bool = True,
        pre_seq_len: int | None = None,
        prefix_projection: bool = False,
        quantization_bit: int | None = None,
        quantization_embeddings: bool = False,
        packed: dict[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("generation", None)
        kwargs.pop("tie_word_embeddings", None)  # the head is always the embedding
        super().__init__(**kwargs)
        self.tie_word_embeddings = True
        self.hidden_size = hidden_size
        self.inner_hidden_size = inner_hidden_size
        self.num_layers = num_layers
        self.num_attention_heads = num_attention_heads
        self.vocab_size = vocab_size
        self.max_sequence_length = max_sequence_length
        self.layernorm_epsilon = layernorm_epsilon
        self.position_encoding_2d = position_encoding_2d
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id
        self.mask_token_id = mask_token_id
        self.gmask_token_id = gmask_token_id
        self.use_cache = use_cache
        self.pre_seq_len = pre_seq_len
        self.prefix_projection = prefix_projection
        self.quantization_bit = quantization_bit
        self.quantization_embeddings = quantization_embeddings
        self.packed = packed

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A `Glm1Config`, or a `ChatGLM2Config` if the keys are those of ChatGLM2, 3 or GLM-4.

        Raises `UserError` for a field that is unknown or whose value is not implemented.
        """
        if _is_glm1(config_dict):
            return super().from_dict(_glm1(config_dict), **kwargs)
        return ChatGLM2Config.from_dict(config_dict, **kwargs)


class ChatGLM2Config(GlmConfig):
    """ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B-chat, with GlmConfig's names of fields.

    `generation` is 2, 3 or 4: ChatGLM2 rounds its rotary table differently.
    """

    model_type = "chatglm"

    def __init__(
        self,
        *,
        generation: int = 3,
        pre_seq_len: int | None = None,
        prefix_projection: bool = False,
        quantization_bit: int | None = None,
        quantization_embeddings: bool = False,
        packed: dict[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.generation = generation
        self.pre_seq_len = pre_seq_len
        self.prefix_projection = prefix_projection
        self.quantization_bit = quantization_bit
        self.quantization_embeddings = quantization_embeddings
        self.packed = packed

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As `Glm1Config.from_dict`; `config_dict` has upstream's keys or GlmConfig's."""
        if _is_glm1(config_dict):
            return Glm1Config.from_dict(config_dict, **kwargs)
        if "padded_vocab_size" in config_dict:
            return super().from_dict(_glm2(config_dict), **kwargs)
        fields = _known(config_dict, set(GlmConfig().to_dict()) | OURS)  # written by this class
        return super().from_dict(fields, **kwargs)


def generation_of(config: PreTrainedConfig) -> int:
    """1 for ChatGLM-6B, 2 and 3 for ChatGLM2/3-6B, 4 for GLM-4 in any layout.

    Raises `UserError` if the config is of another family.
    """
    if isinstance(config, (Glm1Config, ChatGLM2Config)):
        return config.generation
    if isinstance(config, (GlmConfig, Glm4Config)):
        return 4
    kind = config.model_type
    raise UserError(
        "the model type is {kind!r}; this runs ChatGLM-6B, ChatGLM2-6B, ChatGLM3-6B and GLM-4",
        kind=kind,
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


def _glm1(data: Mapping[str, Any]) -> dict[str, Any]:
    fields = _known(data, GLM1 | OURS)
    if fields.get("bos_token_id", 0) >= 150000:
        raise UserError(
            "bos_token_id is {id}: this is the ChatGLM-6B of March 2023 with image tokens in its "
            "vocabulary (150528 tokens); get the later release (130528 tokens)",
            id=fields["bos_token_id"],
        )
    if not fields.get("position_encoding_2d", True):
        raise _unimplemented("position_encoding_2d", False, True)
    return fields


def _glm2(data: Mapping[str, Any]) -> dict[str, Any]:
    fields = _known(data, {*RENAMED, *SAME, *FIXED, *WITHOUT_EFFECT, *OURS})
    for name, value in FIXED.items():
        if fields.pop(name, value) != value:
            raise _unimplemented(name, data[name], value)
    ratio = float(fields.get("rope_ratio") or 1)
    fields = {name: value for name, value in fields.items() if name not in WITHOUT_EFFECT}
    fields.setdefault("add_qkv_bias", False)
    native = {RENAMED.get(name, name): value for name, value in fields.items()}
    native["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": ROPE_BASE * ratio,
        "partial_rotary_factor": 0.5,
    }
    native.setdefault("eos_token_id", 2)
    native.setdefault("pad_token_id", 0)
    native["generation"] = data.get("generation") or _generation(data)
    return native


def _generation(data: Mapping[str, Any]) -> int:
    """2, 3 or 4: their keys are the same, but the model's name and its date differ."""
    if data["padded_vocab_size"] > 100_000:
        return 4  # GLM-4's vocabulary has 151,552 tokens, the others' 65,024
    name = str(data.get("_name_or_path", "")).lower()
    for generation in (2, 3):
        if f"chatglm{generation}" in name:
            return generation
    # ChatGLM2 was published with transformers 4.27.1, ChatGLM3 with 4.30.2.
    generation = {"4.27.1": 2, "4.30.2": 3}.get(str(data.get("transformers_version")))
    if generation is None:
        raise UserError(
            'config.json does not show whether this is ChatGLM2 or ChatGLM3; add "generation": 2 or '
            "3 to it"
        )
    return generation


def _known(data: Mapping[str, Any], fields: set[str]) -> dict[str, Any]:
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


def _unimplemented(name: str, value: Any, implemented: Any) -> UserError:
    return UserError(
        "config.json says {name} = {value!r}; only {implemented!r} is implemented",
        name=name,
        value=value,
        implemented=implemented,
    )
