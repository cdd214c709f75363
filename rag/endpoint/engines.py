"""What an engine reports about its model: its name, its window, the tokens of a prompt; its errors.

Each engine has its own interface, as in its sources: vLLM's `ModelCard.max_model_len` and `/tokenize` of
messages (entrypoints/serve/tokenize), SGLang's similar one (entrypoints/openai/serving_tokenize.py,
only of texts in older versions), llama.cpp's `meta.n_ctx`, `/props`, `/v1/chat/completions/input_tokens`,
or `/apply-template` and `/tokenize` in older versions (tools/server/README.md), and Ollama's
`/api/ps` (api/types.go, `ProcessModelResponse.ContextLength`), its only report of the window in use.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, LiteralString
from urllib.parse import quote

from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.endpoint.address import KEY, Address, EndpointOptions
from rag.types import CountTokens, Message

if TYPE_CHECKING:
    import openai

MAX_NAMES = 10  # of models in an error
MAX_CHARACTERS = 300  # of an engine's message
Card = dict[str, Any]
Messages = list[dict[str, str]]  # in the form of OpenAI's API
FRAME = 64  # tokens that a chat template adds before and after, such as Qwen's own first message
MARKS = 8  # tokens around each message
_WORD = re.compile(r" ?([A-Za-z]+)| +|.", re.DOTALL)


class Unreachable(UserError):
    """The engine can't be reached, or can't answer now."""


class EngineFailure(UserError):
    """The engine refuses (with an HTTP `status`), breaks off, times out, or its answer is not valid."""

    def __init__(self, template: LiteralString, /, *, status: int = 0, **fields: object) -> None:
        super().__init__(template, status=status, **fields)
        self.status = status


Ask = Callable[..., dict[str, Any]]
"""`ask(path)` gets and `ask(path, body)` posts; both return the JSON object of the answer. A path that
starts with a slash is below `Address.root`, any other below `Address.base`. Raises `Unreachable` or `EngineFailure`."""
Counter = Callable[[Ask, str, Messages], int]  # the tokens of a model's prompt


@dataclass(frozen=True, slots=True)
class Engine:
    """`window` is None if the engine does not report it, `counter` if it can't count tokens."""

    kind: str  # vllm, sglang, llamacpp, ollama, or empty
    model: str
    window: int | None
    counter: Counter | None


def to_openai(messages: Sequence[Message]) -> Messages:
    """The messages in the form of OpenAI's API; characters that are not valid become question marks."""
    return [
        {"role": message.role, "content": message.text.encode("utf-8", "replace").decode()}
        for message in messages
    ]


def explore(address: Address, ask: Ask) -> Engine:
    """The engine and the model at the address. Raises `UserError` if there is none, if the address
    names none of several models, or a model that the engine does not have."""
    models = _models(address, ask)
    names = ", ".join(card["id"] for card in models[:MAX_NAMES]) or "?"
    if not address.model and len(models) != 1:
        raise UserError(
            "{base} serves {count} models; name one after #, as {base}#MODEL; it has: {names}",
            base=address.base, count=len(models), names=names,
        )  # fmt: skip
    model = address.model or models[0]["id"]
    card = next((card for card in models if card["id"] == model), None)
    kind = _kind(models[0] if models else {}, ask)
    if kind in ("vllm", "sglang") and card is None:
        raise UserError(
            "{base} has no model {model}; name another one after #; it has: {names}",
            base=address.base, model=model, names=names,
        )  # fmt: skip
    card = card or (models[0] if len(models) == 1 else {})  # llama.cpp takes any name
    window = _window(kind, ask, model, card, models)
    return Engine(kind, model, window or None, _counter(kind, ask, model))


def _models(address: Address, ask: Ask) -> list[Card]:
    """The models' cards; none if the endpoint has no list and a model is named."""
    try:
        return [card for card in ask("models")["data"] if isinstance(card["id"], str)]
    except (KeyError, TypeError):
        return []
    except EngineFailure as failed:
        if failed.status in (404, 405) and address.model:
            return []
        raise


def _kind(card: Card, ask: Ask) -> str:
    """The first three own their models' cards; Ollama's belong to their publishers."""
    owner = card.get("owned_by")
    if owner in ("vllm", "sglang", "llamacpp"):
        return owner
    try:
        return "ollama" if ask("/api/version").get("version") else ""
    except EngineFailure:
        return ""


def _window(kind: str, ask: Ask, model: str, card: Card, models: list[Card]) -> int | None:
    """The window in tokens; None if the engine does not report it."""
    try:
        match kind:
            case "vllm" | "sglang":  # an adapter's card has none, its base model's has
                parent = next((each for each in models if each["id"] == card.get("parent")), {})
                return card.get("max_model_len") or parent.get("max_model_len")
            case "llamacpp":  # its concurrent requests share the whole window
                if size := (card.get("meta") or {}).get("n_ctx"):
                    return size
                props = ask(f"/props?model={quote(model, safe='')}")
                return props["default_generation_settings"]["n_ctx"]
            case "ollama":
                # It silently cuts longer prompts, and often loads a model with a much smaller window
                # than the model's own. So the model must be loaded first.
                ask("/api/generate", {"model": model, "stream": False})
                names = (model, f"{model}:latest")
                loaded = ask("/api/ps")["models"]
                return next(each["context_length"] for each in loaded if each["name"] in names)
    except (KeyError, TypeError, StopIteration):
        return None
    except EngineFailure:
        if kind != "llamacpp":
            raise
    return None


def _tokenize(ask: Ask, model: str, messages: Messages) -> int:
    body = {"model": model, "messages": messages, "add_generation_prompt": True}
    return ask("/tokenize", body)["count"]


def _tokenize_texts(ask: Ask, model: str, messages: Messages) -> int:
    """The tokens of the texts, and an estimate for those of the chat template."""
    body = {"model": model, "prompt": "\n".join(message["content"] for message in messages)}
    return FRAME + MARKS * len(messages) + ask("/tokenize", body)["count"]


def _input_tokens(ask: Ask, model: str, messages: Messages) -> int:
    body = {"model": model, "messages": messages}
    return ask("chat/completions/input_tokens", body)["input_tokens"]


def _apply_template(ask: Ask, model: str, messages: Messages) -> int:
    prompt = ask("/apply-template", {"model": model, "messages": messages})["prompt"]
    body = {"model": model, "content": prompt, "add_special": True}
    return len(ask("/tokenize", body)["tokens"])


COUNTERS: dict[str, tuple[Counter, ...]] = {
    "vllm": (_tokenize,),
    "sglang": (_tokenize, _tokenize_texts),
    "llamacpp": (_input_tokens, _apply_template),
}


def _counter(kind: str, ask: Ask, model: str) -> Counter | None:
    """The first counter that works with the engine."""
    for counter in COUNTERS.get(kind, ()):
        try:
            if counter(ask, model, [{"role": "user", "content": "-"}]) > 0:
                return counter
        except (EngineFailure, KeyError, TypeError):
            continue
    return None


def estimate(messages: Sequence[Message]) -> int:
    """At least the tokens of the prompt: one for each three letters of a word, two for a Chinese
    character, and one for each byte of UTF-8 of other characters.

    Compared with the vocabularies of cl100k, o200k, Qwen, tekken, Mistral (32k) and ChatGLM3 on
    Chinese and English prose, documentation, code and tables of at least 600 characters: never too
    low; the median is 1.8 times the tokens. Text of random letters may have more."""
    return FRAME + sum(MARKS + tokens(message.text) for message in messages)


def tokens(text: str) -> int:
    """At least the tokens of a text, as in `estimate`."""

    def weight(match: re.Match[str]) -> int:
        if letters := match[1]:
            return -(-len(letters) // 3)
        size = len(match[0][0].encode("utf-8", "surrogatepass"))
        return 2 if size == 3 else size

    return sum(map(weight, _WORD.finditer(text)))


CHATGLM = ("chatglm", "glm", "glm4")


def local_count(folder: str) -> CountTokens:
    """A counter with the tokenizer of `folder`: of a ChatGLM in its own format, of any other model
    with its chat template. No code of the folder runs. Raises `UserError` if it can't be read."""
    directory = Path(folder).expanduser()
    try:
        kind = json.loads((directory / "config.json").read_text("utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        kind = ""
    try:
        return _chatglm_count(directory) if kind in CHATGLM else _template_count(directory)
    except ImportError as error:
        raise UserError(
            "counting with {folder} needs {name}; pip install 'chatglm-rag[generate]'",
            folder=folder,
            name=error.name,
        ) from None


def _chatglm_count(directory: Path) -> CountTokens:
    from rag.chatglm.chat import encode_chat
    from rag.chatglm.configuration import generation_of
    from rag.chatglm.loading import read_model_config
    from rag.chatglm.tokenization import open_tokenizer

    tokenizer, generation = open_tokenizer(directory), generation_of(read_model_config(directory))
    return lambda messages: len(encode_chat(messages, tokenizer, generation))


def _template_count(directory: Path) -> CountTokens:
    from transformers import AutoTokenizer

    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, **options)
        why = "" if tokenizer.chat_template else Translatable("it has no chat template")
    except (OSError, ValueError, TypeError, KeyError) as error:
        tokenizer, why = None, (str(error).splitlines() or ["?"])[0]
    if tokenizer is None or why:
        raise UserError(
            "[generate.endpoint] tokenizer: {directory} has no usable tokenizer ({why}); give the "
            "folder with the model's tokenizer files, or leave it out",
            directory=directory,
            why=why,
        )

    def count(messages: Sequence[Message]) -> int:
        turns = [{"role": message.role, "content": message.text} for message in messages]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return count


@contextmanager
def faults(address: Address, options: EndpointOptions, text: str = "") -> Iterator[None]:
    """Raise the errors of a request as `Unreachable` or `EngineFailure`; `text` is the answer so far."""
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
            raise EngineFailure(
                "{base} has been silent for {seconds:g} s; if its model is that slow, raise "
                "silence_seconds under [generate.endpoint] in rag.toml",
                base=base,
                seconds=options.silence_seconds,
            ) from None
        why = _line(f"{type(cause).__name__}: {cause}".removesuffix(": "))
        raise broken_off(address, text, why) from error
    except openai.APIError as error:  # within a stream
        why = _line(_message(error.body))
        raise EngineFailure(
            "{base} failed after {count} characters of its answer: {why}", base=base, count=len(text), why=why
        ) from None
    except (ValueError, RecursionError, httpx2.InvalidURL) as error:
        raise not_openai(address, getattr(error, "doc", str(error))) from None


def broken_off(address: Address, text: str, why: str) -> UserError:
    """The error of a connection that failed before the first word, or after `text`."""
    base = address.base
    if not text:
        return Unreachable(
            "{base} can't be reached ({why}); start the engine there, or check the address",
            base=base,
            why=why,
        )
    return EngineFailure(
        "{base} broke off after {count} characters of its answer ({why}); ask again",
        base=base,
        count=len(text),
        why=why,
    )


def not_openai(address: Address, answer: str) -> EngineFailure:
    return EngineFailure(
        "{base} does not answer as OpenAI's API does ({answer}); check the address, and its /v1",
        base=address.base,
        answer=_line(answer),
    )


def _refusal(base: str, error: "openai.APIStatusError") -> UserError:
    status, response = error.status_code, error.response
    if response.is_redirect:
        return EngineFailure(
            "{base} redirects to {target}; if that is right, use it as the address",
            base=base,
            target=_line(response.headers["location"]),
        )
    why = _line(_message(error.body)) or response.reason_phrase
    if status in (408, 409, 429) or status >= 500:
        return Unreachable(
            "{base} can't answer now ({status}: {why}); try again later", base=base, status=status, why=why
        )
    if status in (401, 403):
        return EngineFailure(
            "{base} needs another key ({status}: {why}); put it into the variable {key}",
            base=base,
            status=status,
            why=why,
            key=KEY,
        )
    if "context" in why.lower():
        return EngineFailure(
            "prompt and answer are too long for {base} ({why}); set context to its window under "
            "[generate.endpoint] in rag.toml, or lower max_new_tokens",
            base=base,
            why=why,
        )
    url = response.request.url
    return EngineFailure("{url} refused the request ({status}: {why})", url=url, why=why, status=status)


def _message(body: object) -> str:
    """The message in an engine's error: OpenAI's `error.message`, or a similar field."""
    for name in ("error", "message", "detail"):
        if isinstance(body, dict) and body.get(name):
            body = body[name]
    return "" if body is None else str(body)


def _line(text: str) -> str:
    """An engine's text as one printable line."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + "…"
