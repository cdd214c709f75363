"""An adapter's directory -> its tensors, settings and contract: PEFT's layout, and older ones."""

import json
import re
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ingest.errors import UserError
from rag.chatglm.chat import TEMPLATES
from rag.chatglm.checkpoint import Checkpoint, read_bin, read_safetensors
from rag.chatglm.lora import Factors, LoraConfig

FILE = "contract.json"
NORM = re.compile(r"norm[^.]*\.(weight|bias)$")


@dataclass(frozen=True, slots=True)
class Contract:
    """An adapter answers as trained only on this model and from prompts of this form."""

    generation: int | None
    """1 to 4; None where the adapter does not say (ChatGLM2's and 3's tensors look alike)."""
    template: str = "chat"
    """A key of `TEMPLATES`."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end an answer, beside the generation's own."""
    base: str | None = None
    """The `fingerprint` of the model it was trained on."""

    @classmethod
    def read(cls, directory: Path) -> "Contract | None":
        """None where there is none; `UserError` where it is damaged or of a newer version."""
        path = directory / FILE
        if not path.is_file():
            return None
        try:
            data = json.loads(path.read_text("utf-8"))
            contract = cls(**{**data, "stop_ids": tuple(data.get("stop_ids", ()))})
        except (ValueError, TypeError, AttributeError) as error:
            raise _unreadable(path, str(error)) from None
        contract._check(path)
        return contract

    def write(self, directory: Path) -> None:
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (directory / FILE).write_text(text + "\n", "utf-8")

    def _check(self, path: Path) -> None:
        if self.template not in TEMPLATES:
            raise UserError(
                f"{path} names the template {self.template!r}; this knows {', '.join(TEMPLATES)}",
                zh=f"{path} 指定的模板 {self.template!r} 未知；已知模板：{'、'.join(TEMPLATES)}",
            )
        if self.generation not in (None, 1, 2, 3, 4):
            raise _unreadable(path, f"generation is {self.generation!r}, not 1 to 4")
        if not all(type(stop) is int for stop in self.stop_ids):
            raise _unreadable(path, f"stop_ids is {list(self.stop_ids)!r}, not whole numbers")


def fingerprint(model: nn.Module) -> str:
    """A digest of the model's normalisation weights, 32 hexadecimal digits.

    They are never quantised. They are rounded to float16, then to bfloat16, so that one checkpoint
    has one digest in any of float32, float16, bfloat16, int8 and int4.
    """
    norms = {
        name.removeprefix("base_model.model."): value
        for name, value in model.named_parameters()
        if NORM.search(name)
    }
    digest = sha256()
    for name in sorted(norms):
        rounded = norms[name].detach().cpu().half().bfloat16().contiguous()
        digest.update(rounded.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def _unreadable(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} is not a contract that this version reads: {why}",
        zh=f"本版本无法读取约定文件 {path}：{why}",
    )


CONFIG = "adapter_config.json"
# PEFT's, and the tutorial's at the end of training (mymusise/ChatGLM-Tuning).
LORA = ("adapter_model.safetensors", "adapter_model.bin", "chatglm-lora.pt")
TUTORIAL_ALPHA = 32
"""lora_alpha in the tutorial's finetune.py, whatever the rank."""

# `lora_A.weight` in PEFT's files, `lora_A.default.weight` in those of a Trainer.
KEY = re.compile(
    r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<part>A|B|magnitude_vector)"
    r"(?:\.(?P<adapter>[^.]+))??(?:\.(?P<leaf>weight|bias))?$"
)
PARTS = {
    ("A", "weight"): "a",
    ("B", "weight"): "b",
    ("B", "bias"): "bias",
    ("magnitude_vector", "weight"): "magnitude",
    ("magnitude_vector", None): "magnitude",
}
PREFIX = "prefix_encoder."


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """LoRA as it was saved: module names are those of the model it was made on."""

    config: LoraConfig
    modules: dict[str, Factors]
    contract: Contract
    source: Path
    notes: tuple[str, ...] = ()
    """What was assumed, to be told to the user."""


@dataclass(frozen=True, slots=True)
class PrefixAdapter:
    """A P-Tuning v2 prefix: the parameters of `PrefixEncoder`."""

    tensors: dict[str, Tensor] = field(repr=False)
    contract: Contract
    source: Path
    notes: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """Virtual tokens."""
        return self.tensors["embedding.weight"].shape[0]


Adapter = LoraAdapter | PrefixAdapter


def read_adapter(directory: Path, *, alpha: float | None = None) -> Adapter:
    """The adapter in `directory`; `alpha` is LoRA's where the directory does not say it.

    `UserError` for each way in which it is incomplete, damaged or not supported.
    """
    if not directory.is_dir():
        raise UserError(
            f"{directory} is not a folder; an adapter is a folder with adapter_model.safetensors "
            "and adapter_config.json",
            zh=f"{directory} 不是文件夹；适配器是含 adapter_model.safetensors 与 "
            "adapter_config.json 的文件夹",
        )
    contract = Contract.read(directory)
    path = next((directory / name for name in LORA if (directory / name).is_file()), None)
    if path is None:
        return _prefix(directory, contract)
    # The config first: it says why tensors may be of another kind.
    config = _config(directory)
    keys = _tensors(path)
    modules = _factors(keys, path)
    if config is not None:
        contract = contract or Contract(_generation(set(modules), config.base))
        return LoraAdapter(config, modules, contract, directory)
    return _without_config(path, keys, modules, contract, alpha)


def _without_config(
    path: Path,
    keys: dict[str, Tensor],
    modules: dict[str, Factors],
    contract: Contract | None,
    alpha: float | None,
) -> LoraAdapter:
    """The tutorial's layout: rank and targets from the tensors, alpha from its script."""
    tutorial = path.name == LORA[2] or any(KEY.match(key)["adapter"] for key in keys)  # type: ignore[index]  # all match
    if alpha is None and not tutorial:
        raise UserError(
            f"{path.parent} lacks {CONFIG}, without which the scale of an adapter is unknown; copy "
            "it from where the adapter was trained, or give its lora_alpha",
            zh=f"{path.parent} 缺少 {CONFIG}，无法得知适配器的缩放系数；请从训练处复制，或给出 lora_alpha",
        )
    rank = next(iter(modules.values())).a.shape[0]
    ends = sorted({module.rpartition(".")[2] for module in modules})
    config = LoraConfig(rank, TUTORIAL_ALPHA if alpha is None else alpha, tuple(ends))
    if contract is None:
        contract = Contract(_generation(set(modules)), template="tutorial" if tutorial else "chat")
    note = (
        f"{path.parent} has no {CONFIG}: rank {rank} by its tensors, lora_alpha {config.alpha:g} "
        f"{'as given' if alpha is not None else 'as in the tutorial'}, "
        f"prompts of the form {contract.template!r}"
    )
    return LoraAdapter(config, modules, contract, path.parent, (note,))


def _config(directory: Path) -> LoraConfig | None:
    path = directory / CONFIG
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON: {error}; copy it again from where the adapter was trained",
            zh=f"{path} 不是 JSON：{error}；请从训练处重新复制",
        ) from None
    if not isinstance(data, dict):
        raise UserError(f"{path} is not an object", zh=f"{path} 不是 JSON 对象")
    return LoraConfig.of(data)


def _tensors(path: Path) -> dict[str, Tensor]:
    tensors = _read(path)
    if not tensors:
        raise UserError(
            f"{path} holds no tensors ({path.stat().st_size} bytes): the training script saved the "
            "adapter's state after it had lost it; save it again with PEFT's save_pretrained",
            zh=f"{path} 中没有任何张量（{path.stat().st_size} 字节）：训练脚本保存的是空的状态；"
            "请用 PEFT 的 save_pretrained 重新保存",
        )
    return tensors


def _read(path: Path) -> dict[str, Tensor]:
    if path.stat().st_size == 0:
        return {}
    return read_safetensors(path) if path.suffix == ".safetensors" else read_bin(path)


def _factors(keys: dict[str, Tensor], path: Path) -> dict[str, Factors]:
    """The tensors by module; `UserError` for a key that means nothing here."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in keys.items():
        match = KEY.match(key)
        part = match and PARTS.get((match["part"], match["leaf"]))
        if match is None or part is None:
            raise UserError(
                f"{path} holds {key!r}, which is no tensor of LoRA on linear layers and would go "
                "unused; merge the adapter with PEFT and use the merged model instead",
                zh=f"{path} 含有 {key!r}，它不是线性层的 LoRA 张量，不会被使用；"
                "请用 PEFT 合并适配器后使用合并的模型",
            )
        # Two adapters in one file would overwrite each other.
        module = found.setdefault(match["module"], {})
        if part in module:
            raise UserError(
                f"{path} holds several adapters ({key!r} is the second of its kind); save one",
                zh=f"{path} 含有多个适配器（{key!r} 重复）；请只保存一个",
            )
        module[part] = tensor
    for name, parts in found.items():
        if not {"a", "b"} <= parts.keys():
            lacking = "lora_A" if "a" not in parts else "lora_B"
            raise UserError(
                f"{path} holds no {lacking} of {name}: it is cut short; copy it again",
                zh=f"{path} 缺少 {name} 的 {lacking}：文件不完整；请重新复制",
            )
    return {name: Factors(**parts) for name, parts in found.items()}


def _prefix(directory: Path, contract: Contract | None) -> PrefixAdapter:
    """Upstream's layout: pytorch_model.bin of the prefix alone, or of the whole model."""
    held = sorted(path.name for path in directory.iterdir())
    if not any(name.startswith(("pytorch_model", "model")) for name in held):
        raise UserError(
            f"{directory} holds no adapter (adapter_model.safetensors, or pytorch_model.bin with a "
            f"prefix); it holds {', '.join(held[:5]) or 'nothing'}",
            zh=f"{directory} 中没有适配器（adapter_model.safetensors 或含前缀的 pytorch_model.bin）；"
            f"其中有：{'、'.join(held[:5]) or '无'}",
        )
    checkpoint = Checkpoint.open(directory)
    tensors = {
        name.partition(PREFIX)[2]: checkpoint.read(name) for name in checkpoint if PREFIX in name
    }
    if "embedding.weight" not in tensors:
        raise UserError(
            f"{directory} holds a model, not an adapter: no tensor is named prefix_encoder; name "
            "it as the model",
            zh=f"{directory} 中是模型而非适配器：没有名为 prefix_encoder 的张量；请将其指定为模型",
        )
    length = _pre_seq_len(directory)
    found = tensors["embedding.weight"].shape[0]
    if length not in (None, found):
        raise UserError(
            f"{directory}: config.json says pre_seq_len {length}, but the prefix has {found}; take "
            "the config that was saved with it",
            zh=f"{directory}：config.json 中 pre_seq_len 为 {length}，而前缀长度为 {found}；"
            "请使用与其一同保存的配置",
        )
    return PrefixAdapter(tensors, contract or Contract(None), directory)


def _pre_seq_len(directory: Path) -> int | None:
    """What config.json says, where there is one."""
    path = directory / "config.json"
    if not path.is_file():
        return None
    try:
        data: Any = json.loads(path.read_text("utf-8"))
    except ValueError:
        return None
    return data.get("pre_seq_len") if isinstance(data, dict) else None


def _generation(modules: set[str], base: str = "") -> int | None:
    """By the names of modules, then by the name of the base; None where neither tells."""
    if any(name.startswith("transformer.layers.") for name in modules):
        return 1
    named = re.search(r"chatglm([23])-6b|(glm-4)", base.lower())
    return (int(named[1]) if named[1] else 4) if named else None
