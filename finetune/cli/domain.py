"""`rag finetune domain`: a folder of documents -> an adapter for their domain, judged and in use."""

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli.grounded import grounded, room_for_prompts, window
from finetune.cli.options import TRAINED, BaseOptions, mixed, within
from finetune.options import Data, LoraOptions, TrainOptions
from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.cli.console import note, note_message, out, say
from rag.cli.options import KB, argument, option, with_options
from rag.cli.paths import fetch_model, kb_path

if TYPE_CHECKING:
    from finetune.domain import DomainRun
    from ingest.types import Document

STEPS = (
    Translatable("documents into the knowledge base"),
    Translatable("training rows and held-out questions"),
    Translatable("training"),
    Translatable("base and adapter on the held-out questions"),
    Translatable("in use"),
)
FREE = ("paths", "out_dir", "device", "questions")
"""Options that may change on resume. (Documents are compared by their contents.)"""
TRAIN_FIELDS = (
    "per_device_train_batch_size", "num_train_epochs", "max_steps", "gradient_checkpointing",
    "save_steps", "seed",
)  # fmt: skip
"""The options of a training that a domain has."""
LONGEST_REPLY = 256
"""Tokens of a reply to a held-out question, at most."""


@dataclass(frozen=True, kw_only=True)
class DomainOptions:
    out_dir: Path = option(
        "--out --output-dir DIR",
        "Folder for the rows, the adapter and its evaluation; a second run continues there.",
        default=...,
    )
    limit: int | None = option("--limit N", "Rows to make, at most.", least=1)
    heldout: float = option(
        "--heldout SHARE",
        "Share of documents kept out of training, to judge the adapter by.",
        default=0.2,
        least=0.01,
        most=0.9,
    )
    write_questions: bool = option(
        "--write-questions", "Let the model write questions too.", default=False
    )
    questions: int = option(
        "--questions N",
        "The number of held-out questions that are asked, at most.",
        default=200,
        least=1,
    )
    general: str | None = option(
        "--general --mix FILE:SHARE",
        "Rows about other things, against forgetting: this share of each step; some are asked "
        "afterwards.",
    )
    learning_rate: float | None = option(
        "--learning-rate --lr X", "The highest learning rate; 1e-4 if left out."
    )
    max_length: int | None = option(
        "--max-length --max-seq-length N",
        "Tokens of a row, at most (default: the model's window); longer ones are reported.",
        least=1,
    )


@with_options(
    "From documents to an adapter in use: ingest, make rows, train, judge, and switch it on if it "
    "is better. Run again after a stop, it continues; finished steps are not repeated."
)
def domain(
    context: typer.Context,
    paths: list[Path] = argument("DOCS...", "Files and folders, as for `rag ingest`."),
    *,
    model: str = TRAINED,
    kb: str = KB,
    chosen: DomainOptions,
    lora: Annotated[LoraOptions, ("rank", "alpha", "dropout", "targets")],
    options: Annotated[TrainOptions, TRAIN_FIELDS],
    base: Annotated[BaseOptions, ("quant", "device")],
) -> None:
    from finetune.domain import (
        DOCUMENTS,
        GENERAL,
        DomainRun,
        digest_of,
        digest_of_rows,
        general_rows,
    )
    from rag.chatglm.loading import read_config
    from rag.config import read_config as read_kb_config

    seed = options.seed
    files, share = mixed(chosen.general, "--general")
    others = general_rows(files[0]) if files else []
    device = base.find_device()
    options = replace(
        options, method=lora, learning_rate=chosen.learning_rate or 1e-4, dtype=base.dtype(device),
        quant=base.quantization(), max_length=chosen.max_length or sys.maxsize,
        eval_steps=options.save_steps, mix=share,
    )  # fmt: skip
    work = DomainRun(chosen.out_dir)
    made_of = _typed(context) | {GENERAL: digest_of_rows(others)}
    work.begin(made_of)
    directory = fetch_model(model)
    named = str(directory.resolve()) if Path(model).expanduser().is_dir() else model
    generate = read_kb_config(kb_path(kb)).generate
    room_for_prompts(window(str(directory))[1], generate.max_new_tokens, kb_path(kb))
    # No row is longer than the window, to which rows are made.
    options = replace(options, max_length=within(options.max_length, read_config(directory)))

    documents = _ingest(paths, kb)
    _rows(
        work,
        made_of | {DOCUMENTS: digest_of(documents)},
        kb,
        others,
        limit=chosen.limit,
        heldout=chosen.heldout,
        model=str(directory),
        write_questions=chosen.write_questions,
        seed=seed,
    )
    _train(work, directory, options, device)
    # It is evaluated as it will be used.
    held = options.quant if options.quant != "none" else "auto"
    _evaluate(work, kb, directory, quant=held, questions=chosen.questions, seed=seed)
    _use(work, kb, {"model": named, "adapter": str(work.adapter.resolve())}, held)


def _typed(context: typer.Context) -> dict[str, Any]:
    """The options' values by their names on the command line."""
    return {
        option.opts[0]: context.params[option.name]
        for option in context.command.params
        if option.name in context.params and option.name not in FREE
    }


def _step(number: int, done: str = "") -> None:
    line = STEPS[number - 1]
    if done:
        line = Translatable("{step}: {done}", step=line, done=done)
    note(f"[{number}/{len(STEPS)}] {say(line)}")


def _ingest(paths: list[Path], kb: str) -> "tuple[Document, ...]":
    """The documents that the knowledge base now holds; `UserError` if there are none."""
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


def _train(work: "DomainRun", model: Path, options: TrainOptions, device: str) -> None:
    from finetune.cli.train import run

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
    """Ends the command with the exit code of `rag finetune eval` if the adapter is not better."""
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
                model=str(model),
                adapter=work.adapter,
                kb=kb,
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
        note_message("not put in use; the adapter stays in {adapter}", adapter=work.adapter)
        raise


def _use(work: "DomainRun", kb: str, values: dict[str, str], quant: str) -> None:
    """Put the adapter into the knowledge base's settings, or show the lines that do so."""
    from finetune.domain import lines, put_in_use
    from rag.config import SETTINGS

    settings = kb_path(kb) / SETTINGS
    values = values | ({"quant": quant} if quant != "auto" else {})
    if put_in_use(settings, values):
        _step(5, str(settings))
    else:
        text = Translatable(
            "{settings} names a model already and stays as it is; for the adapter, put these lines "
            "below its [generate]",
            settings=settings,
        )
        _step(5, text)
        for line in lines(values):
            note(f"  {line}")
    out(f"rag ask --kb {shlex.quote(kb)} {shlex.quote(work.example)}")
