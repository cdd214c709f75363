"""The cost curve: plans from 10,000 to 1,000,000,000 chunks, and where each engine takes over."""

from collections.abc import Mapping, Sequence

from rag.plan.constants import Constants
from rag.plan.generation import GPUS
from rag.plan.load import Load
from rag.plan.model import ENGINES, Engine, Limits, Plan, first, plans

SIZES = tuple(10**power for power in range(4, 10))
QPS = 5.0


def at(
    constants: Constants, chunks: int, *, qps: float = QPS, limits: Limits | None = None
) -> dict[Engine, Plan]:
    """Every engine's plan for so many chunks of documents like those measured."""
    like = constants.kind()
    load = Load(
        max(1, round(chunks * like.files / like.chunks)),
        chunks,
        qps,
        chunks * like.seconds / like.chunks,
    )
    return plans(constants, load, limits or Limits(), gpu=GPUS["a100"])


def takeovers(
    constants: Constants,
    *,
    qps: float = QPS,
    limits: Limits | None = None,
    sizes: Sequence[int] = SIZES,
) -> Mapping[Engine, int]:
    """The fewest chunks between the first and the last of `sizes` at which each engine is the first
    that suffices; without those that never are. Halving finds it: what is too much for an engine
    stays so for more chunks.
    """

    def order(chunks: int) -> int:
        return ENGINES.index(first(at(constants, chunks, qps=qps, limits=limits)).engine)

    found: dict[Engine, int] = {}
    low, high = sizes[0], sizes[-1]
    for wanted, engine in enumerate(ENGINES):
        if order(high) < wanted:
            break
        below, reached = low, high
        if order(low) >= wanted:
            reached = low
        while below + 1 < reached and order(low) < wanted:
            middle = (below + reached) // 2
            below, reached = (below, middle) if order(middle) >= wanted else (middle, reached)
        if order(reached) == wanted:
            found[engine] = reached
    return found
