"""A checkpoint of any layout -> one of packed codes, which loads in seconds."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ingest.errors import UserError
from ingest.store.atomic import new_folder
from rag.chatglm.loading import empty, read_config
from rag.chatglm.quantize import BLOCK, HEAD_BLOCK, Packed
from rag.chatglm.weights import Piece, Source, pieces

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


def pack(
    directory: Path, target: Path, *, bits: int, progress: Callable[[float], None] | None = None
) -> None:
    """Write `directory`'s model to the new folder `target`, its linear layers as codes.

    Codes published upstream are kept exactly, if they are of these bits. The folder appears under
    its name when it is whole. `UserError` where it is taken, the disk too small, or the source is
    not a model.
    """
    config = read_config(directory)
    source = Source.open(directory, config)
    if source.bits not in (None, bits):
        raise UserError(
            "{directory} holds int{bits} weights, which can't be made int{bits_2}; say --bits "
            "{bits}, or name the directory of the float16 model",
            directory=directory,
            bits=source.bits,
            bits_2=bits,
        )
    with new_folder(target) as work:
        _write(directory, source, work, bits, progress)


def _write(
    directory: Path, source: Source, work: Path, bits: int, progress: Callable[[float], None] | None
) -> None:
    model = empty(source.config)
    total = sum(parameter.numel() for parameter in model.parameters())
    shards = Shards(work)
    done = 0
    made = source.bits is None
    wanted = (bits, bits) if made else (None, 8)
    for path, piece in pieces(model, source, *wanted):
        for name, tensor in _tensors(path, piece).items():
            shards.add(name, tensor)
        done += sum(p.numel() for p in model.get_submodule(path).parameters(recurse=False))
        if progress:
            progress(done / total)
    shards.close()
    source.config.packed = {
        "bits": bits,
        "block": BLOCK,
        "head_bits": wanted[1],
        "head_block": HEAD_BLOCK,
    }
    source.config.quantization_bit = None
    source.config.quantization_embeddings = False
    source.config.architectures = [type(model).__name__]
    source.config.save_pretrained(work)
    copy_kept(directory, work)


def _tensors(path: str, piece: Piece) -> dict[str, Tensor]:
    """What is stored of a module, by name."""
    stored: dict[str, Tensor] = {}
    for kind, value in piece.items():
        if isinstance(value, Packed):
            stored |= {f"{path}.codes": value.codes, f"{path}.scales": value.scales}
        else:
            stored[f"{path}.{kind}"] = value
    return stored
