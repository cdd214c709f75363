"""The command lines of the tutorial (mymusise/ChatGLM-Tuning) and of THUDM's P-Tuning scripts.

Most of their arguments are spellings of our options. Here flags take a word (`--fp16 true`,
`--skip_overlength False`), and arguments that decide nothing are ignored with a note.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from typer.core import TyperCommand

from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.cli.console import note, say

YES = ("true", "yes", "1", "on", "t", "y")
NO = ("false", "no", "0", "off", "f", "n")
EVAL = Translatable("see rag finetune eval")
IGNORED = {
    "remove-unused-columns": Translatable("rows have the columns that are needed"),
    "do-train": Translatable("this command trains"),
    "do-predict": EVAL,
    "test-file": EVAL,
    "predict-with-generate": EVAL,
    "overwrite-cache": Translatable("tokens are cached by content"),
    "per-device-eval-batch-size": Translatable("evaluation packs rows"),
    "preprocessing-num-workers": Translatable("one process is fast enough"),
}
VALUED = {"test-file", "per-device-eval-batch-size", "preprocessing-num-workers"}
"""Those of IGNORED that always have a value; the others are flags, with or without a word."""
PREFIX = "ptuning-checkpoint"


class ScriptCommand(TyperCommand):
    """A command that also understands these scripts' arguments."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {name[2:]: option for option in self.params for name in getattr(option, "opts", ())}
        return super().parse_args(ctx, normalized(args, own))


def normalized(args: Sequence[str], own: Mapping[str, Any]) -> list[str]:
    """The arguments in one spelling each. `own` are the command's options, by name.

    Raises `UserError` if a flag has a word that is neither yes nor no, and for `ptuning_checkpoint`.
    """
    words, found = list(args), list[str]()
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            found.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("_", "-")
        if name == PREFIX:
            raise UserError(
                "--ptuning-checkpoint can't be used: a training begins with a new prefix; continue "
                "an earlier one with --resume in its own --out, ask it with rag ask --adapter"
            )
        ignored, flag = name in IGNORED, getattr(own.get(name), "is_flag", False)
        yes_or_no = (ignored or flag) and bool(words) and words[0].lower() in YES + NO
        if words and not equals and (name in VALUED or yes_or_no):
            value = words.pop(0)
        if ignored:
            note(say("--{name} has no effect: {why}", name=name, why=IGNORED[name]))
        elif flag and (value or equals):
            found += _flag(name, value, own[name])
        else:
            found.append(f"--{name}{equals}{value}")
    return found


def _flag(name: str, value: str, option: Any) -> list[str]:
    if value.lower() in YES:
        return [f"--{name}"]
    if value.lower() in NO:
        return [other for other in option.secondary_opts if other.startswith("--")][:1]
    raise UserError("--{name} is {value!r}; need true or false", name=name, value=value)
