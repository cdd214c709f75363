"""`rag finetune prepare`: training data written as tokens, or in the tutorial's form."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from finetune.cli import options as opt
from finetune.cli.options import DATA_NAMES, option
from finetune.options import MAX_LENGTH
from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.cli.console import Progress, out, say
from rag.cli.paths import cache_home

if TYPE_CHECKING:
    from finetune.data.dataset import Counts
    from finetune.data.template import TutorialOptions


MAX_SOURCE, MAX_TARGET = 1024, 128
"""Tokens of a question and of an answer in THUDM's scripts."""


def fates(counts: "Counts") -> list[str]:
    """How many examples are not learnt as they are; empty if all are."""
    bad = Translatable("1 bad row skipped")
    if counts.bad > 1:
        bad = Translatable("{count} bad rows skipped", count=counts.bad)
    parts = (
        (counts.shortened, Translatable("{count} shortened", count=counts.shortened)),
        (counts.left_out, Translatable("{count} left out", count=counts.left_out)),
        (counts.bad, bad),
    )
    return [
        *(say(text) for number, text in parts if number),
        *(say("the file breaks at {row}, what follows is lost", row=row) for row in counts.ended),
    ]


Template = Annotated[
    str | None,
    option(
        "--template chat|tutorial",
        Translatable("How a question is put (chat if left out); kept with the adapter."),
    ),
]
RowLength = Annotated[
    int | None,
    option(
        "--max-length --max-seq-length N",
        Translatable(
            "Tokens of a row, at most (default {max_length}); longer ones are shortened and told.",
            max_length=MAX_LENGTH,
        ),
        least=1,
    ),
]
MaxSource = Annotated[
    int | None,
    option(
        "--max-source-length --max-input-length N",
        Translatable(
            "THUDM's: tokens of a question ({max_source}); both lengths together are --max-length.",
            max_source=MAX_SOURCE,
        ),
        least=1,
    ),
]
MaxTarget = Annotated[
    int | None,
    option(
        "--max-target-length --max-output-length N",
        Translatable(
            "THUDM's: tokens of an answer ({max_target}); see --max-source-length.",
            max_target=MAX_TARGET,
        ),
        least=1,
    ),
]


def within(max_length: int, config: Any) -> int:
    """The length of a row, at most the model's window: nothing beyond it is of use."""
    from rag.chatglm.chat import context_of

    return min(max_length, context_of(config))


class Rows(NamedTuple):
    """As `finetune.data.tokenize.tokenize` takes them."""

    template: Any
    max_length: int


@dataclass(frozen=True, slots=True)
class RowOptions:
    """The options of a command line that decide about rows; None if left out."""

    template: str | None = None
    max_length: int | None = None
    max_source_length: int | None = None
    max_target_length: int | None = None

    def rows(self) -> Rows:
        """Raises `UserError` if two options contradict each other."""
        given = self._given()
        if self.max_length is not None and len(given) > 1:
            raise UserError(
                "--max-length and {given} are both given; --max-length is both lengths together, so "
                "give one",
                given=given[1],
            )
        most = MAX_LENGTH if self.max_length is None else self.max_length
        if self.max_source_length is not None or self.max_target_length is not None:
            # As upstream, whose rows have both.
            most = (self.max_source_length or MAX_SOURCE) + (self.max_target_length or MAX_TARGET)
        return Rows(self.template or "chat", most)

    def prepared(self, folder: Path) -> Rows:
        """Those of a folder that `prepare` wrote; `UserError` if an option would change them."""
        from finetune.data.dataset import TokenSet

        if given := self._given():
            raise UserError(
                "{folder} holds rows that are prepared already, but {given} is given; leave it out, "
                "or name the data itself",
                folder=folder,
                given=given[0],
            )
        return Rows(self.template or TokenSet(folder).target["template"], MAX_LENGTH)

    def tutorial(
        self, max_seq_length: int | None, *, skip_overlength: bool
    ) -> "TutorialOptions | None":
        """The tutorial's own options, or None if neither is given; `UserError` beside others."""
        from finetune.data.template import TutorialOptions

        if max_seq_length is None and not skip_overlength:
            return None
        own = "--skip-overlength" if max_seq_length is None else "--max-seq-length"
        other = ["--template chat"] * (self.template == "chat") + self._given()
        if other:
            raise UserError(
                "{own} writes the tutorial's tokens, which have no {other}; give one of them",
                own=own,
                other=other[0],
            )
        options = TutorialOptions(skip_overlength=skip_overlength)
        return (
            options if max_seq_length is None else replace(options, max_seq_length=max_seq_length)
        )

    def _given(self) -> list[str]:
        given = {
            "--max-length": self.max_length,
            "--max-source-length": self.max_source_length,
            "--max-target-length": self.max_target_length,
        }
        return [name for name, value in given.items() if value is not None]


def prepare(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="DATA... OUT",
            help=say("Files as rag finetune check takes them, and a new folder for the tokens."),
        ),
    ] = None,
    *,
    model: Annotated[
        str | None,
        option(
            "--model --model-name-or-path --model-path --chatglm-path MODEL",
            Translatable(
                "A ChatGLM's folder or name on a hub, of which only the tokenizer is read."
            ),
        ),
    ] = None,
    template: Template = None,
    max_length: Annotated[
        int | None,
        option(
            "--max-length N",
            Translatable(
                "Tokens of a row, at most (default {max_length}); longer ones are shortened and told.",
                max_length=MAX_LENGTH,
            ),
            least=1,
        ),
    ] = None,
    max_source_length: MaxSource = None,
    max_target_length: MaxTarget = None,
    max_seq_length: Annotated[
        int | None,
        option(
            "--max-seq-length N",
            Translatable(
                "The tokens of mymusise/ChatGLM-Tuning, id for id: N of the prompt and N of the "
                "answer, at most (384 if only --skip-overlength is given)."
            ),
        ),
    ] = None,
    skip_overlength: Annotated[
        bool,
        option(
            "--skip-overlength/--no-skip-overlength",
            Translatable("The same, without rows longer than --max-seq-length."),
        ),
    ] = False,
    jsonl: Annotated[
        Path | None,
        option("--jsonl FILE", Translatable("Write the tutorial's context/target lines here.")),
    ] = None,
    data: Annotated[
        list[Path] | None, option(f"--data {DATA_NAMES} FILE", Translatable("The same as DATA."))
    ] = None,
    save_path: Annotated[
        Path | None,
        option(
            "--save-path PLACE",
            Translatable("The same as OUT, or as --jsonl where it ends in .jsonl."),
        ),
    ] = None,
    prompt_column: opt.PromptColumn = "",
    response_column: opt.ResponseColumn = "",
    history_column: opt.HistoryColumn = "",
    skip_bad: opt.SkipBad = False,
    overwrite: Annotated[
        bool, option("--overwrite/--no-overwrite", Translatable("Replace what is at the place."))
    ] = False,
) -> None:
    sources, target = [*(files or []), *(data or [])], save_path
    if save_path and save_path.suffix == ".jsonl":
        jsonl, target = jsonl or save_path, None
    elif not save_path and files and not files[-1].is_file():
        target = files[-1]
        sources.remove(target)
    if not sources or not (target or jsonl):
        raise UserError("name the data and then a new folder for the tokens, or --jsonl FILE")
    if target and not model:
        raise UserError("tokens need a tokenizer; name a model's folder with --model")
    row_options = RowOptions(template, max_length, max_source_length, max_target_length)
    rows = row_options.rows()
    tutorial = row_options.tutorial(max_seq_length, skip_overlength=skip_overlength)
    from finetune.data.formats import Columns

    columns = Columns(prompt_column, response_column, history_column)
    if jsonl:
        from finetune.data.tokenize import write_jsonl

        counts = write_jsonl(
            sources, jsonl, columns=columns, skip_bad=skip_bad, overwrite=overwrite
        )
        _report(jsonl, counts, counts.examples)
    if not target or not model:
        return
    from finetune.data.tokenize import check_free, tokenize, write_set
    from rag.chatglm.configuration import generation_of
    from rag.chatglm.hub import fetch
    from rag.chatglm.loading import read_config

    check_free(target, overwrite=overwrite)  # before the work
    directory = fetch(model, cache=cache_home() / "models", weights=False)
    config = read_config(directory)
    with Progress(say("examples")) as progress:
        tokens = tokenize(
            sources,
            directory,
            generation=generation_of(config),
            template=rows.template,
            max_length=within(rows.max_length, config),
            cache=cache_home() / "tokens",
            columns=columns,
            tutorial=tutorial,
            skip_bad=skip_bad,
            progress=progress,
        )
    write_set(tokens, target, seq_len=tutorial is not None, overwrite=overwrite)
    _report(target, tokens.counts, len(tokens))


prepare.__doc__ = say(
    "Write training data as tokens that this and other trainers read, or in the tutorial's form."
)


def _report(place: Path, counts: "Counts", rows: int) -> None:
    line = say(
        "{place}: {rows} rows of {examples} examples",
        place=place,
        rows=rows,
        examples=counts.examples,
    )
    out(line + "".join(say(", ") + f for f in fates(counts)))
