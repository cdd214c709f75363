"""A model's folder, written: its place, shard after shard of tensors, and what lies beside them."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ingest.errors import UserError

SHARD = 1 << 30
"""Bytes of a shard, from which on the next one begins; about what is held in memory."""
KEPT = (
    "*.model", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab*",
    "merges.txt", "chat_template*", "generation_config.json", "*LICENSE*", "NOTICE*",
)  # fmt: skip
"""What is copied beside the weights: what the tokenizer needs, and the terms of use."""


def check_new(target: Path) -> None:
    """`UserError` where `target` holds something already."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(
            f"{target} exists already; name a new folder", zh=f"{target} 已存在；请指定一个新文件夹"
        )


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A place to write to, which becomes the folder `target` when the block has ended well.

    Its files are then on the disk. Nothing stays of a block that failed. `UserError` where
    `target` is taken, or can't be written.
    """
    check_new(target)
    work = target.with_name(f".{target.name}.partial")
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
    try:
        work.mkdir(parents=True)
        yield work
        for path in [*work.iterdir(), work]:
            _sync(path)
        work.rename(target)
        _sync(target.parent)
    except OSError as problem:
        raise UserError(
            f"{target} can't be written: {problem.strerror or problem}",
            zh=f"无法写入 {target}：{problem.strerror or problem}",
        ) from problem
    finally:
        shutil.rmtree(work, ignore_errors=True)


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


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
