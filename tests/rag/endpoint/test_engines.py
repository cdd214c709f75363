"""What engines report about themselves, in the shapes of their sources."""

from typing import Any

import pytest

from ingest.errors import UserError
from rag.endpoint.engines import EngineFailure, estimate
from rag.types import Message, Sampling
from tests.faulty import answers, faulty
from tests.rag.endpoint.clients import QUESTION, connect

VLLM = {
    "data": [
        {"id": "glm", "owned_by": "vllm", "root": "/models/glm", "parent": None, "max_model_len": 8192},
        {"id": "law", "owned_by": "vllm", "root": "/adapters/law", "parent": "glm",
         "max_model_len": None},
    ]
}  # fmt: skip
SGLANG = {"data": [{"id": "glm", "owned_by": "sglang", "root": "glm", "max_model_len": 4000}]}
LLAMACPP = {
    "data": [{"id": "glm.gguf", "owned_by": "llamacpp", "meta": {"n_ctx_train": 131072, "n_ctx": 2048}}]
}
OLLAMA = {"data": [{"id": "qwen3:latest", "owned_by": "library"}]}


def letters(body: dict[str, Any]) -> int:
    """A token is a character, and each message has four more."""
    return sum(len(turn["content"]) + 4 for turn in body["messages"])


def tokenize_chat(body: dict[str, Any]) -> dict[str, Any]:
    assert body["add_generation_prompt"] is True
    return {"count": letters(body), "max_model_len": 8192, "tokens": []}


LENGTH = len(QUESTION[0].text)
NO_META = {"data": [{"id": "glm.gguf", "owned_by": "llamacpp", "meta": None}]}


@pytest.mark.parametrize(
    ("name", "paths", "kind", "model", "window", "count"),
    [
        ("#glm", {"/v1/models": VLLM, "/tokenize": tokenize_chat}, "vllm", "glm", 8192, LENGTH + 4),
        ("#law", {"/v1/models": VLLM, "/tokenize": tokenize_chat}, "vllm", "law", 8192, LENGTH + 4),
        ("", {"/v1/models": SGLANG, "/tokenize": tokenize_chat}, "sglang", "glm", 4000, LENGTH + 4),
        ("", {"/v1/models": SGLANG, "/tokenize": {"object": "error", "message": "Field required"}}, "sglang", "glm",
         4000, estimate(QUESTION)),
        ("#any", {"/v1/models": LLAMACPP,
                  "/v1/chat/completions/input_tokens": lambda body: {"input_tokens": letters(body)}},
         "llamacpp", "any", 2048, LENGTH + 4),
        ("", {"/v1/models": NO_META}, "llamacpp", "glm.gguf", None, estimate(QUESTION)),
        ("#qwen3", {"/v1/models": OLLAMA, "/api/version": {"version": "0.33.3"},
                    "/api/generate": {"model": "qwen3", "done_reason": "load"},
                    "/api/ps": {"models": [{"name": "qwen3:latest", "context_length": 4096}]}},
         "ollama", "qwen3", 4096, estimate(QUESTION)),
        ("#qwen3", {"/v1/models": OLLAMA, "/api/version": {"version": "0.1"}, "/api/generate": {},
                    "/api/ps": {"models": [{"name": "qwen3:latest"}]}},
         "ollama", "qwen3", None, estimate(QUESTION)),
        ("", {"/v1/models": {"data": [{"id": "mine", "owned_by": "chatglm-rag"}]}}, "", "mine", None,
         estimate(QUESTION)),
        ("#gpt", {"/v1/models": {"object": "list"}}, "", "gpt", None, estimate(QUESTION)),
    ],
)  # fmt: skip
def test_model_window_and_tokens(
    name: str, paths: dict, kind: str, model: str, window: int | None, count: int
) -> None:
    with faulty(answers("好"), paths=paths) as engine:
        client = connect(engine.address + name)
        found = client.generator.engine
        assert (found.kind, found.model, found.window) == (kind, model, window)
        assert client.generator.context == (window or 4096)
        assert client.generator.count(QUESTION) == count
        assert client.reply() == "好"
        assert engine.chats[-1].body["model"] == model
        assert bool(client.notes) is (window is None)


def test_a_list_of_models_may_be_missing_if_one_is_named() -> None:
    with faulty(answers("好")) as engine:
        del engine.paths["/v1/models"]
        assert connect(f"{engine.address}#glm").reply() == "好"
        with pytest.raises(EngineFailure, match="refused the request"):
            connect(engine).reply()


@pytest.mark.parametrize(("name", "models", "message"), [
    ("", VLLM, r"serves 2 models; name one after #, as http://.*/v1#MODEL; it has: glm, law"),
    ("", {"data": []}, r"serves 0 models"),
    ("#glm2", VLLM, r"has no model glm2; .* it has: glm, law"),
])  # fmt: skip
def test_an_unclear_model_is_refused_with_the_names_of_all_models(
    name: str, models: dict, message: str
) -> None:
    with faulty(answers("好"), paths={"/v1/models": models}) as engine:
        with pytest.raises(UserError, match=message):
            connect(engine.address + name).reply()
        assert engine.chats == []


def test_settings_override_the_reported_window() -> None:
    with faulty(answers("好"), paths={"/v1/models": NO_META}) as engine:
        client = connect(engine, context=999)
        assert client.generator.context == 999
        assert client.generator.count(QUESTION) == estimate(QUESTION)
        assert client.notes == []


def test_text_with_a_lone_surrogate_is_sent_with_a_question_mark() -> None:
    with faulty(answers("好")) as engine:
        generator = connect(engine).generator
        list(generator.stream([Message("user", "a\udce4b")], Sampling()))
        assert engine.chats[0].body["messages"][0]["content"] == "a?b"
