"""`rag finetune train`: data and a model -> an adapter that `rag ask --adapter` answers with."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, replace
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.cli.options import DATA_NAMES, TRAINED, BaseOptions, MethodOptions, RowOptions, mixed, within
from finetune.cli.prepare import omissions
from finetune.options import Columns, Data, LoraOptions, TrainOptions, flag
from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.cli.console import Progress, loading, note, note_message, out, out_message, say
from rag.cli.options import argument, cache_home, fetch_model, option, with_options

if TYPE_CHECKING:
    from finetune.train.loop import Sets, StepReport, Training
    from finetune.train.setup import TrainingResult
    from rag.chatglm.memory import Device


SETS = {"dev": Translatable("dev"), "general": Translatable("general")}
"""The held-out sets whose losses are shown."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    out_dir: Path = option("--out --output-dir DIR", "New folder for the adapter.", default=...)
    data: tuple[Path, ...] = option(DATA_NAMES, "The same as DATA.", default=())
    mix: str | None = option(
        "--mix FILE:SHARE",
        "General data to limit forgetting, and its share of each step (default 0.2; 0: only measured).",
    )
    resume: bool = flag("--resume --resume-from-checkpoint", "Continue from the newest checkpoint in --out.")
    overwrite: bool = flag("--overwrite-output-dir", "Discard an earlier training in --out.")
    dry_run: bool = option(
        "--dry-run",
        "Only report what training would need: memory by part, the largest batch, and the time, "
        "from measured steps.",
        default=False,
    )


@with_options(
    "Train a LoRA or P-Tuning adapter. After an interruption at any point, --resume "
    "continues to the same result, byte for byte."
)
def train(
    files: list[Path] | None = argument(
        "DATA...", "alpaca, ShareGPT or messages files, or a folder that `prepare` wrote.", default=None
    ),
    *,
    model: str = TRAINED,
    run_options: RunOptions,
    row_options: RowOptions,
    data: Data,
    columns: Columns,
    lora: LoraOptions,
    method_options: MethodOptions,
    options: TrainOptions,
    base: BaseOptions,
) -> None:
    from rag.chatglm.loading import read_model_config

    sources = (*(files or ()), *run_options.data)
    if not sources:
        raise UserError("no data is given; name files, or a folder that `rag finetune prepare` wrote")
    if len(sources) == 1 and sources[0].is_dir():
        template, max_length = row_options.form_of_prepared(sources[0])
    else:
        template, max_length = row_options.form()
    method, (general, share) = method_options.method(lora), mixed(run_options.mix)
    device = base.find_device()
    options = replace(
        options, method=method, learning_rate=method_options.rate, dtype=base.dtype(device), mix=share,
        quant=base.quantization(), template=template, max_length=max_length,
    )  # fmt: skip
    directory = fetch_model(model)
    options = replace(options, max_length=within(options.max_length, read_model_config(directory)))
    if not (run_options.dry_run or run_options.resume or run_options.overwrite):
        check_free(run_options.out_dir)
    data = replace(data, train=sources, general=general, columns=columns)
    train_adapter(directory, data, options, run_options, device)


def train_adapter(
    model: Path, data: Data, options: TrainOptions, run_options: RunOptions, device: str
) -> None:
    """Read, load, train and write, with reports on the screen.

    An earlier training to overwrite is deleted once all else is ready, and not if it is resumed.
    """
    from accelerate import Accelerator

    from finetune.data.tokenize import MOST_BYTES, locked
    from finetune.train.checkpoint import check_resumable, delete_training, identity
    from finetune.train.loop import Training
    from finetune.train.preview import measure_time
    from finetune.train.setup import finish, open_tuned, own_pages, read_sets
    from ingest.store.atomic import disk_usage
    from rag.chatglm.memory import gigabytes

    folder, resume, dry_run = run_options.out_dir, run_options.resume, run_options.dry_run
    accelerator = Accelerator(cpu=device == "cpu")
    main = accelerator.is_main_process
    # One of the processes reports; errors of the others are shown, too.
    with nullcontext() if main else redirect_stderr(StringIO()):
        tokens = cache_home() / "tokens"
        sets = read_sets(data, model, options, cache=tokens)
        show_sets(sets)
        if tokens.is_dir():
            sizes = [gigabytes(size) for size in (disk_usage(tokens), MOST_BYTES)]
            note_message(
                "cache of tokens: {size} of at most {most}, in {folder}",
                size=sizes[0],
                most=sizes[1],
                folder=tokens,
            )
        show_memory(model, sets, options, device=device)
        if resume:
            check_resumable(folder, identity(sets.digests, options, accelerator))
        if not dry_run:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
        if device == "cpu":
            own_pages()
        with loading(model.name) as progress:
            tuned = open_tuned(model, options, device=str(accelerator.device), progress=progress)
        training = Training(tuned, sets, options, folder, accelerator)
        if dry_run:
            time = measure_time(training)
            if main:
                out_message(
                    "{step:.3g} s a step; {speed:,.0f} tokens/s; {total} for {steps} steps and their evaluations",
                    step=time.step,
                    speed=time.speed,
                    total=timedelta(seconds=round(time.total)),
                    steps=training.plan.steps,
                )
            return
        with writing(folder), locked(folder, wait=False) if main else nullcontext():
            if run_options.overwrite and not resume and main:
                delete_training(folder)
            accelerator.wait_for_everyone()
            with Progress("", training.plan.steps, every=0, stays=True) as progress:
                for report in training.run(resume=resume):
                    show_step(report, progress)
            accelerator.end_training()
            if main:
                files = [path.name for path in (*data.train, *data.dev, *data.general)]
                show_result(finish(training, {"base": model.name, "files": files}), training)


def check_free(folder: Path) -> None:
    """Raises `UserError` if the folder holds something that a new training would mix with."""
    from finetune.train.checkpoint import checkpoints, is_training
    from ingest.store.atomic import check_new

    if not is_training(folder):
        return check_new(folder)
    raise UserError(  # it may still run
        "{folder} holds a training at step {step}; add --resume to continue, "
        "--overwrite-output-dir to lose it, or name another --out",
        folder=folder,
        step=max((step for step, _ in checkpoints(folder)), default=0),
    )


def show_sets(sets: "Sets") -> None:
    """The counts of what was read."""
    note_message(
        "{train} training rows, {dev} held out; general rows: {general} mixed in, {general_dev} measured",
        **sets.sizes,
    )
    for name, counts in sets.counts.items():
        for omission in omissions(counts):
            note_message("{name}: {fate}", name=name, fate=omission)


def show_step(report: "StepReport", progress: Progress) -> None:
    """Loss, speed, time left."""
    step, steps, loss = report.step, report.steps, report.loss
    text = say("step {step}/{steps}, loss {loss:.4f}", step=step, steps=steps, loss=loss)
    for name, title in SETS.items():
        if f"{name}_loss" in report.losses:
            text += say(", {name} {loss:.4f}", name=title, loss=report.losses[f"{name}_loss"])
    text += say(", {speed:,.0f} tokens/s", speed=report.speed)
    progress(step, text, left=report.left)


def show_result(result: "TrainingResult", training: "Training") -> None:
    """What was written, and how it compares."""
    losses, state = result.losses, training.state
    if state.stopped:
        note_message("stopped early: {stopped}", stopped=state.stopped)
    if result.strength != 1:
        note_message("saved at strength {strength:g}", strength=result.strength)
    for name, title in SETS.items():
        before, after = (losses.get(f"{name}_loss{when}") for when in ("_before", ""))
        if before is None or after is None:
            continue
        best, step = losses.get(f"{name}_best", after), losses.get("dev_step", 0)
        least: str = ""
        if best < after and step != state.step:
            least = Translatable(
                " (lowest: {best:.4f} at step {step:.0f} of {steps})",
                best=best, step=step, steps=state.step,
            )  # fmt: skip
        note_message(
            "{name} loss {before:.4f} before, {after:.4f} now{least}",
            name=title, before=before, after=after, least=least,
        )  # fmt: skip
    note_message("read back, its logits differ by {apart:.1e} of the largest at most", apart=result.apart)
    out(str(training.out))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns an error of the file system into a `UserError`; after Ctrl-C, says how to continue."""
    try:
        yield
    except OSError as problem:
        where = problem.filename or folder
        raise UserError(
            "{where}: {strerror}; resolve this, then run the same command with --resume",
            where=where,
            strerror=problem.strerror or problem,
        ) from problem
    except KeyboardInterrupt:
        note_message("stopped; the same command with --resume continues from the last checkpoint")
        raise


PARTS = {
    "weights": Translatable("weights"),
    "adapter": Translatable("adapter"),
    "activations": Translatable("layers"),
    "logits": Translatable("logits"),
    "work": Translatable("work"),
    "runtime": Translatable("libs"),
}
"""The parts of a `MemoryEstimate`, by their names in it."""


def show_memory(model: Path, sets: "Sets", options: TrainOptions, *, device: str) -> None:
    """One line for the memory that the training takes, one for what would fit.

    Raises `UserError` if not even the longest row fits alone, with both figures and the ways out.
    """
    from finetune.train.preview import MOST_TOKENS, Estimator, longest
    from rag.chatglm.loading import read_model_config
    from rag.chatglm.memory import MemoryBudget, gigabytes

    kind: Device = "cpu" if device == "cpu" else "cuda"
    estimator, free = Estimator(read_model_config(model), options, kind), MemoryBudget.here().on(kind)
    one = longest(sets.train)
    if free is not None and (wanted := estimator.train(one).total) > free:
        ways = [] if options.gradient_checkpointing else ["--gradient-checkpointing"]
        ways += ["--quant int8"] if options.quant == "none" else []
        raise UserError(
            "training on one row of {length} tokens needs {needed} of {where} and {free} are free; "
            "try {ways}",
            length=one.length,
            needed=gigabytes(wanted),
            where=Translatable("memory") if kind == "cpu" else Translatable("GPU memory"),
            free=gigabytes(free),
            ways=[*ways, f"--max-length {max(64, one.length // 2)}"],
        )
    estimate = estimator.peak(sets)
    sizes = [f"{say(title)} {gigabytes(getattr(estimate, part))}" for part, title in PARTS.items()]
    note_message(
        "memory: {total} at most ({parts}); {free} free",
        total=gigabytes(estimate.total),
        parts=say(", ").join(sizes).replace(" GB", ""),
        free="?" if free is None else gigabytes(free),
    )
    if free is None:
        return
    rows = estimator.largest(sets, free)
    more = say(" (or more)") if (rows + 1) * one.length > MOST_TOKENS else ""
    warning = say("this does not fit; ") if estimate.total > free else ""
    largest = f"{rows * one.length}{more}"
    note(warning + say("the largest that fits: {option} {largest}", option="--pack-length", largest=largest))
