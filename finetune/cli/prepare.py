"""`rag finetune prepare`: training data written as tokens, or in the tutorial's form."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from finetune.cli.options import DATA_NAMES, LENGTH, MODEL_NAMES, RowOptions, within
from finetune.options import Columns, Data, flag
from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.cli.console import Progress, out, say
from rag.cli.options import argument, cache_home, fetch_model, option, with_options

if TYPE_CHECKING:
    from finetune.data.dataset import Counts
    from finetune.data.template import TutorialOptions


def omissions(counts: "Counts") -> list[str]:
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


@dataclass(frozen=True)
class TokenOptions(RowOptions):
    """The rows' form, or the tutorial's, of which --max-seq-length is another length."""

    max_length: int | None = option("--max-length N", LENGTH, least=1)
    max_seq_length: int | None = option(
        "--max-seq-length N",
        "Produce the token ids of mymusise/ChatGLM-Tuning: at most N for the prompt and N for "
        "the answer (384 if only --skip-overlength is given).",
    )
    skip_overlength: bool = flag("--skip-overlength", "The same, without rows longer than --max-seq-length.")

    def tutorial(self) -> "TutorialOptions | None":
        """The tutorial's own options, or None if neither is given; `UserError` beside others."""
        from finetune.data.template import TutorialOptions

        if self.max_seq_length is None and not self.skip_overlength:
            return None
        own = "--skip-overlength" if self.max_seq_length is None else "--max-seq-length"
        other = ["--template chat"] * (self.template == "chat") + self._given()
        if other:
            raise UserError(
                "{own} writes the tutorial's tokens, which have no {other}; give one of them",
                own=own,
                other=other[0],
            )
        length = {} if self.max_seq_length is None else {"max_seq_length": self.max_seq_length}
        return TutorialOptions(skip_overlength=self.skip_overlength, **length)


@dataclass(frozen=True)
class PlaceOptions:
    """What is prepared, and where the result is written."""

    data: tuple[Path, ...] = option(DATA_NAMES, "The same as DATA.", default=())
    save_path: Path | None = option(
        "--save-path PLACE", "The same as OUT, or as --jsonl if it ends in .jsonl."
    )
    jsonl: Path | None = option("--jsonl FILE", "Write the tutorial's context/target lines here.")
    overwrite: bool = flag("--overwrite", "Overwrite an existing target.")

    def split(self, files: list[Path]) -> tuple[list[Path], Path | None, Path | None]:
        """The data, the folder for the tokens and the file for the lines; None: not written."""
        sources, target, jsonl = [*files, *self.data], self.save_path, self.jsonl
        if target and target.suffix == ".jsonl":
            jsonl, target = jsonl or target, None
        elif not target and files and not files[-1].is_file():
            target = files[-1]
            sources.remove(target)
        if not sources or not (target or jsonl):
            raise UserError("name the data and then a new folder for the tokens, or --jsonl FILE")
        return sources, target, jsonl


@with_options("Tokenize training data for this and other trainers, or convert it to the tutorial's format.")
def prepare(
    files: list[Path] | None = argument(
        "DATA... OUT",
        "Files in a format of rag finetune check, then a new folder for the tokens.",
        default=None,
    ),
    *,
    model: str | None = option(
        MODEL_NAMES, "ChatGLM folder or its name on a hub; only the tokenizer is read."
    ),
    row_options: TokenOptions,
    columns: Columns,
    data: Annotated[Data, ("skip_bad",)],
    places: PlaceOptions,
) -> None:
    sources, target, jsonl = places.split(files or [])
    if target and not model:
        raise UserError("tokens need a tokenizer; name a model's folder with --model")
    (template, max_length), tutorial = row_options.form(), row_options.tutorial()
    skip_bad, overwrite = data.skip_bad, places.overwrite
    if jsonl:
        from finetune.data.tokenize import write_jsonl

        counts = write_jsonl(sources, jsonl, columns=columns, skip_bad=skip_bad, overwrite=overwrite)
        _report(jsonl, counts, counts.examples)
    if not target or not model:
        return
    from finetune.data.tokenize import check_free, tokenize, write_set
    from rag.chatglm.configuration import generation_of
    from rag.chatglm.loading import read_model_config

    check_free(target, overwrite=overwrite)  # before the work
    directory = fetch_model(model, weights=False)
    config = read_model_config(directory)
    with Progress(say("examples")) as progress:
        tokens = tokenize(
            sources,
            directory,
            generation=generation_of(config),
            template=template,
            max_length=within(max_length, config),
            cache=cache_home() / "tokens",
            columns=columns,
            tutorial=tutorial,
            skip_bad=skip_bad,
            progress=progress,
        )
    write_set(tokens, target, seq_len=tutorial is not None, overwrite=overwrite)
    _report(target, tokens.counts, len(tokens))


def _report(place: Path, counts: "Counts", rows: int) -> None:
    line = say(
        "{place}: {rows} rows of {examples} examples", place=place, rows=rows, examples=counts.examples
    )
    out(line + "".join(say(", ") + each for each in omissions(counts)))
