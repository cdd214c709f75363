"""`rag finetune prepare`: training data written as tokens, or in the tutorial's form."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from finetune.cli import options as opt
from finetune.cli.options import DATA_NAMES, option
from finetune.options import MAX_LENGTH
from ingest.errors import UserError
from rag.cli.console import Progress, out, say
from rag.cli.paths import cache_home

if TYPE_CHECKING:
    from finetune.data.compat import Compat
    from finetune.data.frames import Counts


def fates(counts: "Counts") -> list[str]:
    """What became of data that is not learnt as it is; nothing where all is."""
    rows = "row" if counts.bad == 1 else "rows"
    told = (
        (counts.shortened, "shortened", "条被截短"),
        (counts.left_out, "left out", "条被略去"),
        (counts.bad, f"bad {rows} skipped", "个错误行被跳过"),
    )
    return [
        *(say(f"{number} {what}", f"{number} {zh}") for number, what, zh in told if number),
        *(
            say(
                f"the file breaks at {row}, what follows is lost",
                f"文件在 {row} 处损坏，其后内容丢失",
            )
            for row in counts.ended
        ),
    ]


TAKEN: dict[str | None, tuple[str, ...]] = {
    None: ("--max-length", "--max-source-length", "--max-target-length"),
    "tutorial": ("--max-length", "--skip-overlength"),
    "thudm": ("--max-source-length", "--max-target-length", "--source-prefix", "--no-combine"),
}
"""By --compat: what else decides about rows."""

Template = Annotated[
    str | None,
    option(
        "--template chat|tutorial",
        "How a question is put (chat if left out); kept with the adapter.",
        "提问的格式（默认 chat）；随适配器保存。",
    ),
]
CompatRows = Annotated[
    str | None,
    option(
        "--compat tutorial|thudm",
        "Rows exactly as mymusise/ChatGLM-Tuning's or THUDM's scripts make them, defects included.",
        "与 mymusise/ChatGLM-Tuning 或 THUDM 脚本完全一致的数据行（包括其缺陷）。",
    ),
]
RowLength = Annotated[
    int | None,
    option(
        "--max-length --max-seq-length N",
        f"Tokens of a row, at most (default {MAX_LENGTH}; --compat tutorial: 384); longer ones are "
        "shortened and told.",
        f"每行最多的词元数（默认 {MAX_LENGTH}；--compat tutorial 为 384）；更长的会被截短并说明。",
        least=1,
    ),
]
MaxSource = Annotated[
    int | None,
    option(
        "--max-source-length --max-input-length N",
        "THUDM's: tokens of a question (1024); without --compat thudm, both lengths together are "
        "--max-length.",
        "THUDM 的名称：问题的词元数（1024）；没有 --compat thudm 时，两个长度之和即 --max-length。",
        least=1,
    ),
]
MaxTarget = Annotated[
    int | None,
    option(
        "--max-target-length --max-output-length N",
        "THUDM's: tokens of an answer (128); see --max-source-length.",
        "THUDM 的名称：回答的词元数（128）；见 --max-source-length。",
        least=1,
    ),
]
SourcePrefix = Annotated[
    str,
    option(
        "--source-prefix TEXT",
        "With --compat thudm: stands before each question.",
        "与 --compat thudm 合用：置于每个问题之前。",
    ),
]
Combine = Annotated[
    bool,
    option(
        "--combine/--no-combine",
        "With --compat thudm on GLM-4: learn the last answer only.",
        "与 --compat thudm 及 GLM-4 合用：只学习最后一个回答。",
    ),
]
SkipOverlength = Annotated[
    bool,
    option(
        "--skip-overlength/--no-skip-overlength",
        "With --compat tutorial: leave out rows longer than --max-seq-length.",
        "与 --compat tutorial 合用：略去超过 --max-seq-length 的行。",
    ),
]


def within(max_length: int, config: Any) -> int:
    """Of rows: no more than the model's window, to which nothing beyond it would be of use."""
    from rag.chatglm.chat import context_of

    return min(max_length, context_of(config))


class Rows(NamedTuple):
    """As `finetune.data.tokenize.tokenise` takes them."""

    template: Any
    max_length: int
    compat: "Compat | None" = None


@dataclass(frozen=True, slots=True)
class RowOptions:
    """What a command line says; None, "" and False are what it leaves out."""

    compat: str | None = None
    template: str | None = None
    max_length: int | None = None
    max_source_length: int | None = None
    max_target_length: int | None = None
    source_prefix: str = ""
    combine: bool = True
    skip_overlength: bool = False

    def rows(self) -> Rows:
        """`UserError` where one option contradicts another, or has nothing to decide."""
        from finetune.data.compat import ThudmOptions, TutorialOptions

        self._check()
        lengths = self.max_source_length, self.max_target_length
        source = ThudmOptions().max_source_length if lengths[0] is None else lengths[0]
        target = ThudmOptions().max_target_length if lengths[1] is None else lengths[1]
        if self.compat == "thudm":
            script = ThudmOptions(source, target, self.source_prefix, combine=self.combine)
            return Rows("chat", source + target, script)
        if self.compat == "tutorial":
            own = TutorialOptions().max_seq_length
            most = own if self.max_length is None else self.max_length
            return Rows("tutorial", most, TutorialOptions(most, self.skip_overlength))
        most = MAX_LENGTH if self.max_length is None else self.max_length
        if lengths != (None, None):
            most = source + target  # as upstream, whose rows have both
        return Rows(self.template or "chat", most)

    def prepared(self, folder: Path) -> Rows:
        """Those of a folder that `prepare` wrote, which nothing can change any more."""
        from finetune.data.dataset import TokenSet

        if given := ["--compat"] * (self.compat is not None) + self._given():
            raise UserError(
                f"{folder} holds rows that are prepared already, but {given[0]} is given; "
                "leave it out, or name the data itself",
                zh=f"{folder} 中是已准备好的数据行，而又给出了 {given[0]}；请去掉该选项，或给出原始数据",
            )
        return Rows(self.template or TokenSet.open(folder).made_for["template"], MAX_LENGTH)

    def _given(self) -> list[str]:
        given = {
            "--max-length": self.max_length is not None,
            "--max-source-length": self.max_source_length is not None,
            "--max-target-length": self.max_target_length is not None,
            "--source-prefix": bool(self.source_prefix),
            "--no-combine": not self.combine,
            "--skip-overlength": self.skip_overlength,
        }
        return [name for name, said in given.items() if said]

    def _check(self) -> None:
        if self.compat not in TAKEN:
            raise UserError(
                f"--compat is {self.compat}; it is tutorial or thudm",
                zh=f"--compat 为 {self.compat}；应为 tutorial 或 thudm",
            )
        given = self._given()
        for name in given:
            if name not in TAKEN[self.compat]:
                raise self._without_place(name)
        if not self.compat and "--max-length" in given and len(given) > 1:
            raise UserError(
                f"--max-length and {given[1]} are both given; --max-length is both lengths "
                "together, so say one",
                zh=f"同时给出了 --max-length 与 {given[1]}；前者即两个长度之和，请只指定一个",
            )
        form = "tutorial" if self.compat == "tutorial" else "chat"
        if self.compat and self.template not in (None, form):
            raise UserError(
                f"--compat {self.compat} writes the template {form}, but --template is "
                f"{self.template}; leave one of them out",
                zh=f"--compat {self.compat} 使用模板 {form}，而 --template 为 {self.template}；"
                "请去掉其中一个",
            )

    def _without_place(self, name: str) -> UserError:
        if self.compat:
            known = ", ".join(TAKEN[self.compat])
            return UserError(
                f"--compat {self.compat} has no {name}; it has {known}",
                zh=f"--compat {self.compat} 没有 {name}；可用：{known}",
            )
        script = "tutorial" if name in TAKEN["tutorial"] else "thudm"
        return UserError(
            f"{name} decides nothing without --compat {script}; add that, or leave {name} out",
            zh=f"没有 --compat {script} 时 {name} 不起作用；请加上，或去掉 {name}",
        )


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
    template: Template = None,
    max_length: RowLength = None,
    compat: CompatRows = None,
    skip_overlength: SkipOverlength = False,
    max_source_length: MaxSource = None,
    max_target_length: MaxTarget = None,
    source_prefix: SourcePrefix = "",
    combine: Combine = True,
    jsonl: Annotated[
        Path | None,
        option(
            "--jsonl FILE",
            "Write the tutorial's context/target lines here.",
            "在此写出教程的 context/target 数据行。",
        ),
    ] = None,
    data: Annotated[
        list[Path] | None, option(f"--data {DATA_NAMES} FILE", "The same as DATA.", "同 DATA。")
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
    asked = RowOptions(
        compat, template, max_length, max_source_length, max_target_length, source_prefix,
        combine, skip_overlength,
    ).rows()  # fmt: skip
    from finetune.data.formats import Columns

    columns = Columns(prompt_column, response_column, history_column)
    if jsonl:
        from finetune.data.tokenize import write_jsonl

        counts = write_jsonl(
            sources, jsonl, columns=columns, skip_bad=skip_bad, overwrite=overwrite
        )
        _tell(jsonl, counts, counts.examples)
    if not target or not model:
        return
    from finetune.data.tokenize import check_free, padding_of, tokenise, write_set
    from rag.chatglm.configuration import generation_of
    from rag.chatglm.hub import fetch
    from rag.chatglm.loading import read_config

    check_free(target, overwrite=overwrite)  # before the work
    directory = fetch(model, cache=cache_home() / "models", weights=False)
    config = read_config(directory)
    generation = generation_of(config)
    with Progress(say("examples", "样本")) as progress:
        tokens = tokenise(
            sources,
            directory,
            generation=generation,
            template=asked.template,
            max_length=within(asked.max_length, config),
            cache=cache_home() / "tokens",
            columns=columns,
            compat=asked.compat,
            skip_bad=skip_bad,
            workers=workers,
            progress=progress,
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


def _tell(place: Path, counts: "Counts", rows: int) -> None:
    en, zh = f"{rows} rows of {counts.examples} examples", f"{counts.examples} 条样本，{rows} 行"
    out(
        say(f"{place}: {en}", f"{place}：{zh}")
        + "".join(say(", ", "，") + f for f in fates(counts))
    )
