"""Adapters on one model: attached once with every check, then switched in a millisecond.

An adapter that does nothing never passes: a probe prompt's logits must change while it is active,
and return to the very same bits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ingest.errors import UserError
from rag.chatglm.adapter_files import Adapter, Contract, fingerprint
from rag.chatglm.configuration import MERGED, generation_of
from rag.chatglm.lora import Delta, deltas, digest, placed
from rag.chatglm.prefix import PrefixEncoder, set_prefix

PROBE = 6
"""Tokens of the probe."""


class Part(Protocol):
    """What an adapter changes in a model."""

    def on(self) -> None: ...
    def off(self) -> None: ...


class Adapters:
    """The adapters of `model`, of which one is active, or none."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.active: str | None = None
        self.contracts: dict[str, Contract] = {}
        """The prompt format and stop ids of each adapter."""
        self._parts: dict[str, Part] = {}

    def attach(self, adapter: Adapter, name: str) -> Contract:
        """Make the adapter ready under `name`, inactive; what it was trained for.

        Computes a short prompt three times. `UserError` where the adapter was made for another
        model, or changes nothing.
        """
        if name in self._parts:
            raise UserError(
                "an adapter named {name!r} is attached already; choose another name", name=name
            )
        check_base(adapter, self.model)
        with self._inactive():
            part = part_of(self.model, adapter)  # a prefix goes back to what it finds
            probe(self.model, part, adapter)
        self._parts[name] = part
        generation = generation_of(self.model.config)
        self.contracts[name] = replace(adapter.contract, generation=generation)
        return self.contracts[name]

    def activate(self, name: str | None) -> None:
        """Answer with this adapter from now on; None: with the model alone."""
        if name == self.active:
            return
        if name is not None and name not in self._parts:
            attached = ", ".join(self._parts) or "none"
            raise UserError(
                "no adapter named {name!r} is attached; attached: {attached}",
                name=name,
                attached=attached,
            )
        if self.active is not None:
            self._parts[self.active].off()
        if name is not None:
            self._parts[name].on()
        self.active = name

    def detach(self, name: str) -> None:
        """Forget the adapter; the model is left without one where it was active."""
        if self.active == name:
            self.activate(None)
        del self._parts[name], self.contracts[name]

    @contextmanager
    def _inactive(self) -> Iterator[None]:
        name = self.active
        self.activate(None)
        try:
            yield
        finally:
            self.activate(name)


class Hooks:
    """LoRA as forward hooks on linear layers."""

    def __init__(self, pairs: list[tuple[torch.nn.Module, Delta]]) -> None:
        self.pairs = pairs
        self._handles: list[Any] = []

    def on(self) -> None:
        self._handles = [module.register_forward_hook(delta) for module, delta in self.pairs]

    def off(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


class Prefix:
    """A prefix as keys and values that all layers attend to."""

    def __init__(self, model: Any, encoder: PrefixEncoder) -> None:
        self.model, self.encoder = model, encoder
        self.attention = model.config._attn_implementation

    def on(self) -> None:
        set_prefix(self.model, self.encoder)

    def off(self) -> None:
        set_prefix(self.model, None, attention=self.attention)


def check_base(adapter: Adapter, model: Any) -> None:
    """`UserError` where the adapter was trained on another model, as far as it says, or is merged
    into this one already."""
    check_generation(adapter, model.config)
    if _is_merged(adapter, model):
        raise UserError(
            "{source} is merged into this model already; use the model without it",
            source=adapter.source,
        )
    base = adapter.contract.base
    if base is not None and base != (held := fingerprint(model)):
        raise UserError(
            "{source} was trained on the model {base}, this one is {held} (digests of their "
            "normalisation weights); name its own model",
            source=adapter.source,
            base=base,
            held=held,
        )


def _is_merged(adapter: Adapter, model: Any) -> bool:
    merged = getattr(model.config, MERGED, None)
    if not merged or adapter.config is None:
        return False
    return digest(placed(model, adapter.modules, adapter.config)) in merged


def check_generation(adapter: Adapter, config: PreTrainedConfig) -> None:
    """`UserError` where the adapter was made for another generation."""
    generation, made_for = generation_of(config), adapter.contract.generation
    if made_for not in (None, generation):
        raise UserError(
            "{source} was made for ChatGLM generation {made_for}, this model is of generation "
            "{generation}; name its own model, or correct contract.json or "
            "base_model_name_or_path",
            source=adapter.source,
            made_for=made_for,
            generation=generation,
        )


def part_of(model: Any, adapter: Adapter) -> Part:
    """What the adapter changes in the model, off; `UserError` where it doesn't fit."""
    if adapter.config is None:
        return Prefix(model, _encoder(model, adapter))
    return Hooks(deltas(model, adapter.modules, adapter.config))


def _encoder(model: Any, adapter: Adapter) -> PrefixEncoder:
    """The prefix computed once in float32, then of the model's precision, as upstream's."""
    projection = any(name.startswith("trans.") for name in adapter.prefix)
    length = len(adapter.prefix["embedding.weight"])
    encoder = PrefixEncoder(model.config, length, projection=projection)
    wanted = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in adapter.prefix.items()}
    if wanted != found:
        raise UserError(
            "{source} holds a prefix of shapes {found}, but this model's has {wanted}: name the "
            "model that it was made for",
            source=adapter.source,
            found=found,
            wanted=wanted,
        )
    if not all(torch.isfinite(value).all() for value in adapter.prefix.values()):
        raise UserError(
            "{source} holds NaN or infinite numbers; its training failed", source=adapter.source
        )
    encoder.load_state_dict({name: value.float() for name, value in adapter.prefix.items()})
    folded = encoder.folded(model.config).requires_grad_(False)
    return folded.to(device=model.device, dtype=model.dtype).eval()


def probe(model: Any, part: Part, adapter: Adapter, tokens: int = PROBE) -> tuple[Tensor, Tensor]:
    """Logits [1, S, V] of the model alone, and with the adapter on.

    `UserError` where the adapter changes nothing, computes no numbers, or leaves a trace.
    """
    before = probe_logits(model, tokens)
    part.on()
    try:
        during = probe_logits(model, tokens)
    finally:
        part.off()
    after = probe_logits(model, tokens)
    idle = [delta for _, delta in part.pairs if not delta.used] if isinstance(part, Hooks) else []
    if idle or torch.equal(before, during):
        raise UserError(
            "{source} changes nothing in this model: a probe's logits stay the same "
            "({idle_count} layers were never asked); it is not used",
            source=adapter.source,
            idle_count=len(idle),
        )
    if not torch.isfinite(during).all():
        raise UserError(
            "{source} makes this model's logits NaN or infinite; it is damaged, or needs another "
            "precision than its own",
            source=adapter.source,
        )
    if not torch.equal(before, after):
        raise UserError(
            "{source}: the model's own logits differ after the adapter was taken off; its "
            "precision gives no reproducible results, so that adapters can't be checked",
            source=adapter.source,
        )
    return before, during


@torch.inference_mode()
def probe_logits(model: Any, tokens: int = PROBE) -> Tensor:
    """Logits [1, S, V] of a prompt that every generation takes: words from all of its vocabulary."""
    config = model.config
    ids = [1 + i * (config.vocab_size // max(16, tokens)) for i in range(tokens)]
    if generation_of(config) == 1:
        ids += [config.gmask_token_id, config.bos_token_id]
    return model(torch.tensor([ids], device=model.device), use_cache=False).logits
