"""The preview's memory against the measured peak: python benchmarks/preview.py FOLDER [NAME ...].

Each configuration is a training of three steps, with an evaluation before and after and a
checkpoint, in a process of its own; its peak is the kernel's VmHWM. Models have random weights in
FOLDER, upstream's shapes but smaller, stored in float16 as published ones are.
"""

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ALL = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
V1 = {
    "hidden_size": 1024, "inner_hidden_size": 4096, "num_layers": 12, "num_attention_heads": 8,
    "vocab_size": 65024, "bos_token_id": 65004, "eos_token_id": 65005, "mask_token_id": 65000,
    "gmask_token_id": 65001,
}  # fmt: skip
V3 = {
    "generation": 3, "vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 2816,
    "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 128,
    "attention_bias": True, "tie_word_embeddings": False, "pad_token_id": 0, "eos_token_id": 2,
    "partial_rotary_factor": 0.5,
}  # fmt: skip
MODELS = {"v1": V1, "v3": V3}


@dataclass(frozen=True)
class Case:
    """`rows` rows a step, of `length` tokens each, of which `learnt` are learnt."""

    model: str
    length: int
    learnt: int
    rows: int
    method: dict[str, Any]
    options: dict[str, Any]


LORA, LINEARS = {"rank": 8}, {"rank": 8, "targets": ALL}
PREFIX = {"pre_seq_len": 64}
CASES = {
    "v3 lora packed 512": Case("v3", 128, 60, 4, LORA, {"pack_length": 512}),
    "v3 lora packed 1024 checkpointing": Case(
        "v3", 128, 60, 8, LORA, {"pack_length": 1024, "gradient_checkpointing": True}
    ),
    "v3 all linears packed 512": Case("v3", 128, 40, 4, LINEARS, {"pack_length": 512}),
    "v3 p-tuning packed 512": Case("v3", 128, 60, 4, PREFIX, {"pack_length": 512}),
    "v1 lora packed 512": Case("v1", 128, 60, 4, LORA, {"pack_length": 512}),
    "v1 lora int8 packed 768": Case("v1", 190, 90, 4, LORA, {"pack_length": 768, "quant": "int8"}),
    "v1 p-tuning packed 512 bf16 checkpointing": Case(
        "v1", 256, 60, 2, PREFIX,
        {"pack_length": 512, "dtype": "bfloat16", "gradient_checkpointing": True},
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--child", action="store_true")
    options = parser.parse_args()
    if options.child:
        child(options.folder, options.names[0])
        return
    worst = 0.0
    for name in options.names or CASES:
        case = CASES[name]
        model = options.folder / case.model
        if not (model / "model.safetensors").is_file():
            process("--child", options.folder, f"make {case.model}")
        found = json.loads(process("--child", options.folder, name))
        error = found["predicted"] / found["measured"] - 1
        worst = max(worst, abs(error))
        sys.stdout.write(
            f"| {name} | {found['parameters'] / 1e6:.0f} M | {found['predicted'] / 2**20:,.0f} "
            f"| {found['measured'] / 2**20:,.0f} | {error:+.1%} |\n"
        )
        detail = {key: round(value / 2**20) for key, value in found["parts"].items()}
        sys.stderr.write(f"    {detail}\n")
        sys.stdout.flush()
    sys.stdout.write(f"worst: {worst:.1%}\n")


def process(*arguments: object) -> str:
    """The last line that this script says of its task, in a process of its own."""
    # -P: beside this script lies another that is named as a package of ours.
    command = [sys.executable, "-P", __file__, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return (done.stdout.splitlines() or [""])[-1]


def child(folder: Path, name: str) -> None:
    if name.startswith("make "):
        make(folder, name.removeprefix("make "))
        return
    from accelerate import Accelerator

    from finetune.options import LoraOptions, PrefixOptions, TrainOptions
    from finetune.train.loop import Sets, Training
    from finetune.train.preview import Estimator
    from finetune.train.setup import open_tuned, own_pages
    from rag.chatglm.loading import read_model_config
    from rag.chatglm.memory import parameters

    case = CASES[name]
    model, out = folder / case.model, folder / "out"
    kind = PrefixOptions if "pre_seq_len" in case.method else LoraOptions
    options = TrainOptions(
        kind(**case.method), max_steps=3, logging_steps=1, save_steps=2, eval_steps=2,
        per_device_train_batch_size=case.rows, **case.options,
    )  # fmt: skip
    config = read_model_config(model)
    sets = Sets(rows(config, case, 24), rows(config, case, 2, seed=1))
    estimate = Estimator(config, options, "cpu").peak(sets)
    shutil.rmtree(out, ignore_errors=True)
    own_pages()  # as `rag finetune train` does
    tuned = open_tuned(model, options, device="cpu")
    training = Training(tuned, sets, options, out, Accelerator(cpu=True))
    for _ in training.run():
        pass
    record = {
        "predicted": estimate.total,
        "measured": peak(),
        "parameters": parameters(config).total,
        "parts": asdict(estimate),
    }
    sys.stdout.write(json.dumps(record) + "\n")


def rows(config: Any, case: Case, count: int, *, seed: int = 0) -> Any:
    """Random words; what is learnt stands at the end."""
    import numpy as np

    sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests are there
    from finetune.types import IGNORED, TokenRow
    from tests.finetune.memory_rows import MemoryRows

    dice, made = np.random.default_rng(seed), []
    for _ in range(count):
        ids = dice.integers(5, 30000, case.length).astype(np.int32)
        answer = case.length - case.learnt
        if hasattr(config, "gmask_token_id"):
            ids[answer - 2 : answer] = config.gmask_token_id, config.bos_token_id
        labels = ids.copy()
        labels[:answer] = IGNORED
        made.append(TokenRow(ids, labels))
    return MemoryRows(made)


def peak() -> int:
    """The most bytes of memory that this process has had."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def make(folder: Path, name: str) -> None:
    """A model of random float16 weights."""
    import torch

    from rag.chatglm.configuration import ChatGLM2Config, Glm1Config
    from rag.chatglm.modeling_chatglm import ChatGLM2ForCausalLM, Glm1ForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    shape: dict[str, Any] = MODELS[name]
    old = "inner_hidden_size" in shape
    model: Any = Glm1ForCausalLM(Glm1Config(**shape)) if old else ChatGLM2ForCausalLM(ChatGLM2Config(**shape))
    model.config.dtype = torch.float16
    model.save_pretrained(folder / name)


if __name__ == "__main__":
    main()
