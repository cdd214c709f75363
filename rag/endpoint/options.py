"""How a model that is served elsewhere is asked."""

from dataclasses import dataclass

from ingest.errors import UserError


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """What an endpoint does not say of its model, and how long it is waited for."""

    context: int = 0
    """The model's window in tokens, prompt and answer together; 0: as the engine says."""
    tokenizer: str = ""
    """A folder with the model's tokenizer, to count with; empty: the engine counts."""
    connect_seconds: float = 10
    """So long a connection may take."""
    silence_seconds: float = 300
    """After so long without a byte an engine counts as dead: reading a prompt may take minutes."""
    tries: int = 5
    """Requests in all, before the first word of an answer has come."""

    def __post_init__(self) -> None:
        for name, least in (("context", 0), ("tries", 1)):
            _check(name, getattr(self, name), getattr(self, name) >= least, f"{least} or more")
        for name in ("connect_seconds", "silence_seconds"):
            _check(name, getattr(self, name), getattr(self, name) > 0, "more than 0")


def _check(name: str, value: float, fits: bool, need: str) -> None:
    if not fits:
        zh = {"more than 0": "须大于 0"}.get(need, f"须不小于 {need.split()[0]}")
        raise UserError(
            f"[generate.endpoint] {name} is {value}; need {need}",
            zh=f"[generate.endpoint] {name} 为 {value}；{zh}",
        )
