"""The reader in torch, to train it: the bundled encoder with the heads of `rag.reader`, which runs it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertModel

from ingest.embed import e5_graph
from ingest.embed.e5 import data_file
from ingest.embed.e5_graph import E5Checkpoint
from rag.reader import FEATURE_LAYER, FEATURES, with_upper_layers

Tensors = dict[str, NDArray[Any]]
"""The contents of `rag.reader.WEIGHTS`: the layers' matrices in int8 with a scale a row, heads in float16."""

_DROPOUT = 0.1
_FAR = -1e4  # the logit of what can't be chosen
_HEADS = ("span", "pool", "has")
_PARTS = {
    "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
    "ao": "attention.output.dense", "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense", "fo": "output.dense", "oln": "output.LayerNorm",
}  # fmt: skip


class ReaderModel(nn.Module):
    """A reader with the weights of `tensors`, or with the encoder's and heads that have learnt nothing.

    The embeddings and the layers below `frozen` are not trained. Answerability looks at `<s>` and at what
    the span head points to. Raises KeyError or ValueError if `tensors` are of something else.
    """

    _keys_to_ignore_on_save = None  # Trainer looks for it, because `state_dict` is not all

    def __init__(self, tensors: Tensors | None = None, frozen: int = FEATURE_LAYER) -> None:
        super().__init__()
        tensors = tensors or {}
        layers = [int(name[1:].partition(".")[0]) for name in tensors if name.endswith(".scale")]
        self.frozen = min(frozen, FEATURE_LAYER, *layers)
        checkpoint = with_upper_layers(e5_graph.read(data_file()), tensors)
        hidden = checkpoint.vectors["emb.pos"].shape[1]
        config = BertConfig(
            vocab_size=1,  # the tables are replaced
            hidden_size=hidden,
            num_hidden_layers=checkpoint.layers,
            num_attention_heads=checkpoint.heads,
            intermediate_size=len(checkpoint.vectors["l0.fi.b"]),
            hidden_dropout_prob=_DROPOUT,
            attention_probs_dropout_prob=0.0,
            layer_norm_eps=checkpoint.epsilon,
            attn_implementation="sdpa",  # type: ignore[call-arg]
        )
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.feature = nn.Embedding(FEATURES, hidden)
        self.span, self.pool = nn.Linear(hidden, 2), nn.Linear(3 * hidden, hidden)
        self.has = nn.Linear(hidden, 1)
        self._copy(checkpoint, tensors)
        for module in self._frozen():
            module.requires_grad_(False)

    @torch.no_grad()
    def _copy(self, checkpoint: E5Checkpoint, tensors: Tensors) -> None:
        embeddings, vectors = self.encoder.embeddings, checkpoint.vectors
        embeddings.word_embeddings = _table(checkpoint.matrices["emb.word"].dequantize())
        embeddings.position_embeddings = _table(vectors["emb.pos"])
        embeddings.token_type_embeddings = _table(vectors["emb.type"])
        weights = {n: matrix.dequantize() for n, matrix in checkpoint.matrices.items() if n != "emb.word"}
        if tensors:
            self.feature.weight.copy_(torch.tensor(tensors["feature"]))
        else:
            nn.init.normal_(self.feature.weight, std=0.2)
        for name, module in [("emb.ln", embeddings.LayerNorm), *self._parts()]:
            if name in _HEADS and not tensors:
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
                continue
            for parameter, kind in ((module.weight, "w"), (module.bias, "b")):
                key = f"{name}.{kind}"
                found = weights.get(key, vectors.get(key, tensors.get(key)))
                parameter.copy_(torch.tensor(found))

    def _frozen(self) -> list[nn.Module]:
        return [self.encoder.embeddings, *self.encoder.encoder.layer[: self.frozen]]

    def _parts(self, first: int = 0) -> Iterator[tuple[str, Any]]:
        """The modules from layer `first` on, and the heads, by their names in files of weights."""
        for number, layer in list(enumerate(self.encoder.encoder.layer))[first:]:
            for name, path in _PARTS.items():
                yield f"l{number}.{name}", layer.get_submodule(path)
        for name in _HEADS:
            yield name, self.get_submodule(name)

    def train(self, mode: bool = True) -> "ReaderModel":
        super().train(mode)
        for module in self._frozen():
            module.eval()  # no dropout where nothing is learnt
        return self

    def state_dict(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """What is trained; a checkpoint needs no more."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        values = super().state_dict(*arguments, **options)
        return {name: value for name, value in values.items() if name in trained}

    def forward(
        self, ids: Tensor, mask: Tensor, features: Tensor, allowed: Tensor, answer: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`spans` (rows, tokens, 2), `answerable` (rows,), and with an `answer` the `loss`.

        The other inputs are those of `rag.reader.padded`. `answer` (rows, 2) are the places of the first
        and last token of the answer, 0 (the null) for no answer.
        """
        x = self.encoder.embeddings(input_ids=ids)
        for number, layer in enumerate(self.encoder.encoder.layer):
            if number == FEATURE_LAYER:
                x = x + self.feature(features)
            x = layer(x, mask.bool()[:, None, None, :])
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            null, chunk = self.span(x).split([1, x.shape[1] - 1], dim=1)
            chunk = chunk.masked_fill(allowed[:, 1:, None] == 0, _FAR)
            spans, share = torch.cat([null, chunk], 1), chunk.softmax(1)
            ends = torch.einsum("btk,bth->bkh", share, x[:, 1:]).flatten(1)
            answerable = self.has(torch.tanh(self.pool(torch.cat([x[:, 0], ends], 1))))[:, 0]
            result = {"spans": spans, "answerable": answerable}
            if answer is not None:
                result = {"loss": sum(losses(spans, answerable, answer)), **result}
        return result

    @torch.no_grad()
    def export(self) -> Tensors:
        """The tensors of what is trained, as the constructor reads them."""
        tensors: Tensors = {"feature": _array(self.feature.weight).astype(np.float16)}
        for name, module in self._parts(self.frozen):
            weight, tensors[f"{name}.b"] = _array(module.weight), _array(module.bias)
            if name in _HEADS:
                weight = weight.astype(np.float16)
            elif weight.ndim == 2:
                scales = np.maximum(np.abs(weight).max(axis=1), 1e-12) / 127
                tensors[f"{name}.scale"] = scales.astype(np.float32)
                weight = np.round(weight / scales[:, None]).astype(np.int8)
            tensors[f"{name}.w"] = weight
        return tensors


def losses(spans: Tensor, answerable: Tensor, answer: Tensor) -> tuple[Tensor, Tensor]:
    """Of the span and of answerability, means over the rows. Answered rows learn the span a second time
    without the null, or the null would drown it."""
    located = answer[:, 0] > 0
    with_null = functional.cross_entropy(spans, answer, reduction="sum")
    alone = functional.cross_entropy(spans[located, 1:], answer[located] - 1, reduction="sum")
    known = functional.binary_cross_entropy_with_logits(answerable, located.float())
    return (with_null / 2 + alone) / len(answer), known


def _table(values: NDArray[np.float32]) -> nn.Embedding:
    return nn.Embedding.from_pretrained(torch.tensor(values))


def _array(values: Tensor) -> NDArray[np.float32]:
    return values.float().cpu().numpy().copy()
