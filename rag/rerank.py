"""Optional second look at the best passages by a model that reads question and passage together."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ingest.errors import UserError
from ingest.types import Hit, Passage

Scores = NDArray[np.float32]


class Reranker(Protocol):
    def score(self, question: str, passages: Sequence[str]) -> Scores:
        """(len(passages),), larger is better; comparable within one question only."""
        ...


class CrossEncoderReranker:
    """A sentence-transformers cross-encoder by name or folder, as `BAAI/bge-reranker-base`."""

    def __init__(self, name: str) -> None:
        """Raises `UserError` where the extra is not installed or the model can't be found."""
        try:
            from sentence_transformers import CrossEncoder
        except ModuleNotFoundError as error:
            raise UserError(
                f"the reranker {name} needs sentence-transformers: "
                "pip install 'chatglm-rag[encoders]', or take [retrieve] reranker out of rag.toml",
                zh=f"重排模型 {name} 需要 sentence-transformers："
                "请运行 pip install 'chatglm-rag[encoders]'，或从 rag.toml 去掉 [retrieve] reranker",
            ) from error
        try:
            self._model = CrossEncoder(name, local_files_only=True, trust_remote_code=False)
        except OSError as error:
            raise UserError(
                f"no reranker {name} on this machine; name a folder with its weights, "
                "or take [retrieve] reranker out of rag.toml",
                zh=f"本机没有重排模型 {name}；请给出权重所在文件夹，或从 rag.toml 去掉 [retrieve] reranker",
            ) from error

    def score(self, question: str, passages: Sequence[str]) -> Scores:
        pairs = [(question, passage) for passage in passages]
        return np.asarray(self._model.predict(pairs, show_progress_bar=False), np.float32)


def rerank(
    question: str, hits: list[Hit], passages: list[Passage], reranker: Reranker
) -> tuple[list[Hit], list[Passage]]:
    """Hits and their passages in the reranker's order, with its scores."""
    scores = reranker.score(question, [passage.text for passage in passages])
    order = np.argsort(-scores, kind="stable")
    return [Hit(hits[i].chunk, float(scores[i])) for i in order], [passages[i] for i in order]
