"""How many bytes of tensors there are at once, as a piece of code makes and drops them."""

import ctypes
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import finalize

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

M_MMAP_THRESHOLD, FIRST = -3, 128 << 10
"""glibc's name for the size from which a piece has pages of its own, and its first value of it."""


class Allocated(TorchDispatchMode):
    """Counts the memory of all tensors that are made while it is entered, until they are dropped.

    Tensors without memory (fake ones) count as if they had it. What a kernel takes for itself while
    it runs is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stage = ""
        """What tensors are now made for; set it as the work goes on."""
        self.peak: Mapping[str, int] = {}
        """Bytes by stage at the moment when there were most."""
        self._held: dict[int, tuple[str, int]] = {}
        self._now: Counter[str] = Counter()

    @property
    def now(self) -> int:
        """Bytes of tensors that were made here and are still there."""
        return self._now.total()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {_key(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for value in tree_leaves(made):
            if isinstance(value, Tensor) and _key(value) not in given:
                self._add(value)
        return made

    def _add(self, value: Tensor) -> None:
        storage, key = value.untyped_storage(), _key(value)
        if key in self._held:
            return
        self._held[key] = self.stage, storage.nbytes()
        self._now[self.stage] += storage.nbytes()
        if self.now > sum(self.peak.values()):
            self.peak = dict(self._now)
        finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        stage, size = self._held.pop(key)
        self._now[stage] -= size


def _key(value: Tensor) -> int:
    """One for all views of the same memory."""
    return value.untyped_storage()._cdata


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Of memory that they hold, shared memory once."""
    storages = {_key(value): value.untyped_storage().nbytes() for value in tensors}
    return sum(storages.values())


def own_pages() -> None:
    """Have every tensor get pages of its own, which go back to the system when it is dropped.

    glibc's malloc stops doing so for sizes that it has seen dropped, up to 32 MiB, and can't fill
    the holes that they leave, as torch asks for aligned pieces: a training then holds up to twice
    what it uses. The pages cost some time (docs/log.md). Where malloc is another's nothing happens.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, FIRST)
