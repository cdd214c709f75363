"""`rag doctor`: what is installed, what is missing, what would run."""

import tomllib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingest.i18n import Translatable
from rag.cli.console import note, out, out_json, out_message, say, table
from rag.cli.options import JSON, cache_home, data_home, fetch_model, option, with_options

if TYPE_CHECKING:
    from rag.chatglm.memory import MemoryBudget, Need


@dataclass(frozen=True)
class Dependency:
    """A row of packages.toml: what a package is for, the extra that brings it, and what it is imported as."""

    use: str = ""
    extra: str = ""
    modules: tuple[str, ...] = ()


def packages() -> dict[str, Dependency]:
    """The rows of packages.toml by the names of the packages."""
    rows = tomllib.loads(Path(__file__).with_name("packages.toml").read_text("utf-8"))
    return {name: Dependency(**{"modules": (name.replace("-", "_"),)} | row) for name, row in rows.items()}


@with_options(
    "Show what is installed, what is missing and how to install it, and the memory that a model needs."
)
def doctor(
    model: str | None = option(
        "--model",
        "ChatGLM folder or hub name, to show the memory of each mode and which fits here; or "
        "http://host:port/v1#name, to show what is served there.",
    ),
    context: int = option("--context", "Context length in tokens; needs --model.", default=2048, least=1),
    as_json: bool = JSON,
) -> None:
    if model is not None:
        from rag.endpoint import ADDRESS

        if ADDRESS.match(model):
            show_endpoint(model, as_json=as_json)
        else:
            show_memory(model, context, as_json=as_json)
        return
    shown = {name: each for name, each in packages().items() if each.use}
    versions = {name: _installed(name) for name in shown}
    cache, data = cache_home(), data_home()
    if as_json:
        out_json({"packages": versions, "cache": str(cache), "data": str(data)})
        return
    rows = []
    for name, each in shown.items():
        install = f"pip install 'chatglm-rag[{each.extra}]'" if each.extra else f"pip install {name}"
        missing = say("missing: {install}", install=install)
        rows.append((say(Translatable.of(each.use, {})), name, versions[name] or missing))
    table("", [say("for"), say("package"), say("version")], rows)
    built = any(cache.glob("*"))
    state = Translatable("built") if built else Translatable("built on first use")
    out_message("encoder cache: {cache_home} ({built})", cache_home=cache, built=state)
    out_message("knowledge bases: {data_home}", data_home=data)


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
KINDS = {1: "ChatGLM-6B", 2: "ChatGLM2", 3: "ChatGLM3", 4: "GLM-4"}
SIZES = ("weights", "cache", "work", "runtime", "total")


def show_memory(name: str, context: int, *, as_json: bool) -> None:
    """The needs of a model's modes for `context` tokens, which fit here, and the best of them."""
    from rag.chatglm.configuration import generation_of
    from rag.chatglm.loading import read_model_config
    from rag.chatglm.memory import MemoryBudget, gigabytes, modes, need, on_disk, parameters, pick

    directory = fetch_model(name, weights=False)
    config, budget, files = read_model_config(directory), MemoryBudget.here(), on_disk(directory)
    generation, count = generation_of(config), parameters(config).total
    needs = [
        need(config, mode, context=context) for device in ("cpu", "cuda") for mode in modes(config, device)
    ]
    best = pick(config, budget, context=context)
    records = [_record(each, budget) for each in needs]
    if as_json:
        head = {"generation": generation, "parameters": count, "files": files, "context": context}
        free = {"cpu": budget.ram, "cuda": budget.gpu}
        chosen = _record(best, budget) if best else None
        out_json(head | {"free": free, "modes": records, "best": chosen})
        return
    stored = Translatable("{size} of weight files", size=gigabytes(files))
    out_message(
        "{name}: {kind}, {parameters:large} parameters, {files}; GB (2^30 bytes) needed for a "
        "context of {context} tokens:",
        name=Path(name).name,
        kind=KINDS[generation],
        parameters=count,
        files=stored if files else Translatable("its weight files are not here"),
        context=context,
    )
    sizes = [say("weights"), say("context"), say("work"), say("libs"), say("total")]
    columns = ["--quant", say("on"), say("numbers"), *sizes, say("fits here")]
    rows: list[list[str]] = []
    for each, record in zip(needs, records, strict=True):
        fits = say("yes") if record["fits"] else say("no")
        if each == best:
            fits = say("best")
        elif record["device"] == "cuda" and not budget.gpu:
            fits = say("no GPU")
        figures = [gigabytes(record[size]).removesuffix(" GB") for size in SIZES]
        mode = [record["quant"], record["device"], DTYPES[record["dtype"]]]
        rows.append([*mode, *figures, fits])
    table("", columns, rows)
    free = say("free: {ram} of memory", ram="?" if budget.ram is None else gigabytes(budget.ram))
    if budget.gpu:
        free += say(", {gigabytes} of GPU memory", gigabytes=gigabytes(budget.gpu))
    if best:
        quant, device = best.mode.quant, best.mode.device
        out(free + say("; best: --quant {quant} on {device}", quant=quant, device=device))
    else:
        least = gigabytes(min(each.total for each in needs))
        out(free + say("; no mode fits, the smallest needs {least}", least=least))


def _record(need: "Need", budget: "MemoryBudget") -> dict[str, Any]:
    """Sizes in bytes."""
    mode = need.mode
    names = {"quant": mode.quant, "device": mode.device}
    dtype = {"dtype": str(mode.dtype).removeprefix("torch.")}
    sizes = {size: getattr(need, size) for size in SIZES}
    return {**names, **dtype, **sizes, "fits": budget.holds(need.total, mode.device)}


ENGINES = {"vllm": "vLLM", "sglang": "SGLang", "llamacpp": "llama.cpp", "ollama": "Ollama"}


def show_endpoint(model: str, *, as_json: bool) -> None:
    """The engine, its model, how large its window is and who counts tokens."""
    from rag.generate import GenerateOptions, reach

    found = reach(GenerateOptions(model=model), note=lambda message: note(say(message))).engine
    counted, window = found.counts, found.window
    if as_json:
        record = {"engine": found.kind, "model": found.model, "window": window, "counts": counted}
        out_json(record)
        return
    counts = Translatable("by the engine") if counted else Translatable("estimated")
    out_message("engine: {engine}", engine=ENGINES.get(found.kind, Translatable("another")))
    out_message("model: {model}", model=found.model)
    out_message("window: {window}", window=window or Translatable("it does not say"))
    out_message("tokens: {counts}", counts=counts)
