"""The preview's memory against the measured peak: python benchmarks/preview.py FOLDER [NAME ...].

Each configuration is a training of three steps, with an evaluation before and after and a
checkpoint, in a process of its own; its peak is the kernel's VmHWM. Models have random weights in
FOLDER, upstream's shapes but smaller, stored in float16 as published ones are. The first twelve are
those that the constants were chosen by; the others were run once after that.
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
V2 = V3 | {"generation": 2, "vocab_size": 65024, "hidden_size": 1536, "intermediate_size": 4096}
V2 |= {"num_hidden_layers": 14, "num_attention_heads": 12}
V4 = V3 | {"generation": 4, "vocab_size": 100352, "hidden_size": 1536, "num_hidden_layers": 8}
V4 |= {"intermediate_size": 5120, "num_attention_heads": 12}
DEEP = V3 | {"num_hidden_layers": 24, "hidden_size": 768, "num_attention_heads": 6}
MODELS = {"v1": V1, "v2": V2, "v3": V3, "v4": V4, "deep": DEEP}


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
PREFIX, PROJECTED = {"pre_seq_len": 64}, {"pre_seq_len": 64, "prefix_projection": True}
CASES = {
    "v3 lora packed 512": Case("v3", 128, 60, 4, LORA, {"pack_length": 512}),
    "v3 lora packed 1024 kept": Case(
        "v3", 128, 60, 8, LORA, {"pack_length": 1024, "gradient_checkpointing": True}
    ),
    "v3 all linears padded 4x128": Case("v3", 128, 40, 4, LINEARS, {"packing": False}),
    "v3 p-tuning packed 512": Case("v3", 128, 60, 4, PREFIX, {"pack_length": 512}),
    "v2 lora packed 256": Case("v2", 64, 40, 4, LORA, {"pack_length": 256}),
    "v2 all linears packed 512 bf16": Case(
        "v2", 128, 40, 2, LINEARS, {"pack_length": 512, "dtype": "bfloat16"}
    ),
    "v2 all linears int8 packed 512": Case(
        "v2", 128, 40, 4, LINEARS, {"pack_length": 512, "quant": "int8"}
    ),
    "v2 p-tuning projected padded 2x256 kept": Case(
        "v2", 256, 200, 2, PROJECTED, {"packing": False, "gradient_checkpointing": True}
    ),
    "v1 lora packed 512": Case("v1", 128, 60, 4, LORA, {"pack_length": 512}),
    "v1 all linears packed 1024": Case("v1", 256, 100, 4, LINEARS, {"pack_length": 1024}),
    "v1 p-tuning padded 4x128": Case("v1", 128, 60, 4, PREFIX, {"packing": False}),
    "v1 lora padded 2x256 bf16 kept": Case(
        "v1", 128, 60, 2, LORA,
        {"packing": False, "dtype": "bfloat16", "gradient_checkpointing": True},
    ),
}  # fmt: skip
UNSEEN = {
    "v4 dora packed 512": Case("v4", 100, 50, 5, {"rank": 8, "dora": True}, {"pack_length": 512}),
    "deep all linears padded 3x200": Case("deep", 200, 150, 3, LINEARS, {"packing": False}),
    "v1 lora int8 packed 768": Case(
        "v1", 190, 90, 4, LORA, {"pack_length": 768, "quant": "int8"}
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
    for name in options.names or [*CASES, *UNSEEN]:
        case = (CASES | UNSEEN)[name]
        model = options.folder / case.model
        if not (model / "model.safetensors").is_file():
            process("--child", options.folder, f"make {case.model}")
        told = json.loads(process("--child", options.folder, name))
        error = told["predicted"] / told["measured"] - 1
        worst = max(worst, abs(error))
        sys.stdout.write(
            f"| {name} | {told['parameters'] / 1e6:.0f} M | {told['predicted'] / 2**20:,.0f} "
            f"| {told['measured'] / 2**20:,.0f} | {error:+.1%} |\n"
        )
        detail = {key: round(value / 2**20) for key, value in told["parts"].items()}
        sys.stderr.write(f"    {detail} {told['more']}\n")
        sys.stdout.flush()
    sys.stdout.write(f"worst: {worst:.1%}\n")


def process(*arguments: object) -> str:
    """The last line that this script says of its task, in a process of its own."""
    # -P: beside this script lies another that is named as a package of ours.
    command = [sys.executable, "-P", __file__, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return (done.stdout.splitlines() or [""])[-1]


def child(folder: Path, name: str) -> None:
    import torch

    if name.startswith("make "):
        make(folder, name.removeprefix("make "))
        return
    from accelerate import Accelerator

    from finetune.options import LoraOptions, PrefixOptions, TrainOptions
    from finetune.train.loop import Sets, Training
    from finetune.train.preview import Heaviest, Previewer, own_pages
    from finetune.train.setup import contract_of, open_tuned
    from rag.chatglm.loading import read_config
    from rag.chatglm.memory import parameters

    case = (CASES | UNSEEN)[name]
    model, out = folder / case.model, folder / "out"
    kind = PrefixOptions if "pre_seq_len" in case.method else LoraOptions
    options = TrainOptions(
        kind(**case.method), max_steps=3, logging_steps=1, save_steps=2, eval_steps=2,
        per_device_train_batch_size=case.rows, **case.options,
    )  # fmt: skip
    config = read_config(model)
    sets = Sets(rows(config, case, 24), rows(config, case, 2, seed=1))
    heaviest = Heaviest(sets, options)
    told = Previewer(config, options, "cpu").preview(heaviest.learnt(), heaviest.measured())
    shutil.rmtree(out, ignore_errors=True)
    before = resident("VmRSS")
    own_pages()  # as `rag finetune train` does
    tuned = open_tuned(model, options, device="cpu")
    loaded, loading = resident("VmRSS"), resident("VmHWM")
    accelerator = Accelerator(cpu=True)
    training = Training(tuned, sets, options, out, contract_of(tuned.base, options), accelerator)
    peaks = [resident("VmHWM") for _ in training.run()]
    more = {"before": before, "loaded": loaded, "loading": loading, "steps": peaks}
    record = {
        "predicted": told.total,
        "measured": resident("VmHWM"),
        "parameters": parameters(config).total,
        "parts": asdict(told),
        "more": {
            key: [v >> 20 for v in value] if isinstance(value, list) else value >> 20
            for key, value in more.items()
        },
        "threads": torch.get_num_threads(),
    }
    sys.stdout.write(json.dumps(record) + "\n")


def rows(config: Any, case: Case, count: int, *, seed: int = 0) -> Any:
    """Random words; what is learnt stands at the end."""
    import numpy as np

    sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests are there
    from finetune.types import IGNORED, Row
    from tests.finetune.listed import Listed

    dice, made = np.random.default_rng(seed), []
    for _ in range(count):
        ids = dice.integers(5, 30000, case.length).astype(np.int32)
        answer = case.length - case.learnt
        if hasattr(config, "gmask_token_id"):
            ids[answer - 2 : answer] = config.gmask_token_id, config.bos_token_id
        labels = ids.copy()
        labels[:answer] = IGNORED
        made.append(Row(ids, labels))
    return Listed(made)


def resident(name: str) -> int:
    """Bytes: VmRSS, what this process has in memory, or VmHWM, the most that it had."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) * 1024


def make(folder: Path, name: str) -> None:
    """A model of random float16 weights."""
    import torch

    from rag.chatglm.configuration import ChatGLM2Config, Glm1Config
    from rag.chatglm.modeling_chatglm import ChatGLM2ForCausalLM, Glm1ForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    shape: dict[str, Any] = MODELS[name]
    old = "inner_hidden_size" in shape
    model: Any = (
        Glm1ForCausalLM(Glm1Config(**shape))
        if old
        else ChatGLM2ForCausalLM(ChatGLM2Config(**shape))
    )
    model.config.dtype = torch.float16
    model.save_pretrained(folder / name)


if __name__ == "__main__":
    main()
