"""A measured peak: the most bytes that tensors hold while a training step runs.

`torch.distributed._tools.mem_tracker` hooks the gradient of every parameter and so refuses models
with frozen ones.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import finalize

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Counts the storages of all tensors that are made while it is entered, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._sizes: dict[int, int] = {}

    @property
    def now(self) -> int:
        """Bytes that were allocated here and are not freed."""
        return sum(self._sizes.values())

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        inputs = {_key(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for value in tree_leaves(output):
            if isinstance(value, Tensor) and (key := _key(value)) not in inputs | set(self._sizes):
                self._sizes[key] = value.untyped_storage().nbytes()
                finalize(value.untyped_storage(), self._sizes.pop, key)
                self.peak = max(self.peak, self.now)
        return output


def _key(value: Tensor) -> int:
    """The same for all views of one storage."""
    return value.untyped_storage()._cdata
