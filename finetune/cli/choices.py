"""Options that decide one thing together: device, precision, how the base is held."""

from typing import Any

from finetune.options import LoraOptions, PrefixOptions
from ingest.errors import UserError


def device(name: str | None) -> str:
    """`cpu` or `cuda`; `UserError` for another, or a GPU that is not there."""
    import torch

    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if chosen not in ("cpu", "cuda") or (chosen == "cuda" and not torch.cuda.is_available()):
        raise UserError(
            f"--device is {chosen}; need cpu, or cuda where torch finds a GPU",
            zh=f"--device 为 {chosen}；须为 cpu，或在有 GPU 时为 cuda",
        )
    return chosen


def dtype(device: str, *, fp16: bool, bf16: bool, fp32: bool) -> Any:
    """The base's numbers as TrainOptions name them; by the device where none is asked for."""
    import torch

    asked = [n for n, on in (("float16", fp16), ("bfloat16", bf16), ("float32", fp32)) if on]
    if len(asked) > 1:
        raise UserError(
            f"{' and '.join(asked)} are both asked for; name one of --fp16, --bf16, --fp32",
            zh=f"同时指定了 {'、'.join(asked)}；--fp16、--bf16、--fp32 只能选一个",
        )
    if asked:
        return asked[0]
    if device == "cpu":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"


def quant(device: str, name: str | None, bit: int | None, *, in_8: bool, in_4: bool) -> Any:
    """How the base is held, from whichever option says it; `UserError` where two disagree."""
    by_bit = {4: "int4", 8: "int8"}
    if bit is not None and bit not in by_bit:
        raise UserError(
            f"--quantization-bit is {bit}; need 4 or 8",
            zh=f"--quantization-bit 为 {bit}；须为 4 或 8",
        )
    said = [name, by_bit.get(bit or 0), "int8" if in_8 else None, "nf4" if in_4 else None]
    asked = sorted({each for each in said if each})
    if len(asked) > 1:
        raise UserError(
            f"the base is asked for as {' and as '.join(asked)}; say one",
            zh=f"基座同时被要求为 {'、'.join(asked)}；请只指定一个",
        )
    return asked[0] if asked else "none"


def method(
    lora: LoraOptions, pre_seq_len: int | None, *, projection: bool
) -> LoraOptions | PrefixOptions:
    """P-Tuning where a prefix has a length, else LoRA; `UserError` where options of both are given."""
    said = [name for name, on in (("--rslora", lora.rslora), ("--dora", lora.dora)) if on]
    if pre_seq_len is None and projection:
        raise UserError(
            "--prefix-projection is P-Tuning's; add --pre-seq-len 128, or leave it out",
            zh="--prefix-projection 属于 P-Tuning；请加上 --pre-seq-len 128，或去掉它",
        )
    if pre_seq_len is not None and said:
        raise UserError(
            f"{said[0]} is LoRA's and --pre-seq-len is P-Tuning's; choose one",
            zh=f"{said[0]} 属于 LoRA，--pre-seq-len 属于 P-Tuning；只能选一个",
        )
    return lora if pre_seq_len is None else PrefixOptions(pre_seq_len, projection)


def rate(given: float | None, method: LoraOptions | PrefixOptions) -> float:
    """The learning rate; upstream's own where none is given."""
    return given if given is not None else 2e-2 if isinstance(method, PrefixOptions) else 1e-4
