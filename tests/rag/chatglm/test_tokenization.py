"""Tokenizers against the original classes' results, against tiktoken, and by their properties."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import rag.chatglm  # noqa: F401  (registers the classes)
from ingest.errors import UserError
from rag.chatglm.tokenization import (
    PATTERN,
    SPECIALS,
    ChatGLM1Tokenizer,
    ChatGLM4Tokenizer,
    ChatGLMTokenizer,
    open_tokenizer,
    read_ranks,
)
from tests.rag.chatglm import vocabularies

WHOLE = vocabularies.SHARED.is_dir()
GENERATIONS = (1, 2, 3) if WHOLE else (2, 3)
NASTY = st.text(
    st.sampled_from("ab 你好，.!?'\n\t0１Ａ🙂é\r [MASK]<>|") | st.characters(exclude_categories=["Cs"])
)


def folder_of(tmp: Path, generation: int) -> Path:
    """A published directory; the small one of ChatGLM-6B's kind where its own is not there."""
    if generation in (2, 3):
        return vocabularies.published(tmp, generation)
    if generation == 4:
        return vocabularies.small_4(tmp)
    return (vocabularies.published_1 if WHOLE else vocabularies.small_1)(tmp)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Any]:
    folders: dict[int, Path] = {}

    def get(generation: int, **options: Any) -> Any:
        if generation not in folders:
            folders[generation] = folder_of(tmp_path_factory.mktemp("v"), generation)
        return AutoTokenizer.from_pretrained(folders[generation], **options)

    return get


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_tokenizer(vocabularies.small_1(tmp_path_factory.mktemp("v1")))


@pytest.fixture(scope="module")
def glm4(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_tokenizer(vocabularies.small_4(tmp_path_factory.mktemp("v4")))


def golden(generation: int) -> dict[str, Any]:
    folder = vocabularies.SHARED if generation == 1 else vocabularies.GOLDEN
    return json.loads((folder / f"v{generation}_golden.json").read_text("utf-8"))


def plain(value: Any) -> Any:
    return np.asarray(value).astype(int).tolist()


@pytest.mark.parametrize("generation", GENERATIONS)
def test_texts_have_the_originals_tokens_ids_and_decoding(
    opened: Callable[..., Any], generation: int
) -> None:
    tokenizer, expected = opened(generation), golden(generation)
    for item in expected["items"]:
        text, ids = item["text"], item["ids"]
        assert tokenizer.tokenize(text) == item["tokens"], text
        assert tokenizer.encode(text, add_special_tokens=False) == ids, text
        assert tokenizer(text)["input_ids"] == item["ids_special"], text
        assert tokenizer.decode(ids) == item["decode"], text
        assert tokenizer.decode(item["ids_special"]) == item["decode_special"], text
        skipped = tokenizer.decode(item["ids_special"], skip_special_tokens=True)
        assert skipped == item["decode_skip_special"], text
    for pair in expected["pairs"]:
        assert tokenizer(pair["text"], pair["text_pair"])["input_ids"] == pair["ids"]
    for cut in expected["truncation"]:
        short = tokenizer(cut["text"], truncation=True, max_length=cut["max_length"])
        assert short["input_ids"] == cut["ids"]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_sizes_and_special_ids(opened: Callable[..., Any], generation: int) -> None:
    tokenizer, expected = opened(generation), golden(generation)
    assert tokenizer.vocab_size == expected["vocab_size"]
    assert len(tokenizer) == len(tokenizer.get_vocab()) == expected["len"]
    assert tokenizer.pad_token_id == expected["pad_token_id"]
    assert tokenizer.eos_token_id == expected["eos_token_id"]
    for word, index in expected["special_ids"].items():
        assert tokenizer.convert_tokens_to_ids(word) == index
        assert tokenizer.convert_ids_to_tokens(index) == word


@pytest.mark.parametrize("generation", GENERATIONS)
def test_batches_are_padded_on_the_left(opened: Callable[..., Any], generation: int) -> None:
    """The model computes positions, and what ChatGLM-6B sees, from the ids and a mask of the usual kind."""
    tokenizer = opened(generation)
    for batch in golden(generation)["batches"]:
        wanted = batch["encoding"]["input_ids"]
        real = [[int(id != tokenizer.pad_token_id) for id in ids] for ids in wanted]
        for options in ({}, {"return_tensors": "pt"}):
            found = tokenizer(batch["texts"], padding=True, **options)
            assert plain(found["input_ids"]) == wanted
            assert plain(found["attention_mask"]) == real


def test_chatglm3_parses_its_roles_if_set(opened: Callable[..., Any]) -> None:
    tokenizer = opened(3, encode_special_tokens=True)
    for item in golden(3)["encode_special_tokens_true"]:
        assert tokenizer.encode(item["text"], add_special_tokens=False) == item["ids"]
        hidden = tokenizer.encode(item["text"], add_special_tokens=False, split_special_tokens=True)
        assert max(hidden) < 64789


@pytest.mark.parametrize("generation", [1, 2, 3, 4])
def test_a_saved_tokenizer_is_read_again(opened: Callable[..., Any], tmp_path: Path, generation: int) -> None:
    tokenizer = opened(generation)
    assert type(tokenizer) is {1: ChatGLM1Tokenizer, 4: ChatGLM4Tokenizer}.get(generation, ChatGLMTokenizer)
    assert tokenizer.generation == generation
    added = len(tokenizer)
    tokenizer.add_tokens(["<<新词>>"])
    tokenizer.save_pretrained(tmp_path)
    for again in (AutoTokenizer.from_pretrained(tmp_path), open_tokenizer(tmp_path)):
        assert again.get_vocab() == tokenizer.get_vocab()
        texts = ["你好[MASK]  <<新词>>\n<sop>", "hi <|user|>"]
        assert added in again(texts[0])["input_ids"]
        assert str(again(texts, padding=True)) == str(tokenizer(texts, padding=True))
        ids = again(texts[0])["input_ids"]
        assert again.decode(ids) == tokenizer.decode(ids)
        assert "<<新词>>" in again.decode(ids)


def test_config_json_tells_chatglm2_from_3_first(tmp_path: Path) -> None:
    folder = vocabularies.published(tmp_path, 2)
    assert open_tokenizer(folder).generation == 2
    config = vocabularies.ROOT / "tests/golden/v3/tiny_safetensors/config.json"
    data = json.loads(config.read_text("utf-8")) | {"padded_vocab_size": 65024}
    (folder / "config.json").write_text(json.dumps(data), "utf-8")
    assert open_tokenizer(folder).generation == 3
    assert AutoTokenizer.from_pretrained(folder).generation == 3


def test_ids_of_the_padded_part_of_the_embedding_decode_to_nothing(opened: Callable[..., Any]) -> None:
    for generation in (1, 2, 3):
        tokenizer = opened(generation)
        ids = tokenizer.encode("你好", add_special_tokens=False)
        assert tokenizer.decode([*ids, len(tokenizer), len(tokenizer) + 100]) == "你好"


@given(NASTY)
def test_chatglm_6b_keeps_texts_except_their_width(small: Any, text: str) -> None:
    text = "".join(letter for letter in text if letter.isprintable() or letter in "\n\t")
    text = unicodedata.normalize("NFKC", text).replace("▁", "_")
    shown = small.decode(
        small.encode(text, add_special_tokens=False, split_special_tokens=True),
        clean_up_tokenization_spaces=False,
    )
    assert shown.replace(" ", "") == text.replace(" ", "")


@given(st.lists(st.integers(1, 200), min_size=1, max_size=5))
def test_chatglm_6b_keeps_runs_of_blanks(small: Any, runs: list[int]) -> None:
    text = "x" + "x".join(" " * run for run in runs) + "x"
    ids = small.encode(text, add_special_tokens=False)
    assert small.decode(ids) == text
    words = small.convert_ids_to_tokens(ids)
    assert words.count("<|blank_80|>") == sum(run // 80 for run in runs)


def test_chatglm_6bs_special_tokens(small: Any) -> None:
    mask, sop = small.convert_tokens_to_ids("[MASK]"), small.bos_token_id
    gmask = small.convert_tokens_to_ids("[gMASK]")
    spaced = small("甲 [MASK]\n 乙[gMASK]")["input_ids"]
    assert spaced == [
        *small.encode("甲", add_special_tokens=False), mask,
        *small.encode("乙[gMASK]", add_special_tokens=False), gmask, sop,
    ]  # fmt: skip
    assert spaced.count(gmask) == 1
    data = small("甲[MASK]<sop>", split_special_tokens=True)["input_ids"]
    assert (mask in data, data.count(sop)) == (False, 1)
    assert small.decode(spaced) == "甲 乙[gMASK]"  # each part begins anew, after a blank


def test_the_march_2023_vocabulary_is_refused_by_name(tmp_path: Path) -> None:
    folder = vocabularies.small_1(tmp_path)
    vocabularies.configure(folder, vocabularies.REMOTE_1 | {"num_image_tokens": 20000})
    with pytest.raises(UserError, match="March 2023"):
        open_tokenizer(folder)


@pytest.mark.parametrize("name", ["ice_text.model", "tokenizer.model"])
def test_a_damaged_vocabulary_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\n\x0cnot a model")
    with pytest.raises(UserError, match=name):
        open_tokenizer(tmp_path)


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer"):
        open_tokenizer(tmp_path)


@pytest.fixture(scope="module")
def oracle() -> tiktoken.Encoding:
    ranks = vocabularies.ranks_4()
    return tiktoken.Encoding("small", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})


@given(NASTY)
def test_glm4_encodes_as_tiktoken_does(glm4: Any, oracle: tiktoken.Encoding, text: str) -> None:
    ids = glm4.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert ids == oracle.encode(text, disallowed_special=())
    assert glm4.decode(ids) == text


def test_glm4_encodes_long_texts_as_tiktoken_does(glm4: Any, oracle: tiktoken.Encoding) -> None:
    for path in (*vocabularies.TEXTS, Path(__file__)):
        text = path.read_text("utf-8")
        ids = glm4.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ids == oracle.encode(text)


def test_glm4s_special_tokens_follow_the_ranks(glm4: Any) -> None:
    first = glm4.vocab_size
    ids = [glm4.convert_tokens_to_ids(name) for name in SPECIALS]
    assert ids == list(range(first, first + len(SPECIALS)))
    assert glm4("a")["input_ids"][:2] == [ids[SPECIALS.index(w)] for w in ("[gMASK]", "<sop>")]
    assert glm4.pad_token_id == glm4.eos_token_id == first
    padded = glm4(["a", "a b c d"], padding=True)
    assert padded["input_ids"][0][0] == first
    assert padded["attention_mask"][0][0] == 0


def test_glm4s_hf_form_is_read_unchanged(glm4: Any, tmp_path: Path) -> None:
    PreTrainedTokenizerFast(tokenizer_object=glm4.backend_tokenizer).save_pretrained(tmp_path)
    again = open_tokenizer(tmp_path)
    assert again.get_vocab() == glm4.get_vocab()


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (b"YQ== 0\n!!! 1\n", "line 2"),
        (b"YQ== 0\nYg== x\n", "line 2"),
        (b"YQ== 0\nYg== 2\n", "missing"),
        (b"YQ== 0\nYg== 1\n", "missing"),
    ],
)
def test_a_damaged_tiktoken_file_is_named(tmp_path: Path, lines: bytes, reason: str) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(lines)
    with pytest.raises(UserError, match=reason):
        read_ranks(path)
