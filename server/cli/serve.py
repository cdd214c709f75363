"""`rag serve` and `rag mcp`: the API, the web page, the tools. `rag trace`: how an answer came about."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from time import localtime, strftime
from typing import TYPE_CHECKING, Annotated

from ingest.errors import UserError
from rag.cli.console import note, note_message, out, out_json, out_message, say
from rag.cli.options import JSON, ModelOptions, argument, cache_home, data_home, option, with_options
from server.options import ServerOptions

if TYPE_CHECKING:
    from rag.generate import GenerateOptions
    from server.schemas import TraceResponse

UsualModel = Annotated[ModelOptions, ("model", "quant")]
DEMO = Path(__file__).parents[2] / "corpora"


def with_usual_model(options: ServerOptions, model: ModelOptions) -> ServerOptions:
    """The options with this language model for knowledge bases that name none; it is looked for at once."""
    if not model.model:
        return options
    from rag.generate import GenerateOptions

    generate = GenerateOptions(**model.values)
    _check_there(generate, options.cache / "models")
    return replace(options, generate=generate)


def _check_there(generate: "GenerateOptions", cache: Path) -> None:
    """Reports a missing model now, not at the first question. An engine may still be starting."""
    if not generate.served:
        from rag.chatglm.hub import fetch

        fetch(generate.model, cache=cache)
        return
    from rag.endpoint import EndpointOptions
    from rag.endpoint.engines import Unreachable
    from rag.generate import reach

    once = replace(generate, endpoint=EndpointOptions(tries=1))
    try:
        _ = reach(once, note=lambda message: note_message(message)).context
    except Unreachable as problem:
        note_message(problem.message)


def demo_data() -> Path:
    """Where the demonstration's knowledge bases lie: they can be built again."""
    return cache_home() / "demo"


@with_options("Serve your knowledge bases: an API, and a web page for questions and uploads.")
def serve(
    *,
    options: ServerOptions,
    demo: bool = option(
        "--demo",
        "Serve the corpora that come with the program, ingested at startup; your own knowledge "
        "bases are not served.",
        default=False,
    ),
    model: UsualModel,
) -> None:
    options = with_usual_model(options, model)
    if not demo:
        _run(options, _opened)
        return
    if not options.on_loopback:
        raise UserError(
            "--demo is for this machine, and {host} is reached from others; leave --host out",
            host=options.host,
        )
    corpora = sorted(path.parent for path in DEMO.glob("*/docs"))
    if not corpora:
        raise UserError("there are no corpora at {demo}; install chatglm-rag again", demo=DEMO)
    _run(replace(options, data=demo_data()), _opened, lambda: _build_demo(demo_data(), corpora))


def _opened(address: str) -> None:
    out_message("Open {address}   (Ctrl-C to stop)", address=address)
    sys.stdout.flush()


def _run(
    options: ServerOptions, on_ready: Callable[[str], None], prepare: Callable[[], None] = lambda: None
) -> None:
    os.environ.setdefault("OTEL_SERVICE_NAME", "chatglm-rag")
    from server.app import serve

    serve(options, on_ready=on_ready, note=note, prepare=prepare)


def _build_demo(data: Path, corpora: Sequence[Path]) -> None:
    """A knowledge base for each corpus, built if it is missing or incomplete."""
    from rag.cli.ingest import IngestOptions, ingest_into
    from rag.config import read_config

    for corpus in corpora:
        note_message("reading {name}; not ready yet", name=corpus.name)
        options = IngestOptions(ocr=False, summary=False)
        ingest_into(read_config(data / corpus.name), [corpus / "docs"], options, kb=corpus.name)
    note_message("The demonstration is ready.")


@with_options("Serve the tools `search` and `ask` to assistants (Model Context Protocol).")
def mcp(
    *,
    http: bool = option(
        "--http",
        "Serve over HTTP, at /mcp, as `rag serve` does; default: standard input and output.",
        default=False,
    ),
    options: Annotated[ServerOptions, ("host", "port", "adapters")],
    model: UsualModel,
) -> None:
    options = with_usual_model(options, model)
    if http:
        _run(options, lambda address: note(f"{address}mcp"))
        return
    from server.mcp_tools import tools
    from server.models import Models, model_loader
    from server.state import ServerState

    with closing(ServerState(options, Models(model_loader(options.cache, note)))) as state:
        tools(state, say).run("stdio")


@with_options("Show how an answer came about: question, passages, prompt, answer.")
def trace(answer: str = argument("ID", "Id of the answer."), as_json: bool = JSON) -> None:
    found = _find(answer)
    if as_json:
        out_json(found.model_dump())
    else:
        _show(found)


def _find(answer: str) -> "TraceResponse":
    """The trace, from the data folder of the server that answered."""
    from server.database import trace_database
    from server.telemetry import Traces

    for home in (data_home(), demo_data()):
        if (home / ".server").is_dir():
            with closing(trace_database(home / ".server")) as database:
                if found := Traces(database).get(answer):
                    return found
    raise UserError(
        "there is no answer {answer}; it may be older than those kept, or its documents are gone",
        answer=answer,
    )


def _show(found: "TraceResponse") -> None:
    record = found.record
    when = strftime("%Y-%m-%d %H:%M:%S", localtime(found.created))
    out(f"{found.id}  {when}  {found.knowledge_base} @ {found.sequence}")
    out_message("question: {record}", record=record["question"])
    for message in record["history"]:
        out(f"  {message['role']}: {message['text']}")
    sure, limit = f"{record['confidence']:.3f}", f"{record['threshold']:.3f}"
    out_message("confidence {sure}, refused below {limit}", sure=sure, limit=limit)
    out("  ".join(f"{stage} {took * 1000:.1f} ms" for stage, took in record["seconds"].items()))
    for number, hit in enumerate(record["hits"], start=1):
        place = " · ".join(part for part in (hit["source"], hit["label"]) if part)
        out(f"{number}. {place} {hit['start']}–{hit['end']}  ({hit['score']:.4f})")
    for message in record["prompt"] or ():
        out(f"[{message['role']}]\n{message['text']}\n")
    if answer := record["answer"]:
        out_message("answer:")
        out(answer["answer"])
        for citation in answer["citations"]:
            span = f"{citation['label']} {citation['start']}–{citation['end']}"
            out(f"[{citation['number']}] {citation['title']} · {span}: {citation['quote']}")
