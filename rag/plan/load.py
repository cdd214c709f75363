"""What is asked of a plan: how many documents of what size, how many questions a second."""

from dataclasses import dataclass

from ingest.errors import UserError
from rag.plan.constants import Constants

MOST_CHUNKS = 1e12
MOST_QPS = 1e6


@dataclass(frozen=True, slots=True)
class Load:
    """`parse` is seconds of one core for all the documents; `model` is a language model's size in
    billions of parameters, 0 for answers made of the documents' sentences."""

    documents: int
    chunks: int
    qps: float
    parse: float
    model: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.chunks <= MOST_CHUNKS:
            raise UserError(
                f"{self.chunks:,} chunks; a plan is made for 1 to {MOST_CHUNKS:,.0f}",
                zh=f"共 {self.chunks:,} 块；只能规划 1 到 {MOST_CHUNKS:,.0f} 块",
            )
        if not 0 < self.qps <= MOST_QPS:
            raise UserError(
                f"--qps is {self.qps:g}; need more than 0 and at most {MOST_QPS:,.0f}",
                zh=f"--qps 为 {self.qps:g}；须大于 0 且不超过 {MOST_QPS:,.0f}",
            )
        if not 0 <= self.model <= 1000:
            raise UserError(
                f"--model is {self.model:g} billion parameters; need 0 to 1000",
                zh=f"--model 为 {self.model:g}（十亿参数）；须为 0 到 1000",
            )

    @classmethod
    def of(
        cls,
        constants: Constants,
        *,
        documents: int,
        qps: float,
        chunks_per_document: float | None = None,
        megabytes: float | None = None,
        kind: str | None = None,
        model: float = 0.0,
    ) -> "Load":
        """Documents like those that were measured (of `kind`, or all), unless their chunks are told,
        or their size: `megabytes` (10^6 bytes) of all files together."""
        like = constants.kind(kind)
        if documents < 1:
            raise UserError(
                f"--documents is {documents}; need 1 or more",
                zh=f"--documents 为 {documents}；须不小于 1",
            )
        if chunks_per_document is not None and megabytes is not None:
            raise UserError(
                "--chunks-per-document and --megabytes both tell the documents' size; name one",
                zh="--chunks-per-document 与 --megabytes 都表示文档大小；请只用一个",
            )
        for name, told in (
            ("--chunks-per-document", chunks_per_document), ("--megabytes", megabytes)
        ):  # fmt: skip
            if told is not None and not told > 0:
                raise UserError(
                    f"{name} is {told:g}; need more than 0", zh=f"{name} 为 {told:g}；须大于 0"
                )
        if megabytes is not None:
            chunks = megabytes * 1e6 * like.chunks / like.size
        else:
            chunks = documents * (chunks_per_document or like.chunks / like.files)
        count = max(1, round(min(chunks, 10 * MOST_CHUNKS)))
        return cls(documents, count, qps, count * like.seconds / like.chunks, model)
