"""`rag mcp`: search and ask as tools for assistants."""

from contextlib import closing
from typing import Annotated

import typer

from rag.cli.console import note, say
from server.cli import choices


def mcp(
    http: Annotated[
        bool,
        typer.Option(
            "--http",
            help=say(
                "Over HTTP, at /mcp of a server like that of `rag serve`; else standard input and "
                "output.",
                "通过 HTTP 提供（同 rag serve 的 /mcp）；否则使用标准输入输出。",
            ),
        ),
    ] = False,
    host: choices.Host = "127.0.0.1",
    port: choices.Port = 8765,
    *,
    model: choices.Model = "",
    quant: choices.Quant = "auto",
    adapters: choices.Adapters = None,
) -> None:
    made = choices.options(host=host, port=port, model=model, quant=quant, adapters=adapters)
    if http:
        from server.serve import serve

        def told(address: str) -> None:
            note(f"{address}mcp")

        serve(made, spans=choices.spans(), told=told, note=note)
        return
    from server.mcp_tools import tools
    from server.models import Models, loader
    from server.state import State

    with closing(
        State.made(made, Models(loader(made.cache, note)), spans=choices.spans())
    ) as state:
        tools(state, say).run("stdio")


mcp.__doc__ = say(
    "Give assistants the tools `search` and `ask` (Model Context Protocol).",
    "以 MCP 工具形式向助手提供 search 和 ask。",
)
