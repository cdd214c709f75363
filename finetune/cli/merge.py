"""`rag finetune merge` and `export`: an adapter made part of its model, or renamed for other tools."""

from pathlib import Path
from typing import TYPE_CHECKING

from ingest.errors import UserError
from rag.cli.console import loading, note, note_message, out_message
from rag.cli.options import ALPHA, MODEL, NEW_FOLDER, argument, fetch_model, option, with_options

if TYPE_CHECKING:
    from rag.chatglm.adapter_files import Adapter
    from rag.chatglm.export import MergeReport

ADAPTER = argument("ADAPTER", "Folder of a LoRA adapter.")
DTYPES = ("float32", "float16", "bfloat16")


@with_options("Merge a LoRA adapter into its model's weights, in a new folder.")
def merge(
    model: str = MODEL,
    adapter: Path = ADAPTER,
    target: Path = NEW_FOLDER,
    upstream: bool = option(
        "--upstream", "Write the names and config.json of the original code.", default=False
    ),
    dtype: str | None = option(
        "--dtype float32|float16|bfloat16", "Precision of the weights; default: the model's own."
    ),
    alpha: float | None = ALPHA,
) -> None:
    if dtype not in (None, *DTYPES):
        known = ", ".join(DTYPES)
        raise UserError("--dtype is {dtype}; it is one of {known}", dtype=dtype, known=known)
    import torch

    from finetune.merge import merge
    from ingest.store.atomic import check_new
    from rag.chatglm.adapter_files import read_adapter
    from rag.chatglm.export import dtype_name

    check_new(target)  # a model may take an hour to fetch
    lora = read_adapter(adapter, alpha=alpha)
    directory = fetch_model(model)
    with loading(directory.name) as progress:
        kind = getattr(torch, dtype) if dtype else None
        result = merge(directory, lora, target, upstream=upstream, dtype=kind, progress=progress)
    _report(result, lora)
    size = sum(path.stat().st_size for path in target.iterdir()) / 1e9
    out_message(
        "{target}: {layers} layers merged, {kind}, {size:.2f} GB; rounding takes {lost:.1%} of what "
        "the adapter changes",
        target=target,
        layers=result.layers,
        kind=dtype_name(result.dtype),
        size=size,
        lost=result.lost,
    )


def _report(result: "MergeReport", adapter: "Adapter") -> None:
    """What was assumed, and what a model's folder can't say."""
    for assumption in adapter.notes:
        note(assumption)
    if result.lost > 0.1:
        note_message(
            "steps of this precision are large beside what the adapter changes; --dtype float32 "
            "would keep it whole"
        )
    contract = adapter.contract
    if contract.template != "chat":
        note_message(
            "{adapter} was trained on prompts of the form {form!r}, which a model's folder can't "
            "say: rag will ask the merged model in its own chat; keep to that form elsewhere, or "
            "let rag use the adapter beside the model",
            adapter=adapter.source,
            form=contract.template,
        )
    if contract.stop_ids:
        ids = ", ".join(map(str, contract.stop_ids))
        note_message(
            "{adapter} also ends answers with the tokens {ids}, which a model's folder can't "
            "say; stop at them where you use it",
            adapter=adapter.source,
            ids=ids,
        )


@with_options("Convert a LoRA adapter to the module names of the original code, or of transformers.")
def export(
    adapter: Path = ADAPTER,
    target: Path = NEW_FOLDER,
    model: str = option("--model MODEL", "ChatGLM folder, or its name on a hub.", default=...),
    to: str = option(
        "--to upstream|native",
        "upstream: names of the original code; native: of transformers.",
        default="upstream",
    ),
    alpha: float | None = ALPHA,
) -> None:
    if to not in ("upstream", "native"):
        raise UserError("--to is {to}; it is upstream or native", to=to)
    from finetune.export import export
    from ingest.store.atomic import check_new

    check_new(target)
    directory = fetch_model(model, weights=False)
    modules, assumptions = export(adapter, directory, target, to=to, alpha=alpha)
    for assumption in assumptions:
        note(assumption)
    out_message("{target}: {modules} modules under {to} names", target=target, modules=modules, to=to)
