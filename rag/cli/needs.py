"""`rag doctor --model`: what a model needs in each mode, told without reading a weight."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.cli.console import out, out_json, say, table
from rag.cli.paths import cache_home

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from rag.chatglm.memory import Need
    from rag.chatglm.room import Room

SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
KINDS = {1: "ChatGLM-6B", 2: "ChatGLM2", 3: "ChatGLM3", 4: "GLM-4"}


def show(name: str, context: int, *, as_json: bool) -> None:
    """The needs of a model's modes for `context` tokens, which fit here, and the best of them."""
    from rag.chatglm.hub import fetch
    from rag.chatglm.loading import read_config
    from rag.chatglm.memory import modes, need, on_disk, pick
    from rag.chatglm.room import Room

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
