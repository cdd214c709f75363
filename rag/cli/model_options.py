"""The options of commands that answer with a language model, and the model that they name."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rag.cli.console import loading, note, say
from rag.cli.paths import cache_home

if TYPE_CHECKING:
    from rag.config import Place
    from rag.generate import Adaptable, GenerateOptions, Generator

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help=say(
            "Write the answer with this ChatGLM (folder, or name on a hub), or any model served "
            "at http://host:port/v1#name; '' for none."
        ),
    ),
]
Quant = Annotated[
    str | None,
    typer.Option(
        "--quant",
        metavar="auto|none|int8|int4|nf4",
        help=say("How its weights are held; auto: what fits."),
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option("--adapter", metavar="DIR", help=say("A LoRA or P-Tuning adapter for it.")),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens", metavar="N", help=say("The answer's length in tokens, at most.")
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option("--temperature", metavar="T", help=say("0: always the likeliest word.")),
]
TopP = Annotated[
    float | None,
    typer.Option("--top-p", metavar="P", help=say("Draw from the likeliest words only.")),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", help=say("The same seed gives the same answer.")),
]


Alpha = Annotated[
    float | None,
    typer.Option(
        "--lora-alpha", metavar="N", help=say("The adapter's, where it has no adapter_config.json.")
    ),
]
Source = Annotated[
    str, typer.Argument(metavar="MODEL", help=say("A ChatGLM's folder, or its name on a hub."))
]
Target = Annotated[Path, typer.Argument(metavar="FOLDER", help=say("A new folder."))]


def options(kb: "Place", **given: Any) -> "GenerateOptions":
    """What the knowledge base's settings say, with what was `given` (not None) instead.

    Another model comes without the settings' adapter, weights' form, window and tokenizer.
    """
    from rag.config import generation
    from rag.generate import GenerateOptions

    said = generation(kb)
    given = {name: value for name, value in given.items() if value is not None}
    if "model" in given:
        plain = GenerateOptions()
        said = replace(
            said,
            model=given["model"],
            quant=plain.quant,
            adapter=plain.adapter,
            endpoint=replace(said.endpoint, context=0, tokenizer=""),
        )
    return replace(said, **given)


def generator(chosen: "GenerateOptions") -> "Generator | None":
    """The model, loaded or asked what it is when the first answer needs it; None where none is named."""
    from rag.generate import LazyGenerator, load, reach

    if not chosen.model:
        return None
    if chosen.served:
        return reach(chosen, note=lambda message: note(say(message)))
    name = Path(chosen.model).resolve().name

    def load_it() -> "Adaptable":
        with loading(name) as progress:
            return load(chosen, cache=cache_home() / "models", progress=progress, note=note)

    return LazyGenerator(name, load_it)
