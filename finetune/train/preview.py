"""What a training will take, told from config.json, options and data before a weight is read.

The training's own code runs a line with tensors that have no memory (weightless.py) and what it would
hold is counted (allocated.py). So only what torch does not say is a constant here.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from finetune.options import TrainOptions
from finetune.train.allocated import Allocated, bytes_of
from finetune.train.batches import Batch
from finetune.train.heaviest import Heaviest
from finetune.train.loop import Tuned
from finetune.train.loss import summed
from finetune.train.weightless import weightless
from ingest.errors import UserError
from rag.chatglm.configuration import stored_dtype
from rag.chatglm.memory import RUNTIME, Mode, gigabytes, parameters, stored_bits, weights
from rag.chatglm.room import Device, Room

FEW = (2, 3)
"""Layers that are counted; each one more takes what the last took."""
HOLES = 0.3
"""What glibc's malloc holds in unused pieces between those in use, as a share of these, of pieces
below 32 MiB (larger ones have pages of their own)."""
MOST = 1 << 16
"""Rows of a batch, or tokens of a packed line, beyond which nobody asks."""


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
    holes: int
    """What malloc holds beyond what is asked for."""
    runtime: int
    """Python and its libraries; on CUDA its context."""

    @property
    def total(self) -> int:
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True, slots=True)
class Previewer:
    """The same model and options, asked for several lines."""

    config: PreTrainedConfig
    options: TrainOptions
    device: Device

    def preview(self, learnt: Sequence[Batch], measured: Sequence[Batch] = ()) -> Preview:
        """What the heaviest of these lines take: of those that are learnt, and those that are
        evaluated. (Loading takes more, where all are light.)
        """
        found = [self._of(line, learn=True) for line in learnt]
        found += [self._of(line, learn=False) for line in measured]
        return max([*found, self._loading()], key=lambda preview: preview.total)

    def largest(self, lines: Callable[[int], Batch], room: int, *, most: int = MOST) -> int:
        """The largest size, at most `most`, whose line is trained within `room` bytes; 0 if none is.

        `lines` makes a line of a size.
        """

        def fits(size: int) -> bool:
            return self.preview([lines(size)]).total <= room

        low, high = 0, 1
        while high <= most and fits(high):
            low, high = high, high * 2
        high = min(high, most + 1)
        while high - low > max(1, low // 32):  # to 3 %
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def _of(self, line: Batch, *, learn: bool) -> Preview:
        layers = self.config.num_hidden_layers
        if layers <= FEW[1]:
            return self._counted(layers, line, learn=learn)
        first, second = (self._counted(few, line, learn=learn) for few in FEW)

        def extended(part: str) -> int:
            before, after = getattr(first, part), getattr(second, part)
            return max(0, after + (after - before) * (layers - FEW[1]))

        return Preview(**{part.name: extended(part.name) for part in fields(Preview)})

    def _counted(self, layers: int, line: Batch, *, learn: bool) -> Preview:
        config = deepcopy(self.config)
        config.num_hidden_layers = layers
        tuned = weightless(config, self.options, bitsandbytes=self._by_bitsandbytes)
        trained, count = bytes_of(tuned.trained.values()), counted(tuned, line, learn=learn)
        work = count.peak.get("work", 0)
        if self._by_bitsandbytes:  # which makes floats of one weight at a time
            work += parameters(config).largest * self._dtype.itemsize
        return Preview(
            weights=self._held(config, tuned),
            trained=trained,
            gradients=trained,
            moments=2 * trained,
            kept=count.peak.get("kept", 0),
            logits=count.peak.get("logits", 0),
            work=work,
            holes=round(HOLES * count.small) if self.device == "cpu" else 0,
            runtime=RUNTIME[self.device],
        )

    def _loading(self) -> Preview:
        """While the largest matrix is read from its file, and made codes."""
        tuned = weightless(self.config, self.options, bitsandbytes=self._by_bitsandbytes)
        counts = parameters(self.config)
        largest = max(counts.embedding, counts.largest)
        read = largest * stored_dtype(self.config).itemsize
        made = 0 if self.options.quant == "none" or self._by_bitsandbytes else 2 * largest
        held = self._held(self.config, tuned)
        return Preview(held, 0, 0, 0, 0, 0, read + made, 0, RUNTIME[self.device])

    def _held(self, config: PreTrainedConfig, tuned: Tuned) -> int:
        """Bytes of the base's weights."""
        if self._by_bitsandbytes:
            return weights(config, Mode(self.options.quant, self.device, self._dtype))
        every = [*tuned.base.parameters(), *tuned.base.buffers()]
        held = bytes_of(value for value in every if not value.requires_grad)
        apart = not config.tie_word_embeddings and stored_bits(config) is None
        if self.device == "cpu" and apart and stored_dtype(config) == self._dtype:
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


def counted(tuned: Tuned, line: Batch, *, learn: bool) -> Allocated:
    """What a line makes and holds: `kept` by the layers, `logits` from the head on, and `work` of
    backward. Gradients are there already, as from the line before.
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
    return count


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
