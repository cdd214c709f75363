"""What a knowledge base may choose, and its choices in its `rag.toml`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomlkit

from ingest.store.atomic import write_whole
from rag.endpoint import Address, no_adapter
from rag.generate import GenerateOptions
from rag.settings import SETTINGS
from server import schemas
from server.errors import Unfit, Unknown
from server.options import ServerOptions


def offered(adapters: Path | None) -> list[str]:
    """Names of the adapters in a folder."""
    if adapters is None or not adapters.is_dir():
        return []
    return sorted(
        path.name for path in adapters.iterdir() if (path / "adapter_config.json").is_file()
    )


def check_choice(what: str, wanted: str, choices: Sequence[str]) -> None:
    """Raises `Unknown` for what is not offered."""
    if wanted not in choices:
        listed = ", ".join(choices) or "none"
        raise Unknown(
            f"there is no {what} {wanted[:80]}; this server offers: {listed}",
            zh=f"没有 {what} {wanted[:80]}；本服务器提供：{listed}",
        )


def write_choices(
    path: Path,
    wanted: schemas.NewKnowledgeBase | schemas.KnowledgeBaseChange,
    options: ServerOptions,
    generate: GenerateOptions,
) -> None:
    """Put what is not None into the knowledge base's `rag.toml`, whose other lines stay as they are.

    `generate` is what holds for it now. An adapter is written with the model that it is for.
    """
    file = path / SETTINGS
    said = tomlkit.parse(file.read_text("utf-8-sig") if file.exists() else "")
    if wanted.instruction is not None and (wanted.instruction or "prompt" in said):
        said.setdefault("prompt", tomlkit.table())["instruction"] = wanted.instruction
    if wanted.adapter:
        check_choice("adapter", wanted.adapter, offered(options.adapters))
        if not generate.model:
            raise Unfit(
                "an adapter needs a language model; start the server with --model",
                zh="适配器需要语言模型；请用 --model 启动服务",
            )
        if generate.served:
            raise no_adapter(Address.parse(generate.model), wanted.adapter)
        assert options.adapters
        section: Any = said.setdefault("generate", tomlkit.table())
        section["model"], section["quant"] = generate.model, generate.quant
        section["adapter"] = str(options.adapters.resolve() / wanted.adapter)
    elif wanted.adapter is not None and "generate" in said:
        _without_adapter(said["generate"], options.generate)
    if text := tomlkit.dumps(said):
        write_whole(file, text.encode())


def _without_adapter(said: Any, usual: GenerateOptions | None) -> None:
    """Take the adapter off a [generate] section, and with it the server's own model, which came with
    the adapter: the next server may have another."""
    said["adapter"] = ""
    if usual and (said.get("model"), said.get("quant")) == (usual.model, usual.quant):
        del said["model"], said["quant"]
