"""The options of a training, under the names of trainers, of the tutorial and of THUDM's scripts."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rag.cli.screen import say


def option(names: str, en: str, zh: str) -> Any:
    """`names` are all spellings and, last, what stands for the value in the help."""
    words = names.split()
    flags = [word for word in words if word.startswith("--")]
    return typer.Option(*flags, metavar=" ".join(words[len(flags) :]) or None, help=say(en, zh))


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
    list[Path] | None,
    option("--data --train-file --dataset-path DATA", "The same as DATA.", "同 DATA。"),
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
        "General data against forgetting: this share of each step, e.g. general.jsonl:0.2.",
        "防遗忘的通用数据及其在每步中的比例，如 general.jsonl:0.2。",
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
Template = Annotated[
    str,
    option(
        "--template chat|tutorial",
        "How a question is put; kept with the adapter.",
        "提问的格式；随适配器保存。",
    ),
]
CompatRows = Annotated[
    str | None,
    option(
        "--compat tutorial|thudm",
        "The rows of the tutorial's or THUDM's script, their defects included.",
        "按教程或 THUDM 脚本生成数据行，连同其缺陷。",
    ),
]
MaxLength = Annotated[
    int,
    option(
        "--max-length --max-seq-length N",
        "Tokens of a row, at most; longer ones are shortened and told.",
        "每行最多的词元数；更长的会被截短并说明。",
    ),
]
MaxSource = Annotated[
    int | None,
    option(
        "--max-source-length N",
        "With --max-target-length: their sum is --max-length.",
        "与 --max-target-length 之和作为 --max-length。",
    ),
]
MaxTarget = Annotated[
    int | None,
    option("--max-target-length N", "See --max-source-length.", "见 --max-source-length。"),
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
BatchSize = Annotated[
    int,
    option(
        "--per-device-train-batch-size --batch-size N",
        "Rows at a time on a device.",
        "每个设备每次的数据行数。",
    ),
]
Accumulation = Annotated[
    int,
    option(
        "--gradient-accumulation-steps N", "So often before each update.", "每次更新前累积的次数。"
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
    str, option("--lr-scheduler-type linear|cosine|constant", "How it falls.", "学习率的下降方式。")
]
Warmup = Annotated[
    int, option("--warmup-steps N", "Steps in which it rises.", "学习率上升的步数。")
]
WeightDecay = Annotated[float, option("--weight-decay X", "AdamW's.", "AdamW 的权重衰减。")]
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
    option("--load-in-8bit/--no-load-in-8bit", "The same as --quant int8.", "同 --quant int8。"),
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
LoggingSteps = Annotated[
    int, option("--logging-steps N", "Steps between lines of the log.", "记录的间隔步数。")
]
EvalSteps = Annotated[
    int | None,
    option(
        "--eval-steps N",
        "Measure the dev set each so many steps; as --save-steps if left out.",
        "每隔多少步评估；默认同 --save-steps。",
    ),
]
SaveSteps = Annotated[
    int, option("--save-steps N", "Steps between checkpoints.", "检查点的间隔步数。")
]
SaveLimit = Annotated[
    int, option("--save-total-limit N", "So many checkpoints are kept.", "保留的检查点数。")
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
