"""What goes over the wire. Offsets count characters of a document's text, Unicode code points."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from rag.pipeline import LONGEST_QUESTION

NAME = r"^[\w\-]{1,64}$"
"""A knowledge base's name: letters of any script, digits, `_` and `-`."""

BaseName = Annotated[str, Field(pattern=NAME, examples=["laws"])]
Question = Annotated[
    str,
    Field(
        min_length=1,
        max_length=LONGEST_QUESTION,
        pattern=r"[^\s\x1c-\x1f]",  # more than what Python strips
        examples=["试用期最长不得超过几个月？"],
    ),
]


def _number(value: Any) -> Any:
    """A number of JSON, which may be written 5.0; neither a text nor true."""
    if type(value) not in (int, float):
        raise ValueError("a whole number is needed")
    return value


WHOLE = BeforeValidator(_number)
Tokens = Annotated[int, Field(strict=False, ge=1, le=32_768), WHOLE]
Temperature = Annotated[float, Field(ge=0, le=10)]
TopP = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(strict=False, ge=0, le=2**53), WHOLE]
Scope = Literal["read", "write", "admin"]
JobState = Literal["receiving", "queued", "running", "done", "failed", "cancelled"]
FileState = Literal["waiting", "added", "changed", "unchanged", "refused", "cancelled"]


class Strict(BaseModel):
    """A request: a field that is not known is a mistake, not noise."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Problem(BaseModel):
    message: str
    """One line in the reader's language (Accept-Language)."""
    type: str
    param: str | None = None
    code: str


class Failure(BaseModel):
    """Every answer of 4xx and 5xx, under /v1 as elsewhere."""

    error: Problem


class Status(BaseModel):
    status: Literal["ok", "ready"]


class Session(BaseModel):
    """Who asks, and what this server allows."""

    key: str | None
    """The key's name; null where no key is needed."""
    scopes: list[Scope]
    embedders: list[str]
    adapters: list[str]
    formats: list[str]
    """Extensions of files that can be read."""
    largest_upload: int
    """Bytes of one file."""
    most_files: int
    """Files of one upload."""
    version: str


class NewKnowledgeBase(Strict):
    name: BaseName
    embedder: str = ""
    """One of the session's `embedders`; empty for the first."""
    instruction: str = Field("", max_length=4000)
    """What the language model is told instead of the usual instruction; plain text."""
    adapter: str = ""
    """One of the session's `adapters`; empty for none."""


class KnowledgeBaseChange(Strict):
    instruction: str | None = Field(None, max_length=4000)
    adapter: str | None = None


class KnowledgeBase(BaseModel):
    """A knowledge base."""

    name: str
    documents: int
    chunks: int
    bytes: int | None
    created: str
    sequence: int
    """The number of its newest change; an answer names the one that its passages were found at."""
    embedder: str
    instruction: str
    adapter: str
    generator: str
    """The language model's name; empty where answers are sentences of the documents."""
    scopes: list[Scope]
    """What the key may do with it."""
    problem: str | None = None
    """Why it can't be used, if that is so."""

    @classmethod
    def unusable(cls, name: str, scopes: list[Scope], problem: str) -> "KnowledgeBase":
        return cls(
            name=name, documents=0, chunks=0, bytes=0, created="", sequence=0, embedder="",
            instruction="", adapter="", generator="", scopes=scopes, problem=problem,
        )  # fmt: skip


class BaseList(BaseModel):
    knowledge_bases: list[KnowledgeBase]


class Receipt(BaseModel):
    """How a file's bytes became text."""

    format: str
    encoding: str | None
    replaced: int
    """Bytes that could not be decoded."""
    ocr_pages: int
    warnings: list[str]


class Document(BaseModel):
    id: str
    name: str
    title: str
    length: int
    """Characters of its text."""
    pages: bool
    """Whether a page of it can be shown as a picture."""
    receipt: Receipt


class DocumentList(BaseModel):
    documents: list[Document]
    total: int
    """How many match `q`, on all pages."""


class Text(BaseModel):
    text: str
    start: int
    end: int
    length: int
    """Characters of the whole document."""


class JobFile(BaseModel):
    name: str
    size: int
    state: FileState
    chunks: int
    receipt: Receipt | None
    problem: str | None
    """Why it was refused."""


class Job(BaseModel):
    """Work that goes on whether or not anybody waits, also after a restart."""

    id: str
    kind: Literal["ingest", "purge"]
    knowledge_base: str
    state: JobState
    created: float
    """Seconds since 1970, as all times here."""
    started: float | None
    finished: float | None
    files_done: int
    files_total: int
    bytes_done: int
    bytes_total: int
    chunks: int
    """Embedded so far."""
    error: str | None
    files: list[JobFile]


class JobList(BaseModel):
    jobs: list[Job]


class Turn(Strict):
    role: Literal["user", "assistant"]
    content: str = Field(max_length=20_000)


class Search(Strict):
    question: Question
    knowledge_base: BaseName
    limit: Annotated[int, Field(strict=False, ge=1, le=100), WHOLE] = 5


class Ask(Strict):
    question: Question
    knowledge_base: BaseName
    history: list[Turn] = Field([], max_length=100)
    stream: bool = False
    """Server-sent events instead of one JSON value; so does `Accept: text/event-stream`."""
    max_new_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None


class Hit(BaseModel):
    """A chunk that was found. Invariant: the document's text[start:end] == text."""

    score: float
    name: str
    title: str
    label: str
    document: str
    start: int
    end: int
    text: str


class Citation(BaseModel):
    """A quote. Invariant: the document's text[start:end] == quote."""

    number: int
    name: str
    title: str
    label: str
    """Page, heading, sheet or row in words."""
    page: int | None
    """The page, where the document has pages."""
    document: str
    start: int
    end: int
    quote: str


class Unsupported(BaseModel):
    start: int
    end: int
    text: str


class Dropped(BaseModel):
    turns: int
    passages: int
    shortened: int


class Found(BaseModel):
    """The passages for a question; the first event of a streamed answer, `passages`."""

    id: str
    """Of the trace: `rag trace ID`."""
    question: str
    """As it was looked up: a follow-up with its subject."""
    knowledge_base: str
    sequence: int
    confidence: float
    answerable: bool
    hits: list[Hit]


class Piece(BaseModel):
    """An event `text` of a streamed answer."""

    text: str


class Usage(BaseModel):
    """Tokens: of the language model where one has answered, else of the encoder."""

    read: int
    written: int
    cut: bool
    """Whether the answer ends because it may have no more of them."""


class Answer(BaseModel):
    """An answer; the last event of a streamed one, `citations`.

    `[1]` in the text is the citation's number. A refusal has no citations; its hits say what was
    looked at.
    """

    id: str
    question: str
    knowledge_base: str
    sequence: int
    answer: str
    refused: bool
    confidence: float
    citations: list[Citation]
    hits: list[Hit]
    generator: str
    unsupported: list[Unsupported]
    unknown: list[int]
    dropped: Dropped
    remarks: list[str]
    usage: Usage
    """What a reader must know of the text, in the reader's language."""


class Trace(BaseModel):
    """How an answer came about. Gone with the documents that it quotes."""

    id: str
    created: float
    kind: Literal["ask", "search"]
    knowledge_base: str
    sequence: int
    record: dict[str, Any]
    """`question`, `history`, `candidates` (chunk and score), `hits`, `prompt`, `answer`, `seconds`."""
