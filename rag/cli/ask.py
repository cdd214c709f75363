"""`rag ask`, `rag chat` and `rag search`: questions to a knowledge base."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.cli.console import (
    ReadingProgress,
    bold,
    loading,
    note,
    note_message,
    out,
    out_json,
    out_message,
    out_piece,
    say,
)
from rag.cli.options import (
    JSON,
    KB,
    ModelOptions,
    ScopeOptions,
    argument,
    cache_home,
    existing_kb,
    option,
    with_options,
)

if TYPE_CHECKING:
    from rag.config import Config
    from rag.generate import Adaptable, GenerateOptions, Generator
    from rag.pipeline import Pipeline
    from rag.types import Message

QUIT = frozenset({"stop", "exit", "quit", "q", "bye", "退出", "停止", "结束", "再见"})
CLEAR = frozenset({"clear", "reset", "new", "清空", "清除", "重置"})
HELP = frozenset({"help", "h", "帮助"})
"""Commands of `rag chat`, also with a slash before them."""
COMMANDS = Translatable("Ask a question. `clear` clears the conversation, `exit` quits, `help` shows this.")
QUESTION = argument("", "The question; from standard input if left out.", default=None)


@with_options("Answer a question with quotes from the knowledge base, or report that it has no answer.")
def ask(
    question: str | None = QUESTION,
    kb: str = KB,
    as_json: bool = JSON,
    as_markdown: bool = option("--markdown", "Print Markdown with quotes.", default=False),
    quiet: bool = option("--quiet -q", "Print only the answer.", default=False),
    *,
    scope: ScopeOptions,
    model: ModelOptions,
) -> None:
    from rag import render

    text = _question(question)
    with _pipeline(kb, model, scope) as pipeline:
        if as_json:
            out_json(render.record(pipeline.ask(text)))
        elif as_markdown:
            out(render.markdown(pipeline.ask(text), say))
        else:
            _answer(pipeline, text, [], quiet=quiet)


@with_options("Ask one question after the other; a follow-up may refer to earlier ones.")
def chat(kb: str = KB, *, scope: ScopeOptions, model: ModelOptions) -> None:
    history: list[Message] = []
    with _pipeline(kb, model, scope) as pipeline:
        out_message(COMMANDS)
        while (question := _line()) is not None:
            command = question.lower().lstrip("/:\\").strip()
            if command in QUIT:
                break
            if command in CLEAR:
                history.clear()
                out_message("Conversation cleared.")
            elif command in HELP:
                out_message(COMMANDS)
            elif question:
                try:
                    history += _turn(pipeline, question, history)
                except UserError as problem:
                    out_message(problem.message)


@with_options("Show the passages that a question finds, best first.")
def search(
    question: str | None = QUESTION,
    kb: str = KB,
    limit: int = option("--limit -n", "Number of passages.", default=5, least=1, most=100),
    as_json: bool = JSON,
    *,
    scope: ScopeOptions,
) -> None:
    from rag.render import hit_line, hit_record

    text = _question(question)
    with _pipeline(kb, ModelOptions(model=""), scope) as pipeline:
        hits = pipeline.retrieve(text, limit=limit).hits
    if as_json:
        out_json({"question": text, "hits": [hit_record(hit) for hit in hits]})
        return
    for number, hit in enumerate(hits, 1):
        out(f"{number}. {hit_line(hit)}")
    if not hits:
        out_message("Nothing found.")


@contextmanager
def _pipeline(kb: str, model: ModelOptions, documents: ScopeOptions) -> "Iterator[Pipeline]":
    """The pipeline, with the language model of the options, or else of the settings."""
    from rag.load import open_pipeline

    scope, config = documents.scope, with_model(existing_kb(kb), model)
    generator = open_generator(config.generate)
    with open_pipeline(config, cache=cache_home(), say=say, generator=generator) as pipeline:
        yield pipeline.scoped(scope)


def with_model(config: "Config", model: ModelOptions) -> "Config":
    """The settings with these options instead of theirs.

    Another model comes without the settings' adapter, weights' form, window and tokenizer.
    """
    if not model.values:
        return config
    from rag.generate import GenerateOptions

    options = config.generate
    if model.model is not None:
        quant, endpoint = GenerateOptions().quant, options.endpoint
        if endpoint.context or endpoint.tokenizer:
            endpoint = replace(endpoint, context=0, tokenizer="")
        options = replace(options, model=model.model, quant=quant, adapter="", endpoint=endpoint)
    return replace(config, generate=replace(options, **model.values))


def open_generator(options: "GenerateOptions") -> "Generator | None":
    """The model, loaded or reached when the first answer needs it; None if none is named."""
    if not options.model:
        return None
    from rag.generate import LazyGenerator, load, reach

    if options.served:
        return reach(options, note=lambda message: note_message(message))
    name = Path(options.model).resolve().name

    def load_model() -> "Adaptable":
        with loading(name) as progress:
            return load(
                options,
                cache=cache_home() / "models",
                progress=progress,
                note=note,
                reading=ReadingProgress(),
            )

    return LazyGenerator(name, load_model)


def _question(question: str | None) -> str:
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read()
    if question is None or not question.strip():
        raise UserError("the question is empty; give it as an argument or on standard input")
    return question.strip()


def _line() -> str | None:
    """The next line of standard input; None at its end or at Ctrl-C."""
    if sys.stdin.isatty():
        sys.stderr.write(say("\nyou: "))
        sys.stderr.flush()
    try:
        line = sys.stdin.readline()
    except KeyboardInterrupt:
        note("")
        return None
    return line.strip() if line else None


def _turn(pipeline: "Pipeline", question: str, history: "Sequence[Message]") -> "list[Message]":
    """The question and its answer; of an answer that Ctrl-C stops, the part that was printed."""
    from rag.types import Message

    pieces: list[str] = []
    try:
        _answer(pipeline, question, pieces, history)
    except KeyboardInterrupt:
        note_message("\nstopped")
    text = "".join(pieces)
    return [Message("user", question), Message("assistant", text)] if text else []


def _answer(
    pipeline: "Pipeline",
    question: str,
    pieces: list[str],
    history: "Sequence[Message]" = (),
    *,
    quiet: bool = False,
) -> None:
    """Print an answer as it comes, then what stands below it; its pieces are added to `pieces`."""
    from rag.render import below
    from rag.types import Answer

    try:
        for piece in pipeline.stream(question, history):
            if isinstance(piece, str):
                pieces.append(piece)
                if pipeline.generator:
                    out_piece(piece)
            elif isinstance(piece, Answer):
                if not pipeline.generator:
                    out_piece(bold(piece.text, piece.span))
                out("" if quiet else f"\n{below(piece, say)}".rstrip("\n"))
    except UserError:
        if pieces:  # the error message begins on a line of its own
            out()
        raise
