"""`rag serve`: the API and the web page."""

import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingest.errors import UserError
from rag.cli.console import IngestProgress, note, out, say
from rag.cli.paths import cache_home, data_home

if TYPE_CHECKING:
    from rag.generate import GenerateOptions
    from server.options import ServerOptions
    from server.telemetry import SpanRecorder


Host = Annotated[
    str, typer.Option(help=say("Address to listen at; another than the loopback's needs a key."))
]
Port = Annotated[int, typer.Option(help=say("0: any free one."))]
Model = Annotated[
    str,
    typer.Option(
        metavar="MODEL",
        help=say(
            "Answer with this ChatGLM, or the model served at http://host:port/v1#name, where a "
            "knowledge base names none."
        ),
    ),
]
Quant = Annotated[
    str,
    typer.Option(
        metavar="auto|none|int8|int4|nf4", help=say("How its weights are held; auto: what fits.")
    ),
]
Adapters = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help=say("A folder of adapters that knowledge bases may choose.")),
]
Embedder = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help=say(
            "An encoder that new knowledge bases may choose; can be repeated, the first is usual."
        ),
    ),
]
StoreUrl = Annotated[
    str,
    typer.Option(
        "--store",
        metavar="URL",
        help=say(
            "Keep new knowledge bases at milvus://HOST:19530[/DATABASE], not in their folders."
        ),
    ),
]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help=say("A host name under which it may be reached without keys; can be repeated."),
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
    from rag.endpoint.engines import Unreachable
    from rag.generate import reach

    once = replace(generate, endpoint=EndpointOptions(tries=1))
    try:
        _ = reach(once, note=lambda message: note(say(message))).context
    except Unreachable as problem:
        note(say(problem.message))


def demo_data() -> Path:
    """Where the demonstration's knowledge bases lie: they can be made again."""
    return cache_home() / "demo"


def spans() -> "SpanRecorder":
    """Spans where the variables of OpenTelemetry ask for them."""
    from server.telemetry import OTLP_VARIABLES, SpanRecorder, otlp_recorder

    return otlp_recorder() if any(map(os.environ.get, OTLP_VARIABLES)) else SpanRecorder()


DEMO = Path(__file__).parents[2] / "corpora"


def serve(
    host: Host = "127.0.0.1",
    port: Port = 8765,
    *,
    demo: Annotated[
        bool,
        typer.Option(
            "--demo",
            help=say(
                "Serve the corpora that come with the program, read in at once; your own knowledge "
                "bases stay out of it."
            ),
        ),
    ] = False,
    model: Model = "",
    quant: Quant = "auto",
    adapters: Adapters = None,
    embedder: Embedder = None,
    store: StoreUrl = "",
    allow_host: AllowHost = None,
    slots: Annotated[
        int | None, typer.Option(help=say("Questions worked on at one time; two a core if unset."))
    ] = None,
    queue: Annotated[int, typer.Option(help=say("Questions that may wait; more get 429."))] = 64,
    rate: Annotated[
        int, typer.Option(help=say("Requests a minute for each key; 0: no limit."))
    ] = 600,
    max_file_mb: Annotated[int, typer.Option(help=say("Largest file of an upload."))] = 200,
    max_files: Annotated[int, typer.Option(help=say("Most files of an upload."))] = 500,
    ocr: Annotated[bool, typer.Option(help=say("Read pages and images without text."))] = True,
) -> None:
    from server.app import serve as run

    made = options(
        host=host,
        port=port,
        data=demo_data() if demo else None,
        model=model,
        quant=quant,
        adapters=adapters,
        embedders=embedder,
        store=store,
        hosts=tuple(allow_host or ()),
        **({} if slots is None else {"slots": slots}),
        queue=queue,
        rate=rate,
        largest_upload=max_file_mb * 1_000_000,
        most_files=max_files,
        ocr=ocr,
    )
    if demo:
        if not made.on_loopback:
            raise UserError(
                "--demo is for this machine, and {host} is reached from others; leave --host out",
                host=host,
            )
        _demo(made.data)

    def on_ready(address: str) -> None:
        out(say("Open {address}   (Ctrl-C ends it)", address=address))

    run(made, spans=spans(), on_ready=on_ready, note=note)


serve.__doc__ = say("Serve your knowledge bases: an API, and a web page to ask and to upload.")


def _demo(data: Path) -> None:
    """A knowledge base for each corpus, made where it is missing or incomplete."""
    from ingest.files import walk
    from ingest.pipeline import Ingestion
    from ingest.sandbox import Sandbox
    from rag.config import read_config
    from rag.load import open_writer, score_norm_of

    corpora = sorted(path.parent for path in DEMO.glob("*/docs"))
    if not corpora:
        raise UserError("there are no corpora at {demo}; install chatglm-rag anew", demo=DEMO)
    for corpus in corpora:
        files = [file for file in walk([corpus / "docs"]) if not file.skipped]
        writer = open_writer(read_config(data / corpus.name), embedder=None, cache=cache_home())
        size = sum(file.size for file in files)
        with writer.store as store, Sandbox(ocr=False) as sandbox:
            with IngestProgress(len(files), size, quiet=False) as progress:
                work = Ingestion(store, writer.embedder, writer.chunker, sandbox, progress.chunks)
                for outcome in work.run(files):
                    progress.file(outcome)
            score_norm_of(store, writer.embedder)


def mcp(
    http: Annotated[
        bool,
        typer.Option(
            "--http",
            help=say(
                "Over HTTP, at /mcp of a server like that of `rag serve`; else standard input and "
                "output."
            ),
        ),
    ] = False,
    host: Host = "127.0.0.1",
    port: Port = 8765,
    *,
    model: Model = "",
    quant: Quant = "auto",
    adapters: Adapters = None,
) -> None:
    made = options(host=host, port=port, model=model, quant=quant, adapters=adapters)
    if http:
        from server.app import serve as serve_http

        def on_ready(address: str) -> None:
            note(f"{address}mcp")

        serve_http(made, spans=spans(), on_ready=on_ready, note=note)
        return
    from server.mcp_tools import tools
    from server.models import Models, model_loader
    from server.state import ServerState

    with closing(
        ServerState.create(made, Models(model_loader(made.cache, note)), spans=spans())
    ) as state:
        tools(state, say).run("stdio")


mcp.__doc__ = say("Give assistants the tools `search` and `ask` (Model Context Protocol).")
