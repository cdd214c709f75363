"""A language model on a server: any endpoint with OpenAI's API of chat completions, by its address
`http://host:port/v1#model`.

vLLM, SGLang, llama.cpp's server and Ollama report the model's window and the tokens of a prompt; for
any other engine, users may configure them.
"""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from ingest.errors import UserError

KEY = "RAG_MODEL_KEY"  # the variable that holds the key, if one is needed
ADDRESS = re.compile(r"https?:|[a-z]+://|[\w.-]+:\d{2,5}(?:[/#]|$)", re.IGNORECASE)
"""The start of a model's name that is the address of a server, rather than a folder or a name on a hub.

Also matches incomplete addresses, such as `host:8000`: `Address.parse` shows how to write them."""


@dataclass(frozen=True, slots=True)
class Address:
    """`base` comes before `/chat/completions`; `model` is the name there, empty for the only one."""

    base: str
    model: str
    host: str

    @classmethod
    def parse(cls, text: str) -> "Address":
        """`http://host:port` means `http://host:port/v1`. Raises `UserError` if the text is not a valid
        address, or contains a secret."""
        url, _, model = text.partition("#")
        try:
            parts = urlsplit(url)
            _ = parts.port  # raises if it is not a number
        except ValueError:
            parts = urlsplit("")
        web = parts.scheme in ("http", "https") and parts.hostname and not parts.query
        if not web or "@" in parts.netloc or re.search(r"\s", url):
            raise UserError(
                "{url} is not an endpoint's address: write http://host:port/v1#model, and put a key into the "
                "variable {key}",
                url=url.rpartition("@")[2], key=KEY,
            )  # fmt: skip
        path = parts.path.rstrip("/").removesuffix("/chat/completions").rstrip("/")
        base = f"{parts.scheme.lower()}://{parts.netloc}{path or '/v1'}"
        return cls(base, model.strip(), parts.hostname or "")

    @property
    def root(self) -> str:
        """The prefix of an engine's own paths, which are not in OpenAI's API."""
        return self.base.removesuffix("/v1")

    @property
    def name(self) -> str:
        """The model's name, or its server."""
        return self.model or self.base.partition("://")[2].removesuffix("/v1")

    @property
    def local(self) -> bool:
        """Whether this machine is the server."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def no_adapter(address: Address, adapter: str) -> UserError:
    """The error for an adapter's folder with a model on a server."""
    return UserError(
        "adapter is {adapter}, but the model is served at {base}; leave it out: vLLM and SGLang "
        "serve an adapter as a separate model, whose name goes after #",
        adapter=adapter,
        base=address.base,
    )


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """What an endpoint may not report about its model, and timeouts."""

    context: int = 0
    """The model's window in tokens, prompt and answer together; 0: as the engine reports."""
    tokenizer: str = ""
    """A folder with the model's tokenizer, to count tokens; empty: the engine counts."""
    connect_seconds: float = 10
    """Seconds until a connection must be established."""
    silence_seconds: float = 300
    """Seconds without a byte until a request fails; reading a prompt may take minutes."""
    tries: int = 5
    """Maximum number of requests until an answer begins."""

    def __post_init__(self) -> None:
        lowest = {"context": 0, "connect_seconds": 0.1, "silence_seconds": 0.1, "tries": 1}
        for name, least in lowest.items():
            if (value := getattr(self, name)) < least:
                raise UserError(
                    "[generate.endpoint] {name} is {value}; need {least} or more",
                    name=name, value=value, least=least,
                )  # fmt: skip
