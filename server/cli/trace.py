"""`rag trace`: how an answer came about, and the same retrieval again."""

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ingest.errors import UserError
from rag.cli.console import out, out_json, say, table
from rag.cli.paths import cache_home, data_home, existing_kb
from server.cli.serve import demo_data

if TYPE_CHECKING:
    from server.schemas import Trace
    from server.traces import Replay

SHOWN = 20  # candidates in a table; --json has all


def trace(
    answer: Annotated[
        str, typer.Argument(metavar="ID", help=say("The answer's id.", "回答编号。"))
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help=say("One JSON value.", "输出一个 JSON 值。"))
    ] = False,
) -> None:
    from rag.load import open_pipeline
    from server.state import on_one_thread
    from server.traces import replay

    on_one_thread()
    home, found = _found(answer)
    with open_pipeline(
        existing_kb(str(home / found.knowledge_base)), cache=cache_home(), say=say
    ) as pipeline:
        again = replay(found, pipeline)
    if as_json:
        out_json(found.model_dump() | {"replay": asdict(again)})
    else:
        _show(found, again)


trace.__doc__ = say(
    "Show how an answer came about, and retrieve once more: question, candidates, prompt, answer.",
    "查看回答的由来并重新检索：问题、候选、提示、回答。",
)


def _found(answer: str) -> "tuple[Path, Trace]":
    """The trace, and the folder whose server has answered: the usual one, or the demonstration's."""
    from server.database import passing
    from server.traces import Traces

    for home in (data_home(), demo_data()):
        if (home / ".server").is_dir():
            with closing(passing(home / ".server")) as database:
                if found := Traces(database).get(answer):
                    return home, found
    raise UserError(
        f"there is no answer {answer}; it may be older than those kept, or its documents are gone",
        zh=f"没有回答 {answer}；可能已过保存期限，或其文档已删除",
    )


def _show(found: "Trace", again: "Replay") -> None:
    from time import localtime, strftime

    record = found.record
    when = strftime("%Y-%m-%d %H:%M:%S", localtime(found.created))
    out(f"{found.id}  {when}  {found.knowledge_base} @ {found.sequence}")
    out(say(f"question: {record['question']}", f"问题：{record['question']}"))
    for message in record["history"]:
        out(f"  {message['role']}: {message['text']}")
    sure, limit = f"{record['confidence']:.3f}", f"{record['threshold']:.3f}"
    out(say(f"confidence {sure}, refused below {limit}", f"置信度 {sure}，低于 {limit} 时拒答"))
    out("  ".join(f"{stage} {took * 1000:.1f} ms" for stage, took in record["seconds"].items()))
    gone = say("(gone)", "（已删除）")
    table(
        say("candidates", "候选"),
        ["", say("score", "得分"), say("chunk", "块")],
        [
            (rank, f"{score:.6f}", again.chunks.get(int(key), gone))
            for rank, (key, score) in enumerate(record["candidates"][:SHOWN], start=1)
        ],
    )
    for message in record["prompt"] or ():
        out(f"[{message['role']}]\n{message['text']}\n")
    answer = record["answer"]
    if answer:
        out(say("answer:", "回答："))
        out(answer["answer"])
        for citation in answer["citations"]:
            place = f"{citation['label']} {citation['start']}–{citation['end']}"
            out(f"[{citation['number']}] {citation['title']} · {place}: {citation['quote']}")
    out(_verdict(found, again))


def _verdict(found: "Trace", again: "Replay") -> str:
    if again.same:
        return say(
            f"retrieved again at {again.sequence}: the same candidates with the same scores",
            f"在版本 {again.sequence} 重新检索：候选与得分完全相同",
        )
    return say(
        f"retrieved again at {again.sequence} (then {found.sequence}): {len(again.new)} new "
        f"candidates, {len(again.gone)} gone, or other scores: the knowledge base has changed",
        f"在版本 {again.sequence}（当时为 {found.sequence}）重新检索：新增候选 {len(again.new)} 个，"
        f"消失 {len(again.gone)} 个，或得分不同：知识库已变化",
    )
