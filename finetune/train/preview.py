"""What a training will take, told from config.json, options and data before a weight is read.

The training's own code runs a line with tensors that have no memory (weightless.py) and what it would
hold is counted (allocated.py): nothing here is fitted but what the libraries take (`RUNTIME`).
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from functools import cached_property

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
