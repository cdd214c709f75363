"""A made key-value task: numbers of factories, asked for in words that the tiny model never saw.

A knowledge base has one document for each factory. Of some of them questions are trained, in as
many steps of as many rows: *plain*, as a question and its answer, or *retrieval-aware*, behind a
prompt with the document and three others, shuffled, and for a quarter of the factories without it,
where a refusal is right. Asked are the other factories, with three distractors beside the document
that answers, or with four and no such document. Whether a reply cites counts for nothing here, so
that plain rows, which can't teach it, lose nothing by that.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from accelerate import Accelerator

from finetune.data.template import RowEncoder
from finetune.evaluate.metrics import bare, exact
from finetune.options import LoraOptions, TrainOptions
from finetune.train.loop import Sets, Training
from finetune.train.lora import Lora
from finetune.types import Example
from rag.chatglm.generator import ChatGLMGenerator
from rag.chatglm.loading import load
from rag.chatglm.tokenization import open_tokenizer
from rag.cite import declines
from rag.prompt import render
from rag.types import NOT_FOUND, Message, Sampling
from tests.finetune.memory_rows import MemoryRows
from tests.tiny import FACTORIES, fact, number, passage

TRAINED = 14
"""Factories whose questions are trained; the others are held out."""
DISTRACTORS = 3
WITHOUT_GOLD = 0.25
STEPS, ROWS, RATE = 60, 8, 3e-3
ASKED = 2
"""How often each held-out question is asked with its document, and without, among others."""
LINEARS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
GREEDY = Sampling(max_new_tokens=16, temperature=0)
SEEDS = 5


@dataclass(frozen=True)
class World:
    """Numbers by factory, those that are trained first."""

    numbers: Mapping[str, str]

    @classmethod
    def made(cls, seed: int) -> "World":
        dice = Random(f"world {seed}")
        names = dice.sample(FACTORIES, len(FACTORIES))
        return cls({name: number(dice.randrange(1000)) for name in names})

    @property
    def trained(self) -> list[str]:
        return list(self.numbers)[:TRAINED]

    @property
    def held(self) -> list[str]:
        return list(self.numbers)[TRAINED:]

    def sentence(self, name: str) -> str:
        return fact(name, self.numbers[name])

    def example(self, name: str, shown: Sequence[str]) -> Example:
        """The question about `name` behind documents of `shown`, and its right answer."""
        sources = [passage(self.sentence(each)) for each in shown]
        messages = render(question(name), sources, ())
        answer = NOT_FOUND["han"]
        if name in shown:
            answer = f"{self.sentence(name)[:-1]}[{shown.index(name) + 1}]。"
        return Example((*messages, Message("assistant", answer)))


def question(name: str) -> str:
    return f"{name}厂的编号是什么？"


def drawn(name: str, others: Sequence[str], dice: Random, *, gold: bool) -> list[str]:
    """Which documents stand in a prompt: with that of `name` three others, without it four."""
    rest = [each for each in others if each != name]
    shown = [*dice.sample(rest, DISTRACTORS), name] if gold else dice.sample(rest, DISTRACTORS + 1)
    return dice.sample(shown, len(shown))


def plain(world: World) -> list[Example]:
    """Questions and answers."""
    return [
        Example((Message("user", question(name)), Message("assistant", world.sentence(name))))
        for name in world.trained
    ]


def grounded(world: World, seed: int) -> list[Example]:
    """The same questions behind passages; a share of them is refused."""
    dice = Random(f"rows {seed}")
    refused = dice.sample(world.trained, round(WITHOUT_GOLD * TRAINED))
    return [
        world.example(name, drawn(name, world.trained, dice, gold=name not in refused))
        for name in world.trained
    ]


def paired(world: World, seed: int) -> list[Example]:
    """The rows of `grounded`, each with two worse answers: the answer with no mark, and with the number of
    another passage; instead of a refusal both are invented."""
    dice = Random(f"pairs {seed}")
    found: list[Example] = []
    for example, name in zip(grounded(world, seed), world.trained, strict=True):
        bare_answer, wrong = world.sentence(name), list(range(1, DISTRACTORS + 2))
        if not declines(example.answer):
            right = int(example.answer[-3])
            wrong = [number for number in wrong if abs(number - right) == 1]
        rejected = (bare_answer, f"{bare_answer[:-1]}[{dice.choice(wrong)}]。")
        found += [replace(example, rejected=each) for each in rejected]
    return found


@contextmanager
def adapted(
    generator: ChatGLMGenerator, examples: Sequence[Example], seed: int, folder: Path, beta: float = 0.1
) -> Iterator[None]:
    """The model with an adapter that was trained on the examples."""
    encode = RowEncoder(generator.tokenizer, generator.generation)
    rows = MemoryRows([row for example in examples for row in encode(example).rows])
    wanted = replace(options(seed), objective="orpo" if examples[0].rejected else "sft", orpo_beta=beta)
    assert isinstance(wanted.method, LoraOptions)
    tuned = Lora(generator.model, wanted.method, seed=seed)
    for _ in Training(tuned, Sets(rows), wanted, folder, Accelerator(cpu=True)).run():
        pass
    tuned.model.eval()
    try:
        yield
    finally:
        tuned.release()


def options(seed: int) -> TrainOptions:
    return TrainOptions(
        method=LoraOptions(rank=16, alpha=32, dropout=0.0, targets=LINEARS),
        per_device_train_batch_size=ROWS,
        max_steps=STEPS,
        learning_rate=RATE,
        seed=seed,
        logging_steps=STEPS,
        save_steps=STEPS,
    )


@dataclass(frozen=True)
class Scores:
    """Exact match with three distractors, and F1 of refusals."""

    exact: float
    refusal_f1: float


def scores(generator: ChatGLMGenerator, world: World, seed: int) -> Scores:
    """Of the held-out questions; a refusal is no exact match, and marks `[n]` count for nothing."""
    dice = Random(f"asked {seed}")
    right: list[float] = []
    agreed = refused = wanted = 0
    for name in world.held * ASKED:
        for gold in (True, False):
            example = world.example(name, drawn(name, list(world.numbers), dice, gold=gold))
            reply = "".join(generator.stream(example.messages[:-1], GREEDY))
            declined = declines(reply)
            if gold:
                right.append(0.0 if declined else exact(bare(reply), world.sentence(name)))
            agreed, refused, wanted = (
                agreed + (declined and not gold),
                refused + declined,
                wanted + (not gold),
            )
    return Scores(sum(right) / len(right), 2 * agreed / (refused + wanted))


TRAININGS: dict[str, Callable[[World, int], list[Example]]] = {
    "untrained": lambda world, seed: [],
    "plain": lambda world, seed: plain(world),
    "retrieval-aware": grounded,
    "preference pairs": paired,
}
"""The rows that are trained, by their name."""


def compared(model: Path, seed: int, folder: Path, trainings: Iterable[str]) -> dict[str, Scores]:
    """What the model in the directory `model` scores after each training."""
    base = load(model, quant="none", device="cpu")
    generator = ChatGLMGenerator(base, open_tokenizer(model), name="tiny")
    world, threads = World.made(seed), torch.get_num_threads()
    torch.set_num_threads(1)  # more gain nothing on matrices so small
    try:
        found: dict[str, Scores] = {}
        for name in trainings:
            rows = TRAININGS[name](world, seed)
            with adapted(generator, rows, seed, folder / f"{name}-{seed}") if rows else nullcontext():
                found[name] = scores(generator, world, seed)
    finally:
        torch.set_num_threads(threads)
    return found
