"""What an adapter was trained for, kept beside it: model, prompt format, stop ids."""

import json
import re
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import torch
from torch import nn

from ingest.errors import UserError
from rag.chatglm.template import TEMPLATES

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
