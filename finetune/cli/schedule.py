"""The options of how a training goes: its steps, their rows and rate, what is told and kept."""

from typing import Annotated

from finetune.cli.options import option

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
    float,
    option("--warmup-ratio SHARE", "Instead: this share of all steps.", "或按总步数的比例。"),
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
        "--eval-steps N",
        "Steps between measurements of the held-out rows.",
        "评估的间隔步数。",
    ),
]
SaveSteps = Annotated[
    int, option("--save-steps N", "Steps between checkpoints.", "检查点的间隔步数。")
]
SaveLimit = Annotated[
    int, option("--save-total-limit N", "So many checkpoints are kept.", "保留的检查点数。")
]
