"""`rag finetune domain`: documents -> an adapter for their domain, evaluated and in use (domain.py)."""

import json
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cli.evaluate import DO_NOT_SHIP, ComparedModels, ComparisonOptions, compare_models
from finetune.cli.grounded import room_for_prompts, write_rows
from finetune.cli.options import TRAINED, BaseOptions, mixed, within
from finetune.cli.train import RunOptions, train_adapter
from finetune.options import Columns, Data, LoraOptions, SyntheticOptions, TrainOptions
from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.cli.console import note, note_message, out, say
from rag.cli.options import KB, ModelOptions, argument, fetch_model, kb_path, option, with_options

if TYPE_CHECKING:
    from finetune.domain import DomainRun
    from rag.config import Config

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
    heldout: float = option(
        "--heldout SHARE",
        "Share of documents kept out of training, for evaluation.",
        default=0.2,
        least=0.01,
        most=0.9,
    )
    questions: int = option(
        "--questions N", "Maximum number of held-out questions to ask.", default=200, least=1
    )
    general: str | None = option(
        "--general --mix FILE:SHARE",
        "Rows on other subjects, to limit forgetting, and their share of each step; some are "
        "asked afterwards.",
    )
    learning_rate: float | None = option("--learning-rate --lr X", "Peak learning rate; default: 1e-4.")
    max_length: int | None = option(
        "--max-length --max-seq-length N",
        "Maximum tokens per row (default: the model's window); longer rows are reported.",
        least=1,
    )


@with_options(
    "From documents to an adapter in use: ingest, generate rows, train, evaluate, and enable "
    "the adapter if it is better. After an interruption, run it again: finished steps are "
    "not repeated."
)
def domain(
    context: typer.Context,
    paths: list[Path] = argument("DOCS...", "Files and folders, as for `rag ingest`."),
    *,
    model: str = TRAINED,
    kb: str = KB,
    domain_options: DomainOptions,
    row_options: Annotated[SyntheticOptions, ("limit", "write_questions")],
    lora: Annotated[LoraOptions, ("rank", "alpha", "dropout", "targets")],
    options: Annotated[TrainOptions, TRAIN_FIELDS],
    base: Annotated[BaseOptions, ("quant", "device")],
) -> None:
    from finetune.domain import DOCUMENTS, GENERAL, DomainRun, digest_of, divide, general_rows
    from rag.chatglm.chat import context_of
    from rag.chatglm.loading import read_model_config
    from rag.config import read_config

    files, share = mixed(domain_options.general, "--general")
    general = general_rows(files[0]) if files else []
    device = base.find_device()
    options = replace(
        options, method=lora, learning_rate=domain_options.learning_rate or 1e-4, dtype=base.dtype(device),
        quant=base.quantization(), max_length=domain_options.max_length or sys.maxsize,
        eval_steps=options.save_steps, mix=share,
    )  # fmt: skip
    run = DomainRun(domain_options.out_dir)
    inputs = {
        option.opts[0]: context.params[option.name]
        for option in context.command.params
        if option.name in context.params and option.name not in FREE
    }
    inputs[GENERAL] = digest_of([json.dumps(row) for row in general])
    run.check(inputs)
    directory = fetch_model(model)
    config, model_config = read_config(kb_path(kb)), read_model_config(directory)
    room_for_prompts(context_of(model_config), config)
    # No row is longer than the window, to which rows are made.
    options = replace(options, max_length=within(options.max_length, model_config))
    row_options = replace(row_options, heldout=domain_options.heldout, seed=options.seed)
    # It is evaluated as it will be used.
    quant = options.quant if options.quant != "none" else "auto"
    models = ComparedModels(
        model=str(directory), adapter=str(run.adapter), quant=quant,
        max_new_tokens=min(LONGEST_REPLY, config.generate.max_new_tokens),
    )  # fmt: skip

    def make_rows(folder: Path) -> None:
        write_rows(config, folder, row_options, ModelOptions(model=str(directory)))
        if general:
            divide(general, folder, seed=options.seed)

    inputs[DOCUMENTS] = digest_of(_ingest(paths, config, kb))
    run.check(inputs)
    done = Translatable("made before, in {rows}", rows=run.rows) if run.has_rows(inputs) else ""
    _step(2, Translatable("training rows and held-out questions"), done)
    if not done:
        run.make_rows(make_rows, inputs)
    _ = run.example  # without held-out questions, training would be in vain
    done = Translatable("done before, in {adapter}", adapter=run.adapter) if run.is_trained else ""
    _step(3, Translatable("training"), done)
    if not done:
        part = run.rows / "general.jsonl"
        data = Data((run.rows / "train.jsonl",), general=(part,) if part.is_file() else ())
        train_adapter(directory, data, options, RunOptions(out_dir=run.adapter, resume=True), device)
    _evaluate(run, config, models, limit=domain_options.questions, seed=options.seed)
    name = str(directory.resolve()) if Path(model).expanduser().is_dir() else model
    _use(run, kb, {"model": name, "adapter": str(run.adapter.resolve())}, quant)


def _step(number: int, title: Translatable, done: str = "") -> None:
    line = Translatable("{step}: {done}", step=title, done=done) if done else title
    note(f"[{number}/5] {say(line)}")


def _ingest(paths: list[Path], config: "Config", kb: str) -> list[str]:
    """The digests of the documents that the knowledge base now holds; `UserError` if there are none."""
    from rag.cli.ingest import IngestOptions, ingest_into

    _step(1, Translatable("documents into the knowledge base"))
    ingest_into(config, paths, IngestOptions(), kb=kb)
    with config.open_store() as store:
        digests = sorted(document.digest for document in store.documents())
    if not digests:
        raise UserError(
            "the knowledge base {kb} holds no document; name files and folders that can be read", kb=kb
        )
    return digests


def _evaluate(run: "DomainRun", config: "Config", models: ComparedModels, *, limit: int, seed: int) -> None:
    """Ends the command with the exit code of `rag finetune eval` if the adapter is not better."""
    title = Translatable("base and adapter on the held-out questions")
    if decision := run.decision:
        ship = Translatable("ship it") if decision["ship"] else Translatable("do not ship")
        _step(4, title, Translatable("done before, {decision}", decision=ship))
        for reason in decision["reasons"]:
            note(f"  {reason['zh' if say.language == 'zh' else 'text']}")
        code = 0 if decision["ship"] else DO_NOT_SHIP
    else:
        _step(4, title)
        general = run.rows / "general-heldout.jsonl"
        options = ComparisonOptions(
            general=general if general.is_file() else None, limit=limit, seed=seed,
            json=run.evaluation, picture=run.evaluation.with_suffix(".png"),
        )  # fmt: skip
        code = compare_models(run.rows / "heldout.jsonl", lambda: config, models, options, Columns())
    if code:
        note_message("not put in use; the adapter stays in {adapter}", adapter=run.adapter)
        raise typer.Exit(code)


def _use(run: "DomainRun", kb: str, values: dict[str, str], quant: str) -> None:
    """Put the adapter into the knowledge base's settings, or show the lines that do so."""
    import tomlkit

    from rag.config import SETTINGS, change_settings

    settings, title = kb_path(kb) / SETTINGS, Translatable("in use")
    values = values | ({"quant": quant} if quant != "auto" else {})
    text, lines = str(settings), list[str]()
    if not change_settings(settings, {"generate": values}, overwrite=False):
        text = Translatable(
            "{settings} names a model already and stays as it is; for the adapter, put these lines "
            "below its [generate]",
            settings=settings,
        )
        lines = tomlkit.dumps(values).splitlines()
    _step(5, title, text)
    for line in lines:
        note(f"  {line}")
    out(f"rag ask --kb {shlex.quote(kb)} {shlex.quote(run.example)}")
