"""`rag finetune train`: data and a model -> an adapter that `rag ask --adapter` answers with."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cli import options as opt
from finetune.cli.prepare import (
    MaxSource,
    MaxTarget,
    RowLength,
    RowOptions,
    Template,
    fates,
    within,
)
from finetune.cli.preview import Preview, show_time
from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.cli.console import Progress, loading, note, out, say
from rag.cli.paths import cache_home

if TYPE_CHECKING:
    from finetune.options import TrainOptions
    from finetune.train.loop import StepReport
    from finetune.train.setup import Data, DataCounts, TrainingResult


SETS = {"dev": Translatable("dev"), "general": Translatable("general")}
"""The held-out sets whose losses are shown."""


def train(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="DATA...",
            help=say("alpaca, ShareGPT or messages files, or a folder that `prepare` wrote."),
        ),
    ] = None,
    *,
    model: opt.ModelDir,
    out_dir: opt.Out,
    data: opt.MoreData = None,
    dev: opt.Dev = None,
    dev_share: opt.DevShare = 0.05,
    mix: opt.Mix = None,
    forgetting_budget: opt.Budget = 0.0,
    strength: opt.Strength = "1",
    template: Template = None,
    max_length: RowLength = None,
    max_source_length: MaxSource = None,
    max_target_length: MaxTarget = None,
    prompt_column: opt.PromptColumn = "",
    response_column: opt.ResponseColumn = "",
    history_column: opt.HistoryColumn = "",
    skip_bad: opt.SkipBad = False,
    max_train_samples: opt.MaxTrain = 0,
    max_eval_samples: opt.MaxEval = 0,
    rank: opt.Rank = 8,
    alpha: opt.Alpha = 32.0,
    dropout: opt.Dropout = 0.1,
    targets: opt.Targets = "query_key_value",
    rslora: opt.RsLora = False,
    dora: opt.Dora = False,
    pre_seq_len: opt.PreSeqLen = None,
    prefix_projection: opt.Projection = False,
    batch_size: opt.BatchSize = 4,
    accumulation: opt.Accumulation = 1,
    epochs: opt.Epochs = 3.0,
    max_steps: opt.MaxSteps = 0,
    learning_rate: opt.LearningRate = None,
    scheduler: opt.Scheduler = "linear",
    warmup_steps: opt.Warmup = 0,
    warmup_ratio: opt.WarmupRatio = 0.0,
    weight_decay: opt.WeightDecay = 0.0,
    max_grad_norm: opt.GradNorm = 1.0,
    seed: opt.TrainSeed = 42,
    packing: opt.Packing = True,
    pack_length: opt.PackLength = 1024,
    gradient_checkpointing: opt.Checkpointing = False,
    fp16: opt.Fp16 = False,
    bf16: opt.Bf16 = False,
    fp32: opt.Fp32 = False,
    quant: opt.BaseQuant = None,
    quantization_bit: opt.QuantBit = None,
    load_in_8bit: opt.In8 = False,
    load_in_4bit: opt.In4 = False,
    device: opt.DeviceName = None,
    logging_steps: opt.LoggingSteps = 10,
    eval_steps: opt.EvalSteps = 100,
    save_steps: opt.SaveSteps = 100,
    save_total_limit: opt.SaveLimit = 2,
    resume: opt.Resume = False,
    overwrite: opt.Overwrite = False,
    dry_run: opt.DryRun = False,
) -> None:
    from finetune.data.formats import Columns
    from finetune.options import LoraOptions, TrainOptions
    from finetune.train.setup import Data
    from rag.chatglm.hub import fetch
    from rag.chatglm.loading import read_config

    given = [*(files or []), *(data or [])]
    if not given:
        raise UserError(
            "no data is given; name files, or a folder that `rag finetune prepare` wrote"
        )
    asked = RowOptions(template, max_length, max_source_length, max_target_length)
    rows = asked.prepared(given[0]) if len(given) == 1 and given[0].is_dir() else asked.rows()
    lora = LoraOptions(rank, alpha, dropout, names(targets), rslora, dora)
    method = opt.method(lora, pre_seq_len, projection=prefix_projection)
    general, share = mixed(mix)
    where = opt.device(device)
    options = TrainOptions(
        method=method,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=epochs,
        max_steps=0 if max_steps == -1 else max_steps,  # transformers' own default
        learning_rate=opt.rate(learning_rate, method),
        lr_scheduler_type=scheduler,  # type: ignore[arg-type]  # checked there
        warmup_steps=warmup_steps,
        warmup_ratio=warmup_ratio,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        seed=seed,
        packing=packing,
        pack_length=pack_length,
        gradient_checkpointing=gradient_checkpointing,
        dtype=opt.dtype(where, fp16=fp16, bf16=bf16, fp32=fp32),
        quant=opt.quant(where, quant, quantization_bit, in_8=load_in_8bit, in_4=load_in_4bit),
        template=rows.template,
        max_length=rows.max_length,
        logging_steps=logging_steps,
        eval_steps=eval_steps,
        save_steps=save_steps,
        save_total_limit=save_total_limit,
        mix=share,
        forgetting_budget=forgetting_budget,
        strength=None if strength == "auto" else _number("--strength", strength),
    )
    files_of = Data(
        tuple(given),
        tuple(dev or ()),
        general,
        dev_share,
        Columns(prompt_column, response_column, history_column),
        skip_bad,
        max_train_samples,
        max_eval_samples,
    )
    directory = fetch(model, cache=cache_home() / "models")
    options = replace(options, max_length=within(options.max_length, read_config(directory)))
    if not (dry_run or resume or overwrite):
        free(out_dir)
    run(
        directory, files_of, options, out_dir,
        device=where, resume=resume, overwrite=overwrite and not resume, dry_run=dry_run,
    )  # fmt: skip


train.__doc__ = say(
    "Train a LoRA or P-Tuning adapter. Stopped at any moment, --resume goes on to the same bytes."
)


def run(
    model: Path,
    data: "Data",
    options: "TrainOptions",
    folder: Path,
    *,
    device: str,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> "TrainingResult | None":
    """Read, load, train and write, telling a person of it; None where it was a dry run.

    With `overwrite` an earlier training in the folder is deleted once all else is ready.
    """
    from accelerate import Accelerator

    from finetune.train.checkpoint import check_resumable, forget, identity
    from finetune.train.loop import Training
    from finetune.train.preview import measure_time
    from finetune.train.setup import contract_of, finish, open_tuned, own_pages, read_sets

    accelerator = Accelerator(cpu=device == "cpu")
    main = accelerator.is_main_process
    screen = Screen(folder, quiet=not main)
    sets, told = read_sets(data, model, options, cache=cache_home() / "tokens")
    screen.data(told)
    preview = Preview.of(model, sets, options, device=device)
    if main:
        preview.show_table() if dry_run else preview.show_line()
    if resume:
        check_resumable(folder, identity(sets.digests, options, accelerator))
    if main and not dry_run:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
    if device == "cpu":
        own_pages()
    with loading(model.name) if main else nullcontext() as progress:
        tuned = open_tuned(model, options, device=str(accelerator.device), progress=progress)
    contract = contract_of(tuned.base, options)
    training = Training(tuned, sets, options, folder, contract, accelerator)
    if dry_run:
        time = measure_time(training)
        if main:
            show_time(time)
        return None
    if overwrite and main:
        forget(folder)
    accelerator.wait_for_everyone()
    with screen, writing(folder):
        for report in training.run(resume=resume):
            screen.show(report)
    accelerator.end_training()
    if not main:
        return None
    record = {
        "base": model.name,
        "files": [path.name for path in (*data.train, *data.dev, *data.general)],
        "rows": told.rows,
        "counts": {name: asdict(counts) for name, counts in told.counts.items()},
    }
    with writing(folder):
        done = finish(training, record)
    screen.finished(done)
    return done


def free(folder: Path) -> None:
    """`UserError` where the folder holds something that a new training would mix with."""
    from finetune.train.checkpoint import checkpoints, is_training

    if folder.exists() and not folder.is_dir():
        raise UserError("{folder} is a file; name a new folder with --out", folder=folder)
    if not folder.exists() or not any(folder.iterdir()):
        return
    held = checkpoints(folder)
    if is_training(folder):
        if not held:  # it may still run
            raise UserError(
                "{folder} holds a training without a checkpoint; begin it anew with "
                "--overwrite-output-dir, or name another --out",
                folder=folder,
            )
        step = held[-1][0]
        raise UserError(
            "{folder} holds a training at step {step}; add --resume to go on, "
            "--overwrite-output-dir to lose it, or name another --out",
            folder=folder,
            step=step,
        )
    raise UserError("{folder} is not empty; name a new folder with --out", folder=folder)


def mixed(mix: str | None, name: str = "--mix") -> tuple[tuple[Path, ...], float]:
    """`general.jsonl:0.2`, given as the option `name` -> the file and the share; a share of 0
    measures only."""
    if not mix:
        return (), 0.0
    file, colon, said = mix.rpartition(":")
    if not colon:
        return (Path(mix),), 0.2
    share = _number(name, said)
    if not 0 <= share < 1:
        raise UserError("{name} has the share {said}; need 0 to below 1", name=name, said=said)
    return (Path(file),), share


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError("{name} is {text!r}; need a number", name=name, text=text) from None


def names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.replace(",", " ").split())


class Screen:
    """A bar where a person watches, a line a report where a log does; nothing if `quiet`."""

    def __init__(self, folder: Path, *, quiet: bool) -> None:
        self.folder, self.quiet = folder, quiet
        self.stopped = ""
        self.progress = Progress("", quiet=quiet, every=0, stays=True)

    def __enter__(self) -> "Screen":
        self.progress.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.__exit__()
        if kind is KeyboardInterrupt:
            from finetune.train.checkpoint import checkpoints

            text = say(
                "stopped before the first checkpoint; add --overwrite-output-dir to begin anew"
            )
            if checkpoints(self.folder):
                text = say(
                    "stopped; the same command with --resume goes on from the last checkpoint"
                )
            self.note(text)

    def note(self, text: str) -> None:
        if not self.quiet:
            note(text)

    def data(self, told: "DataCounts") -> None:
        """The counts of what was read."""
        rows = told.rows
        self.note(
            say(
                "{rows} rows to learn, {rows_2} held out; of general ones {rows_3} mixed in, "
                "{rows_4} measured",
                rows=rows["train"],
                rows_2=rows["dev"],
                rows_3=rows["general"],
                rows_4=rows["general_dev"],
            )
        )
        for name, counts in told.counts.items():
            for fate in fates(counts):
                self.note(say("{name}: {fate}", name=name, fate=fate))

    def show(self, report: "StepReport") -> None:
        """Loss, speed, time left."""
        text = say(
            "step {step}/{steps}, loss {loss:.4f}",
            step=report.step,
            steps=report.steps,
            loss=report.loss,
        )
        for name, loss in (("dev", report.dev_loss), ("general", report.general_loss)):
            if loss is not None:
                text += say(", {name} {loss:.4f}", name=SETS[name], loss=loss)
        speed = f"{report.speed:,.0f}"
        text += say(", {speed} tokens/s", speed=speed)
        self.progress.total = report.steps
        self.progress(report.step, text, left=report.left)
        self.stopped = report.stopped

    def finished(self, done: "TrainingResult") -> None:
        """What was written, and how far it may be trusted."""
        if self.stopped:
            self.note(say("stopped early: {stopped}", stopped=self.stopped))
        if done.strength != 1:
            self.note(say("kept at strength {strength:g}", strength=done.strength))
        for name, title in SETS.items():
            before, after = (done.losses.get(f"{name}_loss{when}") for when in ("_before", ""))
            if before is not None and after is not None:
                text = say(
                    "{name} loss {before:.4f} before, {after:.4f} now",
                    name=title,
                    before=before,
                    after=after,
                )
                best, step = done.losses.get(f"{name}_best", after), done.losses.get("dev_step", 0)
                if best < after and step != done.steps:
                    text += say(
                        " (least: {best:.4f} in step {step:.0f} of {steps})",
                        best=best,
                        step=step,
                        steps=done.steps,
                    )
                self.note(text)
        self.note(
            say(
                "read back, its logits differ by {apart:.1e} of the largest at most",
                apart=done.apart,
            )
        )
        out(str(done.out))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What the system refuses to write is told in one line."""
    try:
        yield
    except OSError as problem:
        where = problem.filename or folder
        raise UserError(
            "{where}: {strerror}; see to it, and run the same command with --resume",
            where=where,
            strerror=problem.strerror or problem,
        ) from problem
