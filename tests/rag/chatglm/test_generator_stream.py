"""Streamed text joined is the whole text, whatever the ids; and it comes at once."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.chatglm.generator import Polisher, StreamDecoder, polish
from rag.chatglm.tokenization import clean_up, open_tokenizer
from tests.rag.chatglm import vocabularies

LETTERS = st.text(
    st.sampled_from("ab nmst'v.re,?! 你好🙂é\n\t<|>n_2blank�") | st.characters(exclude_categories=["Cs"])
)
SPACED = st.text(st.sampled_from(" '.nmvrst,?!"), max_size=30)
ANSWERS = st.lists(
    st.sampled_from([*"a你好,!:;? \n[训<|", "[[训练时间]]", "<|assistant|>", "[[训练", "时间]]"])
).map("".join)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    def folder() -> Path:
        return tmp_path_factory.mktemp("v")

    return [
        open_tokenizer(vocabularies.small_1(folder())),
        open_tokenizer(vocabularies.published(folder(), 2)),
        open_tokenizer(vocabularies.published(folder(), 3)),
        open_tokenizer(vocabularies.small_4(folder())),
    ]


def pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [*map(decoder.push, ids), decoder.finish()]


def some(tokenizer: Any, words: str) -> list[int]:
    """Ids of the words that the vocabulary has."""
    known = tokenizer.get_vocab()
    return [known[word] for word in words.split() if word in known]


@pytest.mark.parametrize("which", range(4))
@given(data=st.data())
def test_any_ids_decode_to_the_same_text(tokenizers: list[Any], which: int, data: st.DataObject) -> None:
    tokenizer = tokenizers[which]
    size = len(tokenizer) + (0 if which == 3 else 10)
    frequent = some(tokenizer, "▁ ▁▁ <0xE4> <0xBD> <0xA0> <0xF0> <0x9F> <0x20> < | n > ' <unk>")
    frequent += some(tokenizer, "Ġ ä ½ ł ð Ł ĺ <n> ▁' , . [gMASK] <|user|> <|blank_2|> <|tab|>")
    numbers = st.integers(0, size - 1) | st.sampled_from(frequent)
    ids = data.draw(st.lists(numbers, max_size=30))
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("which", range(4))
@given(text=LETTERS)
def test_any_text_gets_the_same_ids(tokenizers: list[Any], which: int, text: str) -> None:
    tokenizer = tokenizers[which]
    ids = tokenizer.encode(text, add_special_tokens=False)
    found = pieces(tokenizer, ids)
    assert "".join(found) == tokenizer.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in found)


@given(SPACED)
def test_removed_blanks_are_removed_while_streaming(tokenizers: list[Any], text: str) -> None:
    """ChatGLM-6B takes blanks before marks away, which may come long after the blank."""

    class Letters:
        clean_up_tokenization_spaces = True

        def decode(self, ids: list[int], **options: Any) -> str:
            return "".join(map(chr, ids))

    assert "".join(pieces(Letters(), [*map(ord, text)])) == clean_up(text)


@pytest.mark.parametrize("which", range(4))
def test_text_is_given_as_soon_as_it_is_certain(tokenizers: list[Any], which: int) -> None:
    tokenizer = tokenizers[which]
    ids = tokenizer.encode("今天天气怎么样?我爱北京天安门。", add_special_tokens=False)
    decoder, text = StreamDecoder(tokenizer), ""
    for count, index in enumerate(ids, 1):
        text += decoder.push(index)
        assert text == tokenizer.decode(ids[:count]).rstrip("\ufffd")


def test_a_long_text_costs_no_more_per_id_than_a_short_one(tokenizers: list[Any]) -> None:
    decoded: list[int] = []
    tokenizer = tokenizers[2]

    class Counted:
        def decode(self, ids: list[int], **options: Any) -> str:
            decoded.append(len(ids))
            return tokenizer.decode(ids, **options)

    pieces(Counted(), tokenizer.encode("今天天气怎么样？" * 200, add_special_tokens=False))
    assert max(decoded) < 8


@pytest.mark.parametrize("generation", [1, 2, 3, 4])
@given(text=ANSWERS, data=st.data())
def test_polishing_a_stream_equals_polishing_the_text(
    generation: int, text: str, data: st.DataObject
) -> None:
    polisher, shown, rest = Polisher(generation), "", text
    while rest:
        cut = data.draw(st.integers(1, len(rest)))
        shown += polisher.push(rest[:cut])
        rest = rest[cut:]
    assert shown + polisher.finish() == polish(text, generation)
