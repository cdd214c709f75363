"""Kept prefixes and prompt lookup change the time, never the ids."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rag.chatglm import decoding
from rag.chatglm.configuration import ChatGLM2Config, Glm1Config
from rag.chatglm.decoding import CHUNK, Decoder, KeptPrompt, PromptLookup, ReplyStopped
from rag.chatglm.loading import load
from rag.chatglm.modeling_chatglm import ChatGLM2ForCausalLM, Glm1ForCausalLM
from rag.chatglm.quantize import LinearOfCodes

WORDS, WIDTH = 256, 64
COUNT = 10  # prompts of each model


def write_model(target: Path, generation: int) -> Path:
    """Random weights large enough that a prompt decides what follows."""
    torch.manual_seed(generation)
    if generation == 1:
        config: Any = Glm1Config(
            vocab_size=WORDS, hidden_size=WIDTH, inner_hidden_size=96, num_layers=2,
            num_attention_heads=2, bos_token_id=WORDS - 4, eos_token_id=WORDS - 3,
            gmask_token_id=WORDS - 2, mask_token_id=WORDS - 1, pad_token_id=3, max_sequence_length=512,
        )  # fmt: skip
        model: Any = Glm1ForCausalLM(config)
    else:
        config = ChatGLM2Config(
            generation=generation, vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=96,
            num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
            max_position_embeddings=512, pad_token_id=0,
        )  # fmt: skip
        model = ChatGLM2ForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    model.save_pretrained(target)
    return target


@pytest.fixture(scope="module", params=[(1, "none"), (2, "none"), (3, "int4"), (4, "int8"), (1, "int4")])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    generation, quant = request.param
    return load(write_model(tmp_path_factory.mktemp("model"), generation), quant=quant, dtype=torch.float32)


def prompt_of(model: Any, rng: random.Random, length: int) -> list[int]:
    """Random ids, of which some runs come again and again, as in a text that is quoted."""
    runs = [[rng.randrange(5, WORDS - 4) for _ in range(rng.randint(1, 12))] for _ in range(3)]
    ids: list[int] = []
    while len(ids) < length:
        ids += rng.choice(runs)
    end = [WORDS - 2, WORDS - 4] if isinstance(model, Glm1ForCausalLM) else []
    return [*ids[: length - len(end)], *end]


def ids_of(model: Any, prompt: list[int], most: int, draw: Any = None) -> list[int]:
    """What a new decoder writes."""
    return list(Decoder(model, name="tiny").tokens(prompt, draw, most))


def plain(model: Any, prompt: list[int], most: int) -> tuple[list[int], list[bool]]:
    """The likeliest ids by steps of one token, and which of them were nearly other ones."""
    decoder, ids, ties = Decoder(model, name="tiny"), list(prompt), list[bool]()
    kept = KeptPrompt(None)
    with torch.inference_mode():
        logits = decoder._prefill(prompt, kept)
        for _ in range(most):
            ties.append(decoder._is_tie(logits[-1]))
            ids.append(int(logits[-1].argmax()))
            logits = decoder._logits(ids, 1, kept.cache)
    return ids[len(prompt) :], ties


def has_codes(model: Any) -> bool:
    return any(isinstance(module, LinearOfCodes) for module in model.modules())


def draft_of(answer: list[int], rng: random.Random) -> Any:
    """`PromptLookup.draft` with parts of the answer as drafts, often with a wrong token."""

    def draft(self: PromptLookup, most: int) -> list[int]:
        written = len(self._ids) - self.prompt  # pyright: ignore
        part = answer[written : written + min(most, rng.randint(0, 8))]
        if part and rng.random() < 0.6:
            part[rng.randrange(len(part))] = rng.randrange(5, WORDS - 4)
        return part

    return draft


def test_drafts_do_not_change_greedy_ids(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(1)
    for _ in range(COUNT):
        prompt = prompt_of(model, rng, rng.randint(4, 40))
        wanted, ties = plain(model, prompt, 16)
        monkeypatch.setattr(PromptLookup, "prompt", len(prompt), raising=False)
        monkeypatch.setattr(PromptLookup, "draft", draft_of(wanted, rng))
        written = ids_of(model, prompt, 16)
        first = next((n for n, each in enumerate(wanted) if each != written[n]), None)
        # Keys of drafted tokens come from another kernel; with codes, they may decide between equals.
        assert first is None or (ties[first] and has_codes(model))


def test_drafts_keep_what_a_seed_draws(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(prompt: list[int]) -> list[int]:
        seeded = torch.Generator().manual_seed(7)

        def draw(row: Tensor) -> int:
            return int(torch.multinomial((row * 3).softmax(-1), 1, generator=seeded))

        return ids_of(model, prompt, 24, draw)

    rng = random.Random(2)
    prompts = [prompt_of(model, rng, 30) for _ in range(5)]
    with_drafts = [drawn(prompt) for prompt in prompts]
    monkeypatch.setattr(PromptLookup, "draft", lambda self, most: [])
    agree = [a == b for a, b in zip(with_drafts, map(drawn, prompts), strict=True)]
    assert sum(agree) >= 4  # codes round the activations: a draw may fall on the other side


def test_a_kept_prefix_changes_no_logit(model: Any) -> None:
    rng = random.Random(3)
    first = prompt_of(model, rng, 3 * CHUNK)
    if isinstance(model, Glm1ForCausalLM):
        first[-2:] = [7, 8]
    tail = prompt_of(model, rng, 20)
    second = [*first[: 2 * CHUNK + 9], *tail]
    decoder, read = Decoder(model, name="tiny"), list[int]()
    list(decoder.tokens([*first, *tail], None, 4))
    forward = decoder._logits

    def watch(ids: Any, rows: int, cache: Any, new: int | None = None) -> Tensor:
        read.append(rows if new is None else new)
        return forward(ids, rows, cache, new)

    decoder._logits = watch  # type: ignore[method-assign]
    with torch.inference_mode():
        kept = decoder._take(second, None)
        logits = decoder._prefill(second, kept)
        alone = Decoder(model, name="tiny")._prefill(second, KeptPrompt(None))
    assert torch.equal(logits, alone)
    whole = isinstance(model, Glm1ForCausalLM)  # reads a context from both sides
    assert sum(read) == len(second) - (0 if whole else 2 * CHUNK)
    assert list(decoder.tokens(second, None, 8)) == ids_of(model, second, 8)


def test_adapters_do_not_share_prefixes(model: Any) -> None:
    decoder, prompt = Decoder(model, name="tiny"), prompt_of(model, random.Random(4), 2 * CHUNK + 5)
    list(decoder.tokens(prompt, None, 2, "a"))
    assert decoder._take(prompt, "b").ids == []


def test_what_is_kept_has_a_bound(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(model, Glm1ForCausalLM):
        return  # nothing is kept
    decoder, rng = Decoder(model, name="tiny"), random.Random(5)
    prompts = [[each + 10, *prompt_of(model, rng, CHUNK + 5)] for each in range(4)]
    list(decoder.tokens(prompts[0], None, 1))
    monkeypatch.setattr(decoding, "KEPT_BYTES", 2 * decoder._kept[0].size)
    for prompt in prompts[1:]:
        list(decoder.tokens(prompt, None, 1))
    assert [each.ids[0] for each in decoder._kept] == [prompt[0] for prompt in prompts[1:]]


def test_the_share_that_has_been_read_rises_to_one(model: Any) -> None:
    decoder, shares = Decoder(model, name="tiny"), list[float]()
    decoder.progress = shares.append
    list(decoder.tokens(prompt_of(model, random.Random(6), 2 * CHUNK + 5), None, 4))
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)
    assert len(shares) >= 3


def test_reading_stops_when_it_is_told_to(model: Any) -> None:
    decoder = Decoder(model, name="tiny")
    decoder.progress = lambda share: decoder.stop()
    prompt = prompt_of(model, random.Random(7), 2 * CHUNK + 5)
    with pytest.raises(ReplyStopped):
        list(decoder.tokens(prompt, None, 4))
    decoder.progress = lambda share: None
    assert list(decoder.tokens(prompt, None, 4)) == ids_of(model, prompt, 4)


def test_a_draft_follows_the_longest_match() -> None:
    lookup = PromptLookup()
    lookup.extend([1, 2, 3, 40, 41, 9, 2, 3, 50, 51, 1, 2, 3])
    assert lookup.draft(2) == [40, 41]
    assert lookup.draft(1) == [40]
    lookup.extend([7])
    assert lookup.draft(8) == []


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_drafts_in_vain_cost_little(share: float) -> None:
    """A text whose pairs recur, but go on differently: by the cost of a drafted token, at most 3 % and
    one step are lost."""
    rng, lookup, lost = random.Random(8), PromptLookup(), 0.0
    for _ in range(500):
        draft = lookup.draft(100)
        accepted = sum(1 for _ in draft) if rng.random() < share / 8 else 0
        lost += decoding.DRAFT_COST * len(draft) - accepted
        if draft:
            lookup.learn(len(draft), accepted)
        lookup.extend([rng.randrange(3)])
    assert lost <= 1 + 0.03 * 500


def test_copied_text_takes_few_steps() -> None:
    """Of a text that stands above, an answer of 100 tokens takes at most half the time."""
    text = list(range(1000, 1200))
    lookup = PromptLookup()
    lookup.extend([*text, 5, *text[40:42]])
    at, time = 42, 0.0
    while at < 142:
        draft = lookup.draft(100)
        accepted = next((n for n, each in enumerate(draft) if each != text[at + n]), len(draft))
        time += 1 + decoding.DRAFT_COST * len(draft)
        if draft:
            lookup.learn(len(draft), accepted)
        lookup.extend(text[at : at + accepted + 1])
        at += accepted + 1
    assert time < 50
