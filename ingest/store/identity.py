"""Whether a knowledge base's vectors are those of an embedder."""

from ingest.errors import Mismatch
from ingest.store.protocol import Identity


def check_identity(location: str, made: Identity, asked: Identity) -> None:
    """Raises `Mismatch` unless the embedder that is asked for made the vectors."""
    if made == asked:
        return
    had, wants = f"{made.name} ({made.dim}-d)", f"{asked.name} ({asked.dim}-d)"
    if (made.name, made.dim) == (asked.name, asked.dim):
        had, wants = f"{had} {dict(made.options)}", f"{wants} {dict(asked.options)}"
    raise Mismatch(
        f"{location} holds vectors of {had}, but the encoder is now {wants}; "
        "go back to the former, or ingest again into a new knowledge base with --kb",
        zh=f"{location} 存有 {had} 的向量，而当前编码器为 {wants}；请改回前者，或用 --kb 重新入库",
    )
