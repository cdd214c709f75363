"""The options of commands that answer with a language model."""

from pathlib import Path
from typing import Annotated

import typer

from rag.cli.console import say

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
