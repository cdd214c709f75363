"""The options of a training, under the names of trainers, of the tutorial and of THUDM's scripts."""

from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.options import LoraOptions, PrefixOptions
from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.cli.console import say


def option(names: str, text: Translatable, *, least: int | None = None) -> Any:
    """`names` are all spellings and, last, what stands for the value in the help."""
    words = names.split()
    flags = [word for word in words if word.startswith("--")]
    metavar = " ".join(words[len(flags) :]) or None
    return typer.Option(*flags, metavar=metavar, min=least, help=say(text))


DATA_NAMES = "--data-path --jsonl-path --train-file --dataset-path"
"""What the tutorial and THUDM's scripts call the data."""
ModelDir = Annotated[
    str,
    option(
        "--model --model-name-or-path --model-path --chatglm-path MODEL",
        Translatable("The ChatGLM to train: folder, or name on a hub."),
    ),
]
Out = Annotated[Path, option("--out --output-dir DIR", Translatable("The adapter's new folder."))]
MoreData = Annotated[
    list[Path] | None, option(f"--data {DATA_NAMES} DATA", Translatable("The same as DATA."))
]
Dev = Annotated[
    list[Path] | None,
    option(
        "--dev --validation-file FILE", Translatable("Data to measure the loss on, never learnt.")
    ),
]
DevShare = Annotated[
    float,
    option("--dev-share SHARE", Translatable("Without --dev: this share of the rows is held out.")),
]
Mix = Annotated[
    str | None,
    option(
        "--mix FILE:SHARE",
        Translatable(
            "General data against forgetting: this share of each step (0.2 if left out; 0: only "
            "measured)."
        ),
    ),
]
Budget = Annotated[
    float,
    option(
        "--forgetting-budget SHARE",
        Translatable(
            "Stop when the loss on the --mix data has risen by this share of it; 0: never."
        ),
    ),
]
Strength = Annotated[
    str,
    option(
        "--strength auto|0..1",
        Translatable("How much of what was learnt is kept; auto: what serves the dev set best."),
    ),
]
PromptLength = Annotated[
    int | None,
    option(
        "--max-length --max-seq-length N",
        Translatable(
            "Tokens of a row, at most (default: the model's window); a longer one is told."
        ),
        least=1,
    ),
]
PromptColumn = Annotated[
    str,
    option(
        "--prompt-column NAME",
        Translatable("The field that holds the question; found by the data's form if left out."),
    ),
]
ResponseColumn = Annotated[
    str, option("--response-column NAME", Translatable("The field of the answer."))
]
HistoryColumn = Annotated[
    str, option("--history-column NAME", Translatable("The field of earlier turns."))
]
SkipBad = Annotated[
    bool,
    option(
        "--skip-bad/--no-skip-bad",
        Translatable("Leave out rows that can't be learnt (see rag finetune check)."),
    ),
]
MaxTrain = Annotated[
    int, option("--max-train-samples N", Translatable("Learn the first N rows only."), least=0)
]
MaxEval = Annotated[
    int, option("--max-eval-samples N", Translatable("Measure the first N rows of --dev."), least=0)
]
Rank = Annotated[int, option("--lora-rank --lora-r N", Translatable("LoRA's rank."))]
Alpha = Annotated[
    float, option("--lora-alpha X", Translatable("LoRA's alpha: the adapter counts alpha / rank."))
]
Dropout = Annotated[float, option("--lora-dropout P", Translatable("Dropout before LoRA."))]
Targets = Annotated[
    str,
    option(
        "--lora-targets --target-modules NAMES",
        Translatable("Linear modules, separated by commas: upstream's names, or transformers'."),
    ),
]
RsLora = Annotated[
    bool,
    option(
        "--rslora/--no-rslora --use-rslora/--no-use-rslora",
        Translatable("Scale by alpha / sqrt(rank)."),
    ),
]
Dora = Annotated[
    bool,
    option(
        "--dora/--no-dora --use-dora/--no-use-dora",
        Translatable("DoRA: learn the size of rows apart."),
    ),
]
PreSeqLen = Annotated[
    int | None,
    option(
        "--pre-seq-len N",
        Translatable("P-Tuning v2 instead of LoRA, with a prefix of so many tokens."),
    ),
]
Projection = Annotated[
    bool,
    option(
        "--prefix-projection/--no-prefix-projection",
        Translatable("Compute the prefix by a small network."),
    ),
]
Fp16 = Annotated[
    bool, option("--fp16/--no-fp16", Translatable("The base in float16, with a scaled loss."))
]
Bf16 = Annotated[
    bool,
    option(
        "--bf16/--no-bf16", Translatable("The base in bfloat16 (default on GPUs that have it).")
    ),
]
Fp32 = Annotated[
    bool, option("--fp32/--no-fp32", Translatable("The base in float32 (default on the CPU)."))
]
BaseQuant = Annotated[
    str | None,
    option("--quant none|int8|int4|nf4", Translatable("How the base's weights are held.")),
]
QuantBit = Annotated[
    int | None, option("--quantization-bit 4|8", Translatable("THUDM's name: int4 or int8."))
]
In8 = Annotated[
    bool,
    option(
        "--load-in-8bit/--no-load-in-8bit",
        Translatable(
            "The same as --quant int8: bitsandbytes on a GPU, codes of our own on the CPU."
        ),
    ),
]
In4 = Annotated[
    bool, option("--load-in-4bit/--no-load-in-4bit", Translatable("The same as --quant nf4."))
]
DeviceName = Annotated[
    str | None, option("--device cpu|cuda", Translatable("Where to train; a GPU if there is one."))
]
Resume = Annotated[
    bool,
    option(
        "--resume/--no-resume --resume-from-checkpoint/--no-resume-from-checkpoint",
        Translatable("Go on from the newest checkpoint in --out."),
    ),
]
Overwrite = Annotated[
    bool,
    option(
        "--overwrite-output-dir/--no-overwrite-output-dir",
        Translatable("Lose an earlier training in --out."),
    ),
]
DryRun = Annotated[
    bool,
    option(
        "--dry-run",
        Translatable(
            "Only tell what it would need: memory by part, the largest batch, time from measured "
            "steps."
        ),
    ),
]


def device(name: str | None) -> str:
    """`cpu` or `cuda`; `UserError` for another, or a GPU that is not there."""
    import torch

    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if chosen not in ("cpu", "cuda") or (chosen == "cuda" and not torch.cuda.is_available()):
        raise UserError(
            "--device is {chosen}; need cpu, or cuda where torch finds a GPU", chosen=chosen
        )
    return chosen


def dtype(device: str, *, fp16: bool, bf16: bool, fp32: bool) -> Any:
    """The base's numbers as TrainOptions name them; by the device where none is asked for."""
    import torch

    asked = [n for n, on in (("float16", fp16), ("bfloat16", bf16), ("float32", fp32)) if on]
    if len(asked) > 1:
        raise UserError(
            "{asked:and} are both asked for; name one of --fp16, --bf16, --fp32", asked=asked
        )
    if asked:
        return asked[0]
    if device == "cpu":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"


def quant(device: str, name: str | None, bit: int | None, *, in_8: bool, in_4: bool) -> Any:
    """How the base is held, from whichever option says it; `UserError` where two disagree."""
    by_bit = {4: "int4", 8: "int8"}
    if bit is not None and bit not in by_bit:
        raise UserError("--quantization-bit is {bit}; need 4 or 8", bit=bit)
    said = [name, by_bit.get(bit or 0), "int8" if in_8 else None, "nf4" if in_4 else None]
    asked = sorted({each for each in said if each})
    if len(asked) > 1:
        raise UserError("the base is to be held as {names:and}; give one of them", names=asked)
    return asked[0] if asked else "none"


def method(
    lora: LoraOptions, pre_seq_len: int | None, *, projection: bool
) -> LoraOptions | PrefixOptions:
    """P-Tuning where a prefix has a length, else LoRA; `UserError` where options of both are given."""
    said = [name for name, on in (("--rslora", lora.rslora), ("--dora", lora.dora)) if on]
    if pre_seq_len is None and projection:
        raise UserError("--prefix-projection is P-Tuning's; add --pre-seq-len 128, or leave it out")
    if pre_seq_len is not None and said:
        raise UserError(
            "{said} is LoRA's and --pre-seq-len is P-Tuning's; choose one", said=said[0]
        )
    return lora if pre_seq_len is None else PrefixOptions(pre_seq_len, projection)


def rate(given: float | None, method: LoraOptions | PrefixOptions) -> float:
    """The learning rate; upstream's own where none is given."""
    return given if given is not None else 2e-2 if isinstance(method, PrefixOptions) else 1e-4


BatchSize = Annotated[
    int,
    option(
        "--per-device-train-batch-size --batch-size N",
        Translatable(
            "Rows of an update on a device; what goes through the model at once is --pack-length."
        ),
    ),
]
Accumulation = Annotated[
    int, option("--gradient-accumulation-steps N", Translatable("So many batches make an update."))
]
Epochs = Annotated[
    float, option("--num-train-epochs --epochs X", Translatable("How often each row is learnt."))
]
MaxSteps = Annotated[
    int, option("--max-steps N", Translatable("So many updates; 0: by the epochs."))
]
LearningRate = Annotated[
    float | None,
    option(
        "--learning-rate --lr X",
        Translatable("The highest learning rate; 1e-4 for LoRA, 2e-2 for P-Tuning if left out."),
    ),
]
Scheduler = Annotated[
    str,
    option(
        "--lr-scheduler-type linear|cosine|constant", Translatable("How the learning rate falls.")
    ),
]
Warmup = Annotated[
    int, option("--warmup-steps N", Translatable("Steps in which the learning rate rises first."))
]
WarmupRatio = Annotated[
    float, option("--warmup-ratio SHARE", Translatable("Instead: this share of all steps."))
]
WeightDecay = Annotated[float, option("--weight-decay X", Translatable("AdamW's weight decay."))]
GradNorm = Annotated[
    float, option("--max-grad-norm X", Translatable("Cut gradients to this norm; 0: not."))
]
TrainSeed = Annotated[
    int, option("--seed N", Translatable("The same seed gives the same adapter."))
]
Packing = Annotated[
    bool,
    option(
        "--packing/--no-packing",
        Translatable(
            "Rows one behind the other, exact; else padded, rows of like length together."
        ),
    ),
]
PackLength = Annotated[
    int,
    option("--pack-length N", Translatable("Tokens that go through the model at once, at most.")),
]
Checkpointing = Annotated[
    bool,
    option(
        "--gradient-checkpointing/--no-gradient-checkpointing",
        Translatable("Compute layers twice, to hold less."),
    ),
]
LoggingSteps = Annotated[
    int, option("--logging-steps N", Translatable("Steps between lines of the log."))
]
EvalSteps = Annotated[
    int, option("--eval-steps N", Translatable("Steps between measurements of the held-out rows."))
]
SaveSteps = Annotated[int, option("--save-steps N", Translatable("Steps between checkpoints."))]
SaveLimit = Annotated[
    int, option("--save-total-limit N", Translatable("So many checkpoints are kept."))
]
