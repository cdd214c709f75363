"""`rag trace`: how an answer came about, and the same retrieval again."""

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from time import localtime, strftime
from typing import TYPE_CHECKING

from ingest.errors import UserError
from rag.cli.console import out, out_json, out_message, say, table
from rag.cli.options import JSON, argument, with_options
from rag.cli.paths import cache_home, data_home, existing_kb
from server.cli.serve import demo_data

if TYPE_CHECKING:
    from server.schemas import TraceResponse
    from server.traces import Replay

SHOWN = 20  # candidates in a table; --json has all


@with_options("Show how an answer came about, and retrieve again: question, candidates, prompt, answer.")
def trace(answer: str = argument("ID", "Id of the answer."), as_json: bool = JSON) -> None:
    from rag.load import open_pipeline
    from server.state import limit_blas_threads
    from server.traces import replay

    limit_blas_threads()
    home, found = _find(answer)
    kb = existing_kb(str(home / found.knowledge_base))
    with open_pipeline(kb, cache=cache_home(), say=say) as pipeline:
        again = replay(found, pipeline)
    if as_json:
        out_json(found.model_dump() | {"replay": asdict(again)})
    else:
        _show(found, again)


def _find(answer: str) -> "tuple[Path, TraceResponse]":
    """The trace, and the data folder of the server that answered."""
    from server.database import trace_database
    from server.traces import Traces

    for home in (data_home(), demo_data()):
        if (home / ".server").is_dir():
            with closing(trace_database(home / ".server")) as database:
                if found := Traces(database).get(answer):
                    return home, found
    raise UserError(
        "there is no answer {answer}; it may be older than those kept, or its documents are gone",
        answer=answer,
    )


def _show(found: "TraceResponse", again: "Replay") -> None:
    record = found.record
    when = strftime("%Y-%m-%d %H:%M:%S", localtime(found.created))
    out(f"{found.id}  {when}  {found.knowledge_base} @ {found.sequence}")
    out_message("question: {record}", record=record["question"])
    for message in record["history"]:
        out(f"  {message['role']}: {message['text']}")
    sure, limit = f"{record['confidence']:.3f}", f"{record['threshold']:.3f}"
    out_message("confidence {sure}, refused below {limit}", sure=sure, limit=limit)
    out("  ".join(f"{stage} {took * 1000:.1f} ms" for stage, took in record["seconds"].items()))
    gone = say("(gone)")
    table(
        say("candidates"),
        ["", say("score"), say("chunk")],
        [
            (rank, f"{score:.6f}", again.chunks.get(int(key), gone))
            for rank, (key, score) in enumerate(record["candidates"][:SHOWN], start=1)
        ],
    )
    for message in record["prompt"] or ():
        out(f"[{message['role']}]\n{message['text']}\n")
    answer = record["answer"]
    if answer:
        out_message("answer:")
        out(answer["answer"])
        for citation in answer["citations"]:
            span = f"{citation['label']} {citation['start']}–{citation['end']}"
            out(f"[{citation['number']}] {citation['title']} · {span}: {citation['quote']}")
    out(_comparison(found, again))


def _comparison(found: "TraceResponse", again: "Replay") -> str:
    if again.same:
        return say(
            "retrieved again at {sequence}: the same candidates with the same scores", sequence=again.sequence
        )
    return say(
        "retrieved again at {sequence} (then {sequence_2}): {new_count} new candidates, "
        "{gone_count} gone, or other scores: the knowledge base has changed",
        sequence=again.sequence, sequence_2=found.sequence,
        new_count=len(again.new), gone_count=len(again.gone),
    )  # fmt: skip
