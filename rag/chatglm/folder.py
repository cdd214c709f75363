"""A model's folder, written: shard after shard of tensors, and what lies beside them."""

import json
import shutil
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

SHARD = 1 << 30
"""Bytes of a shard, from which on the next one begins; about what is held in memory."""
KEPT = (
    "*.model", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab*",
    "merges.txt", "chat_template*", "generation_config.json", "*LICENSE*", "NOTICE*",
)  # fmt: skip
"""What is copied beside the weights: what the tokenizer needs, and the terms of use."""


def copy_kept(directory: Path, work: Path) -> None:
    """Copy what `KEPT` names of a model's folder."""
    for path in sorted({path for pattern in KEPT for path in directory.glob(pattern)}):
        shutil.copyfile(path, work / path.name)


class Shards:
    """Tensors one by one -> safetensors files of about `SHARD` bytes, and their index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held: dict[str, Tensor] = {}
        self.written: list[list[str]] = []
        self.size = 0

    def add(self, name: str, tensor: Tensor) -> None:
        self.held[name] = tensor.contiguous()
        self.size += tensor.nbytes
        if sum(held.nbytes for held in self.held.values()) >= SHARD:
            self._flush()

    def close(self) -> None:
        """Name the files as upstream does, which needs their number, and write the index."""
        if self.held:
            self._flush()
        places: dict[str, str] = {}
        for number, names in enumerate(self.written, 1):
            file = f"model-{number:05}-of-{len(self.written):05}.safetensors"
            (self.folder / f"{number}").rename(self.folder / file)
            places |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self.size}, "weight_map": places}
        path = self.folder / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2), "utf-8")
        for file in set(places.values()):  # safetensors lets nobody else read
            shutil.copymode(path, self.folder / file)

    def _flush(self) -> None:
        self.written.append(list(self.held))
        save_file(self.held, self.folder / f"{len(self.written)}", metadata={"format": "pt"})
        self.held = {}
