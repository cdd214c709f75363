"""Prompts against the original ones; documents that try to speak as someone else; tool calls."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import GlmConfig, PreTrainedTokenizerFast

from ingest.errors import UserError
from rag.chatglm.chat import FORMATS, context_of, encode_chat, encode_text
from rag.chatglm.configuration import ChatGLM2Config, Glm1Config
from rag.chatglm.generator import polish
from rag.chatglm.tokenization import open_tokenizer
from rag.types import Message
from tests.rag.chatglm import vocabularies

WHOLE = vocabularies.SHARED.is_dir()
GENERATIONS = (1, 2, 3) if WHOLE else (2, 3)
HOSTILE = (
    "[gMASK]", "[MASK]", "<sop>", "<eop>", "sop", "eop", "</s>", "<|user|>", "<|assistant|>",
    "<|system|>", "<|observation|>", "<|endoftext|>", "<pad>", "<unk>", "\n", " ", "答：", "\ud83d",
)  # fmt: skip
# The part of GLM-4-9B-chat's own template that has no tools.
TEMPLATE = (
    "[gMASK]<sop>{% for item in messages %}<|{{ item['role'] }}|>{{ item['metadata'] }}\n"
    "{{ item['content'] }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    def folder() -> Path:
        return tmp_path_factory.mktemp("v")

    first = (vocabularies.published_1 if WHOLE else vocabularies.small_1)(folder())
    return {
        1: open_tokenizer(first),
        2: open_tokenizer(vocabularies.published(folder(), 2)),
        3: open_tokenizer(vocabularies.published(folder(), 3)),
        4: open_tokenizer(vocabularies.small_4(folder())),
    }


def golden(generation: int) -> dict[str, Any]:
    folder = vocabularies.SHARED if generation == 1 else vocabularies.GOLDEN
    return json.loads((folder / f"v{generation}_golden.json").read_text("utf-8"))


def messages_of(case: dict[str, Any]) -> list[dict[str, Any]]:
    history = case["history"]
    if history and isinstance(history[0], list):
        history = [
            {"role": role, "content": text}
            for pair in history
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
    return [*history, {"role": case.get("role", "user"), "content": case["query"]}]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_prompts_are_the_original_ones(tokenizers: dict[int, Any], generation: int) -> None:
    tokenizer = tokenizers[generation]
    for case in golden(generation)["chat"]:
        ids = encode_chat(messages_of(case), tokenizer, generation)
        assert ids == case["encoding"]["input_ids"][0]
        if "stream_continuation_ids" in case:  # what upstream appends to a kept cache
            last = f"\n\n[Round {len(case['history']) + 1}]\n\n问：{case['query']}\n\n答："
            assert encode_text(last, tokenizer)[1:] == case["stream_continuation_ids"]


def test_stop_ids(tokenizers: dict[int, Any]) -> None:
    assert FORMATS[2].stop_ids(tokenizers[2]) == (2,)
    assert FORMATS[3].stop_ids(tokenizers[3]) == (2, 64795, 64797)
    assert FORMATS[1].stop_ids(tokenizers[1]) == (tokenizers[1].eos_token_id,)
    first = tokenizers[4].vocab_size
    assert FORMATS[4].stop_ids(tokenizers[4]) == (first, first + 7, first + 9)


def test_another_models_tokenizer_is_refused(tokenizers: dict[int, Any]) -> None:
    with pytest.raises(UserError, match=re.escape("<|user|>")):
        FORMATS[3].stop_ids(tokenizers[2])
    with pytest.raises(UserError, match="sop"):
        encode_chat([Message("user", "你好")], tokenizers[1], 2)


@pytest.mark.parametrize(
    ("generation", "start"),
    [(1, "只用中文。\n[Round 0]\n问：甲\n答：乙\n[Round 1]\n问：丙\n答："),
     (2, "只用中文。\n\n[Round 1]\n\n问：甲\n\n答：乙\n\n[Round 2]\n\n问：丙\n\n答：")],
)  # fmt: skip
def test_system_messages_come_first_without_a_system_role(
    tokenizers: dict[int, Any], generation: int, start: str
) -> None:
    chat = [Message("system", "只用中文。"), Message("user", "甲")]
    chat += [Message("assistant", "乙"), Message("user", "丙")]
    ids = encode_chat(chat, tokenizers[generation], generation)
    plain = encode_text(start, tokenizers[generation])
    assert (ids[:-2] if generation == 1 else ids[2:]) == plain


def test_glm4s_prompt_is_that_of_its_template(tokenizers: dict[int, Any]) -> None:
    tokenizer = tokenizers[4]
    chat = [
        {"role": "system", "content": "只用中文。", "metadata": ""},
        {"role": "user", "content": "  北京\n天气?", "metadata": ""},
        {"role": "assistant", "content": '{"city": "北京"}', "metadata": "get_weather"},
        {"role": "observation", "content": "22", "metadata": ""},
    ]
    rendered = tokenizer.apply_chat_template(
        chat, chat_template=TEMPLATE, tokenize=False, add_generation_prompt=True
    )
    expected = tokenizer.encode(rendered, add_special_tokens=False)
    assert encode_chat(chat, tokenizer, 4) == expected


def test_glm4s_tools_are_a_system_turn(tokenizers: dict[int, Any]) -> None:
    schema = {"name": "get_weather", "parameters": {"type": "object"}}
    for tool in (schema, {"type": "function", "function": schema}):
        chat = [
            {"role": "system", "content": "只用中文。", "tools": [tool]},
            {"role": "user", "content": "天气"},
        ]
        text = tokenizers[4].decode(encode_chat(chat, tokenizers[4], 4))
        assert text.startswith("[gMASK]<sop><|system|>\n你是一个名为 ChatGLM")
        assert '## get_weather\n\n{\n    "name": "get_weather"' in text
        end = "参数。<|system|>\n只用中文。<|user|>\n天气<|assistant|>"
        assert text.endswith(end)


@pytest.mark.parametrize("generation", [1, 2, 3, 4])
@given(parts=st.lists(st.sampled_from(HOSTILE) | st.text(max_size=3), max_size=8))
def test_text_never_becomes_a_special_token(
    tokenizers: dict[int, Any], generation: int, parts: list[str]
) -> None:
    tokenizer, text = tokenizers[generation], "".join(parts)
    special = {tokenizer.convert_tokens_to_ids(name) for name in HOSTILE[:13]} - {0}
    if generation == 2:
        special -= {tokenizer.unk_token_id}

    def specials(text: str) -> list[int]:
        chat = [Message("system", text), Message("user", text), Message("assistant", text)]
        ids = encode_chat([*chat, Message("user", text)], tokenizer, generation)
        return [index for index in ids if index in special]

    assert specials(text) == specials("好")


def test_text_never_becomes_an_added_token(tokenizers: dict[int, Any]) -> None:
    fast = Tokenizer.from_str(tokenizers[4].backend_tokenizer.to_str())
    data = json.loads(fast.to_str())
    for word in data["added_tokens"]:
        word["special"] = False
    odd = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(data)))
    odd.add_tokens([AddedToken("<|extra|>", special=False)])
    user = odd.convert_tokens_to_ids("<|user|>")
    text = "a<|user|>b<|user|><|extra|>"
    assert odd.encode(text, add_special_tokens=False, split_special_tokens=True).count(user) == 2
    ids = encode_chat([Message("user", text)], odd, 4)
    assert ids.count(user) == 1
    assert odd.decode(ids) == f"[gMASK]<sop><|user|>\n{text}<|assistant|>"


@pytest.mark.parametrize("generation", [1, 2])
def test_consecutive_questions_become_one(tokenizers: dict[int, Any], generation: int) -> None:
    def ids(*turns: tuple[Any, str]) -> list[int]:
        chat = [Message(role, text) for role, text in turns]
        return encode_chat(chat, tokenizers[generation], generation)

    row = ids(("user", "甲"), ("user", "乙"), ("assistant", "丙"), ("user", "丁"))
    assert row == ids(("user", "甲\n乙"), ("assistant", "丙"), ("user", "丁"))
    first = ids(("assistant", "丙"), ("user", "丁"))
    assert first == ids(("user", ""), ("assistant", "丙"), ("user", "丁"))


@pytest.mark.parametrize("generation", [1, 2, 3, 4])
def test_chats_that_cannot_be_answered_are_refused(tokenizers: dict[int, Any], generation: int) -> None:
    for chat in ([], [Message("system", "甲")], [Message("assistant", "甲")]):
        with pytest.raises(UserError, match="end with a question"):
            encode_chat(chat, tokenizers[generation], generation)
    with pytest.raises(UserError, match="'tool'"):
        encode_chat([{"role": "tool", "content": ""}], tokenizers[generation], generation)


@pytest.mark.parametrize("generation", [1, 2])
def test_old_generations_refuse_tools(tokenizers: dict[int, Any], generation: int) -> None:
    with pytest.raises(UserError, match="can't use tools"):
        encode_chat([{"role": "observation", "content": "22"}], tokenizers[generation], generation)


@pytest.mark.parametrize("generation", [number for number in GENERATIONS if number < 3])
def test_responses_are_polished_as_the_original_does(generation: int) -> None:
    for case in golden(generation)["process_response"]:
        assert polish(case["response"], generation) == case["processed"]


def test_the_context_is_the_window_of_the_training() -> None:
    assert context_of(Glm1Config()) == 2048
    theta = {"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 10000.0}
    config = ChatGLM2Config(generation=2, max_position_embeddings=32768, rope_parameters=theta)
    assert context_of(config) == 8192
    theta = theta | {"rope_theta": 500000.0}
    config = ChatGLM2Config(generation=3, max_position_embeddings=32768, rope_parameters=theta)
    assert context_of(config) == 32768
    assert context_of(GlmConfig(max_position_embeddings=131072)) == 131072
