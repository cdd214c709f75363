"""A checkpoint of any layout -> one of packed codes, which loads in seconds."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ingest.errors import UserError
from ingest.store.atomic import new_folder
from rag.chatglm.folder import Shards, copy_kept
from rag.chatglm.loading import empty, read_config
from rag.chatglm.quantize import BLOCK, HEAD_BLOCK, Packed
from rag.chatglm.source import Piece, Source, pieces


def pack(
    directory: Path,
    target: Path,
    *,
    bits: int,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Write `directory`'s model to the new folder `target`, its linear layers as codes.

    Codes published upstream are kept exactly, if they are of these bits. The folder appears under
    its name when it is whole. `UserError` where it is taken, the disk too small, or the source is
    not a model.
    """
    config = read_config(directory)
    source = Source.open(directory, config)
    if source.bits not in (None, bits):
        raise UserError(
            f"{directory} holds int{source.bits} weights, which can't be made int{bits}; say "
            f"--bits {source.bits}, or name the directory of the float16 model",
            zh=f"{directory} 存有 int{source.bits} 权重，无法转为 int{bits}；请用 --bits "
            f"{source.bits}，或指定 float16 模型目录",
        )
    with new_folder(target) as work:
        _write(directory, source, work, bits, progress)


def _write(
    directory: Path,
    source: Source,
    work: Path,
    bits: int,
    progress: Callable[[float], None] | None,
) -> None:
    model = empty(source.config)
    total = sum(parameter.numel() for parameter in model.parameters())
    shards = Shards(work)
    done = 0
    made = source.bits is None
    wanted = (bits, bits) if made else (None, 8)
    for path, piece in pieces(model, source, *wanted):
        for name, tensor in _tensors(path, piece).items():
            shards.add(name, tensor)
        done += sum(p.numel() for p in model.get_submodule(path).parameters(recurse=False))
        if progress:
            progress(done / total)
    shards.close()
    source.config.packed = {
        "bits": bits,
        "block": BLOCK,
        "head_bits": wanted[1],
        "head_block": HEAD_BLOCK,
    }
    source.config.quantization_bit = None
    source.config.quantization_embeddings = False
    source.config.architectures = [type(model).__name__]
    source.config.save_pretrained(work)
    copy_kept(directory, work)


def _tensors(path: str, piece: Piece) -> dict[str, Tensor]:
    """What is stored of a module, by name."""
    stored: dict[str, Tensor] = {}
    for kind, value in piece.items():
        if isinstance(value, Packed):
            stored |= {f"{path}.codes": value.codes, f"{path}.scales": value.scales}
        else:
            stored[f"{path}.{kind}"] = value
    return stored
