"""`rag`: its commands, and how a user's mistake ends (one line, exit code 1; a wrong option: 2)."""

import gettext
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import version
from pathlib import Path

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

import finetune.cli
import server.cli.keys
from ingest.errors import UserError
from ingest.i18n import DOMAIN, LOCALE, Translatable
from rag.cli import ask, evaluate, ingest, kb
from rag.cli.console import error, note, note_message, out, say
from rag.cli.doctor import doctor, packages
from rag.cli.models import export, fill, quantize
from rag.cli.plan import plan
from server.cli.serve import mcp, serve, trace

HELP, HELP_TEXT = ["-h", "--help"], say("Show this message and exit.")

app = typer.Typer(
    name="rag",
    help=say("Questions about your documents, answered with sources."),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": HELP},
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


def commands() -> TyperGroup:
    """All commands, with the text of `--help` in the user's language, which typer does not translate."""
    root = typer.main.get_group(app)
    context = typer.Context(root, help_option_names=HELP)
    found: list[TyperCommand | TyperGroup] = [root]
    for each in found:
        if option := each.get_help_option(context):
            option.help = HELP_TEXT
        found += getattr(each, "commands", {}).values()
    return root


@cache
def usage_templates() -> dict[str, re.Pattern[str]]:
    """The messages of typer, and the expressions that find their fields in an English text."""
    messages = tomllib.loads(Path(__file__).with_name("typer.toml").read_text("utf-8"))["messages"]
    field = re.compile(r"\\{(\w+)\\}")
    return {text: re.compile(field.sub(r"(?P<\1>.+)", re.escape(text))) for text in messages}


def usage_message(text: str) -> str:
    """A message of typer as one that can be translated; another text as it is."""
    for template, pattern in usage_templates().items():
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
        if code := commands()(standalone_mode=False):
            sys.exit(code)
    except TyperException as problem:
        usage_error(problem)
        sys.exit(problem.exit_code)
    except UserError as problem:
        error(problem)
        sys.exit(1)
    except ModuleNotFoundError as missing:
        extras = {module: each.extra for each in packages().values() for module in each.modules}
        if not (extra := extras.get(missing.name or "")):
            raise
        if sys.argv[1:2] == ["finetune"]:
            extra = "finetune"  # training also needs the packages of generation
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
