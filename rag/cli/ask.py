"""`rag ask`, `rag chat` and `rag search`: questions to a knowledge base."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ingest.errors import UserError
from rag.cli.places import KbOption, cache_home, existing_kb
from rag.cli.screen import out, out_json, say

if TYPE_CHECKING:
    from rag.pipeline import Pipeline
    from rag.types import Answer

Question = Annotated[
    str | None,
    typer.Argument(
        help=say("The question; from standard input if left out.", "问题；省略时读标准输入。")
    ),
]
Json = Annotated[bool, typer.Option("--json", help=say("One JSON value.", "输出一个 JSON 值。"))]


def ask(
    question: Question = None,
    kb: Annotated[str, KbOption] = "default",
    as_json: Json = False,
    as_markdown: Annotated[
        bool,
        typer.Option("--markdown", help=say("Markdown with quotes.", "输出带引文的 Markdown。")),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help=say("The answer alone.", "只输出答案。"))
    ] = False,
) -> None:
    text = _question(question)
    with _pipeline(kb) as pipeline:
        _print(pipeline.ask(text), as_json=as_json, as_markdown=as_markdown, quiet=quiet)


ask.__doc__ = say(
    "Answer a question with quotes from the knowledge base, or say that it does not tell.",
    "用知识库里的原文回答问题；知识库没有答案时如实说明。",
)


def chat(kb: Annotated[str, KbOption] = "default") -> None:
    from rag.types import Message

    history: list[Message] = []
    with _pipeline(kb) as pipeline:
        out(
            say(
                "Ask away. `clear` forgets the conversation, `stop` ends it.",
                "欢迎提问。输入 clear 清空对话历史，stop 终止程序。",
            )
        )
        while (question := _line()) not in (None, "stop"):
            if question == "clear":
                history.clear()
                out(say("Forgotten.", "对话历史已清空。"))
            elif question:
                try:
                    answer = pipeline.ask(question, history)
                except UserError as problem:
                    out(say(str(problem), problem.zh))
                    continue
                _print(answer)
                history += [Message("user", question), Message("assistant", answer.text)]


chat.__doc__ = say(
    "Ask one question after the other; follow-ups may lean on what was asked before.",
    "连续提问；追问可以省略前面说过的主题。",
)


def search(
    question: Question = None,
    kb: Annotated[str, KbOption] = "default",
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=100, help=say("Passages.", "段落数。"))
    ] = 5,
    as_json: Json = False,
) -> None:
    from rag.render import hit_line, hit_record

    text = _question(question)
    with _pipeline(kb) as pipeline:
        found = pipeline.retrieve(text, limit=limit)
        if as_json:
            out_json({"question": text, "hits": [hit_record(hit) for hit in found.hits]})
            return
        for number, hit in enumerate(found.hits, 1):
            out(f"{number}. {hit_line(hit)}")
        if not found.hits:
            out(say("Nothing found.", "没有找到。"))


search.__doc__ = say(
    "Show the passages that a question finds, best first.", "列出与问题最相关的段落。"
)


def _pipeline(kb: str) -> "Pipeline":
    from rag.open import open_pipeline

    return open_pipeline(existing_kb(kb), cache=cache_home(), say=say)


def _question(question: str | None) -> str:
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read()
    if question is None or not question.strip():
        raise UserError(
            "the question is empty; give it as an argument or on standard input",
            zh="问题是空的；请作为参数给出，或从标准输入传入",
        )
    return question.strip()


def _line() -> str | None:
    """The next line of the person at the keyboard or of a pipe; None at its end."""
    if sys.stdin.isatty():
        sys.stderr.write(say("\nyou: ", "\n用户："))
        sys.stderr.flush()
    line = sys.stdin.readline()
    return line.strip() if line else None


def _print(
    answer: "Answer", *, as_json: bool = False, as_markdown: bool = False, quiet: bool = False
) -> None:
    from rag import render

    if as_json:
        out_json(render.record(answer))
    elif quiet:
        out(answer.text)
    else:
        out(render.markdown(answer) if as_markdown else render.plain(answer))
