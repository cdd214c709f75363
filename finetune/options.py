"""Everything that determines a training, under the names that trainers use for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ingest.errors import UserError
from ingest.i18n import Translatable

Template = Literal["chat", "tutorial"]
Dtype = Literal["float32", "bfloat16", "float16"]
Base = Literal["none", "int8", "int4", "nf4"]
Schedule = Literal["linear", "cosine", "constant"]
MAX_LENGTH = 4096
"""The default for the most tokens of a row; the model's window, if that is smaller. (The prompts of
`rag ask` have 2,200 tokens with 5 passages.)"""


@dataclass(frozen=True, slots=True)
class LoraOptions:
    """`targets` may have upstream's module names on every generation."""

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
    """A step is one update from `per_device_train_batch_size` x `gradient_accumulation_steps` x
    devices rows, whatever their layout in memory. The loss of a step is the mean over all its learnt
    tokens."""

    method: LoraOptions | PrefixOptions = LoraOptions()
    per_device_train_batch_size: int = 4
    gradient_accumulation_steps: int = 1
    num_train_epochs: float = 3.0
    max_steps: int = 0
    """If more than 0: the number of steps, whatever the epochs."""
    learning_rate: float = 1e-4
    lr_scheduler_type: Schedule = "linear"
    warmup_steps: int = 0
    warmup_ratio: float = 0.0
    """The share of all steps, if `warmup_steps` is 0."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 42
    packing: bool = True
    """Rows of a step are concatenated, without padding; otherwise rows of similar length are padded
    to the longest of them."""
    pack_length: int = 1024
    """The most tokens of a packed row (a longer row stays alone). The cost of attention grows with
    it, and products with weights gain nothing from longer rows."""
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
    """If more than 0: training stops when the general set's loss has risen by this share of it."""
    strength: float | None = 1.0
    """The factor of the trained change; None: the best for the dev set, within the budget."""

    def __post_init__(self) -> None:
        """Raises `UserError`, which names the option, if a value is out of range."""
        values = {
            name: getattr(self, name) for names in RANGES for name in names if hasattr(self, name)
        }
        strength = self.strength
        if isinstance(method := self.method, LoraOptions):
            rank, alpha, dropout = method.rank, method.alpha, method.dropout
            values |= {"lora_rank": rank, "lora_alpha": alpha, "lora_dropout": dropout}
        else:
            values["pre_seq_len"] = method.pre_seq_len
            _need("strength", strength, strength == 1, Translatable("1: a prefix has none"))
        for names, (is_valid, wanted) in RANGES.items():
            for name in names:
                if name in values:
                    _need(name, values[name], is_valid(values[name]), wanted)
        for name, kind in CHOICES.items():
            known, value = ", ".join(get_args(kind)), getattr(self, name)
            _need(name, value, value in get_args(kind), Translatable("one of {known}", known=known))
        in_range = strength is None or 0 < strength <= 1
        _need("strength", strength, in_range, Translatable("auto, or above 0 to 1"))


RANGES: dict[tuple[str, ...], tuple[Callable[[Any], bool], Translatable]] = {
    (
        "per_device_train_batch_size", "gradient_accumulation_steps", "pack_length", "max_length",
        "logging_steps", "eval_steps", "save_steps", "save_total_limit", "lora_rank", "pre_seq_len",
    ): (lambda value: value >= 1, Translatable("1 or more")),
    (
        "max_steps", "warmup_steps", "weight_decay", "max_grad_norm", "seed", "forgetting_budget",
    ): (lambda value: 0 <= value < float("inf"), Translatable("0 or more")),
    ("num_train_epochs", "lora_alpha"): (lambda value: 0 < value < 1e6, Translatable("above 0")),
    ("learning_rate",): (lambda value: 0 < value < 1e3, Translatable("above 0")),
    ("mix", "warmup_ratio", "lora_dropout"): (
        lambda value: 0 <= value < 1, Translatable("0 to below 1"),
    ),
}  # fmt: skip
CHOICES: dict[str, Any] = {
    "lr_scheduler_type": Schedule, "dtype": Dtype, "quant": Base, "template": Template,
}  # fmt: skip


def _need(name: str, value: object, is_valid: bool, wanted: Translatable) -> None:
    if not is_valid:
        option = name.replace("_", "-")
        raise UserError(
            "--{option} is {value}; need {wanted}", option=option, value=value, wanted=wanted
        )
