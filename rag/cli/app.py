"""`rag`: its commands, and how a user's mistake ends (one line, exit code 1)."""

import sys

import typer

import finetune.cli
import server.cli.keys
from ingest.errors import UserError
from rag.cli import ask, evaluate, ingest, kb
from rag.cli.console import error, say
from rag.cli.doctor import doctor
from rag.cli.models import export, fill, quantize
from rag.cli.plan import plan
from server.cli.serve import mcp, serve
from server.cli.trace import trace

app = typer.Typer(
    name="rag",
    help=say("Questions about your documents, answered with sources."),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("ingest")(ingest.ingest)
app.command("ask")(ask.ask)
app.command("chat")(ask.chat)
app.command("search")(ask.search)
app.add_typer(kb.app, name="kb")
app.command("eval")(evaluate.evaluate)
app.command("doctor")(doctor)
app.command("plan")(plan)
app.command("quantize")(quantize)
app.command("export")(export)
app.command("fill")(fill)
app.add_typer(finetune.cli.app, name="finetune")
app.command("serve")(serve)
app.add_typer(server.cli.keys.app, name="keys")
app.command("trace")(trace)
app.command("mcp")(mcp)

EXTRAS = {
    "torch": "generate", "transformers": "generate", "accelerate": "generate",
    "safetensors": "generate", "huggingface_hub": "generate", "bitsandbytes": "gpu",
    "anyio": "endpoint", "httpx2": "endpoint", "openai": "endpoint",
    "fastapi": "server", "mcp": "server", "prometheus_client": "server", "pydantic": "server",
    "pypdfium2": "server", "starlette": "server", "tomlkit": "server", "uvicorn": "server",
    "opentelemetry": "telemetry", "pymilvus": "milvus", "ray": "cluster", "peft": "finetune", "pyarrow": "finetune", "tensorboard": "finetune", "matplotlib": "pictures",
}  # fmt: skip
"""Packages that the base install leaves out -> the extra that brings them."""


def main() -> None:
    """Run the command line: a `UserError` is one line on stderr; a bug keeps its traceback."""
    try:
        app()
    except UserError as problem:
        error(problem)
        sys.exit(1)
    except ModuleNotFoundError as missing:
        if missing.name not in EXTRAS:
            raise
        # What trains also needs what generates.
        extra = "finetune" if sys.argv[1:2] == ["finetune"] else EXTRAS[missing.name]
        install = f"pip install 'chatglm-rag[{extra}]'"
        error(
            UserError(
                "{name} is not installed, which this needs: {install}",
                name=missing.name,
                install=install,
            )
        )
        sys.exit(1)
    except BrokenPipeError:  # the reader of a pipe has left, as `rag search … | head -1` does
        sys.stderr.close()
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
