"""Options that several commands of `rag finetune` take, under the names of trainers, of the tutorial
and of THUDM's scripts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from finetune.options import MAX_LENGTH, LoraOptions, PrefixOptions, flag, number
from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.cli.console import note_message, say
from rag.cli.options import option

DATA_NAMES = "--data --data-path --jsonl-path --train-file --dataset-path DATA"
"""What the tutorial and THUDM's scripts call the data."""
MODEL_NAMES = "--model --model-name-or-path --model-path --chatglm-path MODEL"
MAX_SOURCE, MAX_TARGET = 1024, 128
"""Tokens of a question and of an answer in THUDM's scripts."""
LENGTH = Translatable(
    "Maximum tokens per row (default {max_length}); longer rows are truncated, and reported.",
    max_length=MAX_LENGTH,
)
TRAINED = option(MODEL_NAMES, "The ChatGLM to train: folder, or name on a hub.", default=...)


@dataclass(frozen=True)
class RowOptions:
    """The options of a command line that decide about rows; None if left out."""

    template: str | None = option(
        "--template chat|tutorial", "Prompt template (default: chat); stored with the adapter."
    )
    max_length: int | None = option("--max-length --max-seq-length N", LENGTH, least=1)
    max_source_length: int | None = option(
        "--max-source-length --max-input-length N",
        Translatable(
            "THUDM's name: maximum tokens of a question (default {max_source}); --max-length is the "
            "sum of both lengths.",
            max_source=MAX_SOURCE,
        ),
        least=1,
    )
    max_target_length: int | None = option(
        "--max-target-length --max-output-length N",
        Translatable(
            "THUDM's name: maximum tokens of an answer (default {max_target}); see --max-source-length.",
            max_target=MAX_TARGET,
        ),
        least=1,
    )

    def form(self) -> tuple[Any, int]:
        """The template and the length; raises `UserError` if two options contradict each other."""
        given = self._given()
        if self.max_length is not None and len(given) > 1:
            raise UserError(
                "--max-length and {given} are both given; --max-length is both lengths together, so give one",
                given=given[1],
            )
        most = MAX_LENGTH if self.max_length is None else self.max_length
        if self.max_source_length is not None or self.max_target_length is not None:
            # As upstream, whose rows have both.
            most = (self.max_source_length or MAX_SOURCE) + (self.max_target_length or MAX_TARGET)
        return self.template or "chat", most

    def form_of_prepared(self, folder: Path) -> tuple[Any, int]:
        """Those of a folder that `prepare` wrote; `UserError` if an option would change them."""
        from finetune.data.dataset import TokenSet

        if given := self._given():
            raise UserError(
                "{folder} holds rows that are prepared already, but {given} is given; leave it out, "
                "or name the data itself",
                folder=folder,
                given=given[0],
            )
        return self.template or TokenSet(folder).target["template"], MAX_LENGTH

    def _given(self) -> list[str]:
        lengths = ("max_length", "max_source_length", "max_target_length")
        return [f"--{n.replace('_', '-')}" for n in lengths if getattr(self, n) is not None]


@dataclass(frozen=True)
class BaseOptions:
    """How the base's weights are held, and where; each option of the scripts has its own name."""

    quant: str | None = option("--quant none|int8|int4|nf4", "Precision of the base's weights in memory.")
    device: str | None = option("--device cpu|cuda", "Device to train on; default: a GPU if there is one.")
    fp16: bool = flag("--fp16", "Load the base in float16, with loss scaling.")
    bf16: bool = flag("--bf16", "Load the base in bfloat16 (default on GPUs that support it).")
    fp32: bool = flag("--fp32", "Load the base in float32 (default on the CPU).")
    quantization_bit: int | None = option("--quantization-bit 4|8", "THUDM's name: 4 for int4, 8 for int8.")
    load_in_8bit: bool = flag(
        "--load-in-8bit", "The same as --quant int8: bitsandbytes on a GPU, our own format on the CPU."
    )
    load_in_4bit: bool = flag("--load-in-4bit", "The same as --quant nf4.")

    def find_device(self) -> str:
        """`cpu` or `cuda`; `UserError` for another, or for a GPU that torch does not find."""
        import torch

        chosen = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if chosen not in ("cpu", "cuda") or (chosen == "cuda" and not torch.cuda.is_available()):
            raise UserError("--device is {chosen}; need cpu, or cuda if torch finds a GPU", chosen=chosen)
        return chosen

    def dtype(self, device: str) -> Any:
        """The base's dtype as TrainOptions names it; by the device if none is named."""
        import torch

        flags = (("float16", self.fp16), ("bfloat16", self.bf16), ("float32", self.fp32))
        chosen = [name for name, on in flags if on]
        if len(chosen) > 1:
            raise UserError(
                "{dtypes:and} contradict each other; give one of --fp16, --bf16, --fp32", dtypes=chosen
            )
        if chosen:
            return chosen[0]
        if device == "cpu":
            return "float32"
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"

    def quantization(self) -> Any:
        """The form of the base's weights, whichever option names it; `UserError` if two disagree."""
        by_bit, bit = {4: "int4", 8: "int8"}, self.quantization_bit
        if bit is not None and bit not in by_bit:
            raise UserError("--quantization-bit is {bit}; need 4 or 8", bit=bit)
        flags = ("int8" if self.load_in_8bit else None, "nf4" if self.load_in_4bit else None)
        chosen = sorted({*filter(None, (self.quant, by_bit.get(bit or 0), *flags))})
        if len(chosen) > 1:
            raise UserError("the options ask for the base as {names:and}; give one of them", names=chosen)
        return chosen[0] if chosen else "none"


@dataclass(frozen=True)
class MethodOptions:
    pre_seq_len: int | None = option(
        "--pre-seq-len N", "Train a P-Tuning v2 prefix of this many tokens instead of LoRA."
    )
    prefix_projection: bool = flag("--prefix-projection", "Compute the prefix with a small MLP.")
    learning_rate: float | None = option(
        "--learning-rate --lr X", "Peak learning rate; default: 1e-4 for LoRA, 2e-2 for P-Tuning."
    )

    def method(self, lora: LoraOptions) -> LoraOptions | PrefixOptions:
        """P-Tuning if a prefix has a length, else LoRA; `UserError` if options of both are given."""
        if self.pre_seq_len is None:
            if self.prefix_projection:
                raise UserError("--prefix-projection is P-Tuning's; add --pre-seq-len 128, or leave it out")
            return lora
        for name, on in (("--rslora", lora.rslora), ("--dora", lora.dora)):
            if on:
                raise UserError("{name} is LoRA's and --pre-seq-len is P-Tuning's; choose one", name=name)
        return PrefixOptions(self.pre_seq_len, self.prefix_projection)

    @property
    def rate(self) -> float:
        """The learning rate; upstream's own if none is given."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1e-4 if self.pre_seq_len is None else 2e-2


def mixed(mix: str | None, name: str = "--mix") -> tuple[tuple[Path, ...], float]:
    """The value of the option `name`, such as `general.jsonl:0.2` -> the file and the share.

    With a share of 0 the file is only measured.
    """
    if not mix:
        return (), 0.0
    file, colon, text = mix.rpartition(":")
    if not colon:
        return (Path(mix),), 0.2
    share = number(name, text)
    if not 0 <= share < 1:
        raise UserError("{name} has the share {text}; need 0 to below 1", name=name, text=text)
    return (Path(file),), share


def within(max_length: int, config: Any) -> int:
    """The length of a row, at most the model's window: nothing beyond it is of use."""
    from rag.chatglm.chat import context_of

    return min(max_length, context_of(config))


# Command lines of the tutorial (mymusise/ChatGLM-Tuning) and of THUDM's P-Tuning scripts: most of
# their arguments are spellings of our options. Here flags take a word (`--fp16 true`,
# `--skip_overlength False`), and arguments that decide nothing are ignored with a note.

YES = ("true", "yes", "1", "on", "t", "y")
NO = ("false", "no", "0", "off", "f", "n")
EVAL = Translatable("see rag finetune eval")
IGNORED = {
    "remove-unused-columns": Translatable("rows have the columns that are needed"),
    "do-train": Translatable("this command trains"),
    "do-predict": EVAL,
    "test-file": EVAL,
    "predict-with-generate": EVAL,
    "overwrite-cache": Translatable("tokens are cached by content"),
    "per-device-eval-batch-size": Translatable("evaluation packs rows"),
    "preprocessing-num-workers": Translatable("one process is fast enough"),
}
VALUED = {"test-file", "per-device-eval-batch-size", "preprocessing-num-workers"}
"""Those of IGNORED that always have a value; the others are flags, with or without a word."""


class ScriptCommand(TyperCommand):
    """A command that also understands these scripts' arguments."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {name[2:]: option for option in self.params for name in getattr(option, "opts", ())}
        return super().parse_args(ctx, normalized(args, own))


def normalized(args: Sequence[str], own: Mapping[str, Any]) -> list[str]:
    """The arguments in one spelling each. `own` are the command's options, by name.

    Raises `UserError` if a flag has a word that is neither yes nor no, and for `ptuning_checkpoint`.
    """
    words, found = list(args), list[str]()
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            found.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("_", "-")
        if name == "ptuning-checkpoint":
            raise UserError(
                "--ptuning-checkpoint can't be used: a training begins with a new prefix; continue "
                "an earlier one with --resume in its own --out, ask it with rag ask --adapter"
            )
        ignored, flag = name in IGNORED, getattr(own.get(name), "is_flag", False)
        yes_or_no = (ignored or flag) and bool(words) and words[0].lower() in YES + NO
        if words and not equals and (name in VALUED or yes_or_no):
            value = words.pop(0)
        if ignored:
            note_message("--{name} has no effect: {why}", name=name, why=IGNORED[name])
        elif flag and (value or equals):
            found += _flag(name, value, own[name])
        else:
            found.append(f"--{name}{equals}{value}")
    return found


def _flag(name: str, value: str, option: Any) -> list[str]:
    if value.lower() in YES:
        return [f"--{name}"]
    if value.lower() in NO:
        return [other for other in option.secondary_opts if other.startswith("--")][:1]
    raise UserError("--{name} is {value!r}; need true or false", name=name, value=value)


USUAL = {
    "model", "out_dir", "dev", "mix", "max_length", "rank", "alpha", "targets", "pre_seq_len",
    "per_device_train_batch_size", "num_train_epochs", "max_steps", "learning_rate",
    "gradient_checkpointing", "quant", "device", "save_steps", "seed", "resume", "dry_run",
}  # fmt: skip
"""The twenty options of a training that people use; its help lists the others after them."""


class TrainCommand(ScriptCommand):
    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": [], "More": []}
        for parameter in self.get_params(ctx):
            usual = "Options" if parameter.name in {*USUAL, "help"} else "More"
            title = "Arguments" if parameter.param_type_name == "argument" else usual
            if record := parameter.get_help_record(ctx):
                panels[title].append(record)
        panels[say("More options")] = panels.pop("More")
        for title, records in panels.items():
            with formatter.section(title):
                formatter.write_dl(records)
