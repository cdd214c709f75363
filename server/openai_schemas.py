"""The shapes of OpenAI's API, as far as they have a meaning here."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from server import schemas


class Part(BaseModel):
    type: Literal["text"]
    text: str = Field(max_length=100_000)


class ChatMessage(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Field(max_length=100_000)] | list[Part] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(BaseModel):
    include_usage: bool = False


class Chat(BaseModel):
    """What of OpenAI's request has a meaning here. Fields that are not known are let pass, as
    clients send many; those that would change the answer and can't be had are refused."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(max_length=200, examples=["laws"])
    knowledge_base: schemas.BaseName | None = None
    """The knowledge base, where `model` has to be something else."""
    messages: list[ChatMessage] = Field(min_length=1, max_length=200)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=32_768)
    max_completion_tokens: int | None = Field(None, ge=1, le=32_768)
    temperature: float | None = Field(None, ge=0, le=10)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    n: int | None = Field(1, ge=1, le=1)
    tools: list[Any] | None = Field(None, max_length=0)


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
    finish_reason: Literal["stop"] = "stop"
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
    hits: list[schemas.Hit]


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "chatglm-rag"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Embed(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str = Field(max_length=200, examples=["laws"])
    """A knowledge base, whose encoder is used."""
    input: (
        Annotated[str, Field(min_length=1, max_length=100_000)]
        | Annotated[
            list[Annotated[str, Field(min_length=1, max_length=100_000)]],
            Field(min_length=1, max_length=256),
        ]
    )
    input_type: Literal["passage", "query"] = "passage"
    """Passages and questions are embedded differently."""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)


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
