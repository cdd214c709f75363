"""`rag finetune train`: data and a model -> an adapter that `rag ask --adapter` answers with."""

from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cli import choices, schedule
from finetune.cli import options as opt
from finetune.cli import rows as written
from ingest.errors import UserError
from rag.cli.console import say
from rag.cli.paths import cache_home

if TYPE_CHECKING:
    from finetune.options import TrainOptions
    from finetune.train.finish import Finished
    from finetune.train.setup import Data


def train(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="DATA...",
            help=say(
                "alpaca, ShareGPT or messages files, or a folder that `prepare` wrote.",
                "alpaca、ShareGPT 或 messages 文件，或 prepare 写出的文件夹。",
            ),
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
    template: written.Template = None,
    compat: written.CompatRows = None,
    skip_overlength: written.SkipOverlength = False,
    max_length: written.RowLength = None,
    max_source_length: written.MaxSource = None,
    max_target_length: written.MaxTarget = None,
    source_prefix: written.SourcePrefix = "",
    combine: written.Combine = True,
    prompt_column: opt.PromptColumn = "",
    response_column: opt.ResponseColumn = "",
    history_column: opt.HistoryColumn = "",
    skip_bad: opt.SkipBad = False,
    workers: opt.Workers = 0,
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
    batch_size: schedule.BatchSize = 4,
    accumulation: schedule.Accumulation = 1,
    epochs: schedule.Epochs = 3.0,
    max_steps: schedule.MaxSteps = 0,
    learning_rate: schedule.LearningRate = None,
    scheduler: schedule.Scheduler = "linear",
    warmup_steps: schedule.Warmup = 0,
    warmup_ratio: schedule.WarmupRatio = 0.0,
    weight_decay: schedule.WeightDecay = 0.0,
    max_grad_norm: schedule.GradNorm = 1.0,
    seed: schedule.TrainSeed = 42,
    packing: schedule.Packing = True,
    pack_length: schedule.PackLength = 1024,
    gradient_checkpointing: schedule.Checkpointing = False,
    fp16: opt.Fp16 = False,
    bf16: opt.Bf16 = False,
    fp32: opt.Fp32 = False,
    quant: opt.BaseQuant = None,
    quantization_bit: opt.QuantBit = None,
    load_in_8bit: opt.In8 = False,
    load_in_4bit: opt.In4 = False,
    device: opt.DeviceName = None,
    logging_steps: schedule.LoggingSteps = 10,
    eval_steps: schedule.EvalSteps = 100,
    save_steps: schedule.SaveSteps = 100,
    save_total_limit: schedule.SaveLimit = 2,
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
            "no data is given; name files, or a folder that `rag finetune prepare` wrote",
            zh="没有给出数据；请指定文件，或 rag finetune prepare 写出的文件夹",
        )
    asked = written.RowOptions(
        compat, template, max_length, max_source_length, max_target_length, source_prefix,
        combine, skip_overlength,
    )  # fmt: skip
    rows = asked.prepared(given[0]) if len(given) == 1 and given[0].is_dir() else asked.rows()
    lora = LoraOptions(rank, alpha, dropout, names(targets), rslora, dora)
    method = choices.method(lora, pre_seq_len, projection=prefix_projection)
    general, share = mixed(mix)
    where = choices.device(device)
    options = TrainOptions(
        method=method,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=epochs,
        max_steps=0 if max_steps == -1 else max_steps,  # transformers' own default
        learning_rate=choices.rate(learning_rate, method),
        lr_scheduler_type=scheduler,  # type: ignore[arg-type]  # checked there
        warmup_steps=warmup_steps,
        warmup_ratio=warmup_ratio,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        seed=seed,
        packing=packing,
        pack_length=pack_length,
        gradient_checkpointing=gradient_checkpointing,
        dtype=choices.dtype(where, fp16=fp16, bf16=bf16, fp32=fp32),
        quant=choices.quant(where, quant, quantization_bit, in_8=load_in_8bit, in_4=load_in_4bit),
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
        rows.compat,
        skip_bad,
        workers,
        max_train_samples,
        max_eval_samples,
    )
    directory = fetch(model, cache=cache_home() / "models")
    options = replace(
        options, max_length=written.within(options.max_length, read_config(directory))
    )
    if not (dry_run or resume or overwrite):
        free(out_dir)
    run(
        directory, files_of, options, out_dir,
        device=where, resume=resume, overwrite=overwrite and not resume, dry_run=dry_run,
    )  # fmt: skip


train.__doc__ = say(
    "Train a LoRA or P-Tuning adapter. Stopped at any moment, --resume goes on to the same bytes.",
    "训练 LoRA 或 P-Tuning 适配器。随时中断后用 --resume 继续，结果逐字节一致。",
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
) -> "Finished | None":
    """Read, load, train and write, telling a person of it; None where it was a dry run.

    With `overwrite` an earlier training in the folder is deleted once all else is ready.
    """
    from accelerate import Accelerator

    from finetune.cli.preview import foresee, show, show_rehearsal, tell
    from finetune.cli.training import Screen, writing
    from finetune.train.allocated import own_pages
    from finetune.train.checkpoint import forget
    from finetune.train.finish import finish
    from finetune.train.identity import made_of, resumable
    from finetune.train.loop import Training
    from finetune.train.rehearsal import forget_peak, rehearse
    from finetune.train.setup import contract_of, open_tuned, read_sets
    from rag.cli.progress import loading

    accelerator = Accelerator(cpu=device == "cpu")
    main = accelerator.is_main_process
    screen = Screen(folder, quiet=not main)
    sets, told = read_sets(data, model, options, cache=cache_home() / "tokens")
    screen.data(told)
    foreseen = foresee(model, sets, options, device=device, devices=accelerator.num_processes)
    if main:
        show(foreseen) if dry_run else tell(foreseen)
    if resume:
        resumable(folder, made_of(sets.digests, options, accelerator))
    if main and not dry_run:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
    if device == "cpu":
        own_pages()
        forget_peak()
    with loading(model.name) if main else nullcontext() as progress:
        tuned = open_tuned(model, options, device=str(accelerator.device), progress=progress)
    contract = contract_of(tuned.base, options)
    training = Training(tuned, sets, options, folder, contract, accelerator)
    if dry_run:
        found = rehearse(training, foreseen.heaviest)
        if main:
            show_rehearsal(found, foreseen)
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
    from finetune.train.checkpoint import found, is_training

    if folder.exists() and not folder.is_dir():
        raise UserError(
            f"{folder} is a file; name a new folder with --out",
            zh=f"{folder} 是文件；请用 --out 指定新文件夹",
        )
    if not folder.exists() or not any(folder.iterdir()):
        return
    held = found(folder)
    if is_training(folder):
        if not held:  # it may still run
            raise UserError(
                f"{folder} holds a training without a checkpoint; begin it anew with "
                "--overwrite-output-dir, or name another --out",
                zh=f"{folder} 中有尚无检查点的训练；加 --overwrite-output-dir 重新开始，或换一个 --out",
            )
        step = held[-1][0]
        raise UserError(
            f"{folder} holds a training at step {step}; add --resume to go on, "
            "--overwrite-output-dir to lose it, or name another --out",
            zh=f"{folder} 中有进行到第 {step} 步的训练；加 --resume 继续，"
            "加 --overwrite-output-dir 放弃，或换一个 --out",
        )
    raise UserError(
        f"{folder} is not empty; name a new folder with --out",
        zh=f"{folder} 不是空文件夹；请用 --out 指定新文件夹",
    )


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
        raise UserError(
            f"{name} has the share {said}; need 0 to below 1",
            zh=f"{name} 的比例为 {said}；须为 0 到 1（不含 1）",
        )
    return (Path(file),), share


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"{name} is {text!r}; need a number", zh=f"{name} 为 {text!r}；须为数字"
        ) from None


def names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.replace(",", " ").split())
