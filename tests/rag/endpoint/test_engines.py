"""What the engines tell of themselves, in the shapes that their sources have."""

from typing import Any

import pytest

from ingest.errors import UserError
from rag.endpoint.engines import FRAME, MARKS, Failed, estimate
from rag.types import Message, Sampling
from tests.faulty import answers, faulty
from tests.rag.endpoint.reached import ASKED, reach

VLLM = {
    "data": [
        {"id": "glm", "owned_by": "vllm", "root": "/models/glm", "parent": None, "max_model_len": 8192},
        {"id": "law", "owned_by": "vllm", "root": "/adapters/law", "parent": "glm",
         "max_model_len": None},
    ]
}  # fmt: skip
SGLANG = {"data": [{"id": "glm", "owned_by": "sglang", "root": "glm", "max_model_len": 4000}]}
LLAMACPP = {
    "data": [
        {"id": "glm.gguf", "owned_by": "llamacpp", "meta": {"n_ctx_train": 131072, "n_ctx": 2048}}
    ]
}
OLLAMA = {"data": [{"id": "qwen3:latest", "owned_by": "library"}]}


def letters(body: dict[str, Any]) -> int:
    """A token is a character, and each message has four more."""
    return sum(len(turn["content"]) + 4 for turn in body["messages"])


def tokenize_chat(body: dict[str, Any]) -> dict[str, Any]:
    assert body["add_generation_prompt"] is True
    return {"count": letters(body), "max_model_len": 8192, "tokens": []}


def tokenize_text(body: dict[str, Any]) -> dict[str, Any]:
    if "prompt" not in body:
        return {"object": "error", "message": "Field required"}
    return {"count": len(body["prompt"]), "max_model_len": -1, "tokens": []}


def template(body: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": "".join(f"<|user|>{turn['content']}" for turn in body["messages"])}


def tokenize_content(body: dict[str, Any]) -> dict[str, Any]:
    assert body["add_special"] is True
    return {"tokens": list(range(len(body["content"])))}


QUESTION = len(ASKED[0].text)
PROPS = {"default_generation_settings": {"n_ctx": 1024}}
NO_META = {"data": [{"id": "glm.gguf", "owned_by": "llamacpp", "meta": None}]}


@pytest.mark.parametrize(
    ("name", "paths", "kind", "model", "window", "count"),
    [
        ("#glm", {"/v1/models": VLLM, "/tokenize": tokenize_chat}, "vllm", "glm", 8192, QUESTION + 4),
        ("#law", {"/v1/models": VLLM, "/tokenize": tokenize_chat}, "vllm", "law", 8192, QUESTION + 4),
        ("", {"/v1/models": SGLANG, "/tokenize": tokenize_chat}, "sglang", "glm", 4000, QUESTION + 4),
        ("", {"/v1/models": SGLANG, "/tokenize": tokenize_text}, "sglang", "glm", 4000,
         QUESTION + FRAME + MARKS),
        ("#any", {"/v1/models": LLAMACPP,
                  "/v1/chat/completions/input_tokens": lambda body: {"input_tokens": letters(body)}},
         "llamacpp", "any", 2048, QUESTION + 4),
        ("", {"/v1/models": NO_META, "/props?model=glm.gguf": PROPS, "/apply-template": template,
              "/tokenize": tokenize_content}, "llamacpp", "glm.gguf", 1024, QUESTION + 8),
        ("", {"/v1/models": NO_META}, "llamacpp", "glm.gguf", None, estimate(ASKED)),
        ("#qwen3", {"/v1/models": OLLAMA, "/api/version": {"version": "0.33.3"},
                    "/api/generate": {"model": "qwen3", "done_reason": "load"},
                    "/api/ps": {"models": [{"name": "qwen3:latest", "context_length": 4096}]}},
         "ollama", "qwen3", 4096, estimate(ASKED)),
        ("#qwen3", {"/v1/models": OLLAMA, "/api/version": {"version": "0.1"}, "/api/generate": {},
                    "/api/ps": {"models": [{"name": "qwen3:latest"}]}},
         "ollama", "qwen3", None, estimate(ASKED)),
        ("", {"/v1/models": {"data": [{"id": "mine", "owned_by": "chatglm-rag"}]}}, "", "mine", None,
         estimate(ASKED)),
        ("#gpt", {"/v1/models": {"object": "list"}}, "", "gpt", None, estimate(ASKED)),
    ],
)  # fmt: skip
def test_model_window_and_tokens(
    name: str, paths: dict, kind: str, model: str, window: int | None, count: int
) -> None:
    with faulty(answers("好"), paths=paths) as engine:
        reached = reach(engine.address + name)
        found = reached.generator.engine
        assert (found.kind, found.model, found.window) == (kind, model, window)
        assert reached.generator.context == (window or 4096)
        assert reached.generator.count(ASKED) == count
        assert reached.reply() == "好"
        assert engine.chats[-1].body["model"] == model
        assert bool(reached.notes) is (window is None)


def test_a_list_of_models_may_be_missing_where_one_is_named() -> None:
    with faulty(answers("好")) as engine:
        del engine.paths["/v1/models"]
        assert reach(f"{engine.address}#glm").reply() == "好"
        with pytest.raises(Failed, match="refused the request"):
            reach(engine).reply()


@pytest.mark.parametrize(("name", "models", "said"), [
    ("", VLLM, r"serves 2 models; name one after #, as http://.*/v1#MODEL; it has: glm, law"),
    ("", {"data": []}, r"serves 0 models"),
    ("#glm2", VLLM, r"has no model glm2; .* it has: glm, law"),
])  # fmt: skip
def test_a_model_that_is_not_clear_is_told_with_those_that_are_there(
    name: str, models: dict, said: str
) -> None:
    with faulty(answers("好"), paths={"/v1/models": models}) as engine:
        with pytest.raises(UserError, match=said):
            reach(engine.address + name).reply()
        assert engine.chats == []


def test_settings_have_the_last_word_on_the_window() -> None:
    with faulty(answers("好"), paths={"/v1/models": NO_META}) as engine:
        reached = reach(engine, context=999)
        assert reached.generator.context == 999
        assert reached.generator.count(ASKED) == estimate(ASKED)
        assert reached.notes == []


def test_text_that_no_utf_8_can_hold_is_sent_all_the_same() -> None:
    with faulty(answers("好")) as engine:
        generator = reach(engine).generator
        list(generator.stream([Message("user", "a\udce4b")], Sampling()))
        assert engine.chats[0].body["messages"][0]["content"] == "a?b"
