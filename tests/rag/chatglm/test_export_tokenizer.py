"""An exported tokenizer gives our ids for any text, and its chat template for any chat."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer

from ingest.errors import UserError
from rag.chatglm.chat import encode_chat
from rag.chatglm.export import MARK, write_tokenizer
from rag.chatglm.tokenization import open_tokenizer
from tests.rag.chatglm import vocabularies

GENERATIONS = (2, 3, 4)
SPECIAL = (
    "[gMASK]", "[MASK]", "[sMASK]", "<sop>", "<eop>", "sop", "eop", "</s>", "<s>", "<unk>",
    "<|user|>", "<|assistant|>", "<|system|>", "<|observation|>", "<|endoftext|>", "<0x0A>",
)  # fmt: skip
PART = (
    st.sampled_from([*SPECIAL, "\n", "\n\n", " ", "  ", "\u2581", "\t", "\u3000", "\x00", "🙂", "答：", "<", "["])
    | st.characters(exclude_categories=["Cs"]).filter(lambda letter: letter != MARK)
)  # fmt: skip
TEXT = st.lists(PART, max_size=12).map("".join)
Pair = tuple[Any, Any]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Pair]:
    """By generation: our tokenizer and the exported one, as AutoTokenizer opens it."""
    pairs: dict[int, Pair] = {}
    for generation in GENERATIONS:
        here, there = (tmp_path_factory.mktemp("t") for _ in range(2))
        small = generation == 4
        folder = vocabularies.small_4(here) if small else vocabularies.published(here, generation)
        ours = open_tokenizer(folder)
        write_tokenizer(ours, generation, 8192, there)
        pairs[generation] = ours, AutoTokenizer.from_pretrained(there)
    return pairs


def plain(ours: Any, text: str) -> list[int]:
    return ours.encode(text, add_special_tokens=False, split_special_tokens=True)


@pytest.mark.parametrize("generation", GENERATIONS)
@given(text=TEXT)
def test_any_text_gets_the_same_ids(pairs: dict[int, Pair], generation: int, text: str) -> None:
    ours, theirs = pairs[generation]
    ids = plain(ours, text)
    assert plain(theirs, text) == ids
    assert theirs(text, split_special_tokens=True)["input_ids"] == ours.encode(
        text, split_special_tokens=True
    )
    assert theirs.decode(ids) == ours.decode(ids)
    assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)


@pytest.mark.parametrize("generation", GENERATIONS)
@given(
    turns=st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), TEXT), max_size=5), last=TEXT
)
def test_any_chat_gets_the_same_ids(
    pairs: dict[int, Pair], generation: int, turns: list[tuple[str, str]], last: str
) -> None:
    ours, theirs = pairs[generation]
    chat = [{"role": role, "content": text} for role, text in [*turns, ("user", last)]]
    ids = theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert ids == encode_chat(chat, ours, generation)


@pytest.mark.parametrize("generation", [3, 4])
@given(text=TEXT, name=st.sampled_from(["", "get_weather", "<|user|>"]))
def test_any_tool_call_gets_the_same_ids(
    pairs: dict[int, Pair], generation: int, text: str, name: str
) -> None:
    ours, theirs = pairs[generation]
    function = {"name": "f", "description": text, "parameters": {"type": "object"}}
    tools = [function, {"type": "function", "function": function}]
    chat = [
        {"role": "system", "content": text, "tools": tools},
        {"role": "user", "content": text},
        {"role": "assistant", "content": text, "metadata": name},
        {"role": "observation", "content": text},
    ]
    ids = theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert ids == encode_chat(chat, ours, generation)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_any_ids_decode_to_the_same_text(pairs: dict[int, Pair], generation: int) -> None:
    """Also such as stand for halves of letters, as an answer cut by its length ends with."""
    ours, theirs = pairs[generation]
    dice = random.Random(0)
    words = ours.vocab_size - (0 if generation == 4 else 9)
    for _ in range(2000):
        ids = [dice.randrange(3, words) for _ in range(dice.randint(1, 6))]
        assert theirs.decode(ids) == ours.decode(ids)


def test_overlapping_splits_of_a_piece_make_no_difference(pairs: dict[int, Pair]) -> None:
    """All strings u v w with uv = vw a piece: where ranks of pairs and scores of pieces may differ."""
    ours, theirs = pairs[3]
    pieces = {ours.sp.id_to_piece(i) for i in range(259, ours.sp.get_piece_size())}
    texts = []
    for piece in pieces:
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        splits = [pair for pair in splits if pieces.issuperset(pair)]
        for left, right in splits:
            for again, end in splits:
                if (left, right) != (again, end) and right == again:
                    found = (left + right + end).replace("▁", " ")
                    texts += [b + found + e for b in ("", "x", "中", " ") for e in ("", "x", "中", " ")]
    assert len(texts) == 362 * 16
    rows = theirs(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert rows == [ours.encode_data(text) for text in texts]


def test_long_texts_get_the_same_ids(pairs: dict[int, Pair]) -> None:
    for ours, theirs in pairs.values():
        for path in (*vocabularies.TEXTS, Path(__file__)):
            text = path.read_text("utf-8").replace(MARK, "")
            assert plain(theirs, text) == plain(ours, text)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_chats_that_we_refuse_are_refused(pairs: dict[int, Pair], generation: int) -> None:
    _, theirs = pairs[generation]
    question = {"role": "user", "content": "甲"}
    refused: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
        ([question, {"role": "assistant", "content": "乙"}], {}),
        ([{"role": "tool", "content": "乙"}, question], {}),
        ([{"role": "user", "content": [{"type": "text", "text": "乙"}]}], {}),
        ([question], {"tools": [{"name": "f"}]}),
    ]
    if generation == 2:
        refused.append(([{"role": "observation", "content": "乙"}], {}))
    for chat, options in refused:
        with pytest.raises(TemplateError):
            theirs.apply_chat_template(chat, add_generation_prompt=True, **options)


def test_a_whole_chat_begins_with_its_prompt(pairs: dict[int, Pair]) -> None:
    """For trainers: the answer is the assistant's turn, in the words in which ours trains on it."""
    question, said = {"role": "user", "content": "甲"}, {"role": "assistant", "content": "乙"}
    for ours, theirs in pairs.values():
        whole = theirs.apply_chat_template([question, said])["input_ids"]
        prompt = theirs.apply_chat_template([question], add_generation_prompt=True)["input_ids"]
        assert whole[: len(prompt)] == prompt
        assert ours.decode(whole[len(prompt) :]).strip() == "乙"


@pytest.mark.parametrize("generation", GENERATIONS)
def test_special_tokens_get_their_ids(pairs: dict[int, Pair], generation: int) -> None:
    ours, theirs = pairs[generation]
    renamed = {} if generation == 4 else {"sop": "<sop>", "eop": "<eop>"}
    for word, index in ours.get_vocab().items():
        assert theirs.convert_tokens_to_ids(renamed.get(word, word)) == index
    assert len(theirs) == len(ours)
    assert theirs.eos_token_id == ours.eos_token_id
    assert theirs.pad_token_id == ours.pad_token_id
    assert theirs.padding_side == "left"
    user = theirs.convert_tokens_to_ids("<|user|>")
    assert (user in theirs("<|user|>")["input_ids"]) == (generation > 2)


def test_transformers_4_finds_the_tokenizer_class(tmp_path: Path) -> None:
    ours = open_tokenizer(vocabularies.small_4(tmp_path))
    write_tokenizer(ours, 4, 100, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text("utf-8"))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "auto_map" not in config


def test_a_vocabulary_of_another_kind_is_refused(tmp_path: Path) -> None:
    """ChatGLM-6B's kind: not joined by rank, and texts are normalised."""
    vocabularies.small_1(tmp_path)
    (tmp_path / "ice_text.model").rename(tmp_path / "tokenizer.model")
    ours = open_tokenizer(tmp_path)
    with pytest.raises(UserError, match="its vocabulary is not of the kind that was published"):
        write_tokenizer(ours, 3, 100, tmp_path / "out")
