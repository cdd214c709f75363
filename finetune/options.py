"""All that decides what a training makes of its rows, under the names that trainers use for it."""

from dataclasses import dataclass
from typing import Literal

Method = Literal["lora", "ptuning"]
Template = Literal["chat", "tutorial"]
Dtype = Literal["float32", "bfloat16", "float16"]
Base = Literal["none", "int8", "int4", "nf4"]
Schedule = Literal["linear", "cosine", "constant"]


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
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 42
    packing: bool = True
    """Rows of a step are laid one behind the other, without padding; else padded to the longest of
    rows of like length."""
    pack_length: int = 2048
    """Tokens of a packed row, at most (a longer row stands alone)."""
    gradient_checkpointing: bool = False
    dtype: Dtype = "float32"
    quant: Base = "none"
    template: Template = "chat"
    max_length: int = 1024
    logging_steps: int = 10
    eval_steps: int = 100
    save_steps: int = 100
    save_total_limit: int = 2
    mix: float = 0.0
    """The share of each step's rows that are drawn from the general set."""
    forgetting_budget: float = 0.0
    """More than 0: training stops when the general set's loss has risen by this share of it."""
