"""Language models that write answers: the protocol, its settings, and lazy loading."""

from collections.abc import Callable, Sequence
from collections.abc import Generator as Steps
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.endpoint import ADDRESS, Address, EndpointOptions, no_adapter
from rag.types import FinishReason, Message, Sampling

if TYPE_CHECKING:
    from rag.endpoint.generator import EndpointGenerator

Quant = Literal["auto", "none", "int4", "int8", "nf4"]
Reply = Steps[str, None, FinishReason]
"""The pieces of a reply, and, as what the generator function returns, why it ended."""


class Generator(Protocol):
    """A language model. `context` is its window in tokens, for prompt and answer together."""

    @property
    def name(self) -> str: ...

    @property
    def context(self) -> int: ...

    def count(self, messages: Sequence[Message]) -> int:
        """The number of tokens of the whole prompt that `stream` would build from `messages`."""
        ...

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        """The reply piece by piece; closing the generator stops the model."""
        ...

    def stop(self) -> None:
        """End the current reply, if any, as if it were complete. May be called from any thread, also
        while the model reads the prompt."""
        ...


def check_sampling(sampling: Sampling) -> None:
    """Raises `UserError` if a value is out of its range."""
    if (n := sampling.max_new_tokens) < 1:
        raise UserError("max_new_tokens is {n}; need 1 or more", n=n)
    if (x := sampling.temperature) is not None and not 0 <= x < float("inf"):
        raise UserError("temperature is {x}; need 0 (always the likeliest) or more", x=x)
    if (x := sampling.top_p) is not None and not 0 < x <= 1:
        raise UserError("top_p is {x}; need above 0 and at most 1", x=x)


def until(reply: Reply, stops: Sequence[str], shown: list[str]) -> Reply:
    """The reply up to the first of `stops`, which may lie in several of its pieces; its own pieces are
    also added to `shown`."""
    text, sent, held = "", 0, max(map(len, stops), default=1) - 1
    reason: FinishReason | None = None
    while reason is None:
        try:
            text += next(reply)
        except StopIteration as end:
            reason, held = end.value or "stop", 0
        found = [at for stop in stops if (at := text.find(stop, sent)) >= 0]
        if found:
            reason = "stop"
        end_of_piece = min(found, default=max(sent, len(text) - held))
        if end_of_piece > sent:
            shown.append(text[sent:end_of_piece])
            yield shown[-1]
        sent = end_of_piece
    reply.close()
    return reason


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """The language model of a knowledge base, and its sampling."""

    model: str = ""
    """A model's folder, its name on a hub, or the address of a served model:
    `http://host:port/v1#model`; empty: answers are sentences of the documents."""
    quant: Quant = "auto"
    """Quantization of its weights: int4 or int8 (CPU), nf4 (CUDA), none; auto: what fits."""
    adapter: str = ""
    """The folder of a LoRA or P-Tuning adapter for it; empty for none."""
    max_new_tokens: int = 512
    """The largest number of tokens of an answer, reserved in the window."""
    temperature: float | None = None
    """0: always the likeliest token; unset: the model's default."""
    top_p: float | None = None
    """Tokens are drawn from the likeliest with this total probability; unset: the model's default."""
    seed: int = 0
    """The same seed gives the same answer."""
    endpoint: EndpointOptions = EndpointOptions()
    """Options of a model that is served elsewhere."""

    def __post_init__(self) -> None:
        try:
            check_sampling(self.sampling)
        except UserError as error:
            raise UserError("[generate] {problem}", problem=error.message) from None
        if self.quant not in get_args(Quant):
            known = ", ".join(get_args(Quant))
            raise UserError("quant is {quant}; need one of {known}", quant=self.quant, known=known)
        if self.adapter and not self.model:
            raise UserError(
                "[generate] adapter is {adapter}, but there is no model; give the model that it was "
                "trained for",
                adapter=self.adapter,
            )
        if self.served:
            address = Address.parse(self.model)
            if self.adapter:
                raise no_adapter(address, self.adapter)
            if self.quant != "auto":
                raise UserError(
                    "quant is {quant}, but the weights are held at {base}; leave it out",
                    quant=self.quant,
                    base=address.base,
                )

    @property
    def served(self) -> bool:
        """Whether the model is served elsewhere: nothing is loaded, and it answers concurrently."""
        return ADDRESS.match(self.model) is not None

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.max_new_tokens, self.temperature, self.top_p, self.seed)


def load(
    options: GenerateOptions,
    *,
    cache: Path,
    progress: Callable[[float], None],
    note: Callable[[Translatable], None],
    reading: Callable[[float], None] | None = None,
) -> "Adaptable":
    """The generator that `options` name. A model on a hub is downloaded into `cache`.

    `progress` gets the share that is loaded, 0 to 1, `note` each assumption about the adapter, and
    `reading` the share of a prompt that a model in this process has read.
    """
    if options.served:
        return reach(options, note=note)
    from rag.chatglm.generator import open_generator  # loads torch and transformers

    folder = Path(options.model).expanduser()
    if not (folder / "config.json").is_file():
        from rag.chatglm.hub import fetch

        folder = fetch(options.model, cache=cache)
    return open_generator(
        folder,
        quant=options.quant,
        adapter=Path(options.adapter) if options.adapter else None,
        progress=progress,
        note=note,
        reading=reading,
    )


def reach(options: GenerateOptions, *, note: Callable[[Translatable], None]) -> "EndpointGenerator":
    """The generator of a served model, without a request yet; `note` gets messages for the user."""
    from rag.endpoint import generator

    return generator.reach(options.model, options.endpoint, note=note)


class Adaptable(Generator, Protocol):
    """A generator that can change its adapter between two replies."""

    def use(self, adapter: Path | None) -> tuple[str, ...]:
        """Reply with the adapter in this folder from now on; None: without one.

        Returns the assumptions about the adapter, as messages for the user.
        """
        ...


class LazyGenerator:
    """The generator that `load` returns, loaded at the first use of anything but its name."""

    def __init__(self, name: str, load: Callable[[], Adaptable]) -> None:
        self.name = name
        self._load = load

    @cached_property
    def _loaded(self) -> Adaptable:
        return self._load()

    @property
    def context(self) -> int:
        return self._loaded.context

    def use(self, adapter: Path | None) -> tuple[str, ...]:
        return self._loaded.use(adapter)

    def count(self, messages: Sequence[Message]) -> int:
        return self._loaded.count(messages)

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        return self._loaded.stream(messages, sampling)

    def stop(self) -> None:
        if "_loaded" in vars(self):  # otherwise there is no reply to stop
            self._loaded.stop()
