"""What an engine says of the model that it serves: its name, its window, the tokens of a prompt.

Each is asked in its own way, as its sources say: vLLM's `ModelCard.max_model_len` and `/tokenize` of
messages (entrypoints/serve/tokenize), SGLang's like it (entrypoints/openai/serving_tokenize.py, of
texts alone in older versions), llama.cpp's `meta.n_ctx`, `/props`, `/v1/chat/completions/input_tokens`,
or `/apply-template` and `/tokenize` in older versions (tools/server/README.md), and Ollama's
`/api/ps` (api/types.go, `ProcessModelResponse.ContextLength`), which alone gives the window in use.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, LiteralString
from urllib.parse import quote

from ingest.errors import UserError
from rag.endpoint.address import KEY, Address, EndpointOptions
from rag.endpoint.token_count import FRAME, MARKS
from rag.types import Message

if TYPE_CHECKING:
    import openai

LISTED = 10  # names of models in an error
SHOWN = 300  # characters of what an engine says
Card = dict[str, Any]
Cards = list[Card]
Turns = list[dict[str, str]]


class Unreachable(UserError):
    """The engine is not there, or can't answer now."""


class Failed(UserError):
    """The engine refuses (with an HTTP `status`), breaks off, falls silent or makes no sense."""

    def __init__(self, template: LiteralString, /, *, status: int = 0, **fields: object) -> None:
        super().__init__(template, status=status, **fields)
        self.status = status


Ask = Callable[..., dict[str, Any]]
"""`ask(path)` gets and `ask(path, body)` posts; the JSON object of the answer comes back. A path with a
slash in front hangs below `Address.root`, any other below `Address.base`. Raises `Unreachable` or `Failed`."""
Counter = Callable[[Ask, str, Turns], int]
"""The tokens of a model's prompt."""


@dataclass(frozen=True, slots=True)
class Engine:
    """`window` is None if the engine does not give it, `counter` if it does not count."""

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


def explore(address: Address, ask: Ask) -> Engine:
    """What is served at the address.

    Raises `UserError` if nothing is, if several models are and none is named, or not the named one.
    """
    models = _models(address, ask)
    names = ", ".join(card["id"] for card in models[:LISTED]) or "?"
    if not address.model and len(models) != 1:
        raise UserError(
            "{base} serves {models_count} models; name one behind #, as {base}#MODEL; it has: "
            "{names}",
            base=address.base,
            models_count=len(models),
            names=names,
        )
    model = address.model or models[0]["id"]
    card = next((card for card in models if card["id"] == model), None)
    kind = _kind(models[0] if models else {}, ask)
    if kind in ("vllm", "sglang") and card is None:
        raise UserError(
            "{base} has no model {model}; name another behind #; it has: {names}",
            base=address.base,
            model=model,
            names=names,
        )
    card = card or (models[0] if len(models) == 1 else {})  # llama.cpp goes by any name
    window = _window(kind, ask, model, card, models)
    return Engine(kind, model, window or None, _counter(kind, ask, model))


def _models(address: Address, ask: Ask) -> Cards:
    """The models' cards; none if the endpoint has no list and a model is named."""
    try:
        return [card for card in ask("models")["data"] if isinstance(card["id"], str)]
    except (KeyError, TypeError):
        return []
    except Failed as failed:
        if failed.status in (404, 405) and address.model:
            return []
        raise


def _kind(card: Card, ask: Ask) -> str:
    """The first three sign their models; Ollama's are owned by whoever published them."""
    owner = card.get("owned_by")
    if owner in ("vllm", "sglang", "llamacpp"):
        return owner
    try:
        return "ollama" if ask("/api/version").get("version") else ""
    except Failed:
        return ""


def _window(kind: str, ask: Ask, model: str, card: Card, models: Cards) -> int | None:
    """The window in tokens; None if the engine does not give it."""
    try:
        match kind:
            case "vllm" | "sglang":  # an adapter's card has none, its base model's has
                parent = next((each for each in models if each["id"] == card.get("parent")), {})
                return card.get("max_model_len") or parent.get("max_model_len")
            case "llamacpp":  # shared out to the requests that it answers at a time
                if size := (card.get("meta") or {}).get("n_ctx"):
                    return size
                props = ask(f"/props?model={quote(model, safe='')}")
                return props["default_generation_settings"]["n_ctx"]
            case "ollama":
                # It cuts what is longer without a word, and the window that a model is loaded with is
                # often far less than the model could have. So the model has to be loaded.
                ask("/api/generate", {"model": model, "stream": False})
                names = (model, f"{model}:latest")
                loaded = ask("/api/ps")["models"]
                return next(each["context_length"] for each in loaded if each["name"] in names)
    except (KeyError, TypeError, StopIteration):
        return None
    except Failed:
        if kind != "llamacpp":
            raise
    return None


def _tokenized(ask: Ask, model: str, turns: Turns) -> int:
    body = {"model": model, "messages": turns, "add_generation_prompt": True}
    return ask("/tokenize", body)["count"]


def _tokenized_text(ask: Ask, model: str, turns: Turns) -> int:
    """The words are counted; what the chat template adds is estimated."""
    body = {"model": model, "prompt": "\n".join(turn["content"] for turn in turns)}
    words = ask("/tokenize", body)["count"]
    return FRAME + MARKS * len(turns) + words


def _input_tokens(ask: Ask, model: str, turns: Turns) -> int:
    body = {"model": model, "messages": turns}
    return ask("chat/completions/input_tokens", body)["input_tokens"]


def _templated(ask: Ask, model: str, turns: Turns) -> int:
    prompt = ask("/apply-template", {"model": model, "messages": turns})
    body = {"model": model, "content": prompt["prompt"], "add_special": True}
    return len(ask("/tokenize", body)["tokens"])


COUNTERS: dict[str, tuple[Counter, ...]] = {
    "vllm": (_tokenized,),
    "sglang": (_tokenized, _tokenized_text),
    "llamacpp": (_input_tokens, _templated),
}


def _counter(kind: str, ask: Ask, model: str) -> Counter | None:
    """The first way of counting that the engine knows."""
    for counter in COUNTERS.get(kind, ()):
        try:
            if counter(ask, model, [{"role": "user", "content": "-"}]) > 0:
                return counter
        except (Failed, KeyError, TypeError):
            continue
    return None


@contextmanager
def faults(address: Address, options: EndpointOptions, text: str = "") -> Iterator[None]:
    """Raises what goes wrong with a request as `Unreachable` or `Failed`; `text` is what came of the
    answer so far."""
    import httpx2
    import openai

    base = address.base
    try:
        yield
    except openai.APIStatusError as error:
        raise _refusal(base, error) from None
    except openai.APIConnectionError as error:
        cause = error.__cause__ or error
        if isinstance(cause, httpx2.ReadTimeout):
            raise Failed(
                "{base} has been silent for {silence_seconds:g} s; if its model is that slow, raise "
                "silence_seconds under [generate.endpoint] in rag.toml",
                base=base,
                silence_seconds=options.silence_seconds,
            ) from None
        why = _line(f"{type(cause).__name__}: {cause}".removesuffix(": "))
        raise broken_off(address, text, why) from error
    except openai.APIError as error:  # within a stream
        why = _line(_message(error.body))
        raise Failed(
            "{base} failed after {text_count} characters of its answer: {why}",
            base=base,
            text_count=len(text),
            why=why,
        ) from None
    except (ValueError, RecursionError, httpx2.InvalidURL) as error:
        raise not_openai(address, getattr(error, "doc", str(error))) from None


def broken_off(address: Address, text: str, why: str) -> UserError:
    """That a connection failed before the first word, or behind `text`."""
    base = address.base
    if not text:
        return Unreachable(
            "{base} can't be reached ({why}); start the engine there, or check the address",
            base=base,
            why=why,
        )
    return Failed(
        "{base} broke off after {text_count} characters of its answer ({why}); ask again",
        base=base,
        text_count=len(text),
        why=why,
    )


def not_openai(address: Address, answer: str) -> Failed:
    return Failed(
        "{base} does not speak as OpenAI's API ({answer}); check the address, and its /v1",
        base=address.base,
        answer=_line(answer),
    )


def _refusal(base: str, error: "openai.APIStatusError") -> UserError:
    status, response = error.status_code, error.response
    if response.is_redirect:
        where = _line(response.headers["location"])
        return Failed(
            "{base} sends on to {where}; if that is right, name it as the address",
            base=base,
            where=where,
        )
    why = _line(_message(error.body)) or response.reason_phrase
    if status in (408, 409, 429) or status >= 500:
        return Unreachable(
            "{base} can't answer now ({status}: {why}); try again later",
            base=base,
            status=status,
            why=why,
        )
    if status in (401, 403):
        return Failed(
            "{base} wants another key ({status}: {why}); put it into the variable {key}",
            base=base,
            status=status,
            why=why,
            key=KEY,
        )
    if "context" in why.lower():
        return Failed(
            "prompt and answer are too long for {base} ({why}); put its window as context under "
            "[generate.endpoint] in rag.toml, or lower max_new_tokens",
            base=base,
            why=why,
        )
    url = response.request.url
    return Failed("{url} refused the request ({status}: {why})", url=url, why=why, status=status)


def _message(body: object) -> str:
    """The message in an engine's error: OpenAI's `error.message`, or its like."""
    for name in ("error", "message", "detail"):
        if isinstance(body, dict) and body.get(name):
            body = body[name]
    return "" if body is None else str(body)


def _line(text: str) -> str:
    """One line of what a stranger says."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"
