"""`rag ask`, `rag chat` and `rag search`: questions to a knowledge base."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingest.errors import UserError
from rag.cli import model_options as llm
from rag.cli.console import note, out, out_json, out_piece, say
from rag.cli.paths import KbOption, cache_home, existing_kb

if TYPE_CHECKING:
    from rag.config import Config
    from rag.generate import Adaptable, GenerateOptions, Generator
    from rag.pipeline import Pipeline
    from rag.types import Message

Question = Annotated[
    str | None, typer.Argument(help=say("The question; from standard input if left out."))
]
Json = Annotated[bool, typer.Option("--json", help=say("One JSON value."))]


def ask(
    question: Question = None,
    kb: Annotated[str, KbOption] = "default",
    as_json: Json = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help=say("Markdown with quotes."))
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help=say("The answer alone."))] = False,
    *,
    model: llm.Model = None,
    quant: llm.Quant = None,
    adapter: llm.Adapter = None,
    max_new_tokens: llm.MaxNewTokens = None,
    temperature: llm.Temperature = None,
    top_p: llm.TopP = None,
    seed: llm.Seed = None,
) -> None:
    from rag import render

    text = _question(question)
    pipeline = _pipeline(
        kb,
        model=model,
        quant=quant,
        adapter=adapter,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    with pipeline:
        if as_json:
            out_json(render.record(pipeline.ask(text)))
        elif as_markdown:
            out(render.markdown(pipeline.ask(text), say))
        else:
            _answer(pipeline, text, quiet=quiet)


ask.__doc__ = say(
    "Answer a question with quotes from the knowledge base, or say that it does not tell."
)


def chat(
    kb: Annotated[str, KbOption] = "default",
    *,
    model: llm.Model = None,
    quant: llm.Quant = None,
    adapter: llm.Adapter = None,
    max_new_tokens: llm.MaxNewTokens = None,
    temperature: llm.Temperature = None,
    top_p: llm.TopP = None,
    seed: llm.Seed = None,
) -> None:
    history: list[Message] = []
    pipeline = _pipeline(
        kb,
        model=model,
        quant=quant,
        adapter=adapter,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    with pipeline:
        out(say("Ask away. `clear` forgets the conversation, `stop` ends it."))
        while (question := _line()) not in (None, "stop"):
            if question == "clear":
                history.clear()
                out(say("Forgotten."))
            elif question:
                try:
                    history += _turn(pipeline, question, history)
                except UserError as problem:
                    out(say(problem.message))


chat.__doc__ = say(
    "Ask one question after the other; follow-ups may lean on what was asked before."
)


def search(
    question: Question = None,
    kb: Annotated[str, KbOption] = "default",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100, help=say("Passages."))] = 5,
    as_json: Json = False,
) -> None:
    from rag.render import hit_line, hit_record

    text = _question(question)
    with _pipeline(kb, model="") as pipeline:
        found = pipeline.retrieve(text, limit=limit)
        if as_json:
            out_json({"question": text, "hits": [hit_record(hit) for hit in found.hits]})
            return
        for number, hit in enumerate(found.hits, 1):
            out(f"{number}. {hit_line(hit)}")
        if not found.hits:
            out(say("Nothing found."))


search.__doc__ = say("Show the passages that a question finds, best first.")


def _pipeline(kb: str, **given: Any) -> "Pipeline":
    """The pipeline, with the language model that the settings or the options `given` name."""
    from rag.load import open_pipeline

    config = _with_model(existing_kb(kb), given)
    generator = _generator(config.generate)
    return open_pipeline(config, cache=cache_home(), say=say, generator=generator)


def _with_model(config: "Config", given: dict[str, Any]) -> "Config":
    """The settings with what was `given` (what is not None) about the language model instead.

    Another model comes without the settings' adapter, weights' form, window and tokenizer.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return config
    from rag.generate import GenerateOptions

    options = config.generate
    if "model" in given:
        plain = GenerateOptions()
        options = replace(
            options,
            model=given["model"],
            quant=plain.quant,
            adapter=plain.adapter,
            endpoint=replace(options.endpoint, context=0, tokenizer=""),
        )
    return replace(config, generate=replace(options, **given))


def _generator(chosen: "GenerateOptions") -> "Generator | None":
    """The model, loaded or asked what it is when the first answer needs it; None if none is named."""
    if not chosen.model:
        return None
    from rag.cli.console import loading
    from rag.generate import LazyGenerator, load, reach

    if chosen.served:
        return reach(chosen, note=lambda message: note(say(message)))
    name = Path(chosen.model).resolve().name

    def load_it() -> "Adaptable":
        with loading(name) as progress:
            return load(chosen, cache=cache_home() / "models", progress=progress, note=note)

    return LazyGenerator(name, load_it)


def _question(question: str | None) -> str:
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read()
    if question is None or not question.strip():
        raise UserError("the question is empty; give it as an argument or on standard input")
    return question.strip()


def _line() -> str | None:
    """The next line of the person at the keyboard or of a pipe; None at its end or at Ctrl-C."""
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
    """What is said on both sides: of an answer stopped by Ctrl-C, as much as there was."""
    from rag.types import Message

    said: list[str] = []
    try:
        _answer(pipeline, question, history, said=said)
    except KeyboardInterrupt:
        note(say("\nstopped"))
    text = "".join(said)
    return [Message("user", question), Message("assistant", text)] if text else []


def _answer(
    pipeline: "Pipeline",
    question: str,
    history: "Sequence[Message]" = (),
    *,
    quiet: bool = False,
    said: list[str] | None = None,
) -> None:
    """Print an answer as it comes, then what stands below it; `said` takes its pieces."""
    from rag.render import below
    from rag.types import Answer

    said = [] if said is None else said
    try:
        for piece in pipeline.stream(question, history):
            if isinstance(piece, str):
                out_piece(piece)
                said.append(piece)
            elif isinstance(piece, Answer):
                out("" if quiet else f"\n{below(piece, say)}".rstrip("\n"))
    except UserError:
        if said:  # what came of an answer stays, on a line of its own
            out()
        raise
