"""What an engine reports about its model: its name, its window, the tokens of a prompt; its errors.

Engines differ, as in their sources: vLLM's and SGLang's `ModelCard.max_model_len` and `/tokenize` of
messages (vllm/entrypoints/serve/tokenize, sglang/srt/entrypoints/openai/serving_tokenize.py), llama.cpp's
`meta.n_ctx` and `/v1/chat/completions/input_tokens` (tools/server/README.md), and Ollama's `/api/ps`
(api/types.go, `ProcessModelResponse.ContextLength`), its only report of the window in use.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingest.errors import UserError
from rag.endpoint import KEY, Address, EndpointOptions
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
    """The engine refuses, breaks off, times out, or its answer is not valid."""


Ask = Callable[..., dict[str, Any]]
"""`ask(path)` gets and `ask(path, body)` posts; both return the JSON object of the answer. A path that
starts with a slash is below `Address.root`, any other below `Address.base`. Raises `Unreachable` or `EngineFailure`."""
COUNTING = {
    "vllm": ("/tokenize", "count"),
    "sglang": ("/tokenize", "count"),
    "llamacpp": ("chat/completions/input_tokens", "input_tokens"),
}
"""By the kind of engine: the path that counts the tokens of a prompt, and the field of its answer."""


@dataclass(frozen=True, slots=True)
class Engine:
    kind: str  # vllm, sglang, llamacpp, ollama, or empty
    model: str
    window: int | None  # None if the engine does not report it
    counts: bool  # whether it counts the tokens of a prompt


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
    counts = count(kind, ask, model, [{"role": "user", "content": "-"}]) is not None
    return Engine(kind, model, window or None, counts)


def _models(address: Address, ask: Ask) -> list[Card]:
    """The models' cards; none if the endpoint has no list and a model is named."""
    try:
        return [card for card in ask("models")["data"] if isinstance(card["id"], str)]
    except (KeyError, TypeError):
        return []
    except EngineFailure:
        if address.model:
            return []
        raise


def _kind(card: Card, ask: Ask) -> str:
    """The first three own their models' cards; Ollama's belong to their publishers."""
    owner = card.get("owned_by")
    if owner in COUNTING:
        return owner
    try:
        return "ollama" if ask("/api/version").get("version") else ""
    except EngineFailure:
        return ""


def _window(kind: str, ask: Ask, model: str, card: Card, models: list[Card]) -> int | None:
    """The window in tokens; None if the engine does not report it."""
    try:
        if kind == "ollama":
            # It silently cuts longer prompts, and often loads a model with a much smaller window
            # than the model's own. So the model must be loaded first.
            ask("/api/generate", {"model": model, "stream": False})
            names = (model, f"{model}:latest")
            return next(each["context_length"] for each in ask("/api/ps")["models"] if each["name"] in names)
        # An adapter's card has no window, its base model's has.
        parent = next((each for each in models if each["id"] == card.get("parent")), {})
        size = card.get("max_model_len") or parent.get("max_model_len")
        return size or (card.get("meta") or {}).get("n_ctx")
    except (KeyError, TypeError, StopIteration):
        return None


def count(kind: str, ask: Ask, model: str, messages: Messages) -> int | None:
    """The tokens of the prompt; None if the engine does not count them."""
    path, field = COUNTING.get(kind, ("", ""))
    try:
        return (
            ask(path, {"model": model, "messages": messages, "add_generation_prompt": True})[field]
            if path
            else None
        )
    except (EngineFailure, KeyError, TypeError):
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
            folder=folder, name=error.name,
        ) from None  # fmt: skip


def _chatglm_count(directory: Path) -> CountTokens:
    from rag.chatglm.chat import encode_chat
    from rag.chatglm.configuration import generation_of
    from rag.chatglm.loading import read_model_config
    from rag.chatglm.tokenization import open_tokenizer

    tokenizer, generation = open_tokenizer(directory), generation_of(read_model_config(directory))
    return lambda messages: len(encode_chat(messages, tokenizer, generation))


def _template_count(directory: Path) -> CountTokens:
    from transformers import AutoTokenizer

    def count(messages: Sequence[Message]) -> int:
        return len(
            tokenizer.apply_chat_template(to_openai(messages), add_generation_prompt=True, return_dict=False)
        )

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        count([Message("user", "-")])  # raises if there is no chat template
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            "[generate.endpoint] tokenizer: {directory} has no usable tokenizer ({why}); give the "
            "folder with the model's tokenizer files, or leave it out",
            directory=directory, why=_line(str(error)),
        ) from None  # fmt: skip
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
                base=base, seconds=options.silence_seconds,
            ) from None  # fmt: skip
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
        base=base, count=len(text), why=why,
    )  # fmt: skip


def not_openai(address: Address, answer: str) -> EngineFailure:
    return EngineFailure(
        "{base} does not answer as OpenAI's API does ({answer}); check the address, and its /v1",
        base=address.base, answer=_line(answer),
    )  # fmt: skip


def _refusal(base: str, error: "openai.APIStatusError") -> UserError:
    status, response = error.status_code, error.response
    why = _line(_message(error.body)) or response.reason_phrase
    if response.is_redirect:
        return EngineFailure(
            "{base} redirects to {target}; if that is right, use it as the address",
            base=base, target=_line(response.headers["location"]),
        )  # fmt: skip
    if status in (408, 409, 429) or status >= 500:
        return Unreachable(
            "{base} can't answer now ({status}: {why}); try again later", base=base, status=status, why=why
        )
    if status in (401, 403):
        return EngineFailure(
            "{base} needs another key ({status}: {why}); put it into the variable {key}",
            base=base, status=status, why=why, key=KEY,
        )  # fmt: skip
    if "context" in why.lower():
        return EngineFailure(
            "prompt and answer are too long for {base} ({why}); set context to its window under "
            "[generate.endpoint] in rag.toml, or lower max_new_tokens",
            base=base, why=why,
        )  # fmt: skip
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
