"""`rag finetune`: its commands. Nothing heavy is imported before a command runs."""

import typer

from finetune.cli.check import check
from finetune.cli.domain import domain
from finetune.cli.evaluate import evaluate
from finetune.cli.grounded import exam, grounded
from finetune.cli.merge import export, merge
from finetune.cli.options import ScriptCommand, TrainCommand
from finetune.cli.prepare import prepare
from finetune.cli.reader import reader
from finetune.cli.train import train
from rag.cli.console import say

app = typer.Typer(
    help=say("Train an adapter for your domain, and test whether it helps."),
    no_args_is_help=True,
    rich_markup_mode=None,
    # Trainers write --lora_rank; both spellings are one option.
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("_", "-"),
    },
)

app.command("domain", cls=ScriptCommand)(domain)
app.command("check")(check)
app.command("grounded")(grounded)
app.command("exam")(exam)
app.command("prepare", cls=ScriptCommand)(prepare)
app.command("train", cls=TrainCommand)(train)
app.command("eval")(evaluate)
app.command("reader")(reader)
app.command("merge")(merge)
app.command("export")(export)
