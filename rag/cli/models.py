"""`rag quantize`, `rag export` and `rag fill`: what is done with a model alone."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.errors import UserError
from rag.cli.console import loading, note, note_message, out, out_message, out_piece, say
from rag.cli.options import (
    ALPHA,
    MODEL,
    NEW_FOLDER,
    ModelOptions,
    argument,
    cache_home,
    fetch_model,
    option,
    with_options,
)

LAYOUT = "glm-hf"
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""`--dtype` also takes the longer names, by which `rag finetune merge` and engines know them."""


@with_options("Convert a ChatGLM2, ChatGLM3 or GLM-4 for vLLM and other engines, in a new folder.")
def export(
    source: str = MODEL,
    target: Path = NEW_FOLDER,
    to: str = option("--to glm-hf", "Target layout: GLM in transformers, which vLLM reads.", default=LAYOUT),
    dtype: str | None = option(
        "--dtype bf16|fp16|fp32", "Precision of the weights; default: the model's own."
    ),
    adapter: Path | None = option("--adapter FOLDER", "LoRA adapter to merge into the weights."),
    alpha: float | None = ALPHA,
) -> None:
    if to != LAYOUT:
        raise UserError("--to is {to}; it is {layout}", to=to, layout=LAYOUT)
    if dtype not in (None, *DTYPES, *DTYPES.values()):
        known = ", ".join(DTYPES)
        raise UserError("--dtype is {dtype}; it is one of {known}", dtype=dtype, known=known)
    if alpha is not None and not adapter:
        raise UserError(
            "--lora-alpha is {alpha:g}, but no adapter is named; name it with --adapter", alpha=alpha
        )
    import torch

    from ingest.store.atomic import check_new
    from rag.chatglm.adapter_files import read_adapter
    from rag.chatglm.export import check_exportable, dtype_name, export
    from rag.chatglm.loading import read_model_config

    check_new(target)  # a model may take an hour to fetch
    lora = read_adapter(adapter, alpha=alpha) if adapter else None
    about = fetch_model(source, weights=False)
    check_exportable(about, read_model_config(about))
    directory = fetch_model(source)
    with loading(directory.name) as progress:
        kind = getattr(torch, DTYPES.get(dtype, dtype)) if dtype else None
        done = export(directory, target, adapter=lora, dtype=kind, progress=progress)
    for assumption in lora.notes if lora else ():
        note(assumption)
    if lora and lora.contract.template != "chat":
        note_message(
            "the adapter was trained on prompts of the form {form!r}, which the folder's chat "
            "template is not: send that form to /v1/completions",
            form=lora.contract.template,
        )
    size = sum(path.stat().st_size for path in target.iterdir()) / 1e9
    with_adapter = say(
        ", {layers} layers merged (rounding takes {lost:.1%} of what the adapter changes)",
        layers=done.layers,
        lost=done.lost,
    )
    out_message(
        "{target}: {kind}, {size:.2f} GB{layers}. Serve it: vllm serve {target}",
        target=target,
        kind=dtype_name(done.dtype),
        size=size,
        layers=with_adapter if done.layers else "",
    )


@dataclass(frozen=True, kw_only=True)
class FillOptions(ModelOptions):
    model: str = option("--model MODEL", "ChatGLM-6B folder, or its name on a hub.", default=...)
    temperature: float | None = option(
        "--temperature T", "Sampling temperature; 0 always picks the most likely token.", default=0
    )


@with_options(
    "Fill in the blanks of a text with ChatGLM-6B: [MASK] with a few words, [gMASK] with a passage."
)
def fill(
    text: str | None = argument(
        "",
        "Text with [MASK] (a few words) or [gMASK] (a passage); from standard input if left out.",
        default=None,
    ),
    *,
    model: FillOptions,
) -> None:
    from rag.generate import GenerateOptions, load

    options = GenerateOptions(**model.values)

    from rag.chatglm import generator as chatglm
    from rag.chatglm.loading import read_model_config

    blanks = text or ""
    if text is None and not sys.stdin.isatty():
        blanks = sys.stdin.read().removesuffix("\n")
    cache = cache_home() / "models"
    chatglm.split_at_blanks(blanks)  # mistakes are reported before weights are fetched and read
    chatglm.require_filler(read_model_config(fetch_model(options.model, weights=False)))
    with loading(Path(options.model).name) as progress:
        generator: Any = load(options, cache=cache, progress=progress, note=note)
    for piece in chatglm.fill(generator.model, generator.tokenizer, blanks, options.sampling):
        out_piece(piece)
    out()


@with_options("Quantize a model's weights to 4 or 8 bits, in a new folder that loads in seconds.")
def quantize(
    source: str = MODEL,
    target: Path = NEW_FOLDER,
    bits: int = option("--bits 4|8", "Bits per weight.", default=4),
) -> None:
    if bits not in (4, 8):
        raise UserError("--bits is {bits}; it is 4 or 8", bits=bits)
    from rag.chatglm.loading import save_quantized

    directory = fetch_model(source)
    with loading(directory.name) as progress:
        save_quantized(directory, target, bits=bits, progress=progress)
    size = sum(path.stat().st_size for path in target.iterdir()) / 1e9
    out_message("{target}: int{bits}, {size:.2f} GB", target=target, bits=bits, size=size)
