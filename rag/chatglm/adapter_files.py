"""An adapter's directory -> one `Adapter`, and back.

Three layouts are read: PEFT's (adapter_config.json, adapter_model.safetensors or .bin), the tutorial's
LoRA without a config (mymusise/ChatGLM-Tuning), and upstream's P-Tuning (pytorch_model.bin, of the
prefix alone or of the whole model). The first and the last are also written.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ingest.errors import UserError
from ingest.i18n import Translatable
from ingest.store.atomic import write_whole
from rag.chatglm.chat import TEMPLATES
from rag.chatglm.configuration import read_object
from rag.chatglm.lora import Factors, LoraConfig
from rag.chatglm.weights import Checkpoint, read_bin, read_safetensors

CONTRACT, CONFIG = "contract.json", "adapter_config.json"
LORA = ("adapter_model.safetensors", "adapter_model.bin", "chatglm-lora.pt")
"""PEFT's names, and the tutorial's for the end of training."""
PREFIX = ("pytorch_model.bin", "config.json")
ADAPTER_FILES = (CONTRACT, CONFIG, LORA[0], *PREFIX)
TUTORIAL_ALPHA = 32  # lora_alpha in the tutorial's finetune.py, for any rank

NORM = re.compile(r"norm[^.]*\.(weight|bias)$")
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
PREFIX_KEY = "prefix_encoder."
PEFT_PREFIX = "prompt_embeddings"


@dataclass(frozen=True, slots=True)
class Contract:
    """The model and the form of prompts for which an adapter was trained."""

    generation: int | None  # 1 to 4; None if it is unknown (ChatGLM2's and 3's tensors look alike)
    template: str = "chat"  # a key of `TEMPLATES`
    stop_ids: tuple[int, ...] = ()  # tokens that end an answer, in addition to the generation's own
    base: str | None = None  # the `fingerprint` of the model it was trained on

    @classmethod
    def read(cls, directory: Path) -> "Contract | None":
        """None if there is none; raises `UserError` if it is damaged or of a newer version."""
        path = directory / CONTRACT
        if not path.is_file():
            return None
        try:
            data = json.loads(path.read_text("utf-8"))
            contract = cls(**{**data, "stop_ids": tuple(data.get("stop_ids", ()))})
        except (ValueError, TypeError, AttributeError) as error:
            raise _unreadable(path, str(error)) from None
        if contract.template not in TEMPLATES:
            raise UserError(
                "{path} names the template {text!r}; this knows {templates}",
                path=path, text=contract.template, templates=TEMPLATES,
            )  # fmt: skip
        if contract.generation not in (None, 1, 2, 3, 4):
            why = Translatable("generation is {value!r}, not 1 to 4", value=contract.generation)
            raise _unreadable(path, why)
        if not all(type(stop) is int for stop in contract.stop_ids):
            value = str(contract.stop_ids)
            why = Translatable("stop_ids is {value}, not whole numbers", value=value)
            raise _unreadable(path, why)
        return contract

    def write(self, directory: Path) -> None:
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (directory / CONTRACT).write_text(text + "\n", "utf-8")


def fingerprint(model: nn.Module) -> str:
    """A digest of the model's normalisation weights, 32 hexadecimal digits.

    These weights are never quantised. They are rounded to float16, then to bfloat16, so that a
    checkpoint has the same digest in float32, float16, bfloat16, int8 and int4."""
    norms = [item for item in model.named_parameters() if NORM.search(item[0])]
    digest = sha256()
    for _, value in sorted(norms, key=lambda item: item[0].removeprefix("base_model.model.")):
        rounded = value.detach().cpu().half().bfloat16().contiguous()
        digest.update(rounded.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def _unreadable(path: Path, why: str) -> UserError:
    return UserError("{path} is not a contract that this version reads: {why}", path=path, why=why)


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter as it was saved, in any layout: LoRA, or a P-Tuning v2 prefix."""

    source: Path
    contract: Contract
    config: LoraConfig | None = None  # LoRA's; None if the adapter is a prefix
    modules: Mapping[str, Factors] = field(default_factory=dict, repr=False)
    """LoRA's tensors by module, named as in the model that it was trained on."""
    prefix: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    """The parameters of `PrefixEncoder`."""
    settings: dict[str, Any] = field(default_factory=dict, repr=False)
    """The whole adapter_config.json; empty if there is none."""
    notes: tuple[Translatable, ...] = ()  # assumptions, to be reported to the user

    @property
    def kind(self) -> Literal["lora", "prefix"]:
        return "lora" if self.config else "prefix"


def read_adapter(directory: Path, *, alpha: float | None = None) -> Adapter:
    """The adapter in `directory`; `alpha` is LoRA's lora_alpha if adapter_config.json is missing.
    Raises `UserError` if it is incomplete, damaged or not supported."""
    if not directory.is_dir():
        raise UserError(
            "{directory} is not a folder; an adapter is a folder with adapter_model.safetensors "
            "and adapter_config.json",
            directory=directory,
        )
    contract = Contract.read(directory)
    path = next((directory / name for name in LORA if (directory / name).is_file()), None)
    settings = read_object(file) if (file := directory / CONFIG).is_file() else None
    if path is None:
        path, keys = _checkpoint(directory)
        if not any(map(KEY.match, keys)):
            return _prefix(directory, contract, keys)
    else:
        keys = {}
    # The config first: it may explain why tensors are of another kind.
    if settings and settings.get("peft_type") == "PREFIX_TUNING":
        return _peft_prefix(directory, contract, settings, keys or _tensors(path))
    config = None if settings is None else LoraConfig.of(settings)
    keys = keys or _tensors(path)
    modules = _factors(keys, path)
    if settings is not None and config is not None:
        contract = contract or Contract(_generation(modules, config.base))
        return Adapter(directory, contract, config, modules, settings=settings)
    # The tutorial's layout: rank and targets from the tensors, alpha from its script.
    tutorial = path.name == LORA[2] or any((m := KEY.match(key)) and m["adapter"] for key in keys)
    if alpha is None and not tutorial:
        raise UserError(
            "{directory} lacks {config}, without which the scale of the adapter is unknown; copy "
            "the file from the training folder, or merge the adapter into its model: rag finetune "
            "merge has --lora-alpha",
            directory=directory,
            config=CONFIG,
        )
    rank = next(iter(modules.values())).a.shape[0]
    ends = sorted({module.rpartition(".")[2] for module in modules})
    config = LoraConfig(rank, TUTORIAL_ALPHA if alpha is None else alpha, tuple(ends))
    contract = contract or Contract(_generation(modules), "tutorial" if tutorial else "chat")
    source = Translatable("as in the tutorial") if alpha is None else Translatable("as given")
    note = Translatable(
        "{directory} has no {config}: rank {rank} by its tensors, lora_alpha {alpha:g} {source}, "
        "prompts of the form {template!r}",
        directory=directory,
        config=CONFIG,
        rank=rank,
        alpha=config.alpha,
        source=source,
        template=contract.template,
    )
    return Adapter(directory, contract, config, modules, notes=(note,))


def write_lora(folder: Path, settings: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write PEFT's files, with the tensors by PEFT's keys. The same numbers give the same bytes."""

    def plain(value: object) -> object:  # PEFT's sets and enumerations
        return sorted(value) if isinstance(value, set) else getattr(value, "value", str(value))

    text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False, default=plain)
    write_whole(folder / CONFIG, f"{text}\n".encode())
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    write_whole(folder / LORA[0], save(copies, metadata={"format": "pt"}))


def write_prefix(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write `PrefixEncoder`'s parameters as upstream's checkpoint of a prefix, and its config.json
    with the prefix's length. Upstream reads no safetensors."""
    copies = {
        f"transformer.{PREFIX_KEY}{name}": value.detach().cpu().clone() for name, value in tensors.items()
    }
    file = BytesIO()
    torch.save(copies, file)
    write_whole(folder / PREFIX[0], file.getvalue())
    lengths = {
        "pre_seq_len": len(tensors["embedding.weight"]),
        "prefix_projection": any(name.startswith("trans.") for name in tensors),
    }
    write_whole(folder / PREFIX[1], (json.dumps(lengths, indent=2) + "\n").encode())


def _tensors(path: Path) -> dict[str, Tensor]:
    read, size = (read_safetensors if path.suffix == ".safetensors" else read_bin, path.stat().st_size)
    if size and (tensors := read(path)):
        return tensors
    raise UserError(
        "{path} holds no tensors ({size} bytes): the training script saved the adapter after "
        "its tensors were lost; save it again with PEFT's save_pretrained",
        path=path,
        size=size,
    )


def _factors(keys: dict[str, Tensor], path: Path) -> dict[str, Factors]:
    """The tensors by module; raises `UserError` for a key that is not LoRA's."""
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in keys.items():
        match = KEY.match(key)
        part = match and PARTS.get((match["part"], match["leaf"]))
        if match is None or part is None:
            raise UserError(
                "{path} holds {key!r}, which is not a LoRA tensor of a linear layer and would be "
                "unused; merge the adapter with PEFT and use the merged model instead",
                path=path,
                key=key,
            )
        # Two adapters in one file would overwrite each other.
        module = modules.setdefault(match["module"], {})
        if part in module:
            raise UserError(
                "{path} holds several adapters ({key!r} is the second of its kind); save one",
                path=path,
                key=key,
            )
        module[part] = tensor
    for name, parts in modules.items():
        if missing := sorted({"a", "b"} - parts.keys()):
            raise UserError(
                "{path} holds no {missing} of {name}: it is incomplete; copy it again",
                path=path, missing=f"lora_{missing[0].upper()}", name=name,
            )  # fmt: skip
    return {name: Factors(**parts) for name, parts in modules.items()}


def _checkpoint(directory: Path) -> tuple[Path, dict[str, Tensor]]:
    """The tensors of a prefix or of LoRA in a file that is named as a model's, and one of its files.

    Raises `UserError` if there are no such tensors."""
    files = sorted(path.name for path in directory.iterdir())
    if not any(name.startswith(("pytorch_model", "model")) for name in files):
        inner = sorted(path.parent.name for name in LORA for path in directory.glob(f"*/{name}"))
        if inner:
            raise UserError(
                "{directory} holds no adapter itself, but these folders in it do: {names}; give one of them",
                directory=directory,
                names=", ".join(dict.fromkeys(inner)),
            )
        raise UserError(
            "{directory} holds no adapter (adapter_model.safetensors, or pytorch_model.bin with a "
            "prefix); it holds {files}",
            directory=directory,
            files=files[:5] or Translatable("nothing"),
        )
    checkpoint = Checkpoint.open(directory)
    names = [name for name in checkpoint.files if PREFIX_KEY in name or KEY.match(name)]
    if not names:
        raise UserError(
            "{directory} holds a model, not an adapter: no tensor is named prefix_encoder; give it "
            "as the model",
            directory=directory,
        )
    return checkpoint.files[names[0]], {name: checkpoint.read(name) for name in names}


def _peft_prefix(
    directory: Path, contract: Contract | None, settings: dict[str, Any], tensors: dict[str, Tensor]
) -> Adapter:
    """PEFT's prefix tuning: its `prompt_embeddings` are upstream's `embedding.weight`."""
    if tensors.keys() != {PEFT_PREFIX}:
        raise UserError(
            "{directory}: adapter_config.json says PREFIX_TUNING, but the tensors are {names}, not "
            "{expected}; use the config that was saved with these tensors",
            directory=directory, names=[*tensors][:5], expected=PEFT_PREFIX,
        )  # fmt: skip
    contract = contract or Contract(_generation((), str(settings.get("base_model_name_or_path") or "")))
    return Adapter(directory, contract, prefix={"embedding.weight": tensors[PEFT_PREFIX]}, settings=settings)


def _prefix(directory: Path, contract: Contract | None, keys: Mapping[str, Tensor]) -> Adapter:
    """Upstream's layout: pytorch_model.bin of the prefix alone, or of the whole model."""
    tensors = {name.partition(PREFIX_KEY)[2]: tensor for name, tensor in keys.items()}
    if "embedding.weight" not in tensors:
        raise UserError(
            "{directory} holds no embedding.weight of a prefix: it is incomplete; copy it again",
            directory=directory,
        )
    path = directory / PREFIX[1]
    length = read_object(path).get("pre_seq_len") if path.is_file() else None
    found = tensors["embedding.weight"].shape[0]
    if length not in (None, found):
        raise UserError(
            "{directory}: config.json says pre_seq_len {length}, but the prefix has {found}; "
            "use the config that was saved with it",
            directory=directory, length=length, found=found,
        )  # fmt: skip
    return Adapter(directory, contract or Contract(None), prefix=tensors)


def _generation(modules: Iterable[str], base: str = "") -> int | None:
    """By the names of modules, then by the name of the base; None if neither shows it."""
    if any(name.startswith("transformer.layers.") for name in modules):
        return 1
    match = re.search(r"chatglm([23])-6b|(glm-4)", base.lower())
    return (int(match[1]) if match[1] else 4) if match else None
