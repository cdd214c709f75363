"""`rag finetune prepare`: training data written as tokens, or in the tutorial's form."""

from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cli import options as opt
from finetune.cli import rows as written
from finetune.cli.counting import fates
from finetune.cli.options import DATA_NAMES, option
from ingest.errors import UserError
from rag.cli.console import note, out, say
from rag.cli.paths import cache_home

if TYPE_CHECKING:
    from finetune.data.frames import Counts

EVERY = 5.0  # seconds between lines of progress


def prepare(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="DATA... OUT",
            help=say(
                "Files as rag finetune check takes them, and a new folder for the tokens.",
                "训练数据文件（格式同 rag finetune check），最后是存放词元的新文件夹。",
            ),
        ),
    ] = None,
    *,
    model: Annotated[
        str | None,
        option(
            "--model --model-name-or-path --model-path --chatglm-path MODEL",
            "A ChatGLM's folder or name on a hub, of which only the tokenizer is read.",
            "ChatGLM 的文件夹或模型库中的名称（只读取分词器）。",
        ),
    ] = None,
    template: written.Template = None,
    max_length: written.RowLength = None,
    compat: written.CompatRows = None,
    skip_overlength: written.SkipOverlength = False,
    max_source_length: written.MaxSource = None,
    max_target_length: written.MaxTarget = None,
    source_prefix: written.SourcePrefix = "",
    combine: written.Combine = True,
    jsonl: Annotated[
        Path | None,
        option(
            "--jsonl FILE",
            "Write the tutorial's context/target lines here.",
            "在此写出教程的 context/target 数据行。",
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        option(f"--data {DATA_NAMES} FILE", "The same as DATA.", "同 DATA。"),
    ] = None,
    save_path: Annotated[
        Path | None,
        option(
            "--save-path PLACE",
            "The same as OUT, or as --jsonl where it ends in .jsonl.",
            "同 OUT；以 .jsonl 结尾时同 --jsonl。",
        ),
    ] = None,
    prompt_column: opt.PromptColumn = "",
    response_column: opt.ResponseColumn = "",
    history_column: opt.HistoryColumn = "",
    skip_bad: opt.SkipBad = False,
    workers: opt.Workers = 0,
    overwrite: Annotated[
        bool,
        option(
            "--overwrite/--no-overwrite", "Replace what is at the place.", "替换目标位置的内容。"
        ),
    ] = False,
) -> None:
    sources, target = [*(files or []), *(data or [])], save_path
    if save_path and save_path.suffix == ".jsonl":
        jsonl, target = jsonl or save_path, None
    elif not save_path and files and not files[-1].is_file():
        target = files[-1]
        sources.remove(target)
    if not sources or not (target or jsonl):
        raise UserError(
            "name the data and then a new folder for the tokens, or --jsonl FILE",
            zh="请先给出数据文件，再给出存放词元的新文件夹；或用 --jsonl 指定文件",
        )
    if target and not model:
        raise UserError(
            "tokens need a tokenizer; name a model's folder with --model",
            zh="生成词元需要分词器；请用 --model 指定模型文件夹",
        )
    asked = written.RowOptions(
        compat, template, max_length, max_source_length, max_target_length, source_prefix,
        combine, skip_overlength,
    ).rows()  # fmt: skip
    from finetune.data.formats import Columns

    columns = Columns(prompt_column, response_column, history_column)
    if jsonl:
        from finetune.prepare import write_jsonl

        counts = write_jsonl(
            sources, jsonl, columns=columns, skip_bad=skip_bad, overwrite=overwrite
        )
        _tell(jsonl, counts, counts.examples)
    if not target or not model:
        return
    from finetune.data.tokenize import tokenise
    from finetune.prepare import check_free, padding_of, write_set
    from rag.chatglm.configuration import generation_of
    from rag.chatglm.hub import fetch
    from rag.chatglm.loading import read_config

    check_free(target, overwrite=overwrite)  # before the work
    directory = fetch(model, cache=cache_home() / "models", weights=False)
    config = read_config(directory)
    generation = generation_of(config)
    tokens = tokenise(
        sources,
        directory,
        generation=generation,
        template=asked.template,
        max_length=written.within(asked.max_length, config),
        cache=cache_home() / "tokens",
        columns=columns,
        compat=asked.compat,
        skip_bad=skip_bad,
        workers=workers,
        progress=_Progress(),
    )
    write_set(
        tokens,
        target,
        seq_len=compat == "tutorial",
        padding=padding_of(asked.compat, directory, generation),
        overwrite=overwrite,
    )
    _tell(target, tokens.counts, len(tokens))


prepare.__doc__ = say(
    "Write training data as tokens that this and other trainers read, or in the tutorial's form.",
    "把训练数据写成本程序及其他训练程序可读的词元，或教程的格式。",
)


class _Progress:
    """A line now and then of how many examples are done."""

    def __init__(self) -> None:
        self.told = monotonic()

    def __call__(self, examples: int) -> None:
        if monotonic() - self.told > EVERY:
            self.told = monotonic()
            note(say(f"{examples} examples", f"已处理 {examples} 条"))


def _tell(place: Path, counts: "Counts", rows: int) -> None:
    en, zh = f"{rows} rows of {counts.examples} examples", f"{counts.examples} 条样本，{rows} 行"
    out(
        say(f"{place}: {en}", f"{place}：{zh}")
        + "".join(say(", ", "，") + f for f in fates(counts))
    )
