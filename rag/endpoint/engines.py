"""What an engine tells of the model that it serves: its name, its window, tokens of a prompt.

Each is asked in its own way, as its sources say: vLLM's `ModelCard.max_model_len` and `/tokenize` of
messages (entrypoints/serve/tokenize), SGLang's like it (entrypoints/openai/serving_tokenize.py, of
texts alone in older versions), llama.cpp's `meta.n_ctx`, `/props`, `/v1/chat/completions/input_tokens`,
or `/apply-template` and `/tokenize` in older versions (tools/server/README.md), and Ollama's
`/api/ps` (api/types.go, `ProcessModelResponse.ContextLength`), which alone tells the window in use.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from ingest.errors import UserError
from rag.endpoint.client import Failed, Wire
from rag.endpoint.token_count import FRAME, MARKS
from rag.types import Message

LISTED = 10  # names of models in an error
Card = dict[str, Any]
Cards = list[Card]
Turns = list[dict[str, str]]
Counter = Callable[[Wire, str, Turns], int]


@dataclass(frozen=True, slots=True)
class Engine:
    """`window` is None where the engine does not tell it, `counter` where it does not count."""

    kind: str
    """vllm, sglang, llamacpp, ollama, or empty."""
    model: str
    window: int | None
    counter: Counter | None


def turns_of(messages: Sequence[Message]) -> Turns:
    """The messages as OpenAI's API has them; what no UTF-8 can hold becomes a question mark."""
    return [
        {"role": message.role, "content": message.text.encode("utf-8", "replace").decode()}
        for message in messages
    ]


def explore(wire: Wire) -> Engine:
    """What is served at the wire's address.

    `UserError` where it is not there, serves several models and none is named, or not the named one.
    """
    address = wire.address
    models = _listed(wire)
    model = address.model or _only(models, wire)
    card = next((card for card in models if card["id"] == model), None)
    kind = _kind(models[0] if models else {}, wire)
    if kind in ("vllm", "sglang") and card is None:
        raise _no_model(f"has no model {model}", f"没有模型 {model}", models, wire)
    card = card or (models[0] if len(models) == 1 else {})  # llama.cpp goes by any name
    window = WINDOWS.get(kind, lambda *_: None)(wire, model, card, models)
    return Engine(kind, model, window or None, _counter(kind, wire, model))


def _listed(wire: Wire) -> Cards:
    """The models' cards; none where the endpoint has no list and a model is named."""
    try:
        cards = wire.ask("GET", f"{wire.address.base}/models")["data"]
        return [card for card in cards if isinstance(card["id"], str)]
    except (KeyError, TypeError):
        return []
    except Failed as failed:
        if failed.status in (404, 405) and wire.address.model:
            return []
        raise


def _only(models: Cards, wire: Wire) -> str:
    if len(models) != 1:
        raise _no_model(f"serves {len(models)} models", f"提供 {len(models)} 个模型", models, wire)
    return models[0]["id"]


def _no_model(en: str, zh: str, models: Cards, wire: Wire) -> UserError:
    base = wire.address.base
    names = ", ".join(card["id"] for card in models[:LISTED]) or "?"
    return UserError(
        f"{base} {en}; name one behind #, as {base}#MODEL; it has: {names}",
        zh=f"{base} {zh}；请在 # 后写明，如 {base}#模型名；现有：{names}",
    )


def _kind(card: Card, wire: Wire) -> str:
    """The first three sign their models; Ollama's are owned by whoever published them."""
    owner = card.get("owned_by")
    if owner in ("vllm", "sglang", "llamacpp"):
        return owner
    try:
        version = wire.ask("GET", f"{wire.address.root}/api/version")
    except Failed:
        return ""
    return "ollama" if isinstance(version, dict) and version.get("version") else ""


# Windows


def _max_model_len(wire: Wire, model: str, card: Card, models: Cards) -> int | None:
    """An adapter's card has none: its base model's holds."""
    parent = next((each for each in models if each.get("id") == card.get("parent")), {})
    return card.get("max_model_len") or parent.get("max_model_len")


def _slot(wire: Wire, model: str, card: Card, models: Cards) -> int | None:
    """Of llama.cpp, whose window is shared out to the requests that it answers at a time."""
    if window := (card.get("meta") or {}).get("n_ctx"):
        return window
    try:
        props = wire.ask("GET", f"{wire.address.root}/props?model={quote(model, safe='')}")
        return props["default_generation_settings"]["n_ctx"]
    except (Failed, KeyError, TypeError):
        return None


def _loaded(wire: Wire, model: str, card: Card, models: Cards) -> int | None:
    """Of Ollama, which cuts what is longer without a word: the window that the model is loaded with,
    which is often far less than the model could have. So it has to be loaded."""
    root = wire.address.root
    wire.ask("POST", f"{root}/api/generate", {"model": model, "stream": False})
    names = (model, f"{model}:latest")
    try:
        running = wire.ask("GET", f"{root}/api/ps")["models"]
        return next(each["context_length"] for each in running if each["name"] in names)
    except (KeyError, TypeError, StopIteration):
        return None


WINDOWS: dict[str, Callable[..., int | None]] = {
    "vllm": _max_model_len,
    "sglang": _max_model_len,
    "llamacpp": _slot,
    "ollama": _loaded,
}


# Tokens


def _tokenized(wire: Wire, model: str, turns: Turns) -> int:
    body = {"model": model, "messages": turns, "add_generation_prompt": True}
    return wire.ask("POST", f"{wire.address.root}/tokenize", body)["count"]


def _tokenized_text(wire: Wire, model: str, turns: Turns) -> int:
    """The words are counted; what the chat template adds is estimated."""
    body = {"model": model, "prompt": "\n".join(turn["content"] for turn in turns)}
    words = wire.ask("POST", f"{wire.address.root}/tokenize", body)["count"]
    return FRAME + MARKS * len(turns) + words


def _input_tokens(wire: Wire, model: str, turns: Turns) -> int:
    url = f"{wire.address.base}/chat/completions/input_tokens"
    return wire.ask("POST", url, {"model": model, "messages": turns})["input_tokens"]


def _templated(wire: Wire, model: str, turns: Turns) -> int:
    root = wire.address.root
    prompt = wire.ask("POST", f"{root}/apply-template", {"model": model, "messages": turns})
    body = {"model": model, "content": prompt["prompt"], "add_special": True}
    return len(wire.ask("POST", f"{root}/tokenize", body)["tokens"])


COUNTERS: dict[str, tuple[Counter, ...]] = {
    "vllm": (_tokenized,),
    "sglang": (_tokenized, _tokenized_text),
    "llamacpp": (_input_tokens, _templated),
}


def _counter(kind: str, wire: Wire, model: str) -> Counter | None:
    """The first way of counting that the engine knows."""
    for counter in COUNTERS.get(kind, ()):
        try:
            if counter(wire, model, [{"role": "user", "content": "-"}]) > 0:
                return counter
        except (Failed, KeyError, TypeError):
            continue
    return None
