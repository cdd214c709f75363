"""A generator of a faulty engine, and the notes for the user."""

from dataclasses import dataclass, field
from typing import Any

from rag.endpoint import EndpointOptions, generator
from rag.endpoint.generator import EndpointGenerator
from rag.types import Message, Sampling
from tests.faulty import Faulty

ASKED = (Message("user", "试用期最长多久？"),)


@dataclass
class Reached:
    generator: EndpointGenerator
    notes: list[str] = field(default_factory=list)

    def reply(self, sampling: Sampling | None = None) -> str:
        return "".join(self.generator.stream(ASKED, sampling or Sampling()))


def reach(engine: Faulty | str, **options: Any) -> Reached:
    address = engine if isinstance(engine, str) else engine.address
    notes: list[str] = []
    endpoint = EndpointOptions(**options)
    return Reached(generator.reach(address, endpoint, note=notes.append), notes)
