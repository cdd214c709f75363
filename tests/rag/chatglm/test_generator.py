"""The decode loop: the original's greedy ids, a seed's one text, stops, room, numbers that are none."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ingest.errors import UserError
from rag.chatglm.generator import ChatGLMGenerator
from rag.chatglm.loading import load
from rag.chatglm.tokenization import open_tokenizer
from rag.types import Message, Sampling
from tests.rag.chatglm import vocabularies
from tests.rag.chatglm.golden import COPY, SETS, WHOLE, arrays

QUESTION = [Message("user", "你好")]
GREEDY = Sampling(max_new_tokens=24, temperature=0)


def generator(directory: Path) -> ChatGLMGenerator:
    return ChatGLMGenerator(load(directory), None, name="tiny")


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> ChatGLMGenerator:
    """A model with random weights that knows the vocabulary of ChatGLM3."""
    from rag.chatglm.configuration import ChatGLM2Config
    from rag.chatglm.modeling_chatglm import ChatGLM2ForCausalLM

    tokenizer = open_tokenizer(vocabularies.published(tmp_path_factory.mktemp("v3"), 3))
    torch.manual_seed(0)
    config = ChatGLM2Config(
        generation=3,
        vocab_size=65024,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    return ChatGLMGenerator(ChatGLM2ForCausalLM(config).eval(), tokenizer, name="loose")


@pytest.mark.parametrize("folder", SETS, ids=lambda path: path.parent.name)
@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_greedy_ids_are_the_originals(folder: Path, version: str) -> None:
    if not (folder / version / "golden.npz").is_file():
        folder = WHOLE
    if not (folder / version / "golden.npz").is_file():
        return
    ours = generator(folder / version / "tiny_safetensors")
    golden = arrays(folder / version / "golden.npz")
    names = {key.split(".")[1] for key in golden if key.startswith("generate.")}
    compared = 0
    for name in names:
        given = golden[f"generate.{name}.input_ids"]
        wanted = golden[f"generate.{name}.output_ids"]
        if len(given) > 1 or f"generate.{name}.attention_mask" in golden:
            continue
        prompt, new = given[0].tolist(), wanted[0, given.shape[1] :].tolist()
        assert list(ours.tokens(prompt, Sampling(len(new), temperature=0))) == new
        compared += 1
    assert compared


def test_a_seed_gives_one_text_and_another_seed_another(loose: ChatGLMGenerator) -> None:
    def text(seed: int) -> str:
        return "".join(loose.stream(QUESTION, Sampling(20, temperature=1.0, top_p=1.0, seed=seed)))

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(4)}) == 4


def test_temperature_zero_and_a_tiny_top_p_take_the_likeliest(loose: ChatGLMGenerator) -> None:
    prompt = loose.encode(QUESTION)
    likeliest = list(loose.tokens(prompt, GREEDY))
    assert list(loose.tokens(prompt, Sampling(24, temperature=1.0, top_p=1e-6))) == likeliest


def test_cached_steps_take_what_the_whole_sequence_gives(loose: ChatGLMGenerator) -> None:
    ids = loose.encode(QUESTION)
    for index in list(loose.tokens(ids, GREEDY)):
        with torch.inference_mode():
            logits = loose.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        assert index == int(logits.argmax())
        ids.append(index)


def test_stop_ids_end_the_text(loose: ChatGLMGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = list(loose.tokens(loose.encode(QUESTION), GREEDY))
    whole = "".join(loose.stream(QUESTION, GREEDY))
    stop = ids[5]
    monkeypatch.setattr(ChatGLMGenerator, "stop_ids", frozenset([stop]))
    short = "".join(loose.stream(QUESTION, GREEDY))
    assert short == loose.tokenizer.decode(ids[: ids.index(stop)]).strip()
    assert whole.startswith(short)


def test_count_is_the_length_of_the_prompt(loose: ChatGLMGenerator) -> None:
    assert loose.count(QUESTION) == len(loose.encode(QUESTION))


def test_generation_ends_with_the_window(loose: ChatGLMGenerator) -> None:
    prompt = [5] * (loose.context - 3)
    assert len(list(loose.tokens(prompt, Sampling(100, temperature=0)))) == 3
    with pytest.raises(UserError, match=f"{loose.context} tokens.* {loose.context}"):
        next(iter(loose.tokens([5] * loose.context, GREEDY)))


def test_closing_the_iterator_stops_the_model(loose: ChatGLMGenerator) -> None:
    steps: list[int] = []
    handle = loose.model.register_forward_pre_hook(lambda *_: steps.append(1))
    pieces: Any = loose.tokens(loose.encode(QUESTION), GREEDY)
    next(pieces)
    pieces.close()
    handle.remove()
    assert len(steps) == 1


def test_nan_scores_are_handled_as_upstream(loose: ChatGLMGenerator) -> None:
    def spoil(some: slice) -> Any:
        def hook(_module: Any, _given: Any, out: Any) -> Any:
            out.logits[..., some] = float("nan")
            return out

        return loose.model.register_forward_hook(hook)

    handle = spoil(slice(0, 3))
    assert list(loose.tokens([5, 6], Sampling(2))) == [5, 5]  # as upstream
    handle.remove()
    handle = spoil(slice(None))
    with pytest.raises(UserError, match="computes NaN"):
        next(iter(loose.tokens([5, 6], GREEDY)))
    handle.remove()


def test_a_directory_opens_in_a_mode_that_fits(tmp_path: Path) -> None:
    import shutil

    from rag.chatglm.generator import open_generator

    shutil.copytree(COPY / "v3" / "tiny_safetensors", tmp_path / "chatglm3-tiny")
    vocabularies.small_3(tmp_path / "chatglm3-tiny")
    shares: list[float] = []
    ours = open_generator(tmp_path / "chatglm3-tiny", quant="none", progress=shares.append)
    assert ours.name == "chatglm3-tiny"
    assert shares[-1] == 1
    assert shares == sorted(shares)


def test_stop_ends_a_reply_but_not_the_next(loose: ChatGLMGenerator) -> None:
    whole = list(loose.stream(QUESTION, GREEDY))
    reply, pieces = loose.stream(QUESTION, GREEDY), []
    for piece in reply:
        pieces.append(piece)
        loose.stop()
    assert len(pieces) < len(whole)
    assert "".join(whole).startswith("".join(pieces[:1]))
    assert list(loose.stream(QUESTION, GREEDY)) == whole


def test_stop_ends_reading_between_two_layers(loose: ChatGLMGenerator) -> None:
    """Even if nothing has been written yet: while the model reads the prompt."""
    layers = max((list(m) for m in loose.model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
    hook = layers[0].register_forward_pre_hook(lambda *_: loose.stop(), prepend=True)
    try:
        assert "".join(loose.stream(QUESTION, GREEDY)) == ""
    finally:
        hook.remove()
