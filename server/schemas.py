"""Request and response bodies, and how they are made from the types of `rag` and `ingest`.

Offsets count characters (Unicode code points) of a document's text. Clients see names of files,
never their paths.
"""

import json
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from sqlite3 import Row
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from ingest import types as ingested
from ingest.i18n import Translator
from ingest.normalize import readable
from rag import types as rag
from rag.pipeline import LONGEST_QUESTION
from rag.render import hit_record, record, remarks, report_record
from rag.scope import Scope

DRAWABLE = ("pdf",)
"""Formats whose pages can be shown as pictures."""

_PAGE, _ROW = re.compile(r"^p\. (\d+)(?= · |$)"), re.compile(r"(?:^|(?<= · ))row (\d+)$")
"""The parts of a label that are no words of the document."""
NAME_PATTERN = r"^[\w\-]{1,64}$"
"""A knowledge base's name: letters of any script, digits, `_` and `-`."""

BaseName = Annotated[str, Field(pattern=NAME_PATTERN, examples=["laws"])]
Question = Annotated[
    str,
    Field(
        min_length=1,
        max_length=LONGEST_QUESTION,
        pattern=r"[^\s\x1c-\x1f]",  # more than what Python strips
        examples=["试用期最长不得超过几个月？"],
    ),
]


_YEAR, _MONTH = "[1-9][0-9]{3}", "(0[1-9]|1[0-2])"
_PERIODS = [{"const": ""}, {"pattern": f"^{_YEAR}(-{_MONTH})?$"}, {"format": "date"}]
Period = Annotated[str, WithJsonSchema({"anyOf": [{"type": "string"} | each for each in _PERIODS]})]


def name_of(source: str) -> str:
    return readable(PurePosixPath(source).name)


def _check_number(value: Any) -> Any:
    """Accepts a JSON number, which may be written 5.0, but no string and no boolean."""
    if type(value) not in (int, float):
        raise ValueError("a whole number is needed")
    return value


WHOLE = BeforeValidator(_check_number)
Tokens = Annotated[int, Field(strict=False, ge=1, le=32_768), WHOLE]
Temperature = Annotated[float, Field(ge=0, le=10)]
TopP = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(strict=False, ge=0, le=2**53), WHOLE]
KeyScope = Literal["read", "write", "admin"]
JobState = Literal["receiving", "queued", "running", "done", "failed", "cancelled"]
FileState = Literal["waiting", "added", "changed", "unchanged", "refused", "cancelled"]


class StrictRequest(BaseModel):
    """A request body. An unknown field is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ErrorDetail(BaseModel):
    message: str
    """One line in the reader's language (Accept-Language)."""
    type: str
    param: str | None = None
    code: str


class ErrorResponse(BaseModel):
    """The body of every 4xx and 5xx response, also under /v1."""

    error: ErrorDetail


class StatusResponse(BaseModel):
    status: Literal["ok", "ready"]


class SessionResponse(BaseModel):
    """The caller's key, and what this server offers."""

    key: str | None
    """The key's name; null if no key is needed."""
    scopes: list[KeyScope]
    embedders: list[str]
    adapters: list[str]
    formats: list[str]
    """File extensions that can be parsed."""
    largest_upload: int
    """Bytes of one file."""
    most_files: int
    """Files of one upload."""
    version: str


class CreateKnowledgeBaseRequest(StrictRequest):
    name: BaseName
    embedder: str = ""
    """One of the session's `embedders`; empty selects the first."""
    instruction: str = Field(default="", max_length=4000)
    """Replaces the default instruction to the language model; plain text."""
    adapter: str = ""
    """One of the session's `adapters`; empty for none."""


class ChangeKnowledgeBaseRequest(StrictRequest):
    instruction: str | None = Field(default=None, max_length=4000)
    adapter: str | None = None


class KnowledgeBaseResponse(BaseModel):
    """A knowledge base."""

    name: str
    documents: int = 0
    chunks: int = 0
    bytes: int | None = 0
    created: str = ""
    sequence: int = 0
    """The number of its newest change. An answer names the one at which its passages were found."""
    embedder: str = ""
    instruction: str = ""
    adapter: str = ""
    generator: str = ""
    """The language model's name; empty if answers are sentences of the documents."""
    scopes: list[KeyScope]
    """What the caller's key may do with it."""
    problem: str | None = None
    """Why it can't be used, if it can't."""


class KnowledgeBaseListResponse(BaseModel):
    knowledge_bases: list[KnowledgeBaseResponse]


class ParseReportResponse(BaseModel):
    """How a file's bytes became text."""

    format: str
    encoding: str | None
    replaced: int
    """Bytes that could not be decoded."""
    ocr_pages: int
    warnings: list[str]


class DocumentResponse(BaseModel):
    id: str
    name: str
    title: str
    length: int
    """Characters of its text."""
    pages: bool
    """Whether its pages can be shown as pictures."""
    size: int | None
    """Bytes of the uploaded file; null if it was read from a folder."""
    added: float | None
    """When it was uploaded or read; null if an older version read it."""
    receipt: ParseReportResponse

    @classmethod
    def of(
        cls, document: ingested.Document, length: int, upload: tuple[int, float] | None, say: Translator
    ) -> Self:
        size, added = upload or (None, document.report.ingested or None)
        receipt = ParseReportResponse.model_validate(report_record(document.report, say))
        return cls(
            id=document.id, name=name_of(document.source), title=document.title, length=length,
            pages=document.report.format in DRAWABLE, size=size, added=added, receipt=receipt,
        )  # fmt: skip


class RereadRequest(StrictRequest):
    documents: list[Annotated[str, Field(pattern="^[0-9a-f]{24}$")]] = Field(min_length=1, max_length=1000)


class DocumentListResponse(BaseModel):
    documents: list[DocumentResponse]
    total: int
    """Number of documents that match `q`, on all pages."""


class TextResponse(BaseModel):
    text: str
    start: int
    end: int
    length: int
    """Characters of the whole document."""


class JobFileResponse(BaseModel):
    name: str
    size: int
    state: FileState
    chunks: int
    receipt: ParseReportResponse | None
    problem: str | None
    """Why it was refused."""

    @classmethod
    def of(cls, row: Row, say: Translator) -> Self:
        report = row["receipt"] and ingested.ParseReport.from_json(json.loads(row["receipt"]))
        receipt = report and report_record(report, say)
        problem = row["problem_zh" if say.language == "zh" else "problem"]
        return cls.model_validate({**row, "receipt": receipt, "problem": problem})


class JobResponse(BaseModel):
    """Work in the background. It continues after the client leaves and after a restart."""

    id: str
    kind: Literal["ingest", "reread", "purge"]
    knowledge_base: str
    state: JobState
    created: float
    """Seconds since 1970, like all times here."""
    started: float | None
    finished: float | None
    files_done: int
    files_total: int
    bytes_done: int
    bytes_total: int
    chunks: int
    """Number of chunks embedded so far."""
    error: str | None
    files: list[JobFileResponse]

    @classmethod
    def of(cls, row: Row, rows: Sequence[Row], say: Translator) -> Self:
        """A row of the table `jobs`, with its rows of the table `files`."""
        files = [JobFileResponse.of(each, say) for each in rows]
        ended = [file for file in files if file.state != "waiting"]
        counts = {
            "files_done": len(ended), "files_total": len(files),
            "bytes_done": sum(file.size for file in ended), "bytes_total": sum(file.size for file in files),
        }  # fmt: skip
        error = row["error_zh" if say.language == "zh" else "error"]
        return cls.model_validate(
            {**row, **counts, "knowledge_base": row["base"], "error": error, "files": files}
        )


class JobListResponse(BaseModel):
    jobs: list[JobResponse]


class TurnRequest(StrictRequest):
    role: Literal["user", "assistant"]
    content: str = Field(max_length=20_000)


Pattern = Annotated[str, Field(min_length=1, max_length=400, examples=["2024/*.pdf"])]


class ScopeRequest(StrictRequest):
    """The documents that are asked: those that meet each field that is set."""

    places: list[Pattern] = Field(default=[], max_length=1000)
    """Files or folders, any of them; also patterns with `*`, `?` and `[…]`."""
    formats: list[Annotated[str, Field(min_length=1, max_length=20)]] = Field(default=[], max_length=50)
    since: Period = ""
    """A day, month or year: `2024-05-31`, `2024-05`, `2024`."""
    until: Period = ""

    def value(self) -> Scope | None:
        """None if no field is set. Raises `UserError` for a date that is none."""
        if not (self.places or self.formats or self.since or self.until):
            return None
        return Scope(tuple(self.places), tuple(self.formats), self.since, self.until)


class SearchRequest(StrictRequest):
    question: Question
    knowledge_base: BaseName
    scope: ScopeRequest = ScopeRequest()
    limit: Annotated[int, Field(strict=False, ge=1, le=100), WHOLE] = 5


class AskRequest(StrictRequest):
    question: Question
    knowledge_base: BaseName
    scope: ScopeRequest = ScopeRequest()
    history: list[TurnRequest] = Field(default=[], max_length=100)
    stream: bool = False
    """Send events instead of one JSON value, as with `Accept: text/event-stream`."""
    max_new_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None


class PlaceResponse(BaseModel):
    """Characters [start, end) of a document's text."""

    document: str
    start: int
    end: int
    name: str
    title: str
    label: str
    """Page, heading, sheet or row, in words."""
    page: int | None
    """The page's number, if the document has pages."""


class HitResponse(PlaceResponse):
    """A chunk that matches a question. Invariant: the document's text[start:end] == text."""

    score: float
    text: str


class CitationResponse(PlaceResponse):
    """A quote. Invariant: the document's text[start:end] == quote."""

    number: int
    quote: str


def _for_clients(record: dict[str, Any], say: Translator) -> dict[str, Any]:
    """A hit or a citation with the name of its file, the number of its page if it has one, and its label in
    the reader's language."""
    page = _PAGE.match(record["label"])
    label = _PAGE.sub(lambda found: say("p. {number}", number=found[1]), record["label"])
    label = _ROW.sub(lambda found: say("row {number}", number=found[1]), label)
    return record | {"name": name_of(record["source"]), "label": label, "page": page and page[1]}


class PartResponse(BaseModel):
    """Characters [start, end) of an answer's text, and what they are."""

    start: int
    end: int
    text: str


class SearchResponse(BaseModel):
    """The passages for a question; also `passages`, the first event of a streamed answer."""

    id: str
    """The trace's id, for `rag trace ID`."""
    question: str
    """The question as it was searched for: a follow-up question contains its subject."""
    knowledge_base: str
    sequence: int
    confidence: float
    answerable: bool
    hits: list[HitResponse]

    @classmethod
    def of(cls, found: rag.Retrieval, say: Translator, *, trace: str, base: str) -> Self:
        hits = [HitResponse.model_validate(_for_clients(hit_record(hit), say)) for hit in found.hits]
        return cls(
            id=trace, question=found.query.text, knowledge_base=base, sequence=found.sequence,
            confidence=round(found.confidence, 4), answerable=found.answerable, hits=hits,
        )  # fmt: skip


class PieceEvent(BaseModel):
    """A piece of a streamed answer: an event `text`."""

    text: str


class ReadingEvent(BaseModel):
    """How much of its prompt the language model has read: an event `reading` before the text."""

    share: float
    """At least 0 and below 1."""


class UsageResponse(BaseModel):
    """Token counts, of the language model if one wrote the answer, otherwise of the encoder."""

    read: int
    written: int
    cut: bool
    """Whether the answer ends because it reached the limit of tokens."""


class AnswerResponse(BaseModel):
    """An answer; also `citations`, the last event of a streamed answer.

    `[1]` in the text is a citation's number. A refusal has no citations; its hits are the nearest
    passages.
    """

    id: str
    question: str
    knowledge_base: str
    sequence: int
    answer: str
    span: PartResponse | None
    """The part of the text that the reader takes for the answer itself."""
    refused: bool
    confidence: float
    citations: list[CitationResponse]
    hits: list[HitResponse]
    generator: str
    unsupported: list[PartResponse]
    unknown: list[int]
    dropped: rag.PromptOmissions
    remarks: list[str]
    """What a reader must know about the text, in the reader's language."""
    usage: UsageResponse

    @classmethod
    def of(
        cls, answer: rag.Answer, found: rag.Retrieval, usage: UsageResponse, say: Translator,
        *, trace: str, base: str,
    ) -> Self:  # fmt: skip
        values = record(answer)
        places = {key: [_for_clients(each, say) for each in values[key]] for key in ("citations", "hits")}
        more = {
            "id": trace, "knowledge_base": base, "sequence": found.sequence,
            "remarks": remarks(answer, say), "usage": usage,
        }  # fmt: skip
        return cls.model_validate(values | places | more)


class TraceResponse(BaseModel):
    """How an answer was made. It is deleted together with the documents that it quotes."""

    id: str
    created: float
    kind: Literal["ask", "search"]
    knowledge_base: str
    sequence: int
    record: dict[str, Any]
    """`question`, `history`, `candidates` (chunk and score), `hits`, `prompt`, `answer`, `seconds`."""
