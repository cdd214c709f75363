"""Adapters on one model: attached once with every check, then switched in a millisecond.

An adapter without an effect is refused: a probe prompt's logits must change while it is active, and
return to the same bits afterwards.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.chatglm.adapter_files import Adapter, Contract, fingerprint
from rag.chatglm.configuration import MERGED, generation_of
from rag.chatglm.lora import Delta, LoraConfig, digest, layer_factors

PROBE = 6  # tokens of the probe
PREFIX_ATTENTION = "prefix"  # the name under which `attend` is registered with transformers


class Adapters:
    """The adapters of `model`, of which at most one is active."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.active: str | None = None
        self.contracts: dict[str, Contract] = {}  # the prompt format and stop ids of each adapter
        self._attachments: dict[str, LoraHooks | Prefix] = {}

    def attach(self, adapter: Adapter, name: str) -> Contract:
        """Prepare the adapter under `name`, still inactive; returns its contract.

        Computes a short prompt three times. Raises `UserError` if the adapter was made for another
        model, or changes nothing."""
        if name in self._attachments:
            raise UserError("an adapter named {name!r} is attached already; choose another name", name=name)
        active = self.active
        self.activate(None)  # a prefix restores the attention of this moment
        try:
            self._attachments[name] = _probe(self.model, adapter)
        finally:
            self.activate(active)
        generation = generation_of(self.model.config)
        self.contracts[name] = replace(adapter.contract, generation=generation)
        return self.contracts[name]

    @property
    def contract(self) -> Contract | None:
        """Of the active adapter."""
        return self.contracts[self.active] if self.active is not None else None

    def activate(self, name: str | None) -> None:
        """Answer with this adapter from now on; None: with the model alone."""
        if name == self.active:
            return
        if name is not None and name not in self._attachments:
            attached = list(self._attachments) or Translatable("none")
            raise UserError(
                "no adapter named {name!r} is attached; attached: {attached}", name=name, attached=attached
            )
        if self.active is not None:
            self._attachments[self.active].off()
        if name is not None:
            self._attachments[name].on()
        self.active = name


class LoraHooks:
    """LoRA as forward hooks on linear layers."""

    def __init__(self, model: Any, adapter: Adapter, config: LoraConfig) -> None:
        parts = layer_factors(model, adapter.modules, config)
        linears = ((model.get_submodule(name), part) for name, part in parts)
        self.hooks = [(linear, Delta(linear, part, model)) for linear, part in linears]
        self._handles: list[Any] = []

    def on(self) -> None:
        self._handles = [linear.register_forward_hook(delta) for linear, delta in self.hooks]

    def off(self) -> None:
        for handle in self._handles:
            handle.remove()


class Prefix:
    """A prefix as keys and values that all layers attend to."""

    def __init__(self, model: Any, adapter: Adapter) -> None:
        self.model, self.encoder = model, _encoder(model, adapter)
        self.attention = model.config._attn_implementation

    def on(self) -> None:
        set_prefix(self.model, self.encoder)

    def off(self) -> None:
        set_prefix(self.model, None, attention=self.attention)


class PrefixEncoder(nn.Module):
    """P-Tuning v2: trained keys and values that every query of every layer sees before its own.

    Its parameters have upstream's names: `embedding`, `trans.0` and `trans.2`. The keys do not change
    positions and have no rotary embedding, as in upstream's `get_prompt` (modeling_chatglm.py).
    ChatGLM-6B takes them in its forward. In transformers' `Glm`, the attention function adds them
    after the rotary embedding and the cache, so that positions, masks, padding and generation stay
    the same."""

    def __init__(self, config: PreTrainedConfig, length: int, *, projection: bool = False) -> None:
        super().__init__()
        heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.shape = (length, config.num_hidden_layers, 2, heads, dim)
        width = config.num_hidden_layers * 2 * heads * dim
        hidden = config.hidden_size
        inner = hidden if generation_of(config) == 1 else width  # upstream's, with a projection
        self.embedding = nn.Embedding(length, inner if projection else width)
        layers = (nn.Linear(inner, hidden), nn.Tanh(), nn.Linear(hidden, width)) if projection else ()
        self.trans = nn.Sequential(*layers) if layers else None

    def forward(self, batch: int = 1) -> Tensor:
        """Keys and values [layers, 2, batch, heads, length, head_dim]."""
        flat = self.embedding.weight if self.trans is None else self.trans(self.embedding.weight)
        past = flat.view(self.shape).permute(1, 2, 3, 0, 4)[:, :, None]
        return past.expand(-1, -1, batch, -1, -1, -1)

    @torch.no_grad()
    def without_projection(self, config: PreTrainedConfig) -> "PrefixEncoder":
        """An encoder with the same keys and values but without a projection."""
        if self.trans is None:
            return self
        plain = PrefixEncoder(config, self.shape[0])
        plain.embedding.weight.copy_(self.trans(self.embedding.weight))
        return plain


def set_prefix(model: Any, encoder: PrefixEncoder | None, *, attention: str = "sdpa") -> None:
    """Let every query of `model` see the keys of `encoder`; None removes the prefix.

    `attention` is the implementation for a model without a prefix."""
    if generation_of(model.config) == 1:
        model.transformer.prefix_encoder = encoder
        model.config.pre_seq_len = encoder.shape[0] if encoder else None
        return
    if encoder is None:
        model.set_attn_implementation(attention)
        return
    for layer, past in zip(model.model.layers, encoder(), strict=True):
        layer.self_attn.prefix = past  # [2, 1, heads, length, head_dim]
    model.set_attn_implementation(PREFIX_ATTENTION)


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' SDPA attention with `module.prefix` in front of `key` and `value`.

    All are [batch, heads, positions, head_dim]; the mask [batch, 1, queries, keys] is boolean
    (True: visible) or added to the scores."""
    prefix = module.prefix.to(query).expand(-1, len(query), -1, -1, -1)
    if attention_mask is not None:
        visible = attention_mask.dtype == torch.bool  # otherwise 0 is added to the score
        attention_mask = functional.pad(attention_mask, (prefix.shape[3], 0), value=visible)
    elif query.shape[2] > 1:
        raise ValueError("several queries without a mask: which of them see which keys is unknown")
    keys, values = torch.cat((prefix[0], key), dim=2), torch.cat((prefix[1], value), dim=2)
    return sdpa_attention_forward(module, query, keys, values, attention_mask, **kwargs)


def explicit_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """transformers' SDPA mask, which is never left out: SDPA's own causal mask has no prefix."""
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})


AttentionInterface.register(PREFIX_ATTENTION, attend)
AttentionMaskInterface.register(PREFIX_ATTENTION, explicit_mask)


def check_generation(adapter: Adapter, config: PreTrainedConfig) -> None:
    """Raises `UserError` if the adapter was made for another generation."""
    generation, expected = generation_of(config), adapter.contract.generation
    if expected not in (None, generation):
        raise UserError(
            "{source} was made for ChatGLM generation {expected}, this model is of generation "
            "{generation}; use the adapter with its own model, or correct contract.json or "
            "base_model_name_or_path",
            source=adapter.source, expected=expected, generation=generation,
        )  # fmt: skip


def check_base(adapter: Adapter, model: Any) -> None:
    """Raises `UserError` if the adapter was trained on another model, or is merged into this one."""
    check_generation(adapter, model.config)
    source, base, own = adapter.source, adapter.contract.base, fingerprint(model)
    digests, lora = getattr(model.config, MERGED, None), adapter.config
    if digests and lora and digest(layer_factors(model, adapter.modules, lora)) in digests:
        raise UserError("{source} is merged into this model already; use the model without it", source=source)
    if base not in (None, own):
        raise UserError(
            "{source} was trained on the model {base}, this one is {own} (digests of their "
            "normalisation weights); use the adapter with its own model",
            source=source, base=base, own=own,
        )  # fmt: skip


def _encoder(model: Any, adapter: Adapter) -> PrefixEncoder:
    """The prefix, computed once in float32 and then cast to the model's precision, as upstream."""
    prefix, source = adapter.prefix, adapter.source
    projection = any(name.startswith("trans.") for name in prefix)
    encoder = PrefixEncoder(model.config, len(prefix["embedding.weight"]), projection=projection)
    wanted, found = (
        {name: tuple(value.shape) for name, value in tensors.items()}
        for tensors in (encoder.state_dict(), prefix)
    )
    if wanted != found:
        raise UserError(
            "{source} holds a prefix of shapes {found}, but this model needs {wanted}: give the "
            "model that it was made for",
            source=source, found=found, wanted=wanted,
        )  # fmt: skip
    if not all(torch.isfinite(value).all() for value in prefix.values()):
        raise UserError("{source} holds NaN or infinite numbers; its training failed", source=source)
    encoder.load_state_dict({name: value.float() for name, value in prefix.items()})
    plain = encoder.without_projection(model.config).requires_grad_(False)
    return plain.to(device=model.device, dtype=model.dtype).eval()


def _probe(model: Any, adapter: Adapter) -> LoraHooks | Prefix:
    """The adapter on the model, switched off.

    Raises `UserError` if the adapter does not fit, changes nothing, makes logits NaN or infinite, or
    if the model's own logits are not the same afterwards."""
    check_base(adapter, model)
    lora, source = adapter.config, adapter.source
    attachment = LoraHooks(model, adapter, lora) if lora else Prefix(model, adapter)
    before = probe_logits(model)
    attachment.on()
    try:
        during = probe_logits(model)
    finally:
        attachment.off()
    after = probe_logits(model)
    hooks = attachment.hooks if isinstance(attachment, LoraHooks) else []
    idle = [delta for _, delta in hooks if not delta.called]
    if idle or torch.equal(before, during):
        raise UserError(
            "{source} changes nothing in this model: a probe's logits stay the same "
            "({idle_count} of its layers were never called); it is not used",
            source=source,
            idle_count=len(idle),
        )
    if not torch.isfinite(during).all():
        raise UserError(
            "{source} makes this model's logits NaN or infinite; it is damaged, or needs another "
            "precision of the model",
            source=source,
        )
    if not torch.equal(before, after):
        raise UserError(
            "{source}: the model's own logits differ after the adapter was switched off; its "
            "precision gives no reproducible results, so that adapters can't be checked",
            source=source,
        )
    return attachment


@torch.inference_mode()
def probe_logits(model: Any) -> Tensor:
    """Logits [1, S, V] of a prompt of ids from the whole vocabulary, which every generation takes."""
    config = model.config
    ids = [1 + i * (config.vocab_size // 16) for i in range(PROBE)]
    if generation_of(config) == 1:
        ids += [config.gmask_token_id, config.bos_token_id]
    return model(torch.tensor([ids], device=model.device), use_cache=False).logits
