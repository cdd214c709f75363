"""A model's directory -> its tensors by name: safetensors, or .bin files read as data only."""

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ingest.errors import UserError

# In the order of preference; an index says which shard holds which tensor.
SINGLE = ("model.safetensors", "pytorch_model.bin")
INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json", "model.bin.index.json")
POINTER = b"version https://git-lfs"
# What torch raises for code in a file; nothing is unpickled here.
UNSAFE: type[Exception] = vars(torch.serialization)["pickle"].UnpicklingError


class Checkpoint:
    """The tensors of a directory, each read when it is asked for.

    A tensor is a view of the mapped file: nothing is read before it is looked at, and the map goes
    with the last view, so that reading tensor by tensor holds no more than one.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.files = files
        """The file of each tensor."""
        self._shard: tuple[Path, dict[str, Tensor]] | None = None  # the .bin file read last

    @classmethod
    def open(cls, directory: Path) -> "Checkpoint":
        """`UserError` where there are no weights, a shard is missing, or a file is not whole."""
        for single, index in zip(SINGLE, INDEX, strict=False):
            if (directory / index).is_file():
                return cls(_indexed(directory, index))
            if (directory / single).is_file():
                return cls(dict.fromkeys(_names(directory / single), directory / single))
        found = ", ".join(sorted(path.name for path in directory.iterdir())[:5]) or "nothing"
        raise UserError(
            "{directory} holds no weights (model.safetensors or pytorch_model.bin, or shards of "
            "them with an index); it holds {found}",
            directory=directory,
            found=found,
        )

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def read(self, name: str) -> Tensor:
        """The tensor; `UserError` where its file is damaged."""
        path = self.files[name]
        if path.suffix == ".safetensors":
            with _safetensors(path) as file:
                return _get(file, name, path)
        if self._shard is None or self._shard[0] != path:
            self._shard = path, read_bin(path)
        return _get(self._shard[1], name, path)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, without reading it."""
        path = self.files[name]
        if path.suffix == ".safetensors":
            with _safetensors(path) as file:
                return tuple(file.get_slice(name).get_shape())
        return tuple(self.read(name).shape)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, mapped; `UserError` where it is damaged."""
    with _safetensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)


def read_bin(path: Path) -> dict[str, Tensor]:
    """All tensors of a torch file, mapped; what is not a tensor, and any code, is refused.

    `UserError` where the file is damaged, of the format before torch 1.6, or holds code.
    """
    if not zipfile.is_zipfile(path):
        raise _damaged(path, "it has no end; or it is of torch's format before 1.6")
    try:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except UNSAFE:
        raise UserError(
            "{path} holds more than tensors, and code in it is not run; convert it to "
            "safetensors where you trust it",
            path=path,
        ) from None
    except (RuntimeError, EOFError, ValueError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from None
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise _damaged(path, "it is not a table of tensors")
    return state


def _indexed(directory: Path, index: str) -> dict[str, Path]:
    table = _weight_map(directory / index)
    outside = [name for name in table.values() if Path(name).name != name]
    if outside:
        raise _damaged(directory / index, f"it names {outside[0]!r}, which is not in this folder")
    wanted = sorted(set(table.values()))
    missing = [name for name in wanted if not (directory / name).is_file()]
    if missing:
        raise UserError(
            "{directory} lacks {missing_count} of {wanted_count} shards: {missing}; download "
            "what is missing",
            directory=directory,
            missing_count=len(missing),
            wanted_count=len(wanted),
            missing=", ".join(missing),
        )
    held = {shard: _names(directory / shard) for shard in wanted}
    for name, shard in table.items():
        if name not in held[shard]:
            raise _damaged(directory / shard, f"{index} says that it holds {name}")
    return {name: directory / shard for name, shard in table.items()}


def _weight_map(path: Path) -> dict[str, str]:
    try:
        table = json.loads(path.read_text("utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError):
        raise _damaged(path, "it is not an index") from None
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise _damaged(path, "it is not an index")
    return table


def _names(path: Path) -> set[str]:
    """The tensors that a file holds; raises where it is not whole."""
    if path.suffix == ".safetensors":
        with _safetensors(path) as file:
            return set(file.keys())
    return set(read_bin(path))


def _safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise _damaged(path, str(error)) from None


def _get(tensors: Any, name: str, path: Path) -> Tensor:
    try:
        return tensors[name] if isinstance(tensors, dict) else tensors.get_tensor(name)
    except SafetensorError as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, why: str) -> UserError:
    size = path.stat().st_size
    with path.open("rb") as file:
        pointer = file.read(len(POINTER)) == POINTER
    if pointer:
        return UserError(
            "{path} is a pointer of git-lfs ({size} bytes), not the file; run: git lfs pull",
            path=path,
            size=size,
        )
    return UserError(
        "{path} ({size:,} bytes) is damaged: {why}; download it again",
        path=path,
        size=size,
        why=why,
    )
