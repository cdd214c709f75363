"""All that decides what a training makes of its rows, under the names that trainers use for it."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from ingest.errors import UserError
from ingest.i18n import Translatable

Template = Literal["chat", "tutorial"]
Dtype = Literal["float32", "bfloat16", "float16"]
Base = Literal["none", "int8", "int4", "nf4"]
Schedule = Literal["linear", "cosine", "constant"]
MAX_LENGTH = 4096
"""Tokens of a row, at most, unless said otherwise; the model's window, where that is smaller. (The
prompts of `rag ask` have 2,200 with 5 passages.)"""


@dataclass(frozen=True, slots=True)
class LoraOptions:
    """Upstream's module names are meant on every generation."""

    rank: int = 8
    alpha: float = 32
    dropout: float = 0.1
    targets: tuple[str, ...] = ("query_key_value",)
    rslora: bool = False
    dora: bool = False


@dataclass(frozen=True, slots=True)
class PrefixOptions:
    """P-Tuning v2, with THUDM's names."""

    pre_seq_len: int = 128
    prefix_projection: bool = False


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """A step is one update: of `per_device_train_batch_size` x `gradient_accumulation_steps` x
    devices rows, however they are laid out in memory. The loss of a step is the mean over all its
    learnt tokens."""

    method: LoraOptions | PrefixOptions = LoraOptions()
    per_device_train_batch_size: int = 4
    gradient_accumulation_steps: int = 1
    num_train_epochs: float = 3.0
    max_steps: int = 0
    """More than 0: so many steps, whatever the epochs."""
    learning_rate: float = 1e-4
    lr_scheduler_type: Schedule = "linear"
    warmup_steps: int = 0
    warmup_ratio: float = 0.0
    """Without `warmup_steps`: this share of all steps."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 42
    packing: bool = True
    """Rows of a step are laid one behind the other, without padding; else padded to the longest of
    rows of like length."""
    pack_length: int = 1024
    """Tokens of a packed row, at most (a longer row stands alone). Attention looks at all pairs of
    them, whose share grows with this; products with weights gain nothing from longer ones."""
    gradient_checkpointing: bool = False
    dtype: Dtype = "float32"
    quant: Base = "none"
    template: Template = "chat"
    max_length: int = MAX_LENGTH
    logging_steps: int = 10
    eval_steps: int = 100
    save_steps: int = 100
    save_total_limit: int = 2
    mix: float = 0.0
    """The share of each step's rows that are drawn from the general set."""
    forgetting_budget: float = 0.0
    """More than 0: training stops when the general set's loss has risen by this share of it."""
    strength: float | None = 1.0
    """How much of what was trained is kept; None: what serves the dev set best, within the budget."""

    def __post_init__(self) -> None:
        """`UserError` names an option whose value is out of range."""
        for name in COUNTS:
            _need(name, getattr(self, name), getattr(self, name) >= 1, Translatable("1 or more"))
        for name in NOT_NEGATIVE:
            value = getattr(self, name)
            _need(name, value, 0 <= value < float("inf"), Translatable("0 or more"))
        for name, kind in CHOICES.items():
            known = ", ".join(get_args(kind))
            value = getattr(self, name)
            _need(name, value, value in get_args(kind), Translatable("one of {known}", known=known))
        epochs, rate = self.num_train_epochs, self.learning_rate
        _need("num_train_epochs", epochs, 0 < epochs < 1e6, Translatable("above 0"))
        _need("learning_rate", rate, 0 < rate < 1e3, Translatable("above 0"))
        _need("mix", self.mix, 0 <= self.mix < 1, Translatable("0 to below 1"))
        ratio, strength = self.warmup_ratio, self.strength
        _need("warmup_ratio", ratio, 0 <= ratio < 1, Translatable("0 to below 1"))
        kept = strength is None or 0 < strength <= 1
        _need("strength", strength, kept, Translatable("auto, or above 0 to 1"))
        method = self.method
        if isinstance(method, LoraOptions):
            _need("lora_rank", method.rank, method.rank >= 1, Translatable("1 or more"))
            _need("lora_alpha", method.alpha, 0 < method.alpha < 1e6, Translatable("above 0"))
            _need(
                "lora_dropout",
                method.dropout,
                0 <= method.dropout < 1,
                Translatable("0 to below 1"),
            )
        else:
            _need(
                "pre_seq_len",
                method.pre_seq_len,
                method.pre_seq_len >= 1,
                Translatable("1 or more"),
            )
            _need("strength", strength, strength == 1, Translatable("1: a prefix has none"))


COUNTS = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "pack_length", "max_length",
    "logging_steps", "eval_steps", "save_steps", "save_total_limit",
)  # fmt: skip
NOT_NEGATIVE = (
    "max_steps", "warmup_steps", "weight_decay", "max_grad_norm", "seed", "forgetting_budget",
)  # fmt: skip
CHOICES: dict[str, Any] = {
    "lr_scheduler_type": Schedule,
    "dtype": Dtype,
    "quant": Base,
    "template": Template,
}


def _need(name: str, value: object, right: bool, wanted: Translatable) -> None:
    if not right:
        raise UserError(
            "--{option} is {value}; need {wanted}",
            option=name.replace("_", "-"),
            value=value,
            wanted=wanted,
        )
