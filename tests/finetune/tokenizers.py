"""A tokenizer of each generation, and conversations to encode."""

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from finetune.types import Example
from rag.chatglm.tokenization import open_tokenizer
from rag.types import Message
from tests.rag.chatglm.vocabularies import published, small_1, small_4

GENERATIONS = (1, 2, 3, 4)


def directory(folder: Path, generation: int) -> Path:
    """`folder` with the tokenizer of a generation; small ones of 1 and 4."""
    folder.mkdir()
    if generation in (2, 3):
        return published(folder, generation)
    return small_1(folder) if generation == 1 else small_4(folder)


def tokenizers(folder: Path) -> dict[int, Any]:
    return {n: open_tokenizer(directory(folder / str(n), n)) for n in GENERATIONS}


SPECIAL = ["[MASK]", " <sop> ", "<eop>", "<pad>", "[gMASK]", "<|user|>", "<|endoftext|>", "</s>"]
PIECES = st.sampled_from([*"ab 的是中国人\n\t.，?0🙂", "  ", "the ", "<unk>", *SPECIAL])
TEXT = st.lists(PIECES, max_size=12).map("".join)
SAID = TEXT.filter(str.strip)


@st.composite
def conversations(draw: st.DrawFn) -> Example:
    """Any of the shapes that data has."""
    turns = draw(st.lists(st.tuples(SAID, SAID), min_size=1, max_size=3))
    system = [Message("system", draw(SAID))] if draw(st.booleans()) else []
    past = [Message(r, t) for q, a in turns for r, t in (("user", q), ("assistant", a))]  # type: ignore[arg-type]
    messages = (*system, *past)
    answers = [i for i, message in enumerate(messages[:-1]) if message.role == "assistant"]
    given = draw(st.sets(st.sampled_from(answers))) if answers else set()
    return Example(messages, draw(st.one_of(st.just(""), SAID)), frozenset(given), "data.json:7")
