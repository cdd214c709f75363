"""Blank infilling with ChatGLM-6B: `[MASK]` is a few words, `[gMASK]` a long passage.

Blanks are filled one after another (Du et al. 2022, GLM; as `fill_blanks` of upstream's GLM-130B):
the model sees the whole text on both sides, what it filled in already and what is still blank, and
writes from `<sop>` on, at the position of the blank, until `<eop>`.
"""

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from transformers import PreTrainedConfig

from ingest.errors import UserError
from rag.chatglm.chat import encode_text
from rag.chatglm.configuration import generation_of
from rag.chatglm.generator import ChatGLMGenerator, Sampled, polish

SHORT, LONG = "[MASK]", "[gMASK]"
BLANK = re.compile(r"(\[g?MASK\])")


def fill(model: Any, tokenizer: Any, text: str, sampling: Sampled) -> str:
    """`text` with its blanks filled, everything else as it was.

    Short blanks are filled first, in order, then long ones. `sampling` applies to each blank; one
    that reaches `max_new_tokens` ends there. `UserError` where there is no blank, the model is
    none for blanks, or the text fills its window.
    """
    require_filler(model.config)
    parts, blanks = split_at_blanks(text)
    writer = ChatGLMGenerator(model, tokenizer, name="ChatGLM-6B")
    while blanks:
        # The model takes the first short blank, and a long one only where there is none.
        blank = blanks.index(SHORT) if SHORT in blanks else 0
        ids = writer.tokens(encode_blanks(parts, blanks, tokenizer), sampling)
        written = list(takewhile(lambda index: index != tokenizer.eos_token_id, ids))
        parts[blank] += polish(tokenizer.decode(written), 1) + parts.pop(blank + 1)
        del blanks[blank]
    return parts[0]


def require_filler(config: PreTrainedConfig) -> None:
    """`UserError` where the model of `config` does not fill blanks."""
    generation = generation_of(config)
    if generation != 1:
        raise UserError(
            "the model is ChatGLM of generation {generation}, which only continues text; filling "
            "blanks needs ChatGLM-6B (the first)",
            generation=generation,
        )


def split_at_blanks(text: str) -> tuple[list[str], list[str]]:
    """The text around the blanks, and the blanks, one fewer; `UserError` where there is none."""
    pieces = BLANK.split(text)
    if len(pieces) == 1:
        raise UserError(
            "the text has no blank; put {short} where a few words are missing, or {long} where a "
            "passage is",
            short=SHORT,
            long=LONG,
        )
    return pieces[::2], pieces[1::2]


def encode_blanks(parts: Sequence[str], blanks: Sequence[str], tokenizer: Any) -> list[int]:
    """The ids of the text and `<sop>`. Upstream's tokenizer drops blanks around a `[MASK]`."""
    ids: list[int] = []
    for before, part, after in zip(("", *blanks), parts, (*blanks, ""), strict=True):
        part = part.lstrip() if before == SHORT else part
        part = part.rstrip() if after == SHORT else part
        ids += encode_text(part, tokenizer)
        ids += tokenizer.convert_tokens_to_ids([after or "<sop>"])
    return ids
