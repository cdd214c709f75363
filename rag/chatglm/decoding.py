"""Prompt ids -> the ids that the model writes: prefill in chunks, kept prefixes, prompt lookup.

A prompt is read `CHUNK` tokens at a time. Keys and values of whole chunks stay for later prompts that
begin with the same tokens; because the chunks are the same, so are all logits. While it writes, the
model checks tokens that are copied from the text so far (prompt lookup: Saxena 2023; Leviathan et
al. 2023 for drafts in general), several in one step.
"""

from collections.abc import Callable, Iterator, Sequence
from threading import Event
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from ingest.errors import UserError
from rag.chatglm.configuration import CACHE, generation_of
from rag.chatglm.quantize import LinearOfCodes

CHUNK = 64  # tokens of a prompt in one step; larger ones are hardly faster (docs/figures.md)
ROOM = 256  # tokens by which keys and values grow
KEPT_BYTES = 1 << 28  # of keys and values that are kept beside the newest prompt's
LONGEST_MATCH, SHORTEST_MATCH = 8, 2  # tokens before a draft that must be the same
FIRST_DRAFT, LONGEST_DRAFT = 4, 8  # tokens
DRAFT_COST = 0.25  # what a drafted token adds to a step, in steps of one token (docs/figures.md)
LOSS = 0.02  # the share of the steps that drafts may cost in vain
CODES_TIE, FLOAT_TIE, HALF_TIE = 0.3, 1e-3, 0.1
"""Standard deviations of the logits. Steps of one token and of several differed by at most .1 with codes,
whose kernels round the activations, and by 7e-6 in float32 (docs/log.md)."""
SAFE = 5
"""The token that upstream's `InvalidScoreLogitsProcessor` chooses if scores are NaN or infinite."""


class ReplyStopped(Exception):
    """The current reply has to end."""


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer, with room for more: a step copies only its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.buffers: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        start, states = self.get_seq_length(), (key_states, value_states)
        end = start + key_states.shape[-2]
        if not self.buffers or end > self.buffers[0].shape[-2]:
            old, self.buffers = self.buffers, [_with_room(each, end) for each in states]
            for buffer, before in zip(self.buffers, old, strict=False):
                buffer[..., :start, :] = before[..., :start, :]
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        for buffer, new in zip(self.buffers, states, strict=True):
            buffer[..., start:end, :] = new
        self.show(end)
        return self.keys, self.values

    def show(self, length: int) -> None:
        """Let only the first `length` tokens be seen; the next ones are written after them."""
        if self.buffers:
            self.keys, self.values = (buffer[..., :length, :] for buffer in self.buffers)


def _with_room(states: Tensor, length: int) -> Tensor:
    return states.new_empty(*states.shape[:-2], length + -length % ROOM, states.shape[-1])


class KeptPrompt:
    """The ids of whole chunks, and the layers that have read them with this adapter."""

    def __init__(self, adapter: str | None) -> None:
        self.adapter, self.ids = adapter, list[int]()
        self.cache = DynamicCache()
        self.cache.layer_class_to_replicate = GrowingLayer

    def shared(self, prompt: Sequence[int]) -> int:
        """How many first tokens of the prompt need not be read again; its last one always is."""
        most = min(len(self.ids), len(prompt) - 1)
        same = next((n for n in range(most) if self.ids[n] != prompt[n]), most)
        return same - same % CHUNK

    def keep(self, length: int) -> None:
        """Forget what was read after the first `length` tokens."""
        for layer in self._layers:
            layer.show(min(length, layer.get_seq_length()))

    @property
    def size(self) -> int:
        """Bytes of keys and values."""
        return sum(buffer.nbytes for layer in self._layers for buffer in layer.buffers)

    @property
    def _layers(self) -> list[GrowingLayer]:
        layers: Any = self.cache.layers
        return layers


class PromptLookup:
    """Drafts for the next tokens: those that followed the last ones where these occurred before."""

    def __init__(self) -> None:
        self.length = FIRST_DRAFT
        self._ids: list[int] = []
        self._places: dict[tuple[int, ...], list[int]] = {}  # of what follows each pair of tokens
        self._lost, self._steps = 0.0, 0  # in steps of one token

    def extend(self, ids: Sequence[int]) -> None:
        for index in ids:
            self._ids.append(index)
            if len(self._ids) > SHORTEST_MATCH:
                before = tuple(self._ids[-1 - SHORTEST_MATCH : -1])
                self._places.setdefault(before, []).append(len(self._ids) - 1)

    def draft(self, most: int) -> list[int]:
        """At most `most` tokens; none if there is no match, or if drafts have not paid so far."""
        self._steps += 1
        length = min(self.length, most)
        if length < 1 or self._lost + DRAFT_COST * length > 1 + LOSS * self._steps:
            return []
        places = self._places.get(tuple(self._ids[-SHORTEST_MATCH:]), [])
        best = max(places, key=lambda place: (self._match(place), place), default=0)
        return self._ids[best : best + length] if best else []

    def learn(self, drafted: int, accepted: int) -> None:
        """Adapt the length of the next draft to how many tokens of this one were right."""
        self._lost = max(self._lost + DRAFT_COST * drafted - accepted, -1.0)
        right = accepted == drafted
        self.length = min(2 * self.length, LONGEST_DRAFT) if right else max(1, accepted)

    def _match(self, place: int) -> int:
        """How many tokens before `place` are the same as the last ones."""
        most = min(place, LONGEST_MATCH)
        same = (n for n in range(most) if self._ids[place - 1 - n] != self._ids[-1 - n])
        return next(same, most)


class Decoder:
    """Writes with one model. `progress` gets the share of a prompt that has been read, 0 to 1; 1 also if
    reading was stopped."""

    def __init__(self, model: Any, *, name: str) -> None:
        self.model, self.name = model, name
        self.progress: Callable[[float], None] = lambda share: None
        self._kept: list[KeptPrompt] = []  # the newest last
        self._stop = Event()
        self._read: tuple[int, int, int] | None = None  # tokens before this chunk, in it, and of the prompt
        self._is_glm1 = generation_of(model.config) == 1
        has_codes = any(isinstance(module, LinearOfCodes) for module in model.modules())
        self._tie = CODES_TIE if has_codes else FLOAT_TIE if model.dtype == torch.float32 else HALF_TIE
        # Reading a long prompt takes a minute on a CPU: it can be stopped between layers.
        lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
        layers = max(lists, key=len, default=nn.ModuleList())
        for number, layer in enumerate(layers):
            layer.register_forward_pre_hook(self._at_layer(number / len(layers)))

    def stop(self) -> None:
        """End `tokens` at the next layer of the model. May be called from any thread."""
        self._stop.set()

    def _at_layer(self, share: float) -> Callable[..., None]:
        def hook(*_: object) -> None:
            if self._stop.is_set():
                raise ReplyStopped
            if self._read:
                before, size, total = self._read
                self.progress((before + share * size) / total)

        return hook

    @torch.inference_mode()
    def tokens(
        self,
        prompt: Sequence[int],
        draw: Callable[[Tensor], int] | None,
        most: int,
        adapter: str | None = None,
    ) -> Iterator[int]:
        """At most `most` ids after the prompt, one by one.

        `draw` chooses from logits (V,); None takes the likeliest: the same ids as by steps of one
        token. Keys and values are kept by `adapter`. Raises `ReplyStopped` after `stop`, and
        `UserError` if all logits are NaN or infinite.
        """
        self._stop.clear()
        kept = self._take(prompt, adapter)
        try:
            logits = self._prefill(prompt, kept)
            yield from self._write(list(prompt), logits, kept, draw, most)
        finally:
            kept.keep(len(kept.ids))
            self._put(kept)

    def _take(self, prompt: Sequence[int], adapter: str | None) -> KeptPrompt:
        """The kept prompt that shares most with this one, cut to what they share."""
        found = [each for each in self._kept if each.adapter == adapter and each.shared(prompt)]
        if not found or self._is_glm1:  # its context is read as a whole: a later token changes all before
            return KeptPrompt(adapter)
        best = max(found, key=lambda each: each.shared(prompt))
        self._kept.remove(best)
        best.ids = best.ids[: best.shared(prompt)]
        best.keep(len(best.ids))
        return best

    def _put(self, kept: KeptPrompt) -> None:
        if kept.ids:
            self._kept.append(kept)
        while len(self._kept) > 1 and sum(each.size for each in self._kept[:-1]) > KEPT_BYTES:
            del self._kept[0]

    def _prefill(self, prompt: Sequence[int], kept: KeptPrompt) -> Tensor:
        """The logits (1, V) after the prompt."""
        size = len(prompt) if self._is_glm1 else CHUNK
        logits = torch.empty(0)
        try:
            for start in range(len(kept.ids), len(prompt), size):
                chunk = prompt[start : start + size]
                self._read = start, len(chunk), len(prompt)
                logits = self._logits(prompt[: start + size], 1, kept.cache, len(chunk))
                if len(chunk) == CHUNK and not self._is_glm1:
                    kept.ids += chunk
        finally:
            self._read = None
            self.progress(1.0)
        return logits

    def _write(
        self,
        ids: list[int],
        logits: Tensor,
        kept: KeptPrompt,
        draw: Callable[[Tensor], int] | None,
        most: int,
    ) -> Iterator[int]:
        """`logits` are those after `ids`."""
        lookup = PromptLookup()
        lookup.extend(ids)
        draft: list[int] = []
        end = len(ids) + most
        while True:
            accepted, is_tie = 0, False
            for row, expected in zip(logits, (*draft, None), strict=True):
                if is_tie := bool(draft) and draw is None and self._is_tie(row):
                    kept.keep(len(ids) - 1)
                    row = self._logits(ids, 1, kept.cache)[0]
                index = draw(row) if draw else int(row.argmax())
                yield index
                ids.append(index)
                lookup.extend([index])
                if len(ids) == end:
                    return
                if is_tie or index != expected:
                    break
                accepted += 1
            if draft:
                lookup.learn(len(draft), accepted - is_tie)
            kept.keep(len(ids) - 1)
            draft = lookup.draft(end - len(ids) - 1)
            logits = self._logits([*ids, *draft], 1 + len(draft), kept.cache)

    def _logits(self, ids: Sequence[int], rows: int, cache: DynamicCache, new: int | None = None) -> Tensor:
        """The logits (rows, V) float32 at the last `rows` of `ids`, of which the last `new` (None: as
        many as rows) are not in the cache."""
        new = rows if new is None else new
        options: dict[str, Any] = {CACHE: cache}
        given = torch.tensor([ids], device=self.model.device)  # (1, S)
        if self._is_glm1:  # 2-D: they depend on the whole sequence
            options["position_ids"] = self.model.positions(given, prefer_mask=True)[..., -new:]
        out = self.model(given[:, -new:], use_cache=True, logits_to_keep=rows, **options)
        return torch.stack([self._safe(row) for row in out.logits[0].float()])

    def _safe(self, logits: Tensor) -> Tensor:
        """The logits (V,); if one is NaN or infinite, those of a harmless token, as upstream."""
        finite = torch.isfinite(logits)
        if finite.all():
            return logits
        if not finite.any():
            raise UserError(
                "{name} computes NaN instead of scores: its weights are damaged, or its precision "
                "is too low; load it again with --quant none, or download the files again",
                name=self.name,
            )
        safe = torch.zeros_like(logits)
        safe[SAFE] = 5e4
        return safe

    def _is_tie(self, logits: Tensor) -> bool:
        """Whether a step of one token might prefer another token than a step of several."""
        first, second = logits.topk(2).values
        return bool(first - second < self._tie * logits.std())
