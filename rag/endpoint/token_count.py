"""More tokens than a prompt has, where nobody counts them."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ingest.errors import UserError
from rag.types import Message

FRAME = 64
"""Tokens of what a chat template puts before and behind, such as Qwen's own first message."""
MARKS = 8
"""Tokens around each message."""
_WORD = re.compile(r" ?([A-Za-z]+)| +|.", re.DOTALL)


def estimate(messages: Sequence[Message]) -> int:
    """At least the tokens of the prompt: a word has one for each three letters, a Chinese character
    two, and whatever else one for each byte of UTF-8.

    Compared with the vocabularies of cl100k, o200k, Qwen, tekken, Mistral (32k) and ChatGLM3 on
    Chinese and English prose, documentation, code and tables, in stretches of 600 characters and
    more: never fewer, 1.8 times as many in the middle. Text of random letters may have more.
    """
    return FRAME + sum(MARKS + tokens(message.text) for message in messages)


def tokens(text: str) -> int:
    """Of a text alone, and like `estimate` more rather than fewer."""
    return sum(map(_weight, _WORD.finditer(text)))


def _weight(found: re.Match[str]) -> int:
    if letters := found[1]:
        return -(-len(letters) // 3)
    size = len(found[0][0].encode("utf-8", "surrogatepass"))
    return 2 if size == 3 else size


Count = Callable[[Sequence[Message]], int]
CHATGLM = ("chatglm", "glm", "glm4")


def local_count(folder: str) -> Count:
    """Counts as the model of `folder` is asked: a ChatGLM in its own format, any other by the chat
    template beside its tokenizer. No code of the folder runs. `UserError` where it can't be read.
    """
    directory = Path(folder).expanduser()
    try:
        return _chatglm(directory) if _type(directory) in CHATGLM else _templated(directory)
    except ImportError as error:
        raise UserError(
            "to count with {folder} takes {name}; pip install 'chatglm-rag[generate]'",
            folder=folder,
            name=error.name,
        ) from None


def _type(directory: Path) -> str:
    try:
        return json.loads((directory / "config.json").read_text("utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _chatglm(directory: Path) -> Count:
    from rag.chatglm.chat import count_chat
    from rag.chatglm.configuration import generation_of
    from rag.chatglm.loading import read_config
    from rag.chatglm.tokenization import open_tokenizer

    tokenizer, generation = open_tokenizer(directory), generation_of(read_config(directory))
    return lambda messages: count_chat(messages, tokenizer, generation)


def _templated(directory: Path) -> Count:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _unusable(directory, (str(error).splitlines() or ["?"])[0]) from None
    if not tokenizer.chat_template:
        raise _unusable(directory, "it has no chat template")

    def count(messages: Sequence[Message]) -> int:
        turns = [{"role": message.role, "content": message.text} for message in messages]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return count


def _unusable(directory: Path, why: str) -> UserError:
    return UserError(
        "[generate.endpoint] tokenizer: {directory} holds none that can be used ({why}); "
        "name the folder with the model's tokenizer files, or leave it out",
        directory=directory,
        why=why,
    )
