"""The language models that answers write with: one in memory, lent to one answer at a time, and any
that are served elsewhere."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rag.generate import Adaptable, GenerateOptions, Generator, load
from rag.types import Message, Sampling

Loading = Callable[[GenerateOptions], Adaptable]


class Models:
    """Brings models by `loading`, which is given options without adapter. Another model takes the
    place of the one before."""

    def __init__(self, loading: Loading) -> None:
        self._loading = loading
        self._held: tuple[tuple[str, str], Adaptable] | None = None
        self._served: dict[GenerateOptions, Adaptable] = {}

    def generator(self, options: GenerateOptions) -> Generator | None:
        """What answers as the options say, from when it is first used; None where they name no
        model."""
        if options.served:
            where = GenerateOptions(options.model, endpoint=options.endpoint)
            if where not in self._served:
                self._served[where] = self._loading(where)
            return self._served[where]
        return Lent(self, options) if options.model else None

    def bring(self, options: GenerateOptions) -> Adaptable:
        """The model of the options with their adapter. For whoever has the turn to write."""
        which = options.model, options.quant
        if self._held is None or self._held[0] != which:
            self._held = None  # memory for two is not to be had
            self._held = which, self._loading(replace(options, adapter=""))
        model = self._held[1]
        model.use(Path(options.adapter) if options.adapter else None)
        return model

    def stop(self) -> None:
        """End the reply under way."""
        if self._held:
            self._held[1].stop()


@dataclass(frozen=True)
class Lent:
    """A knowledge base's generator: the one model, brought whenever it is used."""

    models: Models
    options: GenerateOptions

    @property
    def name(self) -> str:
        return Path(self.options.model).resolve().name

    @property
    def context(self) -> int:
        return self.models.bring(self.options).context

    def count(self, messages: Sequence[Message]) -> int:
        return self.models.bring(self.options).count(messages)

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
        yield from self.models.bring(self.options).stream(messages, sampling)

    def stop(self) -> None:
        self.models.stop()


def loader(cache: Path, note: Callable[[str], None]) -> Loading:
    """Loads models as the command line does; a name on a hub is fetched into `cache`."""

    def bring(options: GenerateOptions) -> Adaptable:
        return load(options, cache=cache / "models", progress=lambda share: None, note=note)

    return bring
