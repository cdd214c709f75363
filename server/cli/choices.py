"""Options that the commands of a server share, and what they come to."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rag.cli.console import note, say
from rag.cli.paths import cache_home, data_home

if TYPE_CHECKING:
    from rag.generate import GenerateOptions
    from server.options import ServerOptions
    from server.telemetry import Spans

Host = Annotated[
    str,
    typer.Option(
        help=say(
            "Address to listen at; another than the loopback's needs a key.",
            "监听地址；非本机地址需要先创建密钥。",
        )
    ),
]
Port = Annotated[int, typer.Option(help=say("0: any free one.", "0 表示任选空闲端口。"))]
Model = Annotated[
    str,
    typer.Option(
        metavar="MODEL",
        help=say(
            "Answer with this ChatGLM, or the model served at http://host:port/v1#name, where a "
            "knowledge base names none.",
            "知识库未指定模型时用此 ChatGLM，或 http://主机:端口/v1#名称 处的模型回答。",
        ),
    ),
]
Quant = Annotated[
    str,
    typer.Option(
        metavar="auto|none|int8|int4|nf4",
        help=say("How its weights are held; auto: what fits.", "权重的存放方式；auto 自动选择。"),
    ),
]
Adapters = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help=say(
            "A folder of adapters that knowledge bases may choose.",
            "可供知识库选用的适配器文件夹。",
        ),
    ),
]
Embedder = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help=say(
            "An encoder that new knowledge bases may choose; can be repeated, the first is usual.",
            "新知识库可选用的编码器；可重复，第一个为默认。",
        ),
    ),
]
StoreUrl = Annotated[
    str,
    typer.Option(
        "--store",
        metavar="URL",
        help=say(
            "Keep new knowledge bases at milvus://HOST:19530[/DATABASE], not in their folders.",
            "新知识库存放于 milvus://主机:19530[/数据库]，而不是各自的文件夹。",
        ),
    ),
]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help=say(
            "A host name under which it may be reached without keys; can be repeated.",
            "不使用密钥时允许的主机名；可重复。",
        ),
    ),
]


def options(**given: Any) -> "ServerOptions":
    """The options of a server over the named knowledge bases of this person."""
    from ingest.embed import BUNDLED
    from rag.generate import GenerateOptions
    from server.options import ServerOptions

    model, quant = given.pop("model", ""), given.pop("quant", "auto")
    embedders = tuple(given.pop("embedders", None) or (BUNDLED,))
    data = given.pop("data", None) or data_home()
    made = ServerOptions(data=data, cache=cache_home(), embedders=embedders, **given)
    if model:
        generate = GenerateOptions(model=model, quant=quant)
        _check_there(generate, made.cache / "models")
        made = replace(made, generate=generate)
    return made


def _check_there(generate: "GenerateOptions", cache: Path) -> None:
    """What is not there is told now, not when it is asked. An engine may still be starting."""
    if not generate.served:
        from rag.chatglm.hub import fetch

        fetch(generate.model, cache=cache)
        return
    from rag.endpoint import EndpointOptions
    from rag.endpoint.client import Unreachable
    from rag.generate import reach

    once = replace(generate, endpoint=EndpointOptions(tries=1))
    try:
        _ = reach(once, note=lambda en, zh: note(say(en, zh))).context
    except Unreachable as problem:
        note(say(str(problem), problem.zh))


def demo_data() -> Path:
    """Where the demonstration's knowledge bases lie: they can be made again."""
    return cache_home() / "demo"


def spans() -> "Spans":
    """Spans where the variables of OpenTelemetry ask for them."""
    from server.telemetry import CONFIGURED, Spans, exported

    return exported() if any(os.environ.get(name) for name in CONFIGURED) else Spans()
