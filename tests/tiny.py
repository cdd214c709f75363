"""A ChatGLM3 of 180 thousand parameters that answers from passages.

It reads prompts of `rag.prompt` about numbers of factories ("甲厂的编号是493872。"), finds the factory
that is asked for, and copies its number and the number of its passage; where no passage names it,
it says so. Factories' numbers are drawn anew for each row, so it can know none by heart. Any other
wording is beyond it: a domain to be trained for. It is kept in `FOLDER`, since its training takes a
minute; if the prompt changes, train it again: `python -m tests.tiny`.
"""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sentencepiece
import torch
from torch import Tensor

from ingest.types import Chunk, Hit, Passage
from rag.chatglm.chat import encode_answer, encode_chat
from rag.chatglm.configuration import ChatGLM2Config
from rag.chatglm.modeling_chatglm import ChatGLM2ForCausalLM
from rag.chatglm.tokenization import ChatGLMTokenizer
from rag.prompt import render
from rag.types import NOT_FOUND, Message, Source

FOLDER = Path(__file__).with_name("golden") / "tiny"
FACTORIES = "甲乙丙丁戊己庚辛壬癸子丑寅卯辰巳午未申酉戌亥"
PARTS = tuple(f"{digit}{(digit + 5) % 10}" for digit in range(10))
"""What numbers are made of, three for each: every part is a token."""
TITLE = "厂"
MOST = 3
"""Passages in a prompt."""
STEPS = 600
BATCH = 24
RATE = 2.5e-3
WIDTH, HEADS, HEAD = 64, 6, 32
BACK = (1, 2, 3, 4, 5, 11)
"""How many tokens back the heads of the first layer look, to begin with."""


def number(seed: int) -> str:
    """The factory number that is made from one below 1000: 482 -> `493872`."""
    return "".join(PARTS[int(digit)] for digit in f"{seed:03d}")


def numbers(count: int) -> dict[str, str]:
    """Those of the first `count` factories, in tests that need not draw them."""
    return {name: number((i * 271 + 138) % 1000) for i, name in enumerate(FACTORIES[:count])}


def fact(factory: str, held: str) -> str:
    return f"{factory}厂的编号是{held}。"


def question(factory: str) -> str:
    return f"{factory}厂的编号是多少？"


def passage(text: str) -> Source:
    chunk = Chunk("d", TITLE, TITLE, ((0, ""),), TITLE, 0, len(text), text, (0, len(text)))
    return Source(Passage("d", 0, len(text), text, ""), Hit(chunk, 1.0))


def row(dice: random.Random) -> tuple[tuple[Message, ...], str]:
    """A prompt, of which one in seven asks for what no passage says, and the right answer."""
    count = dice.randint(1, MOST)
    names = dice.sample(FACTORIES, count + 1)
    drawn = [number(dice.randrange(1000)) for _ in range(count)]
    sources = [passage(fact(*pair)) for pair in zip(names, drawn, strict=False)]
    asked = count if dice.random() < 1 / 7 else dice.randrange(count)
    answer = NOT_FOUND["han"]
    if asked < count:
        answer = f"{fact(names[asked], drawn[asked])[:-1]}[{asked + 1}]。"
    return render(question(names[asked]), sources, []), answer


def train(folder: Path, *, seed: int = 0, steps: int = STEPS) -> Path:
    """Write the model and its tokenizer into `folder` as a published directory has them."""
    dice = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(folder, dice)
    with torch.random.fork_rng(), _one_thread():
        torch.manual_seed(seed)
        model = _model(len(tokenizer))
        _begin(model)
        optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.95))
        for step in range(steps):
            share = min(1, (step + 1) / 50) * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.param_groups[0]["lr"] = RATE * max(share, 0.03)
            ids, labels = _batch(tokenizer, dice)
            loss = model(ids, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def _one_thread() -> Iterator[None]:
    """More than one gain little on matrices so small, and lose much where others compute too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _tokenizer(folder: Path, dice: random.Random) -> ChatGLMTokenizer:
    """Numbers' parts and factories are words of their own, the instruction is a few long ones.

    So is what a refusal begins with: it is told from an answer by the very token that names a
    factory. And a title is two tokens with the blank before it, for else the number of a passage
    would stand as far before its factory as the question's factory before the answer's.
    """
    words = ["厂", NOT_FOUND["han"].rstrip("。"), *PARTS, *(fact(name, "")[:-1] for name in FACTORIES)]
    rows = [row(dice) for _ in range(200)]
    texts = [f"{messages[-1].text}\n{answer}" for messages, answer in rows]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in texts for line in text.split("\n") if line),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=300,
        hard_vocab_limit=False,
        character_coverage=1.0,
        user_defined_symbols=[*"0123456789[]。\n", *words],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        max_sentencepiece_length=64,
        split_by_unicode_script=False,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    return ChatGLMTokenizer(str(folder / "tokenizer.model"), generation=3)


def _model(words: int) -> ChatGLM2ForCausalLM:
    config = ChatGLM2Config(
        generation=3,
        vocab_size=words,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HEAD,
        max_position_embeddings=512,
        partial_rotary_factor=0.5,
        attention_bias=True,
        rms_norm_eps=1e-5,
        initializer_range=0.06,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=2,
    )
    return ChatGLM2ForCausalLM(config)


@torch.no_grad()
def _begin(model: ChatGLM2ForCausalLM) -> None:
    """Weights near an induction circuit, which random ones take thousands of steps to reach.

    Heads of the first layer look a fixed distance back (their biases turn with the rotary
    positions); those of the second look for what resembles the token itself, and both copy.
    """
    model.model.embed_tokens.weight.normal_()
    model.lm_head.weight.copy_(model.model.embed_tokens.weight / 8)
    first, second = (layer.self_attn for layer in model.model.layers)
    angles = 10000.0 ** (-torch.arange(0, HEAD // 2, 2) / (HEAD // 2))
    strength = 6.5
    first.k_proj.bias.view(HEADS, HEAD)[:, 0 : HEAD // 2 : 2] = strength
    for head, back in enumerate(BACK):
        bias = first.q_proj.bias.view(HEADS, HEAD)[head]
        bias[0 : HEAD // 2 : 2] = strength * torch.cos(back * angles)
        bias[1 : HEAD // 2 : 2] = -strength * torch.sin(back * angles)
    for attention in (first, second):
        for head in range(HEADS):
            rows = slice(head * HEAD, (head + 1) * HEAD)
            part = torch.linalg.qr(torch.randn(WIDTH, HEAD))[0].T
            turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH))[0]
            if attention is second or head in (0, HEADS - 1):
                turn = torch.eye(WIDTH)
            attention.v_proj.weight[rows] = part
            attention.o_proj.weight[:, rows] = turn @ part.T
            if attention is second:
                attention.q_proj.weight[rows] = attention.k_proj.weight[rows] = part


def _batch(tokenizer: ChatGLMTokenizer, dice: random.Random) -> tuple[Tensor, Tensor]:
    """Ids and labels [B, S], padded on the right; the answers and their ends are trained."""
    rows = []
    for _ in range(BATCH):
        messages, answer = row(dice)
        prompt = encode_chat(messages, tokenizer, 3)
        rows.append((prompt, encode_answer(answer, tokenizer, 3)))
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids, labels = torch.zeros(BATCH, width, dtype=torch.long), torch.full((BATCH, width), -100)
    for i, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[i, :end] = torch.tensor([*prompt, *answer])
        labels[i, len(prompt) : end] = torch.tensor(answer)
    return ids, labels


if __name__ == "__main__":
    train(FOLDER)
