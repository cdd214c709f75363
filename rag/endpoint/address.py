"""Where a model is served: `http://host:port/v1#model`."""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from ingest.errors import UserError
from ingest.i18n import Translatable

KEY = "RAG_MODEL_KEY"
"""The variable that holds the key, where one is needed."""
_ADDRESS = re.compile(r"https?:|[a-z]+://|[\w.-]+:\d{2,5}(?:[/#]|$)", re.IGNORECASE)
"""Mistyped ones too, such as `host:8000`: `Address.parse` says how they are written."""


def is_address(model: str) -> bool:
    """Whether a model's name says where it is served, rather than where its files are."""
    return bool(_ADDRESS.match(model))


@dataclass(frozen=True, slots=True)
class Address:
    """`base` is what `/chat/completions` hangs below; `model` its name there, empty for the only one."""

    base: str
    model: str
    host: str

    @classmethod
    def parse(cls, text: str) -> "Address":
        """`http://host:port` means `http://host:port/v1`. Raises `UserError` if the text is not a valid
        address, or holds a secret."""
        where, _, model = text.partition("#")
        try:
            parts = urlsplit(where)
            _ = parts.port  # raises if it is not a number
        except ValueError as error:
            raise _wrong(where, Translatable("{error}", error=error)) from None
        if "@" in parts.netloc:
            raise _wrong(
                f"{parts.scheme}://…@{parts.netloc.rpartition('@')[2]}",
                Translatable(
                    "a name or password has no place in it; put a key into the variable {key}",
                    key=KEY,
                ),
            )
        web = parts.scheme in ("http", "https")
        if not web or not parts.hostname or parts.query or re.search(r"\s", where):
            raise _wrong(where, Translatable("it is not of the form"))
        return cls(_base(parts), model.strip(), parts.hostname)

    @property
    def root(self) -> str:
        """What an engine's own paths hang below, beside those of OpenAI's API."""
        return self.base.removesuffix("/v1")

    @property
    def name(self) -> str:
        """The model, or where it is served."""
        return self.model or self.base.partition("://")[2].removesuffix("/v1")

    @property
    def local(self) -> bool:
        """Whether it is this very machine."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def _base(parts: SplitResult) -> str:
    path = parts.path.rstrip("/").removesuffix("/chat/completions").rstrip("/")
    return f"{parts.scheme.lower()}://{parts.netloc}{path or '/v1'}"


def _wrong(where: str, why: Translatable) -> UserError:
    return UserError(
        "{where} is not an endpoint's address: {why}; write http://host:port/v1#model",
        where=where,
        why=why,
    )


def no_adapter(address: Address, adapter: str) -> UserError:
    """That an adapter's folder can't be used by a model that is served elsewhere."""
    return UserError(
        "adapter is {adapter}, but the model is served at {base}; leave it out: vLLM and "
        "SGLang serve an adapter as a model of its own, to be named behind #",
        adapter=adapter,
        base=address.base,
    )


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """What an endpoint does not say of its model, and how long it is waited for."""

    context: int = 0
    """The model's window in tokens, prompt and answer together; 0: as the engine says."""
    tokenizer: str = ""
    """A folder with the model's tokenizer, to count with; empty: the engine counts."""
    connect_seconds: float = 10
    """A connection may take so long."""
    silence_seconds: float = 300
    """After so long without a byte an engine counts as dead: reading a prompt may take minutes."""
    tries: int = 5
    """Requests in all, until an answer begins."""

    def __post_init__(self) -> None:
        lowest = {"context": 0, "connect_seconds": 0.1, "silence_seconds": 0.1, "tries": 1}
        for name, least in lowest.items():
            if (value := getattr(self, name)) < least:
                raise UserError(
                    "[generate.endpoint] {name} is {value}; need {least} or more",
                    name=name,
                    value=value,
                    least=least,
                )
