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
    from rag.chatglm.export import Exported


LAYOUT = "glm-hf"
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""Also the longer names are taken, by which `rag finetune merge` and engines know them."""


def export(
    source: Source,
    target: Target,
    to: Annotated[
        str,
        typer.Option(
            metavar=LAYOUT,
            help=say(
                "The layout: transformers' own for GLM, which vLLM reads.",
                "目标格式：transformers 自带的 GLM 格式，vLLM 可直接读取。",
            ),
        ),
    ] = LAYOUT,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(DTYPES),
            help=say("Of all weights; default: the model's.", "所有权重的精度；默认同原模型。"),
        ),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help=say("A LoRA adapter to make part of it.", "要合并进去的 LoRA 适配器。"),
        ),
    ] = None,
    alpha: Alpha = None,
) -> None:
    if to != LAYOUT:
        raise UserError(f"--to is {to}; it is {LAYOUT}", zh=f"--to 为 {to}；应为 {LAYOUT}")
    if dtype not in (None, *DTYPES, *DTYPES.values()):
        known = ", ".join(DTYPES)
        raise UserError(
            f"--dtype is {dtype}; it is one of {known}", zh=f"--dtype 为 {dtype}；应为 {known} 之一"
        )
    if alpha is not None and not adapter:
        raise UserError(
            f"--lora-alpha is {alpha:g}, but no adapter is named; name it with --adapter",
            zh=f"--lora-alpha 为 {alpha:g}，但没有指定适配器；请用 --adapter 指定",
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


def _tell(done: "Exported", target: Path) -> None:
    for assumed in done.notes:
        note(assumed)
    if done.contract and done.contract.template != "chat":
        form = done.contract.template
        note(
            say(
                f"the adapter was trained on prompts of the form {form!r}, which the folder's chat "
                "template is not: send that form to /v1/completions",
                f"适配器以 {form!r} 形式的提示训练，与文件夹中的对话模板不同：请将该形式的提示发到 /v1/completions",
            )
        )
    kind = str(done.dtype).removeprefix("torch.")
    size = sum(path.stat().st_size for path in target.iterdir()) / 1e9
    with_adapter = say(f", {done.layers} layers merged", f"，已合并 {done.layers} 层")
    out(
        say(
            f"{target}: {kind}, {size:.2f} GB{with_adapter if done.layers else ''}; a probe's logits "
            f"are within {done.error:.1e} of the source's. Serve it: vllm serve {target}",
            f"{target}：{kind}，{size:.2f} GB{with_adapter if done.layers else ''}；探测输出与原模型"
            f"相差 {done.error:.1e}。启动：vllm serve {target}",
        )
    )


export.__doc__ = say(
    "Write a ChatGLM2, ChatGLM3 or GLM-4 for vLLM and other engines, to a new folder.",
    "将 ChatGLM2、ChatGLM3 或 GLM-4 写成 vLLM 等引擎可直接读取的新文件夹。",
)


def fill(
    text: Annotated[
        str | None,
        typer.Argument(
            help=say(
                "Text with [MASK] (a few words) or [gMASK] (a passage); from standard input if left out.",
                "含 [MASK]（几个词）或 [gMASK]（一段话）的文本；省略时读标准输入。",
            )
        ),
    ] = None,
    *,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="MODEL",
            help=say(
                "A ChatGLM-6B's folder, or its name on a hub.",
                "ChatGLM-6B 的文件夹或模型库中的名称。",
            ),
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

    from rag.chatglm import infill as filling
    from rag.chatglm.hub import fetch
    from rag.chatglm.loading import read_config
    from rag.cli.console import loading

    text = _text(text)
    filling.split_at_blanks(text)  # what is wrong is told before weights are fetched and read
    filling.require_filler(read_config(fetch(model, cache=cache_home() / "models", weights=False)))
    with loading(Path(model).name) as progress:
        generator: Any = load(options, cache=cache_home() / "models", progress=progress, note=note)
    out(filling.fill(generator.model, generator.tokenizer, text, options.sampling))


fill.__doc__ = say(
    "Fill the blanks of a text with ChatGLM-6B: [MASK] with a few words, [gMASK] with a passage.",
    "用 ChatGLM-6B 填空：[MASK] 处填几个词，[gMASK] 处填一段话。",
)


def _text(text: str | None) -> str:
    if text is None:
        return "" if sys.stdin.isatty() else sys.stdin.read().removesuffix("\n")
    return text


def quantize(
    source: Source,
    target: Target,
    bits: Annotated[
        int, typer.Option(metavar="4|8", help=say("Bits of a weight.", "每个权重的位数。"))
    ] = 4,
) -> None:
    if bits not in (4, 8):
        raise UserError(f"--bits is {bits}; it is 4 or 8", zh=f"--bits 为 {bits}；应为 4 或 8")
    from rag.chatglm.hub import fetch
    from rag.chatglm.save import pack
    from rag.cli.console import loading

    directory = fetch(source, cache=cache_home() / "models")
    with loading(directory.name) as progress:
        pack(directory, target, bits=bits, progress=progress)
    size = sum(path.stat().st_size for path in target.iterdir()) / 1e9
    out(say(f"{target}: int{bits}, {size:.2f} GB", f"{target}：int{bits}，{size:.2f} GB"))


quantize.__doc__ = say(
    "Write a model's weights in 4 or 8 bits to a new folder, which loads in seconds.",
    "把模型权重以 4 位或 8 位写入新文件夹，之后几秒即可加载。",
)
