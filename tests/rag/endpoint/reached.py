"""A generator of a faulty engine, whose pauses between two tries are noted instead of waited."""

from dataclasses import dataclass, field
from typing import Any

from rag.endpoint import Address, EndpointOptions
from rag.endpoint.generator import Endpoint, EndpointGenerator
from rag.types import Message, Sampling
from tests.faulty import Faulty

ASKED = (Message("user", "试用期最长多久？"),)


@dataclass
class Reached:
    generator: EndpointGenerator
    pauses: list[float] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)

    def reply(self, sampling: Sampling | None = None) -> str:
        return "".join(self.generator.stream(ASKED, sampling or Sampling()))


def reach(engine: Faulty | str, *, key: str = "", **options: Any) -> Reached:
    where = engine if isinstance(engine, str) else engine.address
    pauses: list[float] = []
    notes: list[tuple[str, str]] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    endpoint = Endpoint(
        Address.parse(where),
        EndpointOptions(**options),
        key=key,
        note=lambda en, zh: notes.append((en, zh)),
        sleep=pause,
    )
    return Reached(EndpointGenerator(endpoint), pauses, notes)
