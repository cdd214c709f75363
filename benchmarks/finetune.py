"""Useful tokens a second and peak memory of training: padded to the maximum, and packed.

    python benchmarks/finetune.py [--rounds N] [--alpaca FILE.json]

A model of ChatGLM2's kind with random weights, whose head is the same share of it (4 %) as in
ChatGLM2-6B, LoRA rank 8 on query_key_value, 16 rows a step, float32 on the CPU. *Upstream* pads each
row to max_source_length + max_target_length + 1, computes the logits of all its places and recomputes
layers in the backward pass, as THUDM's ptuning main.py always does, with its own lengths (train.sh: 64
and 128; train_chat.sh: 256 and 256). *Packed* lays rows one behind the other, and computes logits at
learnt places alone and layers once. Useful tokens are those of rows, not of padding. Ways take turns in
each round; the table gives each way's best round (other work only slows) and the median ratio.

Lengths: `alpaca` are those of a file's rows in ChatGLM3's tokens; `adgen` are drawn (prompts 45 +- 12,
answers 70 +- 20 tokens, cut to 64 and 128), since the set itself is not at hand.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from accelerate import Accelerator

# This file has the package's name: its folder must not be where the package is looked for.
ROOT = Path(__file__).parents[1]  # the tests are there
sys.path[:] = [str(ROOT)] + [
    entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).parent
]

from finetune.options import LoraOptions, TrainOptions  # noqa: E402  (behind the line above)
from finetune.train.batches import Batch, pack  # noqa: E402  (behind the line above)
from finetune.train.loop import Optimizer, Sets, enable_checkpointing, plan  # noqa: E402  (behind the line above)
from finetune.train.lora import Lora  # noqa: E402  (behind the line above)
from finetune.train.loss import summed_loss  # noqa: E402  (behind the line above)
from finetune.types import IGNORED, TokenRow  # noqa: E402  (behind the line above)
from rag.chatglm.configuration import ChatGLM2Config  # noqa: E402  (behind the line above)
from rag.chatglm.modeling_chatglm import ChatGLM2ForCausalLM  # noqa: E402  (behind the line above)
from tests.finetune.memory_rows import MemoryRows  # noqa: E402  (behind the line above)

ALPACA = ROOT / "tests" / "data" / "alpaca" / "alpaca_zh.json"
WORDS = 2048
LONGEST = {"adgen": (64, 128), "alpaca": (256, 256)}
WAYS = ("upstream", "packed")
SIZE = 16
METHOD = LoraOptions()
OPTIONS = TrainOptions(METHOD, per_device_train_batch_size=SIZE, learning_rate=1e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alpaca", type=Path, default=ALPACA)
    parser.add_argument("--peak", nargs=2, metavar=("MIX", "WAY"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak:
        mix, way = given.peak
        measured(mix, way, given.alpaca)()
        status = Path("/proc/self/status").read_text()
        sys.stdout.write(status.partition("VmHWM:")[2].split()[0])
        return
    sys.stdout.write("| rows like | way | useful tokens/s | against upstream | peak memory |\n")
    sys.stdout.write("| --- | --- | --- | --- | --- |\n")
    for mix in LONGEST:
        speeds = compared(mix, given.alpaca, given.rounds)
        for way in WAYS:
            times = statistics.median(a / b for a, b in zip(speeds[way], speeds["upstream"], strict=True))
            best = max(speeds[way])
            sys.stdout.write(
                f"| {mix} | {way} | {best:,.0f} | {times:.2f} | {peak(mix, way, given.alpaca):.2f} GB |\n"
            )
            sys.stdout.flush()


def compared(mix: str, alpaca: Path, rounds: int) -> dict[str, list[float]]:
    """Useful tokens a second of each way in each round."""
    steps = {way: measured(mix, way, alpaca) for way in WAYS}
    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, step in steps.items():
            began = time.perf_counter()
            tokens = step()
            speeds[way].append(tokens / (time.perf_counter() - began))
    return speeds


def measured(mix: str, way: str, alpaca: Path) -> Callable[[], int]:
    """What makes a few updates and gives the number of useful tokens in them."""
    rows = rows_of(mix, alpaca)
    lora = Lora(model(), METHOD)
    lora.model.train()
    if way == "upstream":
        enable_checkpointing(lora.base)
    optimizer = Optimizer(lora.trainable, OPTIONS, Accelerator(cpu=True))
    steps = plan(Sets(rows), OPTIONS, 1)
    longest = sum(LONGEST[mix]) + 1

    def run() -> int:
        chosen = [rows[int(i)] for i in steps.step(0)[0]]
        batches = [padded(chosen, longest)] if way == "upstream" else pack(chosen, OPTIONS.pack_length)
        learnt = sum(batch.learnt for batch in batches)
        for batch in batches:
            if way == "upstream":  # as main.py: ids and labels alone, all logits
                loss = lora.model(batch.ids, labels=batch.labels, use_cache=False).loss
            else:
                loss = summed_loss(lora.model, batch) / learnt
            optimizer.backward(loss)
        optimizer.step(1, 1e-4, 1.0)
        return sum(map(len, chosen))

    return run


def padded(rows: list[TokenRow], length: int) -> Batch:
    """A row a line; what pads it belongs to no sample."""
    arrays = np.zeros((4, len(rows), length), np.int64)
    arrays[1] = IGNORED
    for i, row in enumerate(rows):
        places = np.arange(len(row))
        arrays[:, i, : len(row)] = row.ids, row.labels, np.ones_like(places), places
    return Batch(*map(torch.from_numpy, arrays))


def rows_of(mix: str, alpaca: Path) -> MemoryRows:
    dice = np.random.default_rng(0)
    source, target = LONGEST[mix]
    if mix == "adgen":
        prompts = np.clip(dice.normal(45, 12, 400), 8, source).astype(int)
        answers = np.clip(dice.normal(70, 20, 400), 8, target).astype(int)
    else:
        with TemporaryDirectory() as folder:
            pairs = lengths(alpaca, Path(folder))
        prompts = np.minimum([p for p, _ in pairs], source)
        answers = np.minimum([a for _, a in pairs], target)
    made = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = dice.integers(1, WORDS, int(prompt + answer)).astype(np.int32)
        labels = ids.copy()
        labels[:prompt] = IGNORED
        made.append(TokenRow(ids, labels))
    return MemoryRows(made)


def lengths(alpaca: Path, folder: Path) -> list[tuple[int, int]]:
    """Tokens of prompt and answer of the file's rows."""
    from finetune.data.formats import examples
    from finetune.data.template import RowEncoder
    from rag.chatglm.tokenization import open_tokenizer

    (folder / "tokenizer.model").symlink_to(ROOT / "tests" / "golden" / "tokenizer" / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "ChatGLMTokenizer", "name_or_path": "chatglm3-6b"})
    )
    encode = RowEncoder(open_tokenizer(folder), 3, max_length=10_000)
    rows = [row for example in examples([alpaca]) for row in encode(example).rows]
    return [(len(row) - int((row.labels >= 0).sum()), int((row.labels >= 0).sum())) for row in rows]


def model() -> ChatGLM2ForCausalLM:
    torch.manual_seed(0)
    config = ChatGLM2Config(
        generation=3, vocab_size=WORDS, hidden_size=1536, intermediate_size=5136,
        num_hidden_layers=2, num_attention_heads=12, num_key_value_heads=2, head_dim=128,
        max_position_embeddings=8192, partial_rotary_factor=0.5, attention_bias=True,
        tie_word_embeddings=False, pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    return ChatGLM2ForCausalLM(config)


def peak(mix: str, way: str, alpaca: Path) -> float:
    """Of a process of its own, in 2**30 bytes."""
    command = [sys.executable, __file__, "--peak", mix, way, "--alpaca", str(alpaca)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout) / 2**20


if __name__ == "__main__":
    main()
