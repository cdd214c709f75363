"""`rag finetune merge` and `export`: an adapter made part of its model, or renamed for other tools."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ingest.errors import UserError
from rag.cli.console import loading, note, out, say
from rag.cli.model_options import Alpha, Source, Target
from rag.cli.paths import cache_home

if TYPE_CHECKING:
    from finetune.merge import Merged

MODEL = say("A ChatGLM's folder, or its name on a hub.", "ChatGLM 的文件夹或模型库中的名称。")
ADAPTER = say("A LoRA adapter's folder.", "LoRA 适配器的文件夹。")
DTYPES = ("float32", "float16", "bfloat16")


def merge(
    model: Source,
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help=ADAPTER)],
    target: Target,
    upstream: Annotated[
        bool,
        typer.Option(
            "--upstream",
            help=say(
                "Write the names and config.json of the original code.",
                "按原版代码的名称与 config.json 写出。",
            ),
        ),
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="|".join(DTYPES),
            help=say("Of all weights; default: the model's.", "所有权重的精度；默认同原模型。"),
        ),
    ] = None,
    alpha: Alpha = None,
) -> None:
    if dtype not in (None, *DTYPES):
        known = ", ".join(DTYPES)
        raise UserError(
            f"--dtype is {dtype}; it is one of {known}", zh=f"--dtype 为 {dtype}；应为 {known} 之一"
        )
    import torch

    from finetune.merge import merge
    from ingest.store.atomic import check_new
    from rag.chatglm.adapter_files import read_adapter
    from rag.chatglm.hub import fetch

    check_new(target)  # a model may take an hour to fetch
    read_adapter(adapter)
    directory = fetch(model, cache=cache_home() / "models")
    with loading(directory.name) as progress:
        done = merge(
            directory,
            adapter,
            target,
            upstream=upstream,
            dtype=getattr(torch, dtype) if dtype else None,
            alpha=alpha,
            progress=progress,
        )
    _tell(done, adapter)
    size = sum(path.stat().st_size for path in target.iterdir()) / 1e9
    kind = str(done.dtype).removeprefix("torch.")
    out(
        say(
            f"{target}: {done.layers} layers merged, {kind}, {size:.2f} GB; rounding changed their "
            f"weights by {done.rounding:.1e}, a probe's logits by {done.parity.error:.1e} "
            f"({done.parity.lost:.1%} of what the adapter changes)",
            f"{target}：已合并 {done.layers} 层，{kind}，{size:.2f} GB；舍入使其权重改变 {done.rounding:.1e}，"
            f"探测输出改变 {done.parity.error:.1e}（为适配器改变量的 {done.parity.lost:.1%}）",
        )
    )


def _tell(done: "Merged", adapter: Path) -> None:
    """What was assumed, and what a model's folder can't say."""
    for assumed in done.notes:
        note(assumed)
    if done.parity.lost > 0.1:
        note(
            say(
                "steps of this precision are large beside what the adapter changes; --dtype float32 "
                "would keep it whole",
                "此精度的步长相对适配器的改变量较大；用 --dtype float32 可完整保留",
            )
        )
    contract = done.contract
    if contract.template != "chat":
        note(
            say(
                f"{adapter} was trained on prompts of the form {contract.template!r}, which a "
                "model's folder can't say: rag will ask the merged model in its own chat; keep to "
                "that form elsewhere, or let rag use the adapter beside the model",
                f"{adapter} 以 {contract.template!r} 形式的提示训练，模型文件夹无法记录这一点："
                "rag 会用模型自身的对话格式提问；在别处使用时请保持该形式，或在 rag 中将适配器与模型一同使用",
            )
        )
    if contract.stop_ids:
        ids = ", ".join(map(str, contract.stop_ids))
        note(
            say(
                f"{adapter} also ends answers with the tokens {ids}, which a model's folder can't "
                "say; stop at them where you use it",
                f"{adapter} 的回答还以词元 {ids} 结束，模型文件夹无法记录这一点；使用时请在此停止",
            )
        )


def export(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help=ADAPTER)],
    target: Target,
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help=MODEL)],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="upstream|native",
            help=say(
                "upstream: names of the original code; native: of transformers.",
                "upstream：原版代码的模块名；native：transformers 的模块名。",
            ),
        ),
    ] = "upstream",
    alpha: Alpha = None,
) -> None:
    if to not in ("upstream", "native"):
        raise UserError(
            f"--to is {to}; it is upstream or native", zh=f"--to 为 {to}；应为 upstream 或 native"
        )
    from finetune.export import export
    from ingest.store.atomic import check_new
    from rag.chatglm.hub import fetch

    check_new(target)
    directory = fetch(model, cache=cache_home() / "models", weights=False)
    done = export(adapter, directory, target, to=to, alpha=alpha)
    for assumed in done.notes:
        note(assumed)
    out(
        say(
            f"{target}: {done.modules} modules under {to} names",
            f"{target}：{done.modules} 个模块，{to} 名称",
        )
    )


merge.__doc__ = say(
    "Make a LoRA adapter part of its model's weights, in a new folder.",
    "将 LoRA 适配器合并到模型权重，写入新文件夹。",
)

export.__doc__ = say(
    "Write a LoRA adapter with the module names of the original code, or of transformers.",
    "按原版代码或 transformers 的模块名写出 LoRA 适配器。",
)
