"""`rag finetune domain`: a folder of documents -> an adapter for their domain, judged and in use."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli import options as opt
from finetune.cli.prepare import within
from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.cli.console import note, out, say
from rag.cli.paths import KbOption, cache_home, kb_path

if TYPE_CHECKING:
    from finetune.domain import DomainRun
    from finetune.options import TrainOptions
    from ingest.types import Document

STEPS = (
    Translatable("documents into the knowledge base"),
    Translatable("training rows and held-out questions"),
    Translatable("training"),
    Translatable("base and adapter on the held-out questions"),
    Translatable("in use"),
)
FREE = ("paths", "out_dir", "device", "questions")
"""What may be said otherwise when the work goes on. (Documents are compared by what they hold.)"""
LONGEST_REPLY = 256
"""Tokens of a reply to a held-out question, at most."""


def domain(
    context: typer.Context,
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="DOCS...", help=say("Files and folders, as for `rag ingest`.")),
    ],
    *,
    model: opt.ModelDir,
    out_dir: Annotated[
        Path,
        opt.option(
            "--out --output-dir DIR",
            Translatable(
                "Folder for the rows, the adapter and its evaluation; a second run continues there."
            ),
        ),
    ],
    kb: Annotated[str, KbOption] = "default",
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help=say("Rows to make, at most."))
    ] = None,
    heldout: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=0.9,
            metavar="SHARE",
            help=say("Share of documents kept out of training, to judge the adapter by."),
        ),
    ] = 0.2,
    write_questions: Annotated[
        bool, typer.Option("--write-questions", help=say("Let the model write questions too."))
    ] = False,
    questions: Annotated[
        int, typer.Option(min=1, metavar="N", help=say("Held-out questions asked, at most."))
    ] = 200,
    general: Annotated[
        str | None,
        opt.option(
            "--general --mix FILE:SHARE",
            Translatable(
                "Rows about other things, against forgetting: this share of each step; some are "
                "asked afterwards."
            ),
        ),
    ] = None,
    rank: opt.Rank = 8,
    alpha: opt.Alpha = 32.0,
    dropout: opt.Dropout = 0.1,
    targets: opt.Targets = "query_key_value",
    batch_size: opt.BatchSize = 4,
    epochs: opt.Epochs = 3.0,
    max_steps: opt.MaxSteps = 0,
    learning_rate: opt.LearningRate = None,
    max_length: opt.PromptLength = None,
    gradient_checkpointing: opt.Checkpointing = False,
    quant: opt.BaseQuant = None,
    device: opt.DeviceName = None,
    save_steps: opt.SaveSteps = 100,
    seed: opt.TrainSeed = 42,
) -> None:
    from finetune.cli.train import mixed, names
    from finetune.domain import (
        DOCUMENTS,
        GENERAL,
        DomainRun,
        digest_of,
        digest_of_rows,
        general_rows,
    )
    from finetune.options import LoraOptions, TrainOptions
    from rag.chatglm.hub import fetch
    from rag.chatglm.loading import read_config

    files, share = mixed(general, "--general")
    others = general_rows(files[0]) if files else []
    where = opt.device(device)
    options = TrainOptions(
        method=LoraOptions(rank, alpha, dropout, names(targets)),
        per_device_train_batch_size=batch_size,
        num_train_epochs=epochs,
        max_steps=max(0, max_steps),
        learning_rate=learning_rate or 1e-4,
        seed=seed,
        gradient_checkpointing=gradient_checkpointing,
        dtype=opt.dtype(where, fp16=False, bf16=False, fp32=False),
        quant=opt.quant(where, quant, None, in_8=False, in_4=False),
        max_length=max_length or sys.maxsize,
        eval_steps=save_steps,
        save_steps=save_steps,
        mix=share,
    )
    work = DomainRun(out_dir)
    made_of = _typed(context) | {GENERAL: digest_of_rows(others)}
    work.begin(made_of)
    directory = fetch(model, cache=cache_home() / "models")
    named = str(directory.resolve()) if Path(model).expanduser().is_dir() else model
    _check_room(kb, directory)
    # No row is longer than the window, to which rows are made.
    options = replace(options, max_length=within(options.max_length, read_config(directory)))

    documents = _ingest(paths, kb)
    _rows(
        work,
        made_of | {DOCUMENTS: digest_of(documents)},
        kb,
        others,
        limit=limit,
        heldout=heldout,
        model=str(directory),
        write_questions=write_questions,
        seed=seed,
    )
    _train(work, directory, options, where)
    # Judged as it will be used.
    held = options.quant if options.quant != "none" else "auto"
    _evaluate(work, kb, directory, quant=held, questions=questions, seed=seed)
    _use(work, kb, {"model": named, "adapter": str(work.adapter.resolve())}, held)


domain.__doc__ = say(
    "From documents to an adapter in use: ingest, make rows, train, judge, and switch it "
    "on if it is better. Run again after a stop, it goes on; what is done is not done "
    "again."
)


def _typed(context: typer.Context) -> dict[str, Any]:
    """The options' values under the names that a person gives them by."""
    return {
        option.opts[0]: context.params[option.name]
        for option in context.command.params
        if option.name in context.params and option.name not in FREE
    }


def _check_room(kb: str, model: Path) -> None:
    """`UserError` where the knowledge base's settings leave a prompt no room in the model."""
    from finetune.cli.grounded import room_for_prompts, window
    from rag.config import read_config

    config = read_config(kb_path(kb))
    limit = config.generate.max_new_tokens
    room_for_prompts(window(str(model))[1], limit, config.place)


def _step(number: int, done: str = "") -> None:
    line = STEPS[number - 1]
    if done:
        line = Translatable("{step}: {done}", step=line, done=done)
    note(f"[{number}/{len(STEPS)}] {say(line)}")


def _ingest(paths: list[Path], kb: str) -> "tuple[Document, ...]":
    """The documents that the knowledge base now holds; `UserError` where there are none."""
    from rag.cli.ingest import ingest
    from rag.config import read_config

    _step(1)
    ingest(paths, kb)
    with read_config(kb_path(kb)).open_store() as store:
        documents = tuple(store.documents())
    if not documents:
        raise UserError(
            "the knowledge base {kb} holds no document; name files and folders that can be read",
            kb=kb,
        )
    return documents


def _rows(
    work: "DomainRun",
    made_of: dict[str, Any],
    kb: str,
    general: list[Any],
    *,
    seed: int,
    **options: Any,
) -> None:
    from finetune.cli.grounded import grounded
    from finetune.domain import divide

    def make(folder: Path) -> None:
        grounded(kb, folder, seed=seed, **options)
        if general:
            divide(general, folder, seed=seed)

    if work.has_rows(made_of):
        _step(2, Translatable("made before, in {rows}", rows=work.rows))
    else:
        _step(2)
        work.make_rows(make, made_of)
    _ = work.example  # without held-out questions, training would be in vain


def _train(work: "DomainRun", model: Path, options: "TrainOptions", device: str) -> None:
    from finetune.cli.train import run
    from finetune.train.setup import Data

    if work.trained:
        _step(3, Translatable("done before, in {adapter}", adapter=work.adapter))
        return
    _step(3)
    general = work.rows / "general.jsonl"
    data = Data((work.rows / "train.jsonl",), general=(general,) if general.is_file() else ())
    run(model, data, options, work.adapter, device=device, resume=True)


def _evaluate(
    work: "DomainRun", kb: str, model: Path, *, quant: str, questions: int, seed: int
) -> None:
    """Ends the command, with the exit code of `rag finetune eval`, where it is not to be used."""
    from finetune.cli.evaluate import DO_NOT_SHIP, evaluate
    from rag.config import read_config

    if verdict := work.decision:
        decision = Translatable("ship it") if verdict["ship"] else Translatable("do not ship")
        _step(4, Translatable("done before, {decision}", decision=decision))
        for reason in verdict["reasons"]:
            note(f"  {reason['zh' if say.language == 'zh' else 'text']}")
    else:
        _step(4)
    general = work.rows / "general-heldout.jsonl"
    try:
        if not verdict:
            evaluate(
                work.rows / "heldout.jsonl",
                str(model),
                work.adapter,
                kb,
                general=general if general.is_file() else None,
                limit=questions,
                quant=quant,
                max_new_tokens=min(LONGEST_REPLY, read_config(kb_path(kb)).generate.max_new_tokens),
                seed=seed,
                json=work.evaluation,
                picture=work.evaluation.with_suffix(".png"),
            )
        elif not verdict["ship"]:
            raise typer.Exit(DO_NOT_SHIP)
    except typer.Exit:
        note(say("not put in use; the adapter stays in {adapter}", adapter=work.adapter))
        raise


def _use(work: "DomainRun", kb: str, values: dict[str, str], quant: str) -> None:
    """Put the adapter into the knowledge base's settings, or tell the lines that do so."""
    from finetune.domain import lines, put_in_use
    from rag.config import SETTINGS

    settings = kb_path(kb) / SETTINGS
    values = values | ({"quant": quant} if quant != "auto" else {})
    if put_in_use(settings, values):
        _step(5, str(settings))
    else:
        _step(
            5,
            Translatable(
                "{settings} names a model already and stays as it is; for the adapter, put these "
                "lines below its [generate]",
                settings=settings,
            ),
        )
        for line in lines(values):
            note(f"  {line}")
    out(f"rag ask --kb {shlex.quote(kb)} {shlex.quote(work.example)}")
