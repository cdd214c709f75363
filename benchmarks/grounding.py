"""Retrieval-aware training against plain training, on a made task: numbers of factories.

    python benchmarks/grounding.py [--seeds N] [--steps N]

Both adapters begin on one small ChatGLM3 (tests/tiny.py, trained for 300 of its 600 steps: it reads
passages, but not surely) and learn the same number of rows of the same facts. *Plain* rows are a
question and its answer. *Retrieval-aware* rows are prompts of `rag.prompt` with the passage that
answers and three distractors, shuffled; three in ten have four distractors and a refusal as their answer.
Asked are facts that none has seen, with three distractors: exact match of answer and cited number; and
prompts without the answer among their passages: F1 of refusals.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory

import torch
from accelerate import Accelerator

sys.path[0] = str(Path(__file__).parents[1])  # the tests are there; here is another "finetune"

from finetune.options import LoraOptions, TrainOptions  # noqa: E402  (behind the line above)
from finetune.template import RowEncoder  # noqa: E402  (likewise)
from finetune.train.loop import Sets, Training  # noqa: E402  (likewise)
from finetune.train.lora import Lora  # noqa: E402  (likewise)
from finetune.types import Example, Listed  # noqa: E402  (likewise)
from rag.chatglm.contract import Contract  # noqa: E402  (likewise)
from rag.chatglm.generator import ChatGLMGenerator  # noqa: E402  (likewise)
from rag.chatglm.loading import load  # noqa: E402  (likewise)
from rag.chatglm.tokenizer import open_tokenizer  # noqa: E402  (likewise)
from rag.prompt import render  # noqa: E402  (likewise)
from rag.reply import NOT_FOUND, declines  # noqa: E402  (likewise)
from rag.types import Message, Sampling  # noqa: E402  (likewise)
from tests.tiny import FACTORIES, fact, passage, question, train  # noqa: E402  (likewise)

PASSAGES = 4
REFUSED = 0.3
ASKED = 60
BATCH, RATE = 16, 4e-3
TARGETS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
WAYS = ("base", "plain", "retrieval-aware")
GREEDY = Sampling(max_new_tokens=24, temperature=0)
Asked = tuple[tuple[Message, ...], str]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        base = train(Path(folder) / "base", steps=300)
        found = {way: [] for way in WAYS}
        for seed in range(given.seeds):
            for way in WAYS:
                found[way].append(measured(base, way, seed, given.steps, Path(folder)))
                em, f1 = found[way][-1]
                sys.stderr.write(f"seed {seed}, {way}: exact match {em:.2f}, refusal F1 {f1:.2f}\n")
    sys.stdout.write(
        "| rows | exact match, three distractors | refusal F1 |\n| --- | --- | --- |\n"
    )
    for way, pairs in found.items():
        shown = [spread([pair[i] for pair in pairs]) for i in (0, 1)]
        sys.stdout.write(f"| {way} | {shown[0]} | {shown[1]} |\n")


def spread(values: Sequence[float]) -> str:
    wide = f" +- {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{wide}"


def measured(base: Path, way: str, seed: int, steps: int, folder: Path) -> tuple[float, float]:
    """Exact match and F1 of refusals after a training of `way`."""
    model, tokenizer = load(base, quant="none", device="cpu"), open_tokenizer(base)
    if way != "base":
        options = TrainOptions(
            LoraOptions(rank=16, dropout=0.0, targets=TARGETS), per_device_train_batch_size=BATCH,
            max_steps=steps, learning_rate=RATE, lr_scheduler_type="cosine", seed=seed,
            logging_steps=steps, eval_steps=steps, save_steps=steps,
        )  # fmt: skip
        lora = Lora(model, options.method, seed=seed)  # type: ignore[arg-type]  # it is LoRA's
        dice = random.Random(f"rows {seed}")
        encode = RowEncoder(tokenizer, 3, max_length=512)
        drawn = [
            row(dice) if way == "retrieval-aware" else plain(dice) for _ in range(steps * BATCH)
        ]
        rows = [
            encode(Example((*messages, Message("assistant", answer)))).rows[0]
            for messages, answer in drawn
        ]
        out = folder / f"{way}-{seed}"
        place = Accelerator(cpu=True)
        list(Training(lora, Sets(Listed(rows)), options, out, Contract(3), place).run())
        lora.model.eval()
    generator = ChatGLMGenerator(model, tokenizer, name=way)
    dice = random.Random(f"asked {seed}")
    asked = [row(dice, refused=i % 2 == 1) for i in range(2 * ASKED)]
    replies = [("".join(generator.stream(messages, GREEDY)), answer) for messages, answer in asked]
    right = sum(reply == answer for reply, answer in replies[::2])
    wrongly = sum(declines(reply) for reply, _ in replies[::2])
    rightly = sum(declines(reply) for reply, _ in replies[1::2])
    return right / ASKED, 2 * rightly / (rightly + wrongly + ASKED)


def row(dice: random.Random, *, refused: bool | None = None) -> Asked:
    """A prompt with passages, and the right reply."""
    names = dice.sample(FACTORIES, PASSAGES + 1)
    numbers = ["".join(dice.choices("0123456789", k=3)) for _ in names]
    refused = dice.random() < REFUSED if refused is None else refused
    sources = [passage(fact(*pair)) for pair in list(zip(names, numbers, strict=True))[:PASSAGES]]
    place = PASSAGES if refused else dice.randrange(PASSAGES)
    answer = NOT_FOUND["han"]
    if not refused:
        answer = f"{fact(names[place], numbers[place])[:-1]}[{place + 1}]。"
    return render(question(names[place]), sources, []), answer


def plain(dice: random.Random) -> Asked:
    """A question and its answer, of facts as those above."""
    name, number = dice.choice(FACTORIES), "".join(dice.choices("0123456789", k=3))
    return (Message("user", question(name)),), fact(name, number)


if __name__ == "__main__":
    main()
