"""Blanks are filled from what stands on both sides of them, and nothing else is touched."""

import random
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ingest.errors import UserError
from rag.chatglm.chat import encode_text
from rag.chatglm.configuration import Glm1Config
from rag.chatglm.generator import BLANK, encode_blanks, fill
from rag.chatglm.loading import load
from rag.chatglm.modeling_chatglm import Glm1ForCausalLM
from rag.chatglm.tokenization import open_tokenizer
from rag.types import Sampling
from tests.commands import rag
from tests.rag.chatglm import vocabularies
from tests.rag.chatglm.golden import COPY

CAPITALS = {
    "中国": "北京", "法国": "巴黎", "日本": "东京", "英国": "伦敦",
    "埃及": "开罗", "韩国": "首尔", "德国": "柏林", "泰国": "曼谷",
}  # fmt: skip
COUNTRIES = [*CAPITALS]
KEPT_BACK = list(zip(COUNTRIES, COUNTRIES[1:] + COUNTRIES[:1], strict=True))
"""Countries that never stand in one text while the model is trained."""
GREEDY = Sampling(max_new_tokens=20, temperature=0)
STEPS, ROWS, RATE = 350, 32, 0.005


def fact(country: str) -> str:
    return f"{country}的首都是{CAPITALS[country]}"


def exercise(dice: random.Random) -> tuple[list[str], list[str], str]:
    """The text around its blanks, the blanks, and what belongs into the first.

    One or two facts, of each the country or the capital is blank; or a whole sentence is.
    """
    countries = dice.sample(COUNTRIES, dice.randint(1, 2))
    if tuple(countries) in KEPT_BACK or dice.random() < 0.2:
        country = countries[0]
        return [f"{country}：", ""], ["[gMASK]"], f"{fact(country)}。"
    parts, answers, first = [""], [], dice.randrange(len(countries))
    for place, country in enumerate(countries):
        blank = dice.randrange(2) if place == first or (answers and dice.random() < 0.7) else None
        end = "，" if place + 1 < len(countries) else "。"
        for which, (word, after) in enumerate([(country, "的首都是"), (CAPITALS[country], end)]):
            if which == blank:
                answers.append(word)
                parts.append(after)
            else:
                parts[-1] += word + after
    return parts, ["[MASK]"] * len(answers), answers[0]


def batch(tokenizer: Any, dice: random.Random) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and labels [B, S] of some exercises, padded on the right."""
    rows = []
    for parts, blanks, answer in (exercise(dice) for _ in range(ROWS)):
        target = [*encode_text(answer, tokenizer), tokenizer.eos_token_id]
        rows.append((encode_blanks(parts, blanks, tokenizer), target))
    width = max(len(prompt) + len(target) for prompt, target in rows)
    ids = torch.full((ROWS, width), tokenizer.pad_token_id)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, (prompt, target) in enumerate(rows):
        end = len(prompt) + len(target)
        ids[row, :end], mask[row, :end] = torch.tensor(prompt + target), 1
        labels[row, len(prompt) : end] = torch.tensor(target)
    return ids, mask, labels


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ChatGLM-6B of 120 thousand parameters that knows eight capitals, in about seven seconds."""
    folder, facts = tmp_path_factory.mktemp("filler"), tmp_path_factory.mktemp("texts") / "facts"
    lines = [fact(country) + "。" for country in COUNTRIES] * 20 + ["是", "的首都", "：，"] * 20
    facts.write_text("\n".join(lines), "utf-8")
    tokenizer = open_tokenizer(vocabularies.small_1(folder, texts=[facts]))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = untrained(tokenizer)
        dice, optimizer = random.Random(0), torch.optim.AdamW(model.parameters())
        for step in range(STEPS):
            warm, left = min(1, (step + 1) / 20), 1 - step / STEPS
            optimizer.param_groups[0]["lr"] = RATE * warm * left
            ids, mask, labels = batch(tokenizer, dice)
            places = model.positions(ids, mask, prefer_mask=True)
            loss = model(ids, mask, places, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    torch.set_num_threads(threads)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def untrained(tokenizer: Any) -> Glm1ForCausalLM:
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id")
    model = Glm1ForCausalLM(
        Glm1Config(
            hidden_size=64,
            inner_hidden_size=256,
            num_layers=2,
            num_attention_heads=4,
            vocab_size=len(tokenizer),
            max_sequence_length=128,
            gmask_token_id=tokenizer.convert_tokens_to_ids("[gMASK]"),
            **{name: getattr(tokenizer, name) for name in names},
        )
    )
    for name, weight in model.named_parameters():
        if weight.dim() == 2:  # larger than usual: the residual is scaled up
            spread = 0.1 if "embed" in name else (3 if "dense" in name else 1) * 64**-0.5
            weight.normal_(0, spread)
    return model


@pytest.fixture(scope="module")
def filler(directory: Path) -> tuple[Any, Any]:
    return load(directory, quant="none"), open_tokenizer(directory)


def filled_text(*arguments: Any) -> str:
    return "".join(fill(*arguments))


def test_short_blanks_are_filled_from_both_sides(filler: tuple[Any, Any]) -> None:
    """Of two blanks the second is filled with the first in place: no such text was trained on."""
    for one, other in KEPT_BACK:
        whole = f"{fact(one)}，{fact(other)}。"
        for hidden in ((one, CAPITALS[other]), (CAPITALS[one], other), (one,), (CAPITALS[other],)):
            text = whole
            for word in hidden:
                text = text.replace(word, "[MASK]")
            assert filled_text(*filler, text, GREEDY) == whole, text


def test_a_long_blank_is_filled_with_a_sentence(filler: tuple[Any, Any]) -> None:
    for country in COUNTRIES:
        assert filled_text(*filler, f"{country}：[gMASK]", GREEDY) == f"{country}：{fact(country)}。"


def test_packed_weights_fill_blanks_too(directory: Path) -> None:
    model, tokenizer = load(directory, quant="int8"), open_tokenizer(directory)
    assert filled_text(model, tokenizer, "法国的首都是[MASK]。", GREEDY) == "法国的首都是巴黎。"


def test_a_short_blank_is_filled_before_a_long_one(filler: tuple[Any, Any]) -> None:
    prompts: list[list[int]] = []

    def remember(_module: Any, given: tuple[Tensor, ...], _options: Any) -> None:
        if long in given[0][0].tolist():  # a prompt; a step has only what was written
            prompts.append(given[0][0].tolist())

    model, tokenizer = filler
    short, long = tokenizer.mask_token_id, tokenizer.convert_tokens_to_ids("[gMASK]")
    handle = model.register_forward_pre_hook(remember, with_kwargs=True)
    text = filled_text(model, tokenizer, "[gMASK]法国的首都是[MASK]。", GREEDY)
    handle.remove()
    assert text.endswith("法国的首都是巴黎。")
    assert [(short in ids, long in ids) for ids in prompts] == [(True, True), (False, True)]
    assert prompts[1] == encode_blanks(["", "法国的首都是巴黎。"], ["[gMASK]"], tokenizer)


@settings(max_examples=25, deadline=None)
@given(
    parts=st.lists(st.text("ab 法国的，。\n[]<>sopMK：？!\t", max_size=8), min_size=2, max_size=4),
    blanks=st.lists(st.sampled_from(["[MASK]", "[gMASK]"]), min_size=3, max_size=3),
    seed=st.integers(0, 9),
)
def test_the_text_around_the_blanks_is_kept(
    filler: tuple[Any, Any], parts: list[str], blanks: list[str], seed: int
) -> None:
    text = parts[0] + "".join(blank + part for blank, part in zip(blanks, parts[1:], strict=False))
    around = BLANK.split(text)[::2]
    filled = filled_text(*filler, text, Sampling(3, 1.0, 1.0, seed))
    assert filled.startswith(around[0])
    assert filled.endswith(around[-1])
    place = 0
    for part in around:
        place = filled.index(part, place) + len(part)
    assert filled == filled_text(*filler, text, Sampling(3, 1.0, 1.0, seed))


def test_control_tokens_in_the_text_are_data(filler: tuple[Any, Any]) -> None:
    _, tokenizer = filler
    ids = encode_blanks(["<sop>[sMASK]<eop>", "<pad>"], ["[MASK]"], tokenizer)
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert special & set(ids[:-1]) == set()
    assert ids.count(tokenizer.mask_token_id) == 1


def test_a_blank_ends_at_the_limit(filler: tuple[Any, Any]) -> None:
    whole, cut = (filled_text(*filler, "泰国：[gMASK]", Sampling(most, 0)) for most in (20, 2))
    assert whole.startswith(cut)
    assert len(cut) < len(whole)


@pytest.mark.parametrize(
    ("text", "says"),
    [("今天很好", r"no blank.*\[MASK\].*\[gMASK\]"), ("[sMASK]", "no blank"), ("", "no blank")],
)
def test_a_text_without_a_blank_is_refused(filler: tuple[Any, Any], text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        filled_text(*filler, text, GREEDY)


def test_a_text_longer_than_the_window_is_refused(filler: tuple[Any, Any]) -> None:
    with pytest.raises(UserError, match="128"):
        filled_text(*filler, "法国的首都是" * 100 + "[MASK]", GREEDY)


def test_a_model_that_fills_no_blanks_is_refused(filler: tuple[Any, Any]) -> None:
    model = load(COPY / "v2" / "tiny_safetensors", quant="none")
    with pytest.raises(UserError, match="generation 2"):
        filled_text(model, filler[1], "今天[MASK]很好", GREEDY)


def run_fill(*words: str, home: Path, stdin: str = "") -> CompletedProcess[str]:
    return rag("fill", *words, environment={"XDG_CACHE_HOME": str(home), "LC_ALL": "C.UTF-8"}, stdin=stdin)


def test_the_command_fills_blanks(directory: Path, tmp_path: Path) -> None:
    options = ("--model", str(directory), "--quant", "none")
    done = run_fill(*options, "[MASK]的首都是开罗，德国的首都是[MASK]。", home=tmp_path)
    assert done.stdout == "埃及的首都是开罗，德国的首都是柏林。\n"
    assert run_fill(*options, home=tmp_path, stdin="英国：[gMASK]\n").stdout == "英国：英国的首都是伦敦。\n"


@pytest.mark.parametrize(
    ("model", "text", "says"),
    [
        ("v3/tiny_safetensors", "今天[MASK]很好", "generation 3"),
        ("v1/tiny_safetensors", "今天很好", "no blank"),
        ("v1/tiny_safetensors", "今天[MASK]很好", "has no tokenizer"),
    ],
)
def test_a_mistake_is_reported_in_one_line(model: str, text: str, says: str, tmp_path: Path) -> None:
    done = run_fill("--model", str(COPY / model), text, home=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr.splitlines()[-1]
