"""What a training will take, told from config.json, options and data before a weight is read.

The training's own code runs a line with tensors that have no memory (weightless.py) and what it would
hold is counted (allocated.py): nothing here is fitted but what the libraries take (`RUNTIME`).
"""

import ctypes
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import Any
from weakref import finalize

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedConfig

from finetune.options import LoraOptions, TrainOptions
from finetune.train.batches import Batch, Plan, laid_out, packed, padded
from finetune.train.loop import Sets, Training, Tuned, checkpointed, plan
from finetune.train.lora import Lora, PrefixTuning
from finetune.train.loss import TOGETHER, evaluated, summed
from finetune.types import IGNORED, Rows
from ingest.errors import UserError
from rag.chatglm.configuration import stored_dtype
from rag.chatglm.loading import empty, fill_in
from rag.chatglm.memory import (
    RUNTIME,
    Device,
    Mode,
    Room,
    gigabytes,
    parameters,
    stored_bits,
    weights,
)
from rag.chatglm.quantize import BLOCK, HEAD_BLOCK, Packed
from rag.chatglm.weights import Piece

M_MMAP_THRESHOLD, FIRST = -3, 128 << 10
"""glibc's name for the size from which a piece has pages of its own, and its first value of it."""


class Allocated(TorchDispatchMode):
    """Counts the memory of all tensors that are made while it is entered, until they are dropped.

    Tensors without memory (fake ones) count as if they had it. What a kernel takes for itself while
    it runs is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stage = ""
        """What tensors are now made for; set it as the work goes on."""
        self.peak: Mapping[str, int] = {}
        """Bytes by stage at the moment when there were most."""
        self._held: dict[int, tuple[str, int]] = {}
        self._now: Counter[str] = Counter()

    @property
    def now(self) -> int:
        """Bytes of tensors that were made here and are still there."""
        return self._now.total()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {_key(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for value in tree_leaves(made):
            if isinstance(value, Tensor) and _key(value) not in given:
                self._add(value)
        return made

    def _add(self, value: Tensor) -> None:
        storage, key = value.untyped_storage(), _key(value)
        if key in self._held:
            return
        self._held[key] = self.stage, storage.nbytes()
        self._now[self.stage] += storage.nbytes()
        if self.now > sum(self.peak.values()):
            self.peak = dict(self._now)
        finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        stage, size = self._held.pop(key)
        self._now[stage] -= size


def _key(value: Tensor) -> int:
    """One for all views of the same memory."""
    return value.untyped_storage()._cdata


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Of memory that they hold, shared memory once."""
    storages = {_key(value): value.untyped_storage().nbytes() for value in tensors}
    return sum(storages.values())


def own_pages() -> None:
    """Have every tensor get pages of its own, which go back to the system when it is dropped.

    glibc's malloc stops doing so for sizes that it has seen dropped, up to 32 MiB, and can't fill
    the holes that they leave, as torch asks for aligned pieces: a training then holds up to twice
    what it uses. The pages cost some time (docs/log.md). Where malloc is another's nothing happens.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, FIRST)


LOOKED_AT = 100_000
"""Steps of a plan, at most."""
BUILT = 32
"""Of them, those with the most tokens, are laid out as lines."""
WIDEST = {True: 1 << 13, False: 1 << 16}
"""Tokens of a line, packed or padded, beyond which none is tried: masks of packed ones are squares."""


@dataclass(frozen=True)
class Heaviest:
    """The heaviest lines of a training on one of `devices`."""

    sets: Sets
    options: TrainOptions
    devices: int = 1

    @cached_property
    def plan(self) -> Plan:
        return plan(self.sets, self.options, self.devices)

    @cached_property
    def steps(self) -> list[int]:
        """Numbers of the steps whose lines may be the heaviest, the first of them likely to be."""
        numbers = range(min(self.plan.steps, LOOKED_AT))
        return sorted(numbers, key=lambda number: self._step(number)[1], reverse=True)[:BUILT]

    def learnt(self) -> list[Batch]:
        """The line of most tokens and that of most logits, among those that are trained."""
        rows = (self.sets.of(self.plan, number)[:: self.devices] for number in self.steps)
        lines = [line for own in rows for line in laid_out(own, self.options)]
        return _extremes([line for line in lines if line.learnt])

    def measured(self) -> list[Batch]:
        """The same of the lines that are evaluated."""
        lines: list[Batch] = []
        for rows in (self.sets.dev, self.sets.general_dev):
            if rows is not None:
                longest = [rows[i] for i in _longest(rows, TOGETHER)]
                lines += packed(longest, self.options.pack_length)
        return _extremes(lines)

    def line(self, count: int) -> Batch:
        """`count` of the longest rows, the same ones again where they are fewer: packed in one line,
        or padded as one batch.
        """
        rows = self.sets.train
        most = [rows[int(i)] for i in np.resize(_longest(rows, count), count)]
        if self.options.packing:
            return packed(most, sum(map(len, most)))[0]
        return padded(most, count)[0]

    @property
    def most(self) -> int:
        """How many of the longest rows are tried together."""
        return max(1, WIDEST[self.options.packing] // int(self.sets.train.lengths.max()))

    @cached_property
    def tokens(self) -> float:
        """Of all steps and devices together, padding included."""
        seen = min(self.plan.steps, LOOKED_AT)
        return sum(self._step(number)[0] for number in range(seen)) / seen * self.plan.steps

    def _step(self, number: int) -> tuple[int, int]:
        """Tokens of a step, and of its longest line on the first device, at most."""
        own, general = self.plan.step(number)
        lengths = self.sets.train.lengths[own]
        if self.sets.general is not None:
            lengths = np.concatenate([lengths, self.sets.general.lengths[general]])
        if self.options.packing:
            mine = lengths[:: self.devices]
            most = max(min(int(mine.sum()), self.options.pack_length), int(mine.max()))
            return int(lengths.sum()), most
        size = self.options.per_device_train_batch_size
        widths = [
            int(part.max()) * len(part)
            for device in range(self.devices)
            for part in np.split(
                np.sort(lengths[device :: self.devices])[::-1], range(size, len(lengths), size)
            )
            if len(part)
        ]
        return sum(widths), max(widths)


def logits(batch: Batch) -> int:
    """Places at which a word is predicted, of all rows of the batch."""
    return len(batch.ids) * int((batch.labels != IGNORED).any(0).sum())


def _extremes(lines: Sequence[Batch]) -> list[Batch]:
    if not lines:
        return []
    most = [max(lines, key=lambda line: line.ids.numel()), max(lines, key=logits)]
    return most[:1] if most[0] is most[1] else most


def _longest(rows: Rows, count: int) -> list[int]:
    return [int(i) for i in np.argsort(-rows.lengths, kind="stable")[:count]]


TIMED = 3
"""Steps, spread over the plan, after the heaviest."""
EVALUATED = 16
"""Rows of the dev set that are timed."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What was measured, and what follows from it."""

    peak: int | None
    """Bytes, as `peak` has them."""
    heaviest: float
    """Seconds of the step with the longest lines (it was the first, and may have been slower so)."""
    step: float
    """Seconds of a step, the mean of the whole plan."""
    speed: float
    """Tokens a second, padding included, on all devices."""
    steps: int
    whole: float
    """Seconds of the whole training, its evaluations included."""


def rehearse(training: Training, heaviest: Heaviest) -> Rehearsal:
    """Train on the heaviest step, then on some others, and evaluate some rows.

    Time counts by tokens: a step of twice as many takes twice as long.
    """
    steps = heaviest.plan.steps
    first = _seconds(training, heaviest.steps[0])[0]
    timed = [_seconds(training, steps * i // TIMED) for i in range(TIMED)]
    speed = sum(tokens for _, tokens in timed) / sum(seconds for seconds, _ in timed)
    learning = heaviest.tokens / speed
    return Rehearsal(
        peak(training.accelerator.device.type),
        first,
        learning / steps,
        speed,
        steps,
        learning + _evaluations(training, steps),
    )


def _seconds(training: Training, number: int) -> tuple[float, int]:
    """Of a step, and its tokens."""
    began = monotonic()
    tokens = training._step(number)[2]
    if training.accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    return monotonic() - began, tokens


def _evaluations(training: Training, steps: int) -> float:
    """Seconds of all evaluations: before the first step, each `eval_steps`, and after the last."""
    sets, options = training.sets, training.options
    found = [rows for rows in (sets.dev, sets.general_dev) if rows is not None and len(rows)]
    if not found:
        return 0.0
    began = monotonic()
    evaluated(
        training.tuned.model, found[0],
        length=options.pack_length, step=training.done, part=slice(0, EVALUATED),
    )  # fmt: skip
    spent, seen = monotonic() - began, int(found[0].lengths[:EVALUATED].sum())
    times = 1 + -(-steps // options.eval_steps)
    devices = training.accelerator.num_processes
    return times * sum(int(rows.lengths.sum()) for rows in found) * spent / seen / devices


def forget_peak() -> None:
    """Let `peak` count from now on, where the kernel can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: str) -> int | None:
    """The most bytes that this process has held until now: of memory, as the kernel counts it, or of
    a GPU, what torch reserved and what a context is taken to need. None where it can't be told.
    """
    if device == "cuda":
        return torch.cuda.max_memory_reserved() + RUNTIME["cuda"]
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def weightless(
    config: PreTrainedConfig, options: TrainOptions, *, bitsandbytes: bool = False
) -> Tuned:
    """What `open_tuned` would give on a CPU, in training mode. Tensors that are passed to it may be
    real ones; what it computes with them has no memory.

    Linear layers of bitsandbytes are stood in for by plain ones. `UserError` where a target of LoRA
    is no linear module of the model.
    """
    dtype = getattr(torch, options.dtype)
    with torch.device("meta"):
        base: Any = empty(deepcopy(config))
        codes = _Codes.of(config, options, bitsandbytes=bitsandbytes)
        fill_in(base, _pieces(base, codes, dtype), dtype=dtype, packed=False)
        if config.tie_word_embeddings and isinstance(base.lm_head, nn.Linear):
            base.tie_weights()
        base.config.dtype = dtype
        tuned = (
            Lora(base, options.method)
            if isinstance(options.method, LoraOptions)
            else PrefixTuning(base, options.method)
        )
    _pretend(tuned)
    if options.gradient_checkpointing:
        checkpointed(base)
    tuned.model.train()
    return tuned


def _pretend(tuned: Tuned) -> None:
    """Put fake tensors that say they are on a CPU in place of those on "meta", on which torch would
    choose other kernels."""
    made: dict[int, Any] = {}

    def fake(value: Tensor) -> Any:
        if id(value) not in made:
            made[id(value)] = torch.empty(value.shape, dtype=value.dtype, device="cpu")
            if isinstance(value, nn.Parameter):
                made[id(value)] = nn.Parameter(made[id(value)], value.requires_grad)
        return made[id(value)]

    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in tuned.model.modules():
            for held in (module._parameters, module._buffers):
                held |= {name: fake(v) for name, v in held.items() if v is not None and v.is_meta}
    tuned.trained = {name: made[id(value)] for name, value in tuned.trained.items()}


@dataclass(frozen=True, slots=True)
class _Codes:
    """Bits of what is held as codes; 0 where it is floats."""

    linears: int = 0
    head: int = 0
    words: int = 0

    @classmethod
    def of(cls, config: PreTrainedConfig, options: TrainOptions, *, bitsandbytes: bool) -> "_Codes":
        if packed := getattr(config, "packed", None):
            return cls(int(packed["bits"]), int(packed.get("head_bits", 0)))
        if bits := stored_bits(config):  # upstream's own
            words = bits if config.quantization_embeddings else 0
            return cls(bits, words, words)
        bits = 0 if bitsandbytes else {"int8": 8, "int4": 4}.get(options.quant, 0)
        return cls(bits, bits)


def _pieces(model: Any, codes: _Codes, dtype: torch.dtype) -> Iterator[tuple[str, Piece]]:
    """What `rag.chatglm.weights.pieces` would read, without numbers."""
    for path, module in model.named_modules():
        shapes = {name: value.shape for name, value in module.named_parameters(recurse=False)}
        if not shapes:
            continue
        bits, block = codes.linears if ".layers." in path else 0, BLOCK
        if path == "lm_head":
            bits, block = codes.head, HEAD_BLOCK
            if not bits and model.config.tie_word_embeddings:
                continue
        elif isinstance(module, nn.Embedding):
            bits = codes.words
        piece: Piece = {name: torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}
        if bits and isinstance(module, nn.Linear | nn.Embedding):
            rows, columns = shapes["weight"]
            padded = -(-columns // block) * block
            held = torch.empty(rows, padded * bits // 8, dtype=torch.uint8)
            scales = torch.empty(rows, padded // block, dtype=torch.float16)
            piece["weight"] = Packed(held, scales, bits, block, (rows, columns))
        yield path, piece


FEW = (2, 3)
"""Layers that are counted; each one more takes what the last took."""
CLOSE = 0.03
"""The share of the room that may be left."""


@dataclass(frozen=True, slots=True)
class Preview:
    """Bytes on one device, at the moment when there are most."""

    weights: int
    """Of the base, as it is held."""
    trained: int
    """The adapter's numbers, float32."""
    gradients: int
    moments: int
    """AdamW's two for each trained number."""
    kept: int
    """What the layers keep of a line for backward, masks included."""
    logits: int
    """At the places that are learnt, with all that the loss makes of them."""
    work: int
    """What backward, or loading, makes and drops again."""
    runtime: int
    """Python and its libraries; on CUDA its context."""

    @property
    def total(self) -> int:
        return sum(getattr(self, part.name) for part in fields(self))


NOTHING = Preview(*[0] * len(fields(Preview)))


@dataclass(frozen=True)
class Previewer:
    """A model and options, asked for lines."""

    config: PreTrainedConfig
    options: TrainOptions
    device: Device

    def preview(self, learnt: Sequence[Batch], measured: Sequence[Batch] = ()) -> Preview:
        """What the heaviest of these lines take: of those that are learnt, and those that are
        evaluated. (Loading or saving takes more, where all are light.)
        """
        found = [self._of(line, learn=True) for line in learnt]
        found += [self._of(line, learn=False) for line in measured]
        held = self._extended(self._at_rest)
        found.append(self._loading(held.weights))
        # A checkpoint is first bytes of each tensor, then those of the file.
        found.append(replace(held, work=2 * (held.trained + held.moments)))
        return max(found, key=lambda preview: preview.total)

    def largest(self, line: Callable[[int], Batch], room: int, *, most: int) -> int:
        """The most rows, up to `most`, of which `line` makes one that is trained within `room` bytes.

        0 if there are none; else as near as `last_within` comes.
        """
        return last_within(lambda rows: self._of(line(rows), learn=True).total, room, most)

    def _of(self, line: Batch, *, learn: bool) -> Preview:
        return self._extended(lambda layers: self._counted(layers, line, learn=learn))

    def _extended(self, few: Callable[[int], Preview]) -> Preview:
        """What `few` tells of some layers, for all."""
        layers = self.config.num_hidden_layers
        if layers <= FEW[1]:
            return few(layers)
        first, second = map(few, FEW)

        def extended(part: str) -> int:
            before, after = getattr(first, part), getattr(second, part)
            return max(0, after + (after - before) * (layers - FEW[1]))

        return Preview(**{part.name: extended(part.name) for part in fields(Preview)})

    @cached_property
    def _models(self) -> dict[int, Tuned]:
        return {}

    def _model(self, layers: int) -> Tuned:
        if layers not in self._models:
            config = deepcopy(self.config)
            config.num_hidden_layers = layers
            self._models[layers] = weightless(
                config, self.options, bitsandbytes=self._by_bitsandbytes
            )
        return self._models[layers]

    def _counted(self, layers: int, line: Batch, *, learn: bool) -> Preview:
        rest, count = self._at_rest(layers), counted(self._model(layers), line, learn=learn)
        work = count.get("work", 0)
        if self._by_bitsandbytes:  # which makes floats of one weight at a time
            work += parameters(self.config).largest * self._dtype.itemsize
        return replace(
            rest,
            gradients=rest.trained,
            kept=count.get("kept", 0),
            logits=count.get("logits", 0),
            work=work,
        )

    def _at_rest(self, layers: int) -> Preview:
        """Between steps, of a model with so many layers."""
        tuned = self._model(layers)
        trained = bytes_of(tuned.trained.values())
        return replace(
            NOTHING,
            weights=self._held(tuned),
            trained=trained,
            moments=2 * trained,
            runtime=RUNTIME[self.device],
        )

    def _loading(self, held: int) -> Preview:
        """While the largest matrix is read from its file, and made codes."""
        counts = parameters(self.config)
        largest = max(counts.embedding, counts.largest)
        work = largest * stored_dtype(self.config).itemsize
        if self.options.quant != "none" and not self._by_bitsandbytes:
            work += 2 * largest
        return replace(NOTHING, weights=held, work=work, runtime=RUNTIME[self.device])

    def _held(self, tuned: Tuned) -> int:
        """Bytes of the base's weights."""
        config = tuned.base.config
        if self._by_bitsandbytes:
            return weights(config, Mode(self.options.quant, self.device, self._dtype))
        every = [*tuned.base.parameters(), *tuned.base.buffers()]
        held = bytes_of(value for value in every if not value.requires_grad)
        apart = not config.tie_word_embeddings and stored_bits(self.config) is None
        if self.device == "cpu" and apart and stored_dtype(self.config) == self._dtype:
            # It stays a mapped file, of which rows are read as they are looked up.
            held -= parameters(config).embedding * self._dtype.itemsize
        return held

    @property
    def _dtype(self) -> torch.dtype:
        return getattr(torch, self.options.dtype)

    @property
    def _by_bitsandbytes(self) -> bool:
        quant, stored = self.options.quant, stored_bits(self.config)
        return not stored and (quant == "nf4" or (quant == "int8" and self.device == "cuda"))


def last_within(need: Callable[[int], int], room: int, most: int) -> int:
    """The largest number from 1 to `most` whose `need`, which grows with it, is at most `room`.

    0 if there is none. It is the very last, or leaves `CLOSE` of the room beside what 1 needs: by
    straight lines through what was asked (regula falsi), as each question takes a second.
    """
    low, high, taken, guess = 1, most + 1, need(1), 2
    enough = (room - taken) * CLOSE
    if taken > room:
        return 0
    while high - low > 1 and room - taken > enough:
        more = need(guess)
        slope = max(1, (more - taken) // (guess - low))
        if more <= room:
            low, taken = guess, more
        else:
            high = guess
        guess = min(max(low + (room - taken) // slope, low + 1), high - 1)
    return low


def counted(tuned: Tuned, line: Batch, *, learn: bool) -> Mapping[str, int]:
    """Bytes that a line holds when it holds most: `kept` by the layers, `logits` from the head on,
    and `work` of backward. Gradients are there already, as from the line before.
    """
    count = Allocated()

    def predicts(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        count.stage = "logits"
        if inputs[0].requires_grad:
            inputs[0].register_hook(goes_back)

    def goes_back(_: Tensor) -> None:
        count.stage = "work"

    for value in tuned.trained.values():
        value.grad = torch.zeros_like(value)
    tuned.model.train(learn)
    watch = tuned.base.get_output_embeddings().register_forward_pre_hook(predicts)
    count.stage = "kept"
    try:
        with count, torch.set_grad_enabled(learn):
            loss = summed(tuned.model, line)
            if learn:
                loss.backward()
    finally:
        watch.remove()
    return count.peak


def need_room(previewer: Previewer, heaviest: Heaviest, room: Room) -> None:
    """`UserError` where not even the longest row alone fits, with both figures and the ways out."""
    free = room.on(previewer.device)
    wanted = previewer.preview([heaviest.line(1)]).total
    if free is None or wanted <= free:
        return
    options, length = previewer.options, int(heaviest.sets.train.lengths.max())
    ways = []
    if not options.gradient_checkpointing:
        ways.append("--gradient-checkpointing")
    if options.quant == "none":
        ways.append("--quant int8")
    ways.append(f"--max-length {max(64, length // 2)}")
    where, where_zh = {"cpu": ("memory", "内存"), "cuda": ("GPU memory", "显存")}[previewer.device]
    raise UserError(
        f"training on one row of {length} tokens needs {gigabytes(wanted)} of {where} and "
        f"{gigabytes(free)} are free; try {', '.join(ways)}",
        zh=f"训练一行 {length} 词元需要 {gigabytes(wanted)} {where_zh}，而可用 {gigabytes(free)}；"
        f"可尝试 {'、'.join(ways)}",
    )
