"""Encoders of the sentence-transformers library, by name or folder. Nothing is downloaded."""

import re
from collections.abc import Sequence
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ingest.errors import UserError
from ingest.types import Vector, Vectors

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Backend = Literal["torch", "onnx", "openvino"]

# Prefixes (query, passage) by a pattern of the model's name, for models whose own configuration has
# none. They come from the model cards; the first match counts.
_PREFIXES = {
    r"e5-.*instruct": ("Instruct: Given a question, retrieve passages that answer it\nQuery: ", ""),
    r"(^|[-/])e5-": ("query: ", "passage: "),
    r"bge-.*-zh": ("为这个句子生成表示以用于检索相关文章：", ""),
    r"bge-.*-en": ("Represent this sentence for searching relevant passages: ", ""),
    r"nomic-embed": ("search_query: ", "search_document: "),
}
_ENDS = 1 << 20  # bytes at either end of a file that its fingerprint reads


class SentenceEmbedder:
    """A sentence-transformers model; query and passage prefixes are its own or its family's."""

    def __init__(self, model: "SentenceTransformer", name: str, *, family: str) -> None:
        self.name = name
        self._model = model
        self._tokenizer: Any = model.tokenizer
        self._query, self._passage = _prefixes(model.prompts, family)
        self.dim = self._encode([""], "").shape[1]
        longest = model.max_seq_length or self._tokenizer.model_max_length
        self._window = longest - self._tokenizer.num_special_tokens_to_add(pair=False)
        self.max_tokens = self._window - self.count(self._passage)

    def count(self, text: str) -> int:
        return self.count_many([text])[0]

    def count_many(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self._ids(texts)]

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        longest = max(self.count_many([self._passage + text for text in texts]), default=0)
        if longest > self._window:
            tokens = longest - self._window + self.max_tokens
            raise ValueError(f"a passage has {tokens} tokens; at most {self.max_tokens} fit")
        return self._encode(texts, self._passage)

    def embed_query(self, text: str) -> Vector:
        parts = self._parts(text)
        vectors = self._encode(parts, self._query)
        mean = np.average(vectors, axis=0, weights=[len(part) + 1 for part in parts])
        return (mean / np.linalg.norm(mean)).astype(np.float32)

    def _parts(self, text: str) -> list[str]:
        """`text` halved until each part fits with the query's prefix."""
        if len(text) < 2 or self.count(self._query + text) <= self._window:
            return [text]
        middle = len(text) // 2
        return self._parts(text[:middle]) + self._parts(text[middle:])

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        options = {"add_special_tokens": False, "truncation": False, "verbose": False}
        return self._tokenizer(list(texts), **options)["input_ids"]

    def _encode(self, texts: Sequence[str], prompt: str) -> Vectors:
        if not texts:
            return np.empty((0, self.dim), np.float32)
        vectors = self._model.encode(
            list(texts), prompt=prompt, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(vectors, np.float32)


def open_sentence(name: str, *, backend: Backend = "torch") -> SentenceEmbedder:
    """The model called `name` in the Hugging Face cache, or the one in the folder `name`."""
    needs = {"sentence_transformers": "'chatglm-rag[encoders]'"}
    if backend != "torch":
        needs["optimum"] = f"'sentence-transformers[{backend}]'"
    for package, extra in needs.items():
        if find_spec(package) is None:
            raise UserError(
                "the encoder {name} ({backend}) needs the package {package}: pip install {extra}",
                name=name, backend=backend, package=package, extra=extra,
            )  # fmt: skip
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(name, backend=backend, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(
            "no sentence-transformers model {name} on this machine ({error}); fetch it (hf "
            "download {name}) or give the path of its folder",
            name=name,
            error=str(error).strip().split("\n")[0].rstrip("."),
        ) from error
    from huggingface_hub import snapshot_download

    folder = name if Path(name).is_dir() else snapshot_download(name, local_files_only=True)
    identity = f"{name.rstrip('/')}/{backend}-{_fingerprint(Path(folder))}"
    return SentenceEmbedder(model, identity, family=name)


def _prefixes(prompts: dict[str, str | None], family: str) -> tuple[str, str]:
    """Query and passage prefixes: the model's own, else its family's, else none."""
    query = prompts.get("query") or ""
    passage = next((p for key in ("document", "passage", "corpus") if (p := prompts.get(key))), "")
    if query or passage:
        return query, passage
    known = (pair for pattern, pair in _PREFIXES.items() if re.search(pattern, family.lower()))
    return next(known, ("", ""))


def _fingerprint(folder: Path) -> str:
    """A digest of names, sizes and both ends of the files; it is quick for a model of any size."""
    digest = blake2b(digest_size=6)
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".safetensors", ".bin", ".onnx", ".xml", ".json", ".model", ".txt"}:
            size = path.stat().st_size
            with path.open("rb") as file:
                head = file.read(_ENDS)
                file.seek(max(0, size - _ENDS))
                tail = file.read(_ENDS)
            digest.update(f"{path.relative_to(folder)}\0{size}\0".encode() + head + tail)
    return digest.hexdigest()
