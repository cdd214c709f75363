"""How many bytes of tensors there are at once, as a piece of code makes and drops them."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import finalize

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SMALL = 32 << 20
"""Bytes from which glibc's malloc gives a piece pages of its own, and takes them back at once."""


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
        self.small = 0
        """How many of them were in pieces of less than `SMALL`."""
        self._held: dict[int, tuple[str, int]] = {}
        self._now: Counter[str] = Counter()
        self._small = 0

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
        self._small += _small(storage.nbytes())
        if self.now > sum(self.peak.values()):
            self.peak, self.small = dict(self._now), self._small
        finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        stage, size = self._held.pop(key)
        self._now[stage] -= size
        self._small -= _small(size)


def _small(size: int) -> int:
    return size if size < SMALL else 0


def _key(value: Tensor) -> int:
    """One for all views of the same memory."""
    return value.untyped_storage()._cdata


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Of memory that they hold, shared memory once."""
    storages = {_key(value): value.untyped_storage().nbytes() for value in tensors}
    return sum(storages.values())
