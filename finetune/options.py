"""Everything that determines a training, under the names that trainers use for it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, LiteralString, get_args, get_origin

from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.cli.options import option

Template = Literal["chat", "tutorial"]
Dtype = Literal["float32", "bfloat16", "float16"]
Base = Literal["none", "int8", "int4", "nf4"]
Schedule = Literal["linear", "cosine", "constant"]
Objective = Literal["sft", "orpo"]
MAX_LENGTH = 4096
"""The default for the most tokens of a row; the model's window, if that is smaller. (The prompts of
`rag ask` have 2,200 with 5 passages.)"""


def number(name: str, text: str) -> float:
    """Raises `UserError` if the value of the option `name` is not a number."""
    try:
        return float(text)
    except ValueError:
        raise UserError("{name} is {text!r}; need a number", name=name, text=text) from None


def flag(names: str, text: LiteralString, *, default: bool = False) -> Any:
    """An option that is on or off: each of its names also has the form `--no-NAME`."""
    return option(" ".join(f"{name}/--no-{name[2:]}" for name in names.split()), text, default=default)


@dataclass(frozen=True, slots=True)
class LoraOptions:
    """`targets` may have upstream's module names on every generation."""

    rank: int = option("--lora-rank --lora-r N", "LoRA rank.", default=8)
    alpha: float = option("--lora-alpha X", "LoRA alpha: the update is scaled by alpha / rank.", default=32.0)
    dropout: float = option("--lora-dropout P", "Dropout on LoRA's input.", default=0.1)
    targets: tuple[str, ...] = option(
        "--lora-targets --target-modules NAMES",
        "Linear modules, separated by commas: upstream's names, or transformers'.",
        default=("query_key_value",),
        typed="query_key_value",
        read=lambda text: tuple(text.replace(",", " ").split()),
    )
    rslora: bool = flag("--rslora --use-rslora", "Scale by alpha / sqrt(rank) (rsLoRA).")
    dora: bool = flag("--dora --use-dora", "DoRA: train magnitude and direction separately.")


KINDS = {
    "definition": Translatable("definitions"),
    "article": Translatable("articles"),
    "list": Translatable("lists"),
    "table": Translatable("tables"),
    "cloze": Translatable("figures, authorities"),
    "model": Translatable("by the model"),
}
"""Kinds of synthetic questions; all but the last are made by rules."""
RULED = [kind for kind in KINDS if kind != "model"]


@dataclass(frozen=True, kw_only=True)
class SyntheticOptions:
    """How many rows are made from a knowledge base, of which kinds."""

    limit: int | None = option("--limit N", "Maximum number of rows.", least=1)
    kinds: str | None = option(
        "--kinds KIND,...", Translatable("Kinds of questions: {kinds}; default: all but model.", kinds=KINDS)
    )
    passages: int | None = option(
        "--passages", "Passages per prompt; default: the knowledge base's setting.", least=1
    )
    without_gold: float = option(
        "--without-gold",
        "Share of rows whose passages do not contain the answer, to train refusals.",
        default=0.2,
        least=0,
        most=1,
    )
    heldout: float = option(
        "--heldout",
        "Share of documents kept out of training, for evaluation.",
        default=0.1,
        least=0,
        most=0.9,
    )
    preferences: Path | None = option(
        "--preferences FILE",
        "Also write pairs of a better and a worse answer here, for rag finetune train --objective orpo.",
    )
    write_questions: bool = option("--write-questions", "Also let --model write questions.", default=False)
    seed: int = option("--seed", "The same seed gives the same files.", default=0)

    @property
    def chosen(self) -> tuple[Any, ...]:
        """The kinds of questions; raises `UserError` for an unknown one."""
        names = [kind.strip() for kind in (self.kinds or ",".join(RULED)).split(",")]
        if wrong := [kind for kind in names if kind not in KINDS]:
            raise UserError("--kinds names {wrong!r}; known are {kinds}", wrong=wrong[0], kinds=KINDS)
        return tuple(k for k in KINDS if k in names or (k == "model" and self.write_questions))


@dataclass(frozen=True, slots=True)
class PrefixOptions:
    """P-Tuning v2, with THUDM's names."""

    pre_seq_len: int = 128
    prefix_projection: bool = False


@dataclass(frozen=True, slots=True)
class Columns:
    """The fields that hold question, answer and earlier turns; "": found by the data's form.

    With `prompt` named, that field alone is the question (as THUDM's --prompt_column).
    """

    prompt: str = option(
        "--prompt-column NAME", "Field with the question; default: found by the data's format.", default=""
    )
    response: str = option("--response-column NAME", "Field with the answer.", default="")
    history: str = option("--history-column NAME", "Field with the earlier turns.", default="")


@dataclass(frozen=True, slots=True)
class Data:
    """Files to learn from, and to measure on."""

    train: tuple[Path, ...] = ()
    dev: tuple[Path, ...] = option(
        "--dev --validation-file FILE",
        "Validation data, for the loss only; it is never trained on.",
        default=(),
    )
    general: tuple[Path, ...] = ()
    dev_share: float = option(
        "--dev-share SHARE", "Without --dev: hold out this share of the rows.", default=0.05
    )
    columns: Columns = Columns()
    skip_bad: bool = flag("--skip-bad", "Skip rows that can't be trained on (see rag finetune check).")
    most: int = option("--max-train-samples N", "Train on the first N rows only.", default=0, least=0)
    most_dev: int = option(
        "--max-eval-samples N", "Measure only the first N rows of --dev.", default=0, least=0
    )

    def __post_init__(self) -> None:
        if not 0 <= self.dev_share < 1:
            raise UserError("--dev-share is {share}; need 0 to below 1", share=self.dev_share)


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """A step is one update: of `per_device_train_batch_size` x `gradient_accumulation_steps` x
    devices rows, however they are laid out in memory. The loss of a step is the mean over all its
    learnt tokens."""

    method: LoraOptions | PrefixOptions = LoraOptions()
    objective: Objective = option(
        "--objective sft|orpo",
        "sft: learn answers; orpo: learn from pairs of a chosen and a rejected answer (ORPO).",
        default="sft",
    )
    orpo_beta: float = option(
        "--orpo-beta X", "Weight of ORPO's odds ratio beside the loss of the chosen answers.", default=0.1
    )
    per_device_train_batch_size: int = option(
        "--per-device-train-batch-size --batch-size N",
        "Rows per batch on each device; --pack-length limits the tokens of one forward pass.",
        default=4,
    )
    gradient_accumulation_steps: int = option(
        "--gradient-accumulation-steps N", "Gradient accumulation: batches per optimizer step.", default=1
    )
    num_train_epochs: float = option(
        "--num-train-epochs --epochs X", "Number of training epochs.", default=3.0
    )
    max_steps: int = option(
        "--max-steps N",
        "Number of optimizer steps, overriding the epochs; 0: as many as the epochs give.",
        default=0,
        read=lambda steps: 0 if steps == -1 else steps,  # transformers' own default
    )
    learning_rate: float = 1e-4
    lr_scheduler_type: Schedule = option(
        "--lr-scheduler-type linear|cosine|constant", "Learning-rate schedule.", default="linear"
    )
    warmup_steps: int = option("--warmup-steps N", "Linear warm-up steps.", default=0)
    warmup_ratio: float = option(
        "--warmup-ratio SHARE", "Without --warmup-steps: warm-up steps as a share of all steps.", default=0.0
    )
    weight_decay: float = option("--weight-decay X", "AdamW weight decay.", default=0.0)
    max_grad_norm: float = option(
        "--max-grad-norm X", "Clip gradients to this norm; 0 turns clipping off.", default=1.0
    )
    seed: int = option("--seed N", "The same seed gives the same adapter.", default=42)
    pack_length: int = option(
        "--pack-length N",
        "Maximum tokens of one forward pass, in which rows lie without padding.",
        default=1024,
    )
    """A longer row stands alone. Attention looks at all pairs of these tokens, whose share grows with
    their number; products with weights gain nothing from longer ones."""
    gradient_checkpointing: bool = flag(
        "--gradient-checkpointing", "Recompute activations in the backward pass to save memory."
    )
    dtype: Dtype = "float32"
    quant: Base = "none"
    template: Template = "chat"
    max_length: int = MAX_LENGTH
    logging_steps: int = option("--logging-steps N", "Steps between log lines.", default=10)
    eval_steps: int = option("--eval-steps N", "Steps between evaluations on the held-out rows.", default=100)
    save_steps: int = option("--save-steps N", "Steps between checkpoints.", default=100)
    save_total_limit: int = option("--save-total-limit N", "Number of checkpoints to keep.", default=2)
    mix: float = 0.0
    """The share of each step's rows that are drawn from the general set."""
    forgetting_budget: float = option(
        "--forgetting-budget SHARE",
        "Stop when the loss on the --mix data has risen by this fraction; 0: never.",
        default=0.0,
    )
    strength: float | None = option(
        "--strength auto|0..1",
        "Scale of the trained update; auto: the best on the dev set.",
        default=1.0,
        typed="1",
        read=lambda text: None if text == "auto" else number("--strength", text),
    )
    """None: what serves the dev set best, within the budget."""

    def __post_init__(self) -> None:
        """Raises `UserError`, which names the option, if a value is out of range."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        strength = self.strength
        if isinstance(self.method, LoraOptions):
            values |= {f"lora_{name}": value for name, value in asdict(self.method).items()}
        else:
            values |= asdict(self.method)
            _need("strength", strength, strength == 1, Translatable("1: a prefix has none"))
        for names, (is_valid, wanted) in RANGES.items():
            for name in names:
                if name in values:
                    _need(name, values[name], is_valid(values[name]), wanted)
        for each in fields(self):
            if get_origin(each.type) is Literal:
                known, value = get_args(each.type), values[each.name]
                _need(
                    each.name, value, value in known, Translatable("one of {known}", known=", ".join(known))
                )
        in_range = strength is None or 0 < strength <= 1
        _need("strength", strength, in_range, Translatable("auto, or above 0 to 1"))


RANGES: dict[tuple[str, ...], tuple[Callable[[Any], bool], Translatable]] = {
    (
        "per_device_train_batch_size", "gradient_accumulation_steps", "pack_length", "max_length",
        "logging_steps", "eval_steps", "save_steps", "save_total_limit", "lora_rank", "pre_seq_len",
    ): (lambda value: value >= 1, Translatable("1 or more")),
    (
        "max_steps", "warmup_steps", "weight_decay", "max_grad_norm", "seed", "forgetting_budget", "orpo_beta",
    ): (lambda value: 0 <= value < float("inf"), Translatable("0 or more")),
    ("num_train_epochs", "lora_alpha"): (lambda value: 0 < value < 1e6, Translatable("above 0")),
    ("learning_rate",): (lambda value: 0 < value < 1e3, Translatable("above 0")),
    ("mix", "warmup_ratio", "lora_dropout"): (
        lambda value: 0 <= value < 1, Translatable("0 to below 1"),
    ),
}  # fmt: skip


def _need(name: str, value: object, is_valid: bool, wanted: Translatable) -> None:
    if not is_valid:
        option = name.replace("_", "-")
        raise UserError("--{option} is {value}; need {wanted}", option=option, value=value, wanted=wanted)
