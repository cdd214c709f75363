"""A generator of a faulty engine, with the notes that it shows to the user."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rag.endpoint import EndpointOptions, generator
from rag.endpoint.generator import EndpointGenerator
from rag.generate import until
from rag.types import Message, Sampling
from tests.faulty import Faulty

QUESTION = (Message("user", "试用期最长多久？"),)


@dataclass
class Client:
    generator: EndpointGenerator
    notes: list[str] = field(default_factory=list)

    def reply(self, sampling: Sampling | None = None) -> str:
        return self.reply_and_reason(sampling)[0]

    def reply_and_reason(self, sampling: Sampling | None = None) -> tuple[str, str]:
        pieces: list[str] = []

        def finish() -> Iterator[str]:
            reason = yield from until(self.generator.stream(QUESTION, sampling or Sampling()), (), pieces)
            yield reason

        *_, reason = finish()
        return "".join(pieces), reason


def connect(engine: Faulty | str, **options: Any) -> Client:
    address = engine if isinstance(engine, str) else engine.address
    notes: list[str] = []
    endpoint = EndpointOptions(**options)
    return Client(generator.reach(address, endpoint, note=notes.append), notes)
