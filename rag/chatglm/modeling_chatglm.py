"""ChatGLM-6B: 2-D rotary positions, prefix-LM mask, attention, block, model, head; ChatGLM2's rotary.

A sequence is `context [gMASK] <sop> answer <eop>`: a context with bidirectional attention and a
blank (`[MASK]` or `[gMASK]`), and after `<sop>` the text of the blank, left to right (Du et al.
2022, GLM). Modules have the names of upstream's modeling_chatglm.py, so that its weights load
strictly and other tools' adapters fit.

Shapes: B rows, S tokens, Q queries, K keys, h heads of d dimensions, H = h * d hidden, V words.
"""

import math
from typing import Any, cast

import torch
from torch import BoolTensor, LongTensor, Tensor, nn
from torch.nn.functional import dropout, gelu, pad, scaled_dot_product_attention
from transformers import DynamicCache, GenerationMixin, GlmForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from rag.chatglm.adapter import PrefixEncoder
from rag.chatglm.configuration import CACHE, ChatGLM2Config, Glm1Config
from rag.chatglm.loading import Native

# The residual's scale. Upstream never passes the number of layers to a block, so it is 28 in smaller
# models too.
ALPHA = math.sqrt(2 * 28)


def positions_2d(
    input_ids: Tensor, samples: Tensor, config: Glm1Config, *, prefer_mask: bool = False
) -> LongTensor:
    """Positions [B, 2, S]: of a token in its sample, and in the text of the blank.

    In the context, row 0 counts 0, 1, 2, … and row 1 is 0; from `<sop>` on, row 0 is the position of
    the blank and row 1 counts 1, 2, 3, …. Both are 0 for padding. `samples` [B, S] has the number of
    each token's sample; 0 is padding. If a context has both kinds of blank, upstream's model takes
    `[gMASK]`, and its tokenizer (`prefer_mask`) takes `[MASK]`. Raises `ValueError` with the row of a
    sample that has no `<sop>`, or no blank before it."""
    (rows, length), real = input_ids.shape, samples > 0
    index = torch.arange(length, device=input_ids.device).expand(rows, length)

    def first(marked: Tensor) -> Tensor:
        """The index of the first marked token of each token's sample; `length` if there is none."""
        empty = index.new_full((rows, int(samples.max()) + 1), length)
        candidates = torch.where(marked & real, index, length)
        return empty.scatter_reduce(1, samples, candidates, "amin").gather(1, samples)

    start, bos = first(real), first(input_ids == config.bos_token_id)
    _require(bos < length, real, f"no <sop> (id {config.bos_token_id})")
    short, long = config.mask_token_id, config.gmask_token_id
    tokens = (short, long) if prefer_mask else (long, short)
    preferred, other = (first((input_ids == token) & (index < bos)) for token in tokens)
    blank = torch.where(preferred < length, preferred, other)
    names = f"neither [MASK] (id {short}) nor [gMASK] (id {long})"
    _require(blank < length, real, f"{names} before <sop>")

    after = index >= bos
    outer = torch.where(after, blank, index) - start
    inner = torch.where(after, index - bos + 1, 0)
    return cast(LongTensor, torch.stack((outer, inner), dim=1) * real[:, None])


def _require(present: Tensor, real: Tensor, what: str) -> None:
    missing = (real & ~present).any(dim=1)
    if missing.any():
        raise ValueError(
            f"row {int(missing.nonzero()[0])} of input_ids has {what}; a prompt ends in "
            "[gMASK] <sop>, which the tokenizer appends (with a filled cache, pass position_ids)"
        )


def visible_keys(position_ids: Tensor, attention_mask: Tensor | None, keys: int) -> BoolTensor | None:
    """The prefix-LM mask [B, 1, Q, K], True if a query sees a key; None if all keys are seen.

    Each query sees its sample's context and the tokens before it. `attention_mask` [B, L] has the
    numbers of samples (0 is padding). Keys before the last L are a prefix that all queries see."""
    queries = position_ids.shape[-1]
    if attention_mask is None:
        if queries == 1:
            return None
        attention_mask = position_ids.new_ones(len(position_ids), keys)
    if attention_mask.dim() != 2:
        raise ValueError(f"attention_mask is {[*attention_mask.shape]}; pass [B, S] (0 for padding)")
    context = position_ids[:, None, None, 1] == 0  # [B, 1, 1, Q]
    visible = context | context.new_ones(queries, queries).tril()
    visible = pad(visible, (attention_mask.shape[-1] - queries, 0), value=True)
    sample = attention_mask[:, None, -queries:, None]
    visible = visible & (sample == attention_mask[:, None, None, :])
    return cast(BoolTensor, pad(visible, (keys - visible.shape[-1], 0), value=True))


def rotary_table(position_ids: Tensor, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines [..., dim / 2] of a rotary dimension `dim`, one more axis than positions.

    Frequencies are rounded to fp16 in every model, as upstream's are. In fp16 models, angles are too,
    and so are coarse above position 64: the published weights were trained with them. In bf16,
    upstream's angles are useless; here they are those of fp32."""
    steps = torch.arange(0, dim, 2, device=position_ids.device).float()
    inv_freq = (1.0 / 10000 ** (steps / dim)).half()
    exact = torch.float16 if dtype == torch.float16 else torch.float32
    angles = position_ids[..., None].to(exact) * inv_freq.to(exact)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys [B, h, S, d], rotated: half of d by each row of positions. The table is
    [B, 1, S, 2, d / 4]. Within its half, dimension i is paired with i + d / 4 (not with its neighbour,
    as in ChatGLM2)."""
    a, b = x.unflatten(-1, (2, 2, -1)).unbind(dim=-2)  # [B, h, S, 2, d / 4]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-2).flatten(-3)


class LayerNorm(nn.LayerNorm):
    """Computed in its weight's precision, which checkpoints and PEFT leave at fp32 in fp16 models."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype)).to(input.dtype)


class SelfAttention(nn.Module):
    def __init__(self, config: Glm1Config, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.hidden_size // config.num_attention_heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        x: Tensor,  # [B, S, H]
        prefix: Tensor | None,  # keys and values [2, B, h, P, d], not rotated
        visible: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        cache: Cache | None,
    ) -> Tensor:
        # Each head's query, key and value are adjacent.
        heads = self.query_key_value(x).unflatten(-1, (-1, 3 * self.head_dim)).transpose(1, 2)
        q, k, v = heads.chunk(3, dim=-1)  # [B, h, S, d]
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        if prefix is not None:
            k, v = torch.cat((prefix[0], k), dim=2), torch.cat((prefix[1], v), dim=2)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        # Upstream divides by the layer's number and multiplies by it again; both cancel.
        out = scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return self.dense(out.transpose(1, 2).flatten(2))


class GLU(nn.Module):
    """The feed-forward layer. The name is upstream's, but there is no gate."""

    def __init__(self, config: Glm1Config) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.inner_hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_4h_to_h(gelu(self.dense_h_to_4h(x), approximate="tanh"))


class GLMBlock(GradientCheckpointingLayer):
    def __init__(self, config: Glm1Config, layer: int) -> None:
        super().__init__()
        self.input_layernorm = LayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.attention = SelfAttention(config, layer)
        self.post_attention_layernorm = LayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.mlp = GLU(config)

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        x = self.input_layernorm(x)
        x = x * ALPHA + self.attention(x, *args)  # the residual is the normalised input
        x = self.post_attention_layernorm(x)
        return x * ALPHA + self.mlp(x)


class Glm1PreTrainedModel(PreTrainedModel):
    config_class = Glm1Config
    config: Glm1Config
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _input_embed_layer = "word_embeddings"
    _no_split_modules = ["GLMBlock"]  # noqa: RUF012  (transformers declares it so)
    _supports_sdpa = True
    # Published checkpoints store the frequencies, unrounded; upstream computes its own too.
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq$"]  # noqa: RUF012  (likewise)


class Glm1Model(Glm1PreTrainedModel):
    """Tokens to final hidden states."""

    def __init__(self, config: Glm1Config) -> None:
        super().__init__(config)
        self.gradient_checkpointing = False
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(GLMBlock(config, i) for i in range(config.num_layers))
        self.final_layernorm = LayerNorm(config.hidden_size, config.layernorm_epsilon)
        length, projection = config.pre_seq_len, bool(config.prefix_projection)
        encoder = PrefixEncoder(config, length, projection=projection) if length else None
        self.prefix_encoder = encoder
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None,
        cache: Cache | None,
        output_hidden_states: bool,
    ) -> BaseModelOutputWithPast:
        past = cache.get_seq_length() if cache is not None else 0
        # P-Tuning v2's keys and values come before the first token; later they are in the cache.
        prefix: Any = [None] * len(self.layers)
        if self.prefix_encoder is not None and not past:
            prefix = self.prefix_encoder(len(input_ids))  # [L, 2, B, h, P, d]
            prefix = dropout(prefix.to(self.dtype), 0.1, self.training)
            past = prefix.shape[-2]
        visible = visible_keys(position_ids, attention_mask, past + input_ids.shape[1])
        x = self.word_embeddings(input_ids)
        dim = self.config.hidden_size // self.config.num_attention_heads // 2
        rotary = rotary_table(position_ids.transpose(1, 2)[:, None], dim, x.dtype)
        states = []
        for layer, before in zip(self.layers, prefix, strict=True):
            states.append(x)
            # Positional arguments: checkpointing tracks no gradients of keyword arguments.
            x = layer(x, before, visible, rotary, cache)
        x = self.final_layernorm(x)
        return BaseModelOutputWithPast(
            last_hidden_state=x, hidden_states=(*states, x) if output_hidden_states else None
        )


class Glm1ForCausalLM(Native, Glm1PreTrainedModel, GenerationMixin):
    """ChatGLM-6B with its head, which is the embedding."""

    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: Glm1Config) -> None:
        super().__init__(config)
        self.transformer = Glm1Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def positions(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, prefer_mask: bool = False
    ) -> LongTensor:
        """Positions [B, 2, S] of whole sequences, as `positions_2d`, with the mask of `forward`."""
        if attention_mask is None or attention_mask.dim() != 2:
            attention_mask = torch.ones_like(input_ids)
        samples = attention_mask.to(input_ids)
        return positions_2d(input_ids, samples, self.config, prefer_mask=prefer_mask)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,  # [B, S]
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, S, V] and, with `labels` [B, S], the loss: shifted by one, -100 ignored.

        `attention_mask` [B, S] is 1 for tokens and 0 for padding, on either side. If several samples
        are packed into one row, it numbers them 1, 2, 3, …: none sees another, and each has its own
        positions. Other keyword arguments go to the loss."""
        shape = [len(input_ids), 2, input_ids.shape[1]]
        if position_ids is None:
            position_ids = self.positions(input_ids, attention_mask)
        elif [*position_ids.shape] != shape:
            raise ValueError(f"position_ids are {[*position_ids.shape]}, not [B, 2, S] {shape}")
        cache = cache if cache is not None else past_key_values
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if self.training and self.transformer.gradient_checkpointing:
            cache = None  # a checkpointed layer runs twice and would fill it twice
        outputs = self.transformer(input_ids, position_ids, attention_mask, cache, bool(output_hidden_states))
        keep: Any = logits_to_keep
        keep = slice(-keep, None) if isinstance(keep, int) else keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=logits.shape[-1], **kwargs)
        output: dict[str, Any] = {CACHE: cache, "hidden_states": outputs.hidden_states}
        return CausalLMOutputWithPast(loss=loss, logits=logits, **output)

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The inputs of one step of `generate`: the tokens that are not in the cache yet."""
        cache, attention_mask = kwargs.get(CACHE), kwargs.get("attention_mask")
        cached = cache.get_seq_length() if cache is not None else 0
        if not cached and attention_mask is not None and not attention_mask[:, -1].all():
            raise ValueError("a prompt is padded on the right; pad on the left to generate")
        if kwargs.get("position_ids") is not None:
            raise ValueError("generate computes position_ids by itself; leave them out")
        position_ids = self.positions(input_ids, attention_mask)
        # The cache also holds P-Tuning's keys, which belong to no token.
        new = input_ids.shape[1] - max(0, cached - (self.config.pre_seq_len or 0))
        return {
            "input_ids": input_ids[:, -new:],
            "position_ids": position_ids[:, :, -new:],
            "attention_mask": attention_mask,
            "use_cache": kwargs.get("use_cache"),
            "logits_to_keep": kwargs.get("logits_to_keep", 0),
            CACHE: cache,
        }

    def _prepare_position_ids_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        """Newer transformers compute 1-D positions here; `prepare_inputs_for_generation` has ours."""


class ChatGLM2Rotary(nn.Module):
    """ChatGLM2's table: frequency, position and angle are rounded to the model's precision.

    In float16, a cosine at a large position is off by more than 1, and the published weights were
    trained with that (as modeling_chatglm.py of ChatGLM2, `RotaryEmbedding.forward_impl`). ChatGLM3
    and GLM-4 compute angles in float32, as transformers does."""

    def __init__(self, config: ChatGLM2Config) -> None:
        super().__init__()
        rope: Any = config.rope_parameters
        self.dim = int(rope["partial_rotary_factor"] * (config.head_dim or 0))
        self.base = float(rope["rope_theta"])

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine, [B, S, dim] of x's dtype, for positions [B, S]; halves are equal."""
        pairs = torch.arange(0, self.dim, 2, dtype=x.dtype, device=x.device)
        theta = 1.0 / (self.base ** (pairs / self.dim))
        angle = (position_ids[..., None].to(x.dtype) * theta).float()
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos().to(x.dtype), angle.sin().to(x.dtype)


class ChatGLM2ForCausalLM(Native, GlmForCausalLM):
    """A `GlmForCausalLM` that loads upstream's checkpoints and rounds as in their training."""

    config_class = ChatGLM2Config

    def __init__(self, config: ChatGLM2Config) -> None:
        super().__init__(config)
        if config.generation == 2:
            self.model.set_submodule("rotary_emb", ChatGLM2Rotary(config))

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """Always: its attention is `Glm`'s. transformers guesses by reading this file, which also
        holds ChatGLM-6B's attention, and would leave a prefix (adapter.py) without effect."""
        return True
