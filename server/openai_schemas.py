"""The shapes of OpenAI's API, as far as they have a meaning here."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rag.pipeline import LONGEST_QUESTION
from server import schemas


class Lenient(BaseModel):
    """A request. Fields that are not known are let pass, as clients send many; those that would
    change the answer and can't be had are refused."""

    model_config = ConfigDict(extra="allow", strict=True)


class Part(Lenient):
    type: Literal["text"]
    text: str = Field(min_length=1, max_length=LONGEST_QUESTION)


class UserMessage(Lenient):
    """A question; the last one is answered."""

    role: Literal["user"]
    content: schemas.Question | Annotated[list[Part], Field(min_length=1, max_length=20)]

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class AssistantMessage(Lenient):
    """An answer of before."""

    role: Literal["assistant"]
    content: Annotated[str, Field(max_length=100_000)] | None = None

    @property
    def text(self) -> str:
        return self.content or ""


class SystemMessage(Lenient):
    """Taken and left out: the knowledge base's own instruction holds."""

    role: Literal["system", "developer"]
    content: str | list[Part]


ChatMessage = Annotated[UserMessage | AssistantMessage | SystemMessage, Field(discriminator="role")]
ASKED: dict[str, Any] = {
    "contains": {"properties": {"role": {"const": "user"}}, "required": ["role"]}
}


class StreamOptions(Lenient):
    include_usage: bool = False


class Chat(Lenient):
    """What of OpenAI's request has a meaning here."""

    model: str = Field(min_length=1, max_length=200, examples=["laws"])
    """A knowledge base, or anything where `knowledge_base` names one."""
    knowledge_base: schemas.BaseName | None = None
    messages: list[ChatMessage] = Field(min_length=1, max_length=200, json_schema_extra=ASKED)
    """One of the user at least, whose last is the question."""
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: schemas.Tokens | None = None
    max_completion_tokens: schemas.Tokens | None = None
    temperature: schemas.Temperature | None = None
    top_p: schemas.TopP | None = None
    seed: schemas.Seed | None = None
    n: Annotated[int, Field(strict=False, ge=1, le=1), schemas.WHOLE] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None


class UrlCitation(BaseModel):
    start_index: int
    end_index: int
    """Of the mark in the content."""
    title: str
    url: str
    """The document's text, below this server's address."""


class Annotation(BaseModel):
    type: Literal["url_citation"] = "url_citation"
    url_citation: UrlCitation
    citation: schemas.Citation
    """The quote and where it stands, exactly."""


class Reply(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None
    annotations: list[Annotation]


class Choice(BaseModel):
    index: int = 0
    message: Reply
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    refused: bool
    """Whether the documents do not answer the question."""
    sequence: int
    """The change of the knowledge base that the passages were found at."""
    hits: list[schemas.Hit]


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "chatglm-rag"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


Input = Annotated[str, Field(min_length=1, max_length=20_000)]


class Embed(Lenient):
    model: schemas.BaseName
    """A knowledge base, whose encoder is used."""
    input: Input | Annotated[list[Input], Field(min_length=1, max_length=256)]
    input_type: Literal["passage", "query"] = "passage"
    """Passages and questions are embedded differently."""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(strict=False, ge=1), schemas.WHOLE] | None = None


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
