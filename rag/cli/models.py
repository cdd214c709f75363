"""`rag export`: a model for other engines, such as vLLM."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingest.errors import UserError
from rag.cli import model_options as llm
from rag.cli.console import loading, note, out, say
from rag.cli.model_options import Alpha, Source, Target
from rag.cli.paths import cache_home

if TYPE_CHECKING:
    from rag.chatglm.export import ExportReport


LAYOUT = "glm-hf"
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""Also the longer names are taken, by which `rag finetune merge` and engines know them."""


def export(
    source: Source,
    target: Target,
    to: Annotated[
        str,
        typer.Option(
            metavar=LAYOUT, help=say("The layout: transformers' own for GLM, which vLLM reads.")
        ),
    ] = LAYOUT,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="|".join(DTYPES), help=say("Of all weights; default: the model's.")),
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help=say("A LoRA adapter to make part of it."))
    ] = None,
    alpha: Alpha = None,
) -> None:
    if to != LAYOUT:
        raise UserError("--to is {to}; it is {layout}", to=to, layout=LAYOUT)
    if dtype not in (None, *DTYPES, *DTYPES.values()):
        known = ", ".join(DTYPES)
        raise UserError("--dtype is {dtype}; it is one of {known}", dtype=dtype, known=known)
    if alpha is not None and not adapter:
        raise UserError(
            "--lora-alpha is {alpha:g}, but no adapter is named; name it with --adapter",
            alpha=alpha,
        )
    import torch

    from ingest.store.atomic import check_new
    from rag.chatglm.adapter_files import read_adapter
    from rag.chatglm.export import check_exportable, export
    from rag.chatglm.hub import fetch
    from rag.chatglm.loading import read_config

    check_new(target)  # a model may take an hour to fetch
    if adapter:
        read_adapter(adapter, alpha=alpha)
    cache = cache_home() / "models"
    about = fetch(source, cache=cache, weights=False)
    check_exportable(about, read_config(about))
    directory = fetch(source, cache=cache)
    with loading(directory.name) as progress:
        done = export(
            directory,
            target,
            adapter=adapter,
            dtype=getattr(torch, DTYPES.get(dtype, dtype)) if dtype else None,
            alpha=alpha,
            progress=progress,
        )
    _tell(done, target)


def _tell(done: "ExportReport", target: Path) -> None:
    for assumed in done.notes:
        note(assumed)
    if done.contract and done.contract.template != "chat":
        form = done.contract.template
        note(
            say(
                "the adapter was trained on prompts of the form {form!r}, which the folder's chat "
                "template is not: send that form to /v1/completions",
                form=form,
            )
        )
    kind = str(done.dtype).removeprefix("torch.")
    size = sum(path.stat().st_size for path in target.iterdir()) / 1e9
    with_adapter = say(", {layers} layers merged", layers=done.layers)
    out(
        say(
            "{target}: {kind}, {size:.2f} GB{layers}; a probe's logits are within {error:.1e} of "
            "the source's. Serve it: vllm serve {target}",
            target=target,
            kind=kind,
            size=size,
            layers=with_adapter if done.layers else "",
            error=done.error,
        )
    )


export.__doc__ = say(
    "Write a ChatGLM2, ChatGLM3 or GLM-4 for vLLM and other engines, to a new folder."
)


def fill(
    text: Annotated[
        str | None,
        typer.Argument(
            help=say(
                "Text with [MASK] (a few words) or [gMASK] (a passage); from standard input if left "
                "out."
            )
        ),
    ] = None,
    *,
    model: Annotated[
        str,
        typer.Option(
            "--model", metavar="MODEL", help=say("A ChatGLM-6B's folder, or its name on a hub.")
        ),
    ],
    quant: llm.Quant = None,
    adapter: llm.Adapter = None,
    max_new_tokens: llm.MaxNewTokens = None,
    temperature: llm.Temperature = 0,
    top_p: llm.TopP = None,
    seed: llm.Seed = None,
) -> None:
    from rag.generate import GenerateOptions, load

    given: dict[str, Any] = {
        "quant": quant,
        "adapter": adapter,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    given = {name: value for name, value in given.items() if value is not None}
    options = GenerateOptions(model=model, **given)

    from rag.chatglm import generator as chatglm
    from rag.chatglm.hub import fetch
    from rag.chatglm.loading import read_config

    text = _text(text)
    chatglm.split_at_blanks(text)  # what is wrong is told before weights are fetched and read
    chatglm.require_filler(read_config(fetch(model, cache=cache_home() / "models", weights=False)))
    with loading(Path(model).name) as progress:
        generator: Any = load(options, cache=cache_home() / "models", progress=progress, note=note)
    out(chatglm.fill(generator.model, generator.tokenizer, text, options.sampling))


fill.__doc__ = say(
    "Fill the blanks of a text with ChatGLM-6B: [MASK] with a few words, [gMASK] with a passage."
)


def _text(text: str | None) -> str:
    if text is None:
        return "" if sys.stdin.isatty() else sys.stdin.read().removesuffix("\n")
    return text


def quantize(
    source: Source,
    target: Target,
    bits: Annotated[int, typer.Option(metavar="4|8", help=say("Bits of a weight."))] = 4,
) -> None:
    if bits not in (4, 8):
        raise UserError("--bits is {bits}; it is 4 or 8", bits=bits)
    from rag.chatglm.hub import fetch
    from rag.chatglm.save import pack

    directory = fetch(source, cache=cache_home() / "models")
    with loading(directory.name) as progress:
        pack(directory, target, bits=bits, progress=progress)
    size = sum(path.stat().st_size for path in target.iterdir()) / 1e9
    out(say("{target}: int{bits}, {size:.2f} GB", target=target, bits=bits, size=size))


quantize.__doc__ = say(
    "Write a model's weights in 4 or 8 bits to a new folder, which loads in seconds."
)
