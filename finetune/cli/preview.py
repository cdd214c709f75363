"""What a person is told before a training: memory by part, the largest batch, and how long it takes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rag.cli.console import note, out, say, table

if TYPE_CHECKING:
    from finetune.options import TrainOptions
    from finetune.train.heaviest import Heaviest
    from finetune.train.loop import Sets
    from finetune.train.preview import Preview, Previewer
    from finetune.train.rehearsal import Rehearsal
    from rag.chatglm.room import Device, Room


@dataclass(frozen=True)
class Foreseen:
    """A training before its weights load."""

    heaviest: "Heaviest"
    previewer: "Previewer"
    preview: "Preview"
    room: "Room"


def foresee(
    model: Path, sets: "Sets", options: "TrainOptions", *, device: str, devices: int
) -> Foreseen:
    """What the training takes, of which a line is told; `UserError` where one row does not fit."""
    from finetune.train.heaviest import Heaviest
    from finetune.train.preview import Previewer, need_room
    from rag.chatglm.loading import read_config
    from rag.chatglm.room import Room

    heaviest, room = Heaviest(sets, options, devices), Room.here()
    kind: Device = "cpu" if device == "cpu" else "cuda"
    previewer = Previewer(read_config(model), options, kind)
    need_room(previewer, heaviest, room)
    preview = previewer.preview(heaviest.learnt(), heaviest.measured())
    return Foreseen(heaviest, previewer, preview, room)


def tell(foreseen: Foreseen) -> None:
    """One line for what it takes, one for what would fit."""
    from rag.chatglm.memory import gigabytes

    preview, free = foreseen.preview, foreseen.room.on(foreseen.previewer.device)
    parts = say(", ", "，").join(f"{name} {size}" for name, size in _parts(preview))
    known = "?" if free is None else gigabytes(free)
    note(
        say(
            f"memory: {gigabytes(preview.total)} at most ({parts}); {known} free",
            f"内存：最多 {gigabytes(preview.total)}（{parts}）；可用 {known}",
        )
    )
    largest = _largest(foreseen, foreseen.previewer)
    if largest:
        option = "--pack-length" if foreseen.previewer.options.packing else "--batch-size"
        beyond = free is not None and preview.total > free
        warning = say("this does not fit; ", "内存不足；") if beyond else ""
        note(
            warning
            + say(
                f"the largest that fits: {option} {largest}", f"可用的最大批量：{option} {largest}"
            )
        )


def show(foreseen: Foreseen) -> None:
    """A table of the parts: as asked for, and with less memory."""
    from finetune.train.heaviest import Heaviest
    from finetune.train.preview import Previewer
    from rag.chatglm.memory import gigabytes, stored_bits

    asked, options = foreseen.previewer, foreseen.previewer.options
    others = [(say("as asked", "当前选项"), options)]
    if not options.gradient_checkpointing:
        others.append(("checkpointing", replace(options, gradient_checkpointing=True)))
    if options.quant == "none" and not stored_bits(asked.config):
        others.append(("int8", replace(options, quant="int8")))
        if not options.gradient_checkpointing:
            both = replace(options, quant="int8", gradient_checkpointing=True)
            others.append((say("both", "两者"), both))
    rows: list[list[str]] = []
    for name, wanted in others:
        previewer = Previewer(asked.config, wanted, asked.device)
        heaviest: Heaviest = foreseen.heaviest
        preview = previewer.preview(heaviest.learnt(), heaviest.measured())
        sizes = [size for _, size in _parts(preview)]
        total = gigabytes(preview.total).removesuffix(" GB")
        rows.append([name, *sizes, total, _largest(foreseen, previewer)])
    largest = "--pack-length" if options.packing else "--batch-size"
    out(
        say(
            f"GB (2^30 bytes) for the heaviest line of the plan, and up to which {largest} fits:",
            f"训练计划中最重的一行所需内存（GB，2^30 字节），及可用的最大 {largest}：",
        )
    )
    names = [name for name, _ in _parts(foreseen.preview)]
    table("", [say("options", "选项"), *names, say("all", "合计"), say("up to", "最大")], rows)


def show_rehearsal(found: "Rehearsal", foreseen: Foreseen) -> None:
    """What a few steps took, and what follows."""
    from datetime import timedelta

    from rag.chatglm.memory import gigabytes

    if found.peak is not None:
        wanted = foreseen.preview.total
        error = wanted / found.peak - 1
        out(
            say(
                f"measured peak {gigabytes(found.peak)}, foreseen {gigabytes(wanted)} ({error:+.1%})",
                f"实测峰值 {gigabytes(found.peak)}，预估 {gigabytes(wanted)}（{error:+.1%}）",
            )
        )
    whole = timedelta(seconds=round(found.whole))
    out(
        say(
            f"{found.step:.3g} s a step, the heaviest {found.heaviest:.3g} s; "
            f"{found.speed:,.0f} tokens/s; {whole} for {found.steps} steps and their "
            "evaluations",
            f"每步 {found.step:.3g} 秒，最重的一步 {found.heaviest:.3g} 秒；"
            f"{found.speed:,.0f} 词元/秒；{found.steps} 步及评估共需 {whole}",
        )
    )


def _parts(preview: "Preview") -> list[tuple[str, str]]:
    """Names and sizes without unit."""
    from rag.chatglm.memory import gigabytes

    adapter = preview.trained + preview.gradients + preview.moments
    sizes = [
        (say("weights", "权重"), preview.weights),
        (say("adapter", "适配器"), adapter),
        (say("layers", "各层"), preview.kept),
        (say("logits", "输出"), preview.logits),
        (say("work", "工作区"), preview.work),
        (say("libs", "运行库"), preview.runtime),
    ]
    return [(name, gigabytes(size).removesuffix(" GB")) for name, size in sizes]


def _largest(foreseen: Foreseen, previewer: "Previewer") -> str:
    """Tokens of a packed line, or rows of a batch; empty where it is not known what is free."""
    free, heaviest = foreseen.room.on(previewer.device), foreseen.heaviest
    if free is None:
        return ""
    rows = previewer.largest(heaviest.line, free, most=heaviest.most)
    count = heaviest.line(rows).ids.numel() if previewer.options.packing and rows else rows
    return f"{count}" + (say(" (or more)", "（或更大）") if rows == heaviest.most else "")
