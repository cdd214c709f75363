"""`rag`: its commands, and how a user's mistake ends (one line, exit code 1; a wrong option: 2)."""

import gettext
import re
import sys
from importlib.metadata import version
from typing import LiteralString

import typer
from typer.exceptions import TyperException

import finetune.cli
import server.cli.keys
from ingest.errors import UserError
from ingest.i18n import DOMAIN, LOCALE, Translatable
from rag.cli import ask, evaluate, ingest, kb
from rag.cli.console import error, note, note_message, out, say
from rag.cli.doctor import doctor
from rag.cli.models import export, fill, quantize
from rag.cli.plan import plan
from server.cli.serve import mcp, serve, trace

app = typer.Typer(
    name="rag",
    help=say("Questions about your documents, answered with sources."),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        out(f"rag {version('chatglm-rag')}")
        raise typer.Exit


@app.callback()
def rag(
    version: bool = typer.Option(
        False, "--version", help=say("Show the version."), is_eager=True, callback=_version
    ),
) -> None: ...


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
    "rapidocr": "ocr", "sentence_transformers": "encoders",
    "fastapi": "server", "httptools": "server", "mcp": "server", "multipart": "server", "python_multipart": "server",
    "prometheus_client": "server", "pydantic": "server",
    "starlette": "server", "threadpoolctl": "server", "tomlkit": "server", "uvicorn": "server",
    "opentelemetry": "telemetry", "pymilvus": "milvus", "ray": "cluster", "jinja2": "finetune",
    "peft": "finetune", "pyarrow": "finetune", "tensorboard": "finetune",
    "google": "finetune",
    "matplotlib": "pictures", "PIL": "server",
}  # fmt: skip
"""Packages that the base install leaves out -> the extra that brings them."""


def usage_template(template: LiteralString) -> tuple[re.Pattern[str], str]:
    """A message of typer, and the expression that finds its fields in the English text."""
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(template))), template


USAGE = (
    usage_template("Missing argument {name}."),
    usage_template("Missing option {name}."),
    usage_template("Missing command."),
    usage_template("No such option: {name} (Possible options: {others})"),
    usage_template("No such option: {name}"),
    usage_template("No such command {name}. Did you mean {others}?"),
    usage_template("No such command {name}."),
    usage_template("Option {name} requires an argument."),
    usage_template("Option {name} does not take a value."),
    usage_template("Got unexpected extra argument(s) ({words})"),
    usage_template("Invalid value for {name}: {problem}"),
    usage_template("Input should be greater than or equal to {limit}"),
    usage_template("Input should be less than or equal to {limit}"),
    usage_template("Input should be a valid integer, unable to parse string as an integer"),
    usage_template("Input should be a valid number, unable to parse string as a number"),
    # Typer itself looks these up with gettext, for the help.
    usage_template("Arguments"),
    usage_template("Options"),
    usage_template("Commands"),
    usage_template("required"),
    usage_template("default: {default}"),
    usage_template("env var: {var}"),
)


def usage_message(text: str) -> str:
    """A message of typer as one that can be translated; another text as it is."""
    for pattern, template in USAGE:
        if match := pattern.fullmatch(text):
            fields = {name: usage_message(value) for name, value in match.groupdict().items()}
            return Translatable.of(template, fields)
    return text


def usage_error(problem: TyperException) -> None:
    """What is wrong with the words of a command, below its usage; for a group without a command its
    help."""
    text, context = problem.format_message(), getattr(problem, "ctx", None)
    if context and text == context.get_help():
        note(text)
        return
    if context:
        usage = context.get_usage().removeprefix("Usage: ")
        note_message("Usage: {usage}", usage=usage)
        note_message("Try '{command} -h' for help.\n", command=context.command_path)
    note_message("Error: {problem}", problem=usage_message(text))


def main() -> None:
    """Run the command line: a `UserError` is one line on stderr; a bug keeps its traceback."""
    gettext.bindtextdomain(DOMAIN, str(LOCALE))
    gettext.textdomain(DOMAIN)
    try:
        if code := app(standalone_mode=False):
            sys.exit(code)
    except TyperException as problem:
        usage_error(problem)
        sys.exit(problem.exit_code)
    except UserError as problem:
        error(problem)
        sys.exit(1)
    except ModuleNotFoundError as missing:
        if missing.name not in EXTRAS:
            raise
        # Training also needs the packages of generation.
        extra = "finetune" if sys.argv[1:2] == ["finetune"] else EXTRAS[missing.name]
        install = f"pip install 'chatglm-rag[{extra}]'"
        error(
            UserError(
                "this needs {name}, which is not installed; run: {install}",
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
