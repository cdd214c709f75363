"""`rag fill`: ChatGLM-6B fills the blanks of a text."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rag.cli import model_options as llm
from rag.cli.console import note, out, say
from rag.cli.paths import cache_home


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
    from rag.cli.progress import loading

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
