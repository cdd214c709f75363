"""The view of a row shows every token once, characters whole, and what is learnt as learnt."""

from typing import Any

import numpy as np
import pytest

from finetune.data.report import TokenPiece, pieces, plain, visible
from finetune.data.template import RowEncoder
from finetune.types import IGNORED, Example, TokenRow
from rag.chatglm.tokenization import open_tokenizer
from rag.types import Message
from tests.rag.chatglm.vocabularies import published, small_1, small_4

MAKERS = {
    1: small_1,
    2: lambda folder: published(folder, 2),
    3: lambda folder: published(folder, 3),
    4: small_4,
}
ENDS = {1: "<eop>", 2: "</s>", 3: "</s>", 4: "<|user|>"}
LEADS = {1: "<sop>", 2: "", 3: "\n", 4: "\n"}
TEXTS = (
    "你好,世界。",
    "def f(x):\n    return x\n\n\tdone",
    "𪚥 龘靐 🙂🧑‍🚀 é ü",
    "<|user|> [gMASK] </s> <sop> <eop>",
)


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RowEncoder:
    folder = MAKERS[request.param](tmp_path_factory.mktemp("model"))
    return RowEncoder(open_tokenizer(folder), request.param)


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_row(encoder: RowEncoder, text: str) -> None:
    example = Example((Message("user", f"{text}问"), Message("assistant", text)))
    (row,) = encoder(example).rows
    made = pieces(row, encoder.tokenizer)
    assert [index for piece in made for index in piece.ids] == row.ids.tolist()
    learnt = [piece.learnt for piece in made for _ in piece.ids]
    assert learnt == (row.labels != IGNORED).tolist()
    shown = "".join(piece.text for piece in made if piece.learnt)
    expected = LEADS[encoder.generation] + text + ENDS[encoder.generation]
    assert _unspaced(shown) == _unspaced(expected)
    assert "\ufffd" not in shown
    specials = [piece.text for piece in made if piece.special and piece.learnt]
    ends = [*([LEADS[1]] if encoder.generation == 1 else []), ENDS[encoder.generation]]
    assert specials == ends  # words of the text are none


def _unspaced(text: str) -> str:
    return "".join(text.split())


def test_tokens_are_readable_without_colour() -> None:
    parts = [
        TokenPiece("[gMASK]", (1,), False, True),
        TokenPiece("问\n", (2,), False, False),
        TokenPiece("答", (3, 4), True, False),
        TokenPiece("</s>", (5,), True, True),
    ]
    assert plain(parts) == "[gMASK]│问↵\n⟦答│</s>⟧"
    assert plain([]) == ""


def test_control_characters_are_visible() -> None:
    """All of C0 and C1 and what turns the direction of text, but for tabs and line ends."""
    hostile = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x202E, 0x2066, 0x200F]))
    shown = visible(hostile)
    assert not set(hostile) - {"\t", "\n"} & set(shown)
    assert visible("\x1b[31m\x00\x07\x7f\u202e\x9b") == "␛[31m␀␇␡\\u202e\\u009b"
    assert visible("a\tb 中\u3000🙂é") == "a\tb 中\u3000🙂é"


def test_a_row_that_ends_within_a_character(encoder: RowEncoder) -> None:
    ids = encoder.tokenizer.encode("𪚥", add_special_tokens=False)[:-1]
    row = TokenRow(np.array(ids, np.int32), np.full(len(ids), IGNORED, np.int32))
    made: list[Any] = pieces(row, encoder.tokenizer)
    assert [index for piece in made for index in piece.ids] == ids
