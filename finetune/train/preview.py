"""The memory and the time of a training, estimated before it starts: one closed formula per part.

What a layer saves for backward was determined with `torch.autograd.graph.saved_tensors_hooks`, module by
module (as Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models",
section 4, count a plain transformer); the tests compare the sums with measured peaks.
"""

from copy import deepcopy
from dataclasses import dataclass, fields
from time import monotonic
from typing import Any

import numpy as np
import torch
from transformers import Glm4Config

from finetune.options import LoraOptions, TrainOptions
from finetune.train.batches import Batch, pack
from finetune.train.loop import Sets, Training
from finetune.train.lora import FUSED, native_targets
from finetune.train.loss import EVALUATION_ROWS, evaluate, summed_loss
from finetune.types import IGNORED, TokenRows
from rag.chatglm import memory
from rag.chatglm.adapter import PrefixEncoder
from rag.chatglm.configuration import generation_of, stored_dtype
from rag.chatglm.loading import empty
from rag.chatglm.quantize import BLOCK, HEAD_BLOCK

FLOAT = 4  # bytes of a float32: adapters, RMSNorm and the loss are computed in it
CODES_WORK = 8  # bytes of a weight while its codes are converted: both, in float32
MOST_TOKENS = 1 << 16  # no larger batch is tried
SAMPLED, TIMED_STEPS, TIMED_ROWS = 2000, 3, 16  # rows to count learnt tokens of; steps, dev rows


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a batch: `length` tokens; at `places` of them one is predicted."""

    length: int
    places: int

    @classmethod
    def of(cls, batch: Batch) -> "Size":
        return cls(batch.ids.numel(), int((batch.labels != IGNORED).sum()))


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes on one device at the peak."""

    weights: int
    """The base model as it is held."""
    adapter: int
    """Float32: the trained parameters, their gradients, and AdamW's two moments."""
    activations: int
    """Saved for backward."""
    logits: int
    """Logits, and what the loss computes from them."""
    work: int
    """Temporary memory of backward or loading, beyond the logits, which are freed by then."""
    runtime: int
    """Python and its libraries; on CUDA the context and its kernels."""

    @property
    def total(self) -> int:
        return sum(getattr(self, part.name) for part in fields(self))


class Estimator:
    """The formulas of one model, trained with `options` on one device.

    Raises `UserError` if a target of LoRA is not a linear module of the model.
    """

    def __init__(self, config: Any, options: TrainOptions, device: memory.Device) -> None:
        self.config, self.options, self.first = config, options, generation_of(config) == 1
        self.device: memory.Device = device
        self.dtype: torch.dtype = getattr(torch, options.dtype)
        self.item, self.counts = self.dtype.itemsize, memory.parameters(config)
        self.layers, width = config.num_hidden_layers, config.hidden_size
        self.queries = width if self.first else config.num_attention_heads * config.head_dim
        self.keys = self.queries if self.first else config.num_key_value_heads * config.head_dim
        self.prefix: int = getattr(options.method, "pre_seq_len", 0)
        stored, quant = memory.stored_bits(config), options.quant
        self.bitsandbytes = not stored and (quant == "nf4" or (quant, device) == ("int8", "cuda"))
        self.bits = stored or (0 if self.bitsandbytes else {"int8": 8, "int4": 4}.get(quant, 0))
        upstream = stored and not getattr(config, "packed", None)
        coded = config.quantization_embeddings if upstream else self.bits
        self.coded_head = self.counts.embedding if coded else 0
        each = CODES_WORK if self.bits else self.item * bool(self.bitsandbytes)
        self.floats = each * self.counts.largest  # bytes of one matrix as floats
        self.adapted = self._adapted()
        self.trainable, self.weights = self._trainable(), self._weights()

    def peak(self, sets: Sets) -> MemoryEstimate:
        """The memory at the peak of a whole training."""
        options, estimates = self.options, [self._idle()]
        count = options.per_device_train_batch_size * options.gradient_accumulation_steps
        for rows in filter(None, (sets.train, sets.general)):
            estimates += map(self.train, _largest(rows, count, options.pack_length))
        for rows in sets.measured.values():
            estimates += map(self.evaluate, _largest(rows, EVALUATION_ROWS, options.pack_length))
        return max(estimates, key=lambda estimate: estimate.total)

    def largest(self, sets: Sets, room: int) -> int:
        """The number of the longest rows that fit into `room` bytes at once, up to MOST_TOKENS."""
        one = longest(sets.train)
        low, high = 0, max(1, MOST_TOKENS // one.length) + 1
        while high - low > 1:
            count = (low + high) // 2
            size = Size(count * one.length, count * one.places)
            low, high = (count, high) if self.train(size).total <= room else (low, count)
        return low

    def train(self, size: Size) -> MemoryEstimate:
        """The memory of forward and backward of one batch, with AdamW's moments."""
        layer, work, tokens = self._saved(size), self._backward(size), size.length
        if self.options.gradient_checkpointing:  # inputs of layers and of the last norm
            saved = (self.layers + 1) * tokens * self.config.hidden_size * self.item
            work += layer
        else:
            saved = self.layers * layer
        if self.first or self.prefix:
            saved += tokens * (size.length + self.prefix)  # a mask of bools
        # A prefix: the mask of its dropout and the result, float32 before rows repeat it.
        prefix = self.prefix * 2 * self.keys * self.layers * 2
        saved += prefix * (self.item if self.first else FLOAT)
        # Log-probabilities, their gradient, and that of the logits.
        words = size.places * self.config.vocab_size
        head = CODES_WORK * self.coded_head + words * self.item if self.coded_head else 0
        return self._sum(saved, 3 * FLOAT * words, max(work, head))

    def evaluate(self, size: Size) -> MemoryEstimate:
        """The memory of the forward pass of one batch, which saves nothing."""
        each = 2 * FLOAT + (self.item if self.item < FLOAT else 0)
        logits = size.places * self.config.vocab_size * each
        work = max(self._saved(size) + self.floats, CODES_WORK * self.coded_head)
        return self._sum(0, logits, work)

    def _idle(self) -> MemoryEstimate:
        """The memory outside of steps: the largest matrix is quantized, or a checkpoint is written."""
        each = stored_dtype(self.config).itemsize + (2 if self.bits else 0)
        loading = max(self.counts.embedding, self.counts.largest) * each
        return self._sum(0, 0, max(loading, 6 * FLOAT * self.trainable))

    def _sum(self, saved: int, logits: int, work: int) -> MemoryEstimate:
        adapter, runtime = 4 * FLOAT * self.trainable, memory.RUNTIME[self.device]
        return MemoryEstimate(self.weights, adapter, saved, logits, max(0, work - logits), runtime)

    def _weights(self) -> int:
        """Bytes of the base's weights."""
        config, counts, item, bits = self.config, self.counts, self.item, self.bits
        if bits and not memory.stored_bits(config):  # blocks have a float16 scale
            linears = counts.linears * (bits / 8 + 2 / BLOCK) + counts.rest * item
            return round(linears + counts.embedding * (item + bits / 8 + 2 / HEAD_BLOCK))
        # On the CPU as on a GPU: the CPU's kernels for answering are not used in training.
        quant: Any = f"int{bits}" if bits else self.options.quant
        weights = memory.weights(config, memory.Mode(quant, "cuda", self.dtype))
        if self.device == "cpu" and counts.head and not bits and stored_dtype(config) == self.dtype:
            weights -= counts.embedding * item  # a mapped file, of which rows are read when needed
        return weights

    def _trainable(self) -> int:
        """The number of the adapter's parameters."""
        config, method = self.config, self.options.method
        if not isinstance(method, LoraOptions):
            projection = method.prefix_projection
            with torch.device("meta"):
                encoder = PrefixEncoder(config, self.prefix, projection=projection)
            return sum(value.numel() for value in encoder.parameters())
        count = 0
        for name, (width, out) in self.adapted.items():
            # Queries, keys and values share their A if upstream has one matrix of them.
            own = FUSED not in method.targets or name not in ("k_proj", "v_proj")
            count += method.rank * (out + own * width) + method.dora * out
        return self.layers * count

    def _saved(self, size: Size) -> int:
        """Bytes that one layer saves for backward."""
        config, item, method = self.config, self.item, self.options.method
        width, inner = config.hidden_size, config.intermediate_size
        seen, keys = size.length + self.prefix, self.keys
        masked = self.first or self.prefix
        if self.first:
            # Two norms: input, mean and deviation. Gelu: input.
            each = 2 * (width + 2) * item + inner * item
            # Values share a tensor with queries and keys, unless a prefix is put before them.
            each += 0 if self.prefix else 2 * width * item
        else:
            # Norms, in float32: input and deviation. SwiGLU: gate and up, silu(gate).
            norms = 4 if isinstance(config, Glm4Config) else 2
            each = norms * (width + 1) * FLOAT + 3 * inner * item
            keys = self.queries if masked else keys  # with a mask they are repeated for all queries
        # Attention: queries, output, keys, values, the logarithm of each softmax's sum, the mask.
        each += 2 * self.queries * item + config.num_attention_heads * FLOAT
        each += 2 * keys * item * seen / size.length
        each += seen * item if masked else 0
        fixed = 0
        if isinstance(method, LoraOptions):
            # Dropout: mask and output. The input of B. DoRA: two products; a unit matrix through A.
            mask = (1 if self.device == "cuda" else FLOAT) if method.dropout else 0
            for name, (into, out) in self.adapted.items():
                shared = not mask and item == FLOAT and name in ("k_proj", "v_proj")
                each += (0 if shared else (FLOAT + mask) * into) + FLOAT * method.rank
                each += method.dora * 2 * FLOAT * out
                fixed += method.dora * FLOAT * into * (into + method.rank)
        return round(each * size.length) + fixed

    def _backward(self, size: Size) -> int:
        """Temporary bytes of the backward pass of a layer, beside those that it saved."""
        item, method, fixed = self.item, self.options.method, self.floats
        # Gradients at gelu's output and input; or of the product, of gate and of up.
        each = (2 if self.first else 3) * self.config.intermediate_size * item
        for into, out in self.adapted.values() if item < FLOAT else ():
            each = max(each, FLOAT * (into + out) + item * into)  # LoRA's input and output are cast
            if getattr(method, "dora", False):  # W, BA, W + BA
                fixed = max(fixed, 3 * FLOAT * into * out)
        return each * size.length + fixed

    def _adapted(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the linear modules of one layer that LoRA is put on."""
        if not isinstance(self.options.method, LoraOptions):
            return {}
        config = deepcopy(self.config)
        config.num_hidden_layers = 1
        with torch.device("meta"):
            model: Any = empty(config)
        modules = {name.rpartition(".")[2]: module for name, module in model.named_modules()}
        ends = native_targets(model, self.options.method.targets)
        return {end: (modules[end].in_features, modules[end].out_features) for end in ends}


def _largest(rows: TokenRows, count: int, pack_length: int) -> list[Size]:
    """The batches of the `count` longest rows, and of those with the most learnt tokens."""
    sample = np.unique(np.linspace(0, len(rows) - 1, min(SAMPLED, len(rows))).astype(np.int64))
    learnt = np.array([int((rows[int(i)].labels >= 0).sum()) for i in sample])
    longest, most = np.argsort(-rows.lengths, kind="stable"), sample[np.argsort(-learnt)]
    steps = ([rows[int(i)] for i in order[:count]] for order in (longest, most))
    return [Size.of(batch) for step in steps for batch in pack(step, pack_length)]


def longest(rows: TokenRows) -> Size:
    """A batch of only the longest row."""
    row = rows[int(np.argmax(rows.lengths))]
    return Size(len(row), int((row.labels >= 0).sum()))


@dataclass(frozen=True, slots=True)
class TimeEstimate:
    """The time of a whole training, estimated from a few steps of it."""

    speed: float
    """Tokens a second on all devices, without padding."""
    step: float
    """Mean seconds of a step."""
    total: float
    """Seconds of all steps and evaluations."""


def measure_time(training: Training) -> TimeEstimate:
    """Train three steps and evaluate some rows, after one batch of the longest rows, not measured.

    Nothing is written, but the adapter is changed: `training` must not be run after this.
    """
    sets, options, plan, tuned = training.sets, training.options, training.plan, training.tuned
    order = np.argsort(-sets.train.lengths, kind="stable")[: options.per_device_train_batch_size]
    batch = pack([sets.train[int(i)] for i in order], options.pack_length)[0]
    if batch.learnt:  # shows that it fits, and warms up
        training.optimizer.backward(summed_loss(tuned.model, batch.to(tuned.base.device)))
        training.optimizer.adamw.zero_grad(set_to_none=True)
    tokens, start = 0, monotonic()
    for number in (plan.steps * i // TIMED_STEPS for i in range(TIMED_STEPS)):
        training.step(number)  # reads the gradients' norm, after which a GPU is done
        tokens += sum(map(len, sets.of(plan, number)))
    speed = tokens / (monotonic() - start)
    general = sets.general.lengths.mean() if sets.general is not None else 0
    step = plan.size / speed * (sets.train.lengths.mean() * (1 - plan.mix) + general * plan.mix)
    total = step * plan.steps
    if measured := [rows for rows in sets.measured.values() if len(rows)]:
        part, start = slice(0, TIMED_ROWS), monotonic()
        evaluate(tuned.model, measured[0], length=options.pack_length, step=0, part=part)
        each = (monotonic() - start) / int(measured[0].lengths[part].sum())
        times = 1 + -(-plan.steps // options.eval_steps)  # before the first step, too
        each *= sum(int(rows.lengths.sum()) for rows in measured)
        total += times * each / training.accelerator.num_processes
    return TimeEstimate(speed, float(step), float(total))
