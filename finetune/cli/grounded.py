"""`rag finetune grounded`: training rows from a knowledge base."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingest.errors import UserError
from rag.cli.console import counting, loading, note, out, say, table
from rag.cli.paths import cache_home, existing_kb

if TYPE_CHECKING:
    from finetune.synth.build import SyntheticReport
    from finetune.synth.raft import RaftRow
    from rag.config import Place
    from rag.generate import Generator

WINDOW = 8192
"""The window in characters if no model is named."""
KINDS = {
    "definition": ("definitions", "定义"),
    "article": ("articles", "条文"),
    "list": ("lists", "列举"),
    "table": ("tables", "表格"),
    "cloze": ("figures, authorities", "数字与主管"),
    "model": ("by the model", "模型出题"),
}
REJECTIONS = {
    "duplicate": ("asked twice", "重复的问题"),
    "ambiguous": ("asked twice, with different answers", "问题相同而答案不同"),
    "not retrieved": ("the retriever does not find the passage", "检索不到原段落"),
    "too long": ("the model's window has no room for the passage", "模型窗口放不下原段落"),
    "unsupported": ("its citation would not be correct", "引用无法核对"),
    "invalid": ("written by the model, but not valid", "模型所写，不合格"),
    "removed": ("removed from the knowledge base meanwhile", "其间已从知识库删除"),
}


def grounded(
    kb: Annotated[
        str,
        typer.Argument(
            metavar="KB",
            help=say(
                "Knowledge base: a name, or a folder if it has a slash.",
                "知识库：名称；含斜杠时为文件夹。",
            ),
        ),
    ],
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help=say(
                "Folder for train.jsonl and heldout.jsonl.",
                "存放 train.jsonl 与 heldout.jsonl 的文件夹。",
            ),
        ),
    ],
    *,
    limit: Annotated[
        int | None, typer.Option(min=1, help=say("Rows in all, at most.", "总行数上限。"))
    ] = None,
    kinds: Annotated[
        str | None,
        typer.Option(
            metavar="KIND,...",
            help=say(
                f"Questions to make: {', '.join(KINDS)}; default: all but model.",
                f"要出的题型：{'、'.join(KINDS)}；默认为 model 之外的全部。",
            ),
        ),
    ] = None,
    passages: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=say(
                "Passages in a prompt; default: the knowledge base's own.",
                "提示中的段落数；默认同知识库设置。",
            ),
        ),
    ] = None,
    without_gold: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help=say(
                "Share of rows whose passages do not answer, to train refusals.",
                "段落中没有答案、用于训练拒答的行的比例。",
            ),
        ),
    ] = 0.2,
    heldout: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.9,
            help=say(
                "Share of documents kept out of training, for evaluation.",
                "不参与训练、留作评测的文档比例。",
            ),
        ),
    ] = 0.1,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help=say(
                "The ChatGLM to be trained (folder, or name on a hub), for its tokenizer and "
                f"window; without one a character counts as a token and the window is {WINDOW}.",
                "要训练的 ChatGLM（文件夹或模型库中的名称），用其分词器与窗口；"
                f"不指定时一个字符算一个词元，窗口为 {WINDOW}。",
            ),
        ),
    ] = None,
    write_questions: Annotated[
        bool,
        typer.Option(
            "--write-questions", help=say("Let --model write questions too.", "也让 --model 出题。")
        ),
    ] = False,
    plain: Annotated[
        bool,
        typer.Option(
            "--plain",
            help=say(
                "Also plain.jsonl: the training questions and answers without passages.",
                "另写 plain.jsonl：不带段落的训练问答。",
            ),
        ),
    ] = False,
    seed: Annotated[
        int, typer.Option(help=say("The same seed gives the same files.", "种子相同则文件相同。"))
    ] = 0,
) -> None:
    chosen = _kinds(kinds, write_questions=write_questions)
    if "model" in chosen and not model:
        raise UserError(
            "a model is to write questions, but none is named; add --model MODEL",
            zh="要由模型出题，但没有指定模型；请加上 --model 模型",
        )
    config = existing_kb(kb)

    from finetune.synth.build import SyntheticOptions, build
    from finetune.synth.raft import RaftBuilder
    from ingest.store.atomic import check_new
    from rag.load import open_pipeline

    check_new(folder)  # before the work
    generator = _generator(str(model)) if "model" in chosen else None
    with open_pipeline(config, cache=cache_home(), say=say) as pipeline:
        count, context = window(model)
        room = room_for_prompts(context, config.generate.max_new_tokens, config.place)
        most = passages or config.retrieve.passages
        builder = RaftBuilder(pipeline, count, room, most, without_gold, seed)
        options = SyntheticOptions(chosen, heldout, limit or 0, plain, seed)
        report = build(
            builder,
            folder,
            options,
            generator=generator,
            progress=lambda total: counting(say("questions", "个问题"), total),
        )
    _show(report, folder, heldout)


grounded.__doc__ = say(
    "Make training rows from a knowledge base: questions, retrieved passages, cited answers.",
    "用知识库生成训练数据：问题、检索到的段落、带引用的回答。",
)


def _kinds(named: str | None, *, write_questions: bool) -> tuple[Any, ...]:
    if named is None:
        return tuple(kind for kind in KINDS if kind != "model" or write_questions)
    chosen = [kind.strip() for kind in named.split(",")]
    if wrong := [kind for kind in chosen if kind not in KINDS]:
        raise UserError(
            f"--kinds names {wrong[0]!r}; known are {', '.join(KINDS)}",
            zh=f"--kinds 中的 {wrong[0]!r} 无法识别；可用：{'、'.join(KINDS)}",
        )
    return tuple(k for k in KINDS if k in chosen or (k == "model" and write_questions))


def window(model: str | None) -> tuple[Any, int]:
    """A function that counts the tokens of a conversation, and how many the model's window holds."""
    if model is None:
        return lambda messages: sum(len(message.text) for message in messages), WINDOW
    from rag.chatglm.chat import context_of, count_chat
    from rag.chatglm.configuration import generation_of
    from rag.chatglm.hub import fetch
    from rag.chatglm.loading import read_config
    from rag.chatglm.tokenization import open_tokenizer

    directory = fetch(model, cache=cache_home() / "models", weights=False)
    config, tokenizer = read_config(directory), open_tokenizer(directory)
    generation = generation_of(config)
    return lambda messages: count_chat(messages, tokenizer, generation), context_of(config)


def room_for_prompts(context: int, max_new_tokens: int, kb: "Place") -> int:
    """The tokens of the window that are left for a prompt. Raises `UserError` if there are none."""
    settings = kb / "rag.toml" if isinstance(kb, Path) else kb
    room = context - max_new_tokens
    if room < 1:
        raise UserError(
            f"[generate] max_new_tokens is {max_new_tokens}, but the model's window holds "
            f"{context} tokens, prompt included; lower it in {settings}",
            zh=f"[generate] max_new_tokens 为 {max_new_tokens}，而模型窗口连同提示"
            f"只有 {context} 个词元；请在 {settings} 中调小",
        )
    return room


def _generator(model: str) -> "Generator":
    from rag.generate import GenerateOptions, load

    with loading(Path(model).name) as progress:
        options = GenerateOptions(model=model)
        return load(options, cache=cache_home() / "models", progress=progress, note=note)


def _show(report: "SyntheticReport", folder: Path, heldout: float) -> None:
    rows: list[tuple[object, ...]] = [
        (
            say(*names),
            report.rows[kind, "train"],
            report.rows[kind, "heldout"],
            report.refusals[kind, "train"] + report.refusals[kind, "heldout"],
        )
        for kind, names in KINDS.items()
        if report.rows[kind, "train"] or report.rows[kind, "heldout"]
    ]
    sides = list(report.documents.values())
    refusals = sum(report.refusals.values())
    rows.append((say("in all", "合计"), report.total("train"), report.total("heldout"), refusals))
    rows.append((say("documents", "文档"), sides.count("train"), sides.count("heldout"), ""))
    columns = [
        say("questions from", "题目来源"),
        say("train", "训练"),
        say("held out", "留出"),
        say("of them refusals", "其中拒答"),
    ]
    table("", columns, rows)
    counts = report.rejected
    rejected = [(say(*names), counts[why]) for why, names in REJECTIONS.items() if counts[why]]
    if rejected:
        table("", [say("rejected", "舍弃"), say("questions", "问题数")], rejected)
    for sample in report.samples:
        _show_row(sample)
    if heldout and not report.total("heldout"):
        note(
            say(
                "only one document has questions, so none is held out; all rows are for training",
                "只有一个文档有题目，无法留出评测集；全部用于训练",
            )
        )
    note(str(folder))


def _show_row(row: "RaftRow") -> None:
    pair = row.question.pair
    kind = say(*KINDS[pair.kind])
    out(say(f"Question ({kind}): {pair.question}", f"问题（{kind}）：{pair.question}"))
    for number, source in enumerate(row.sources, start=1):
        text = " ".join(source.passage.text.split())
        mark = "*" if number == row.gold else " "
        out(f" {mark}[{number}] {source.hit.chunk.title}: {text[:60]}…")
    out(say(f"Answer: {row.messages[-1].text}", f"回答：{row.messages[-1].text}"))
    out()
