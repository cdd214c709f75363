"""`rag doctor --model http://…`: what is served at an address."""

from rag.cli.console import note, out, out_json, say

ENGINES = {"vllm": "vLLM", "sglang": "SGLang", "llamacpp": "llama.cpp", "ollama": "Ollama"}


def show(model: str, *, as_json: bool) -> None:
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
