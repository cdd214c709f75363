"""Command lines as people have them from the tutorial and from THUDM's scripts, understood as meant.

`--fp16`, `--fp16 true` and `--fp16 False` all say what a person means by them; arguments that have
nothing to decide here are taken and told, not refused.
"""

from collections.abc import Mapping
from typing import Any

from typer.core import TyperCommand

from ingest.errors import UserError
from rag.cli.console import note, say

YES = ("true", "yes", "1", "on", "t", "y")
NO = ("false", "no", "0", "off", "f", "n")

# What has no effect here, and why.
RETIRED: dict[str, tuple[str, str]] = {
    "remove-unused-columns": ("rows hold what is learnt, and nothing else", "数据行只含需要的列"),
    "do-train": ("this command trains", "此命令即训练"),
    "do-eval": ("see --dev and --dev-share", "见 --dev 与 --dev-share"),
    "overwrite-cache": ("tokens are kept by content", "缓存按内容区分"),
    "predict-with-generate": ("see rag finetune eval", "见 rag finetune eval"),
    "per-device-eval-batch-size": ("evaluation packs rows", "评估时自动打包"),
    "dataloader-num-workers": ("rows are read as needed", "按需读取"),
    "dataloader-pin-memory": ("rows are read as needed", "按需读取"),
    "ddp-find-unused-parameters": ("an adapter's are all used", "适配器参数全部被使用"),
    "use-fast-tokenizer": ("the tokenizer is fast", "分词器已足够快"),
    "use-auth-token": ("no remote code or gated file is fetched", "不下载受限文件"),
    "ignore-pad-token-for-loss": ("padding is never learnt", "填充从不参与训练"),
    "pad-to-max-length": ("padding changes nothing that is learnt", "填充不影响训练"),
    "num-beams": ("see rag finetune eval", "见 rag finetune eval"),
    "report-to": ("nothing is sent anywhere", "不向外发送任何内容"),
    "logging-dir": ("it is OUT/tensorboard", "位于 OUT/tensorboard"),
    "evaluation-strategy": ("see --eval-steps", "见 --eval-steps"),
    "eval-strategy": ("see --eval-steps", "见 --eval-steps"),
    "save-strategy": ("see --save-steps", "见 --save-steps"),
    "logging-strategy": ("see --logging-steps", "见 --logging-steps"),
    "local-rank": ("accelerate tells it", "由 accelerate 提供"),
    "optim": ("it is AdamW", "固定为 AdamW"),
    "trust-remote-code": ("no code of a model is run", "从不运行模型自带代码"),
    "do-predict": ("see rag finetune eval", "见 rag finetune eval"),
    "test-file": ("see rag finetune eval", "见 rag finetune eval"),
    "max-predict-samples": ("see rag finetune eval", "见 rag finetune eval"),
    "val-max-target-length": ("see rag finetune eval", "见 rag finetune eval"),
    "cache-dir": ("see XDG_CACHE_HOME", "见 XDG_CACHE_HOME"),
    "config-name": ("it is the model's own", "使用模型自带的配置"),
    "tokenizer-name": ("it is the model's own", "使用模型自带的分词器"),
    "model-revision": ("write NAME@REVISION as --model", "请用 --model 名称@版本"),
    "resize-position-embeddings": ("positions are rotary", "位置编码为旋转式"),
    "forced-bos-token": ("it has no effect on these models", "对此类模型无影响"),
    "lang": ("it has no effect on these models", "对此类模型无影响"),
    "version": ("the model's config tells it", "由模型配置得知"),
    "group-by-length": (
        "rows are packed, or with --no-packing grouped",
        "数据已打包，或用 --no-packing 按长度分组",
    ),
    "logging-first-step": ("what is measured is logged before it", "首步之前的评估已记录"),
    "disable-tqdm": ("the bar is for terminals alone", "仅在终端显示进度条"),
    "run-name": ("nothing is sent anywhere", "不向外发送任何内容"),
    "ddp-timeout": ("accelerate tells it", "由 accelerate 提供"),
    "save-safetensors": ("adapters are safetensors", "适配器均为 safetensors"),
}
# What would change the result, and can't be had.
REFUSED = {
    "ptuning-checkpoint": (
        "a training begins with a new prefix; an earlier one goes on with --resume in its own --out, "
        "and answers with rag ask --adapter",
        "训练总是从新的前缀开始；要继续此前的训练，请在原 --out 上用 --resume；用它回答请用 rag ask --adapter",
    )
}
VALUED = {
    "per-device-eval-batch-size", "dataloader-num-workers",
    "num-beams", "report-to", "run-name", "ddp-timeout", "version", "logging-dir", "evaluation-strategy", "eval-strategy",
    "save-strategy", "logging-strategy", "local-rank", "optim", "lang", "test-file",
    "max-predict-samples", "val-max-target-length", "cache-dir",
    "config-name", "tokenizer-name", "model-revision", "forced-bos-token",
}  # fmt: skip
"""Those that always have a value; the others are flags, with or without one."""


class Spelled(TyperCommand):
    """A command that understands these."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {
            name.removeprefix("--"): option
            for option in self.params
            for name in getattr(option, "opts", ())
        }
        return super().parse_args(ctx, spelled(args, own))


def spelled(args: list[str], own: Mapping[str, Any]) -> list[str]:
    """The arguments with one spelling each. `own` are the command's options, by name; what it has
    of its own is never taken for retired.

    `UserError` where a flag is given a word that is neither yes nor no, and for what is refused.
    """
    flags = {name: option for name, option in own.items() if getattr(option, "is_flag", False)}
    retired = RETIRED.keys() - own.keys()
    words = list(args)
    given: list[str] = []
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            given.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("_", "-")
        following = words[0] if words else ""
        if name in REFUSED and name not in own:
            why, why_zh = REFUSED[name]
            raise UserError(f"--{name} can't be used: {why}", zh=f"不支持 --{name}：{why_zh}")
        yes_or_no = following.lower() in YES + NO
        # transformers' own may name a folder.
        yes_or_no |= name == "resume-from-checkpoint" and "checkpoint-" in following
        valued = name in retired and name in VALUED
        takes = valued or (yes_or_no and (name in retired or name in flags))
        if takes and words and not equals:
            value = words.pop(0)
        if name in retired:
            why, why_zh = RETIRED[name]
            note(say(f"--{name} has no effect: {why}", f"--{name} 不起作用：{why_zh}"))
        elif name in flags:
            given += _flag(name, value, said=bool(value or equals), option=flags[name])
        else:
            given.append(f"--{name}{equals}{value}")
    return given


def _flag(name: str, value: str, *, said: bool, option: Any) -> list[str]:
    if not said or value.lower() in YES:
        return [f"--{name}"]
    if value.lower() in NO:
        return [other for other in option.secondary_opts if other.startswith("--")][:1]
    raise UserError(
        f"--{name} is {value!r}; need true or false"
        + (
            ", and goes on from the newest checkpoint in --out"
            if name == "resume-from-checkpoint"
            else ""
        ),
        zh=f"--{name} 为 {value!r}；须为 true 或 false"
        + ("，从 --out 中最新的检查点继续" if name == "resume-from-checkpoint" else ""),
    )
