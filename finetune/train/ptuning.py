"""P-Tuning v2: a trained prefix before every layer, in upstream's parameters and files."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from finetune.options import PrefixOptions
from ingest.store.atomic import write_whole
from rag.chatglm.configuration import generation_of
from rag.chatglm.prefix import ATTENTION, PrefixEncoder

DROPOUT = 0.1
"""As upstream's PrefixEncoder."""
NAME = "transformer.prefix_encoder."


class PrefixTuning(nn.Module):
    """A model behind a prefix, of which the prefix alone is trained."""

    def __init__(self, model: Any, options: PrefixOptions, *, seed: int = 0) -> None:
        super().__init__()
        self.base, self.options = model.requires_grad_(False), options
        self.config = model.config
        self.attention = model.config._attn_implementation
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.encoder = PrefixEncoder(
                model.config, options.pre_seq_len, projection=options.prefix_projection
            ).to(model.device)
        self._attach()
        self.trained: dict[str, nn.Parameter] = {
            NAME + name: value for name, value in self.encoder.named_parameters()
        }

    @property
    def model(self) -> nn.Module:
        return self

    @property
    def device(self) -> torch.device:
        return self.base.device

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if generation_of(self.base.config) > 1:
            past: Tensor = dropout(self.encoder(), DROPOUT, self.training)
            for layer, held in zip(self.base.model.layers, past, strict=True):
                layer.self_attn.prefix = held
        return self.base(*args, **kwargs)

    def write(self, folder: Path, *, strength: float = 1.0) -> None:
        """Upstream's checkpoint: `pytorch_model.bin` with the prefix alone, and its lengths."""
        assert strength == 1.0, "a prefix has no strength"
        state = {name: value.detach().cpu().clone() for name, value in self.trained.items()}
        file = BytesIO()
        torch.save(state, file)
        write_whole(folder / "pytorch_model.bin", file.getvalue())
        lengths = {
            "pre_seq_len": self.options.pre_seq_len,
            "prefix_projection": self.options.prefix_projection,
        }
        write_whole(folder / "config.json", (json.dumps(lengths, indent=2) + "\n").encode())

    def _attach(self) -> None:
        if generation_of(self.base.config) == 1:
            self.base.transformer.prefix_encoder = self.encoder
        else:
            self.base.set_attn_implementation(ATTENTION)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The base alone, as PEFT's method of this name gives it."""
        self.released()
        try:
            yield
        finally:
            self._attach()

    def released(self) -> Any:
        """The model as it was before."""
        if generation_of(self.base.config) == 1:
            self.base.transformer.prefix_encoder = None
        else:
            self.base.set_attn_implementation(self.attention)
        return self.base
