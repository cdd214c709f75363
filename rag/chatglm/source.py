"""A checkpoint, asked for what each module of the model holds: tensors, or codes of its weight."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ingest.errors import UserError
from rag.chatglm.checkpoint import Checkpoint
from rag.chatglm.quantize import BLOCK, HEAD_BLOCK, Packed, from_published, quantize
from rag.chatglm.weights import IGNORED, Rows, is_upstream, upstream_of

Piece = dict[str, Tensor | Packed]


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint's tensors, asked for by the names of the model here."""

    checkpoint: Checkpoint
    config: PreTrainedConfig
    upstream: bool

    @classmethod
    def open(cls, directory: Path, config: PreTrainedConfig) -> "Source":
        checkpoint = Checkpoint.open(directory)
        return cls(checkpoint, config, is_upstream(set(checkpoint)))

    @property
    def bits(self) -> int | None:
        """4 or 8 where the linear layers are stored as codes."""
        packed = getattr(self.config, "packed", None)
        if packed:
            return int(packed["bits"])
        return getattr(self.config, "quantization_bit", None) or None

    def place(self, module: str) -> Rows:
        return upstream_of(module, self.config) if self.upstream else Rows(module)

    def has(self, module: str, kind: str) -> bool:
        return f"{self.place(module).module}.{kind}" in self.checkpoint

    def read(self, module: str, kind: str) -> Tensor:
        rows = self.place(module)
        name = f"{rows.module}.{kind}"
        if name not in self.checkpoint:
            raise UserError(
                f"the checkpoint lacks {name}; it is incomplete, or config.json is another model's",
                zh=f"权重中缺少 {name}；文件不完整，或 config.json 属于另一个模型",
            )
        return rows.cut(self.checkpoint.read(name))

    def unused(self, modules: set[str]) -> list[str]:
        """Tensors that no module of the model asks for."""
        asked = {self.place(module).module for module in modules}
        return [
            name
            for name in self.checkpoint
            if name.rpartition(".")[0] not in asked and not IGNORED.match(name)
        ]


def pieces(
    model: PreTrainedModel, source: Source, bits: int | None, head: int | None
) -> Iterator[tuple[str, Piece]]:
    """Module by module what it holds: tensors, or codes of its weight.

    Codes are what is stored as such; of floats the layers' linears are made into `bits`, lm_head
    into `head`. A head that is the embedding is left out where it isn't codes.

    `UserError` for a tensor that is missing, left over, of another shape or not finite.
    """
    modules: dict[str, nn.Module] = {
        path: module
        for path, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    }
    left = source.unused(set(modules))
    if left:
        raise UserError(
            f"the checkpoint holds {left[0]} ({len(left)} such), which a model of its config.json "
            "has no place for; it is of another family",
            zh=f"权重中有 {left[0]}（共 {len(left)} 个），config.json 所述模型没有对应参数；"
            "该权重属于另一类模型",
        )
    words = model.get_input_embeddings()
    embedding = next(path for path, module in modules.items() if module is words)
    for path, module in modules.items():
        origin, wanted = path, None
        if path == "lm_head":
            wanted = head
            if source.config.tie_word_embeddings and not source.has(path, "codes"):
                origin = embedding
                if not (head or source.has(origin, "codes") or source.has(origin, "weight_scale")):
                    continue
        elif isinstance(module, nn.Linear) and ".layers." in path:
            wanted = bits
        block = HEAD_BLOCK if path == "lm_head" else BLOCK
        yield path, _piece(module, origin, source, wanted, block)


def _piece(module: nn.Module, origin: str, source: Source, bits: int | None, block: int) -> Piece:
    piece: Piece = {}
    for kind, parameter in module.named_parameters(recurse=False):
        shape = (parameter.shape[0], parameter.shape[-1])
        codes = codes_of(origin, shape, source) if kind == "weight" else None
        if codes is not None:
            piece[kind] = codes
        else:
            tensor = source.read(origin, kind)
            _check(f"{origin}.{kind}", tensor, tuple(parameter.shape))
            if isinstance(module, nn.Embedding):
                del tensor  # mapped anew, so that only rows looked up take memory
                tensor = source.read(origin, kind)
            piece[kind] = tensor
            if bits and kind == "weight":
                piece[kind] = quantize(tensor, bits=bits, block=block)
    return piece


def codes_of(module: str, shape: tuple[int, int], source: Source) -> Packed | None:
    """A module's weight where it is stored as codes, of which `shape` is (out, in); None: in floats."""
    if source.has(module, "codes"):
        return _stored(module, shape, source)
    return _published(module, shape, source) if source.has(module, "weight_scale") else None


def _stored(module: str, shape: tuple[int, int], source: Source) -> Packed:
    codes, scales = source.read(module, "codes"), source.read(module, "scales")
    of = "head_" if module == "lm_head" else ""
    bits, block = (int(source.config.packed[f"{of}{key}"]) for key in ("bits", "block"))
    padded = -(-shape[1] // block) * block
    _check(f"{module}.codes", codes, (shape[0], padded * bits // 8))
    _check(f"{module}.scales", scales, (shape[0], padded // block))
    return Packed(codes, scales, bits, block, shape)


def _published(module: str, shape: tuple[int, int], source: Source) -> Packed:
    weight, scale = source.read(module, "weight"), source.read(module, "weight_scale")
    bits = source.bits
    if bits not in (4, 8):
        raise UserError(
            f"the weights are quantised, but config.json says quantization_bit = {bits}; it is 4 or 8",
            zh=f"权重已量化，但 config.json 中 quantization_bit = {bits}；应为 4 或 8",
        )
    _check(f"{module}.weight", weight, (shape[0], -(-shape[1] * bits // 8)))
    _check(f"{module}.weight_scale", scale, shape[:1])
    return from_published(weight, scale, bits=bits, columns=shape[1])


def _check(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise UserError(
            f"{name} has the shape {tuple(tensor.shape)}, config.json makes it {shape}; the two "
            "belong to different models",
            zh=f"{name} 的形状为 {tuple(tensor.shape)}，而按 config.json 应为 {shape}；二者不属于同一模型",
        )
    if tensor.is_floating_point() and not all(value.isfinite() for value in tensor.aminmax()):
        raise UserError(
            f"{name} holds NaN or infinite numbers; the checkpoint is damaged, get it again",
            zh=f"{name} 中有 NaN 或无穷大；权重已损坏，请重新获取",
        )
