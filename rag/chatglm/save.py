"""A checkpoint in any layout -> one with packed codes, which loads in seconds."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ingest.errors import UserError
from ingest.store.atomic import new_folder
from rag.chatglm.loading import empty, read_model_config
from rag.chatglm.quantize import BLOCK, HEAD_BLOCK, PackedWeight
from rag.chatglm.weights import WeightSource, pieces

SHARD = 1 << 30  # bytes after which the next shard begins; about this much is held in memory
SIDE_FILES = (
    "*.model", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab*",
    "merges.txt", "chat_template*", "generation_config.json", "*LICENSE*", "NOTICE*",
)  # fmt: skip
"""Files that are copied beside the weights: the tokenizer's, and the terms of use."""


def copy_side_files(directory: Path, work: Path, patterns: Sequence[str] = SIDE_FILES) -> None:
    for path in sorted({path for pattern in patterns for path in directory.glob(pattern)}):
        shutil.copyfile(path, work / path.name)


class Shards:
    """Tensors one by one -> safetensors files of about `SHARD` bytes, and their index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._buffer: dict[str, Tensor] = {}
        self._shards: list[list[str]] = []  # the names of their tensors
        self._size = 0

    def add(self, name: str, tensor: Tensor) -> None:
        self._buffer[name] = tensor.contiguous()
        self._size += tensor.nbytes
        if sum(value.nbytes for value in self._buffer.values()) >= SHARD:
            self._flush()

    def close(self) -> None:
        """Give the files their names, which hold their number, and write the index."""
        if self._buffer:
            self._flush()
        files: dict[str, str] = {}
        for number, names in enumerate(self._shards, 1):
            file = f"model-{number:05}-of-{len(self._shards):05}.safetensors"
            (self.folder / f"{number}").rename(self.folder / file)
            files |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self._size}, "weight_map": files}
        path = self.folder / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2), "utf-8")
        for file in set(files.values()):  # safetensors makes them private
            shutil.copymode(path, self.folder / file)

    def _flush(self) -> None:
        self._shards.append(list(self._buffer))
        save_file(self._buffer, self.folder / f"{len(self._shards)}", metadata={"format": "pt"})
        self._buffer = {}


def save_quantized(
    directory: Path, target: Path, *, bits: int, progress: Callable[[float], None] | None = None
) -> None:
    """Write `directory`'s model to the new folder `target`, linear layers as codes of 4 or 8 `bits`.

    Codes published upstream are kept exactly if they have these bits. The folder gets its name when
    it is complete. `progress` takes the share written, 0 to 1. Raises `UserError` if the folder
    exists, the disk is too small, or the source is not a model."""
    config = read_model_config(directory)
    source = WeightSource.open(directory, config)
    if source.bits not in (None, bits):
        raise UserError(
            "{directory} holds int{stored} weights, which can't be converted to int{bits}; give "
            "--bits {stored}, or the folder of the float16 model",
            directory=directory,
            stored=source.bits,
            bits=bits,
        )
    linears, head = (bits, bits) if source.bits is None else (None, 8)
    with new_folder(target) as work:
        model, shards = empty(config), Shards(work)
        for path, piece in pieces(model, source, linears, head, progress):
            for kind, value in piece.items():
                if isinstance(value, PackedWeight):
                    shards.add(f"{path}.codes", value.codes)
                    shards.add(f"{path}.scales", value.scales)
                else:
                    shards.add(f"{path}.{kind}", value)
        shards.close()
        config.packed = {"bits": bits, "block": BLOCK, "head_bits": head, "head_block": HEAD_BLOCK}
        config.quantization_bit, config.quantization_embeddings = None, False
        config.architectures = [type(model).__name__]
        config.save_pretrained(work)
        copy_side_files(directory, work)
