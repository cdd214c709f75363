"""The options of a training, under the names of trainers, of the tutorial and of THUDM's scripts."""

from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.options import LoraOptions, PrefixOptions
from ingest.errors import UserError
from rag.cli.console import say


def option(names: str, en: str, zh: str, *, least: int | None = None) -> Any:
    """`names` are all spellings and, last, what stands for the value in the help."""
    words = names.split()
    flags = [word for word in words if word.startswith("--")]
    metavar = " ".join(words[len(flags) :]) or None
    return typer.Option(*flags, metavar=metavar, min=least, help=say(en, zh))


DATA_NAMES = "--data-path --jsonl-path --train-file --dataset-path"
"""What the tutorial and THUDM's scripts call the data."""
ModelDir = Annotated[
    str,
    option(
        "--model --model-name-or-path --model-path --chatglm-path MODEL",
        "The ChatGLM to train: folder, or name on a hub.",
        "要训练的 ChatGLM：文件夹或模型库中的名称。",
    ),
]
Out = Annotated[
    Path, option("--out --output-dir DIR", "The adapter's new folder.", "适配器的新文件夹。")
]
MoreData = Annotated[
    list[Path] | None, option(f"--data {DATA_NAMES} DATA", "The same as DATA.", "同 DATA。")
]
Dev = Annotated[
    list[Path] | None,
    option(
        "--dev --validation-file FILE",
        "Data to measure the loss on, never learnt.",
        "只用于评估损失、不参与训练的数据。",
    ),
]
DevShare = Annotated[
    float,
    option(
        "--dev-share SHARE",
        "Without --dev: this share of the rows is held out.",
        "没有 --dev 时，按此比例留出数据行。",
    ),
]
Mix = Annotated[
    str | None,
    option(
        "--mix FILE:SHARE",
        "General data against forgetting: this share of each step (0.2 if left out; 0: only measured).",
        "防遗忘的通用数据及其在每步中的比例（默认 0.2；0 表示只评估）。",
    ),
]
Budget = Annotated[
    float,
    option(
        "--forgetting-budget SHARE",
        "Stop when the loss on the --mix data has risen by this share of it; 0: never.",
        "--mix 数据上的损失上升超过此比例时停止；0 表示不限。",
    ),
]
Strength = Annotated[
    str,
    option(
        "--strength auto|0..1",
        "How much of what was learnt is kept; auto: what serves the dev set best.",
        "保留所学的多少；auto 由验证集决定。",
    ),
]
PromptLength = Annotated[
    int | None,
    option(
        "--max-length --max-seq-length N",
        "Tokens of a row, at most (default: the model's window); a longer one is told.",
        "每行最多的词元数（默认为模型窗口）；遇到更长的行会停止并说明。",
        least=1,
    ),
]
PromptColumn = Annotated[
    str,
    option(
        "--prompt-column NAME",
        "The field that holds the question; found by the data's form if left out.",
        "问题所在的字段；省略时按数据格式判断。",
    ),
]
ResponseColumn = Annotated[
    str, option("--response-column NAME", "The field of the answer.", "回答所在的字段。")
]
HistoryColumn = Annotated[
    str, option("--history-column NAME", "The field of earlier turns.", "历史对话所在的字段。")
]
SkipBad = Annotated[
    bool,
    option(
        "--skip-bad/--no-skip-bad",
        "Leave out rows that can't be learnt (see rag finetune check).",
        "略去无法学习的数据行（见 rag finetune check）。",
    ),
]
MaxTrain = Annotated[
    int, option("--max-train-samples N", "Learn the first N rows only.", "只学习前 N 行。", least=0)
]
MaxEval = Annotated[
    int,
    option(
        "--max-eval-samples N",
        "Measure the first N rows of --dev.",
        "只评估 --dev 的前 N 行。",
        least=0,
    ),
]
Rank = Annotated[int, option("--lora-rank --lora-r N", "LoRA's rank.", "LoRA 的秩。")]
Alpha = Annotated[
    float,
    option(
        "--lora-alpha X",
        "LoRA's alpha: the adapter counts alpha / rank.",
        "LoRA 的 alpha；缩放为 alpha / rank。",
    ),
]
Dropout = Annotated[
    float, option("--lora-dropout P", "Dropout before LoRA.", "LoRA 之前的 dropout。")
]
Targets = Annotated[
    str,
    option(
        "--lora-targets --target-modules NAMES",
        "Linear modules, separated by commas: upstream's names, or transformers'.",
        "线性模块名，逗号分隔；可用官方或 transformers 的名称。",
    ),
]
RsLora = Annotated[
    bool,
    option(
        "--rslora/--no-rslora --use-rslora/--no-use-rslora",
        "Scale by alpha / sqrt(rank).",
        "缩放为 alpha / sqrt(rank)。",
    ),
]
Dora = Annotated[
    bool,
    option(
        "--dora/--no-dora --use-dora/--no-use-dora",
        "DoRA: learn the size of rows apart.",
        "DoRA：单独学习各行的幅度。",
    ),
]
PreSeqLen = Annotated[
    int | None,
    option(
        "--pre-seq-len N",
        "P-Tuning v2 instead of LoRA, with a prefix of so many tokens.",
        "改用 P-Tuning v2，前缀长度为 N。",
    ),
]
Projection = Annotated[
    bool,
    option(
        "--prefix-projection/--no-prefix-projection",
        "Compute the prefix by a small network.",
        "用小网络计算前缀。",
    ),
]
Fp16 = Annotated[
    bool,
    option(
        "--fp16/--no-fp16",
        "The base in float16, with a scaled loss.",
        "基座用 float16，损失自动缩放。",
    ),
]
Bf16 = Annotated[
    bool,
    option(
        "--bf16/--no-bf16",
        "The base in bfloat16 (default on GPUs that have it).",
        "基座用 bfloat16（支持的 GPU 上为默认）。",
    ),
]
Fp32 = Annotated[
    bool,
    option(
        "--fp32/--no-fp32",
        "The base in float32 (default on the CPU).",
        "基座用 float32（CPU 上为默认）。",
    ),
]
BaseQuant = Annotated[
    str | None,
    option(
        "--quant none|int8|int4|nf4", "How the base's weights are held.", "基座权重的存放方式。"
    ),
]
QuantBit = Annotated[
    int | None,
    option("--quantization-bit 4|8", "THUDM's name: int4 or int8.", "THUDM 的名称：int4 或 int8。"),
]
In8 = Annotated[
    bool,
    option(
        "--load-in-8bit/--no-load-in-8bit",
        "The same as --quant int8: bitsandbytes on a GPU, codes of our own on the CPU.",
        "同 --quant int8：GPU 上为 bitsandbytes，CPU 上为自有编码。",
    ),
]
In4 = Annotated[
    bool, option("--load-in-4bit/--no-load-in-4bit", "The same as --quant nf4.", "同 --quant nf4。")
]
DeviceName = Annotated[
    str | None,
    option(
        "--device cpu|cuda",
        "Where to train; a GPU if there is one.",
        "训练设备；有 GPU 时默认使用。",
    ),
]
Resume = Annotated[
    bool,
    option(
        "--resume/--no-resume --resume-from-checkpoint/--no-resume-from-checkpoint",
        "Go on from the newest checkpoint in --out.",
        "从 --out 中最新的检查点继续。",
    ),
]
Overwrite = Annotated[
    bool,
    option(
        "--overwrite-output-dir/--no-overwrite-output-dir",
        "Lose an earlier training in --out.",
        "放弃 --out 中先前的训练。",
    ),
]
DryRun = Annotated[
    bool,
    option(
        "--dry-run",
        "Only tell what it would need: memory by part, the largest batch, time from measured steps.",
        "只预估：各部分内存、最大批量、由实测步数推算的时间。",
    ),
]


def device(name: str | None) -> str:
    """`cpu` or `cuda`; `UserError` for another, or a GPU that is not there."""
    import torch

    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if chosen not in ("cpu", "cuda") or (chosen == "cuda" and not torch.cuda.is_available()):
        raise UserError(
            f"--device is {chosen}; need cpu, or cuda where torch finds a GPU",
            zh=f"--device 为 {chosen}；须为 cpu，或在有 GPU 时为 cuda",
        )
    return chosen


def dtype(device: str, *, fp16: bool, bf16: bool, fp32: bool) -> Any:
    """The base's numbers as TrainOptions name them; by the device where none is asked for."""
    import torch

    asked = [n for n, on in (("float16", fp16), ("bfloat16", bf16), ("float32", fp32)) if on]
    if len(asked) > 1:
        raise UserError(
            f"{' and '.join(asked)} are both asked for; name one of --fp16, --bf16, --fp32",
            zh=f"同时指定了 {'、'.join(asked)}；--fp16、--bf16、--fp32 只能选一个",
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
        raise UserError(
            f"--quantization-bit is {bit}; need 4 or 8",
            zh=f"--quantization-bit 为 {bit}；须为 4 或 8",
        )
    said = [name, by_bit.get(bit or 0), "int8" if in_8 else None, "nf4" if in_4 else None]
    asked = sorted({each for each in said if each})
    if len(asked) > 1:
        raise UserError(
            f"the base is asked for as {' and as '.join(asked)}; say one",
            zh=f"基座同时被要求为 {'、'.join(asked)}；请只指定一个",
        )
    return asked[0] if asked else "none"


def method(
    lora: LoraOptions, pre_seq_len: int | None, *, projection: bool
) -> LoraOptions | PrefixOptions:
    """P-Tuning where a prefix has a length, else LoRA; `UserError` where options of both are given."""
    said = [name for name, on in (("--rslora", lora.rslora), ("--dora", lora.dora)) if on]
    if pre_seq_len is None and projection:
        raise UserError(
            "--prefix-projection is P-Tuning's; add --pre-seq-len 128, or leave it out",
            zh="--prefix-projection 属于 P-Tuning；请加上 --pre-seq-len 128，或去掉它",
        )
    if pre_seq_len is not None and said:
        raise UserError(
            f"{said[0]} is LoRA's and --pre-seq-len is P-Tuning's; choose one",
            zh=f"{said[0]} 属于 LoRA，--pre-seq-len 属于 P-Tuning；只能选一个",
        )
    return lora if pre_seq_len is None else PrefixOptions(pre_seq_len, projection)


def rate(given: float | None, method: LoraOptions | PrefixOptions) -> float:
    """The learning rate; upstream's own where none is given."""
    return given if given is not None else 2e-2 if isinstance(method, PrefixOptions) else 1e-4


BatchSize = Annotated[
    int,
    option(
        "--per-device-train-batch-size --batch-size N",
        "Rows of an update on a device; what goes through the model at once is --pack-length.",
        "每次更新中每个设备的数据行数；一次通过模型的量见 --pack-length。",
    ),
]
Accumulation = Annotated[
    int,
    option(
        "--gradient-accumulation-steps N",
        "So many batches make an update.",
        "累积多少批后更新一次。",
    ),
]
Epochs = Annotated[
    float,
    option("--num-train-epochs --epochs X", "How often each row is learnt.", "数据学习的遍数。"),
]
MaxSteps = Annotated[
    int, option("--max-steps N", "So many updates; 0: by the epochs.", "更新次数；0 表示按遍数。")
]
LearningRate = Annotated[
    float | None,
    option(
        "--learning-rate --lr X",
        "The highest learning rate; 1e-4 for LoRA, 2e-2 for P-Tuning if left out.",
        "最大学习率；默认 LoRA 为 1e-4，P-Tuning 为 2e-2。",
    ),
]
Scheduler = Annotated[
    str,
    option(
        "--lr-scheduler-type linear|cosine|constant",
        "How the learning rate falls.",
        "学习率的下降方式。",
    ),
]
Warmup = Annotated[
    int,
    option(
        "--warmup-steps N", "Steps in which the learning rate rises first.", "学习率上升的步数。"
    ),
]
WarmupRatio = Annotated[
    float, option("--warmup-ratio SHARE", "Instead: this share of all steps.", "或按总步数的比例。")
]
WeightDecay = Annotated[
    float, option("--weight-decay X", "AdamW's weight decay.", "AdamW 的权重衰减。")
]
GradNorm = Annotated[
    float,
    option(
        "--max-grad-norm X", "Cut gradients to this norm; 0: not.", "梯度裁剪的范数；0 表示不裁剪。"
    ),
]
TrainSeed = Annotated[
    int, option("--seed N", "The same seed gives the same adapter.", "种子相同则适配器相同。")
]
Packing = Annotated[
    bool,
    option(
        "--packing/--no-packing",
        "Rows one behind the other, exact; else padded, rows of like length together.",
        "数据行首尾相接（结果不变）；否则按长度分组填充。",
    ),
]
PackLength = Annotated[
    int,
    option(
        "--pack-length N",
        "Tokens that go through the model at once, at most.",
        "一次通过模型的词元数上限。",
    ),
]
Checkpointing = Annotated[
    bool,
    option(
        "--gradient-checkpointing/--no-gradient-checkpointing",
        "Compute layers twice, to hold less.",
        "重算各层以节省内存。",
    ),
]
LoggingSteps = Annotated[
    int, option("--logging-steps N", "Steps between lines of the log.", "记录的间隔步数。")
]
EvalSteps = Annotated[
    int,
    option(
        "--eval-steps N", "Steps between measurements of the held-out rows.", "评估的间隔步数。"
    ),
]
SaveSteps = Annotated[
    int, option("--save-steps N", "Steps between checkpoints.", "检查点的间隔步数。")
]
SaveLimit = Annotated[
    int, option("--save-total-limit N", "So many checkpoints are kept.", "保留的检查点数。")
]
