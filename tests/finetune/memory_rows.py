"""Rows of training in memory."""

from collections.abc import Sequence
from hashlib import sha256
from typing import overload

import numpy as np
from numpy.typing import NDArray

from finetune.types import TokenRow


class MemoryRows(Sequence[TokenRow]):
    """`TokenRows` in memory."""

    def __init__(self, rows: Sequence[TokenRow]) -> None:
        self.rows = list(rows)

    @property
    def lengths(self) -> NDArray[np.int32]:
        return np.array([len(row) for row in self.rows], np.int32)

    @property
    def digest(self) -> str:
        hash = sha256()
        for row in self.rows:
            hash.update(len(row).to_bytes(4) + row.ids.tobytes() + row.labels.tobytes())
        return hash.hexdigest()[:32]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> TokenRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenRow]: ...
    def __getitem__(self, index: int | slice) -> TokenRow | list[TokenRow]:
        return self.rows[index]
