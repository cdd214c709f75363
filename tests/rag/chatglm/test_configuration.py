"""config.json files tell the generations apart, and what is not implemented is refused by name."""

import json
from typing import Any

import pytest
from transformers import LlamaConfig

from ingest.errors import UserError
from rag.chatglm.configuration import ChatGLM2Config, Glm1Config, generation_of
from tests.rag.chatglm.golden import COPY

V2 = json.loads((COPY / "v2" / "tiny_safetensors" / "config.json").read_text("utf-8"))
V3 = json.loads((COPY / "v3" / "tiny_safetensors" / "config.json").read_text("utf-8"))
V1 = {
    "architectures": ["ChatGLMModel"],
    "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"},
    "bos_token_id": 130004,
    "eos_token_id": 130005,
    "hidden_size": 4096,
    "inner_hidden_size": 16384,
    "layernorm_epsilon": 1e-05,
    "max_sequence_length": 2048,
    "model_type": "chatglm",
    "num_layers": 28,
    "position_encoding_2d": True,
    "vocab_size": 130528,
}


@pytest.mark.parametrize("entry", [Glm1Config, ChatGLM2Config])
def test_keys_tell_the_generations_apart(entry: Any) -> None:
    for generation, data in ((1, V1), (2, V2), (3, V3)):
        config = entry.from_dict(dict(data))
        assert generation_of(config) == generation
        assert isinstance(config, Glm1Config if generation == 1 else ChatGLM2Config)
        assert not hasattr(config, "auto_map")  # upstream's code is never looked for


@pytest.mark.parametrize(
    ("changes", "generation"),
    [
        ({"_name_or_path": "/disk/chatglm3-6b-32k"}, 3),
        ({"_name_or_path": "", "transformers_version": "4.27.1"}, 2),
        ({"_name_or_path": "", "transformers_version": "4.30.2"}, 3),
        ({"_name_or_path": "mine", "generation": 3, "transformers_version": "4.33.0"}, 3),
        ({"_name_or_path": "", "padded_vocab_size": 151552}, 4),
    ],
)
def test_the_name_or_version_tells_chatglm2_from_3_and_glm4(changes: dict[str, Any], generation: int) -> None:
    assert generation_of(Glm1Config.from_dict(V2 | changes)) == generation


def test_an_unclear_generation_is_refused() -> None:
    with pytest.raises(UserError, match='add "generation": 2 or 3'):
        Glm1Config.from_dict(V2 | {"_name_or_path": "mine", "transformers_version": "4.33.0"})


@pytest.mark.parametrize("data", [V1, V2, V3])
def test_a_saved_config_is_read_again(data: dict[str, Any]) -> None:
    config = Glm1Config.from_dict(dict(data))
    assert Glm1Config.from_dict(config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize("data", [V1, V2])
def test_an_unknown_field_is_refused_by_name(data: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="unknown field 'sliding_window': 512"):
        Glm1Config.from_dict(data | {"sliding_window": 512})


@pytest.mark.parametrize(
    ("data", "name", "value"),
    [
        (V1, "position_encoding_2d", False),
        (V2, "rmsnorm", False),
        (V2, "multi_query_attention", False),
        (V2, "add_bias_linear", True),
        (V2, "apply_residual_connection_post_layernorm", True),
    ],
)
def test_an_unimplemented_value_is_refused_by_name(data: dict[str, Any], name: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"{name} = {value}"):
        Glm1Config.from_dict(data | {name: value})


def test_the_vocabulary_with_image_tokens_is_refused() -> None:
    old = {"bos_token_id": 150004, "eos_token_id": 150005, "vocab_size": 150528}
    with pytest.raises(UserError, match=r"bos_token_id is 150004.*March 2023"):
        Glm1Config.from_dict(V1 | old)


def test_another_family_is_refused() -> None:
    with pytest.raises(UserError, match="'llama'"):
        generation_of(LlamaConfig())
