"""A row of tokens as a person reads it: pieces of text in order, and which of them are learnt."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from finetune.types import IGNORED, Row

# C0 but for tab and line end, C1, and what turns the direction of the text around it.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
TOGETHER = 8
"""Tokens that may be needed for one character."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A token, or the few that only together make whole characters."""

    text: str
    ids: tuple[int, ...]
    learnt: bool
    special: bool


def pieces(row: Row, tokenizer: Any) -> list[Piece]:
    """The row's text; special tokens by their names."""
    from rag.chatglm.chat import encode_text  # loads torch

    ids = [int(index) for index in row.ids]
    learnt = [bool(label != IGNORED) for label in row.labels]
    special = [is_special(index, tokenizer) for index in ids]
    # Behind another token, a token's leading blank is kept.
    anchor = encode_text("a", tokenizer)[-1:]
    shown = len(_decode(anchor, tokenizer))
    made: list[Piece] = []
    at = 0
    while at < len(ids):
        end = at + 1
        if special[at]:
            text = tokenizer.convert_ids_to_tokens(ids[at])
        else:
            text = _decode(anchor + ids[at:end], tokenizer)[shown:]
            while (
                text.endswith("\ufffd")
                and end < min(len(ids), at + TOGETHER)
                and not special[end]
                and learnt[end] == learnt[at]
            ):
                end += 1
                text = _decode(anchor + ids[at:end], tokenizer)[shown:]
        made.append(Piece(text, tuple(ids[at:end]), learnt[at], special[at]))
        at = end
    return made


def plain(parts: Sequence[Piece]) -> str:
    """The pieces with │ between them, what is learnt in ⟦ ⟧; a line end is ↵ and a line end."""
    runs: list[str] = []
    for learnt, run in groupby(parts, key=lambda piece: piece.learnt):
        text = "│".join(visible(piece.text) for piece in run)
        runs.append(f"⟦{text}⟧" if learnt else text)
    return "".join(runs)


def shades(parts: Sequence[Piece]) -> Iterator[tuple[Piece, int]]:
    """Each piece with 0 or 1 in turn, so that neighbours can be told apart by colour."""
    return ((piece, at % 2) for at, piece in enumerate(parts))


def visible(text: str) -> str:
    """With signs in place of what a terminal or a page would obey, or show as nothing."""
    return CONTROLS.sub(_sign, text).replace("\n", "↵\n")


def _sign(control: re.Match[str]) -> str:
    """The picture that Unicode has of a control character, or its number."""
    code = ord(control[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"\\u{code:04x}"


def is_special(index: int, tokenizer: Any) -> bool:
    """Whether the token stands for no text: a role, a mask, an end, or an unknown character."""
    pieces = getattr(tokenizer, "sp", None)
    if pieces is None:
        return index in tokenizer.added_tokens_decoder
    beyond = index >= pieces.get_piece_size()
    return beyond or pieces.is_control(index) or pieces.is_unknown(index)


def _decode(ids: list[int], tokenizer: Any) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)
