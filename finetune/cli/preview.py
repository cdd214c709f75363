"""What a training needs, shown before it starts, and by `rag finetune train --dry-run`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.cli.console import note, out, say, table

if TYPE_CHECKING:
    from finetune.options import TrainOptions
    from finetune.train.loop import Sets
    from finetune.train.preview import Estimator, MemoryEstimate, TimeEstimate
    from rag.chatglm.memory import Device


@dataclass(frozen=True)
class Preview:
    """The memory of one training, and how much is free."""

    estimator: "Estimator"
    sets: "Sets"
    free: int | None
    """Bytes; None if the system does not say."""

    @classmethod
    def of(cls, model: Path, sets: "Sets", options: "TrainOptions", *, device: str) -> "Preview":
        """`UserError` if not even the longest row fits alone, with both figures and the ways out."""
        from finetune.train.preview import Estimator, longest
        from rag.chatglm.loading import read_config
        from rag.chatglm.memory import Room, gigabytes

        kind: Device = "cpu" if device == "cpu" else "cuda"
        preview = cls(Estimator(read_config(model), options, kind), sets, Room.here().on(kind))
        one = longest(sets.train)
        wanted = preview.estimator.train(one).total
        if preview.free is None or wanted <= preview.free:
            return preview
        ways = [] if options.gradient_checkpointing else ["--gradient-checkpointing"]
        ways += ["--quant int8"] if options.quant == "none" else []
        ways.append(f"--max-length {max(64, one.length // 2)}")
        where = {"cpu": Translatable("memory"), "cuda": Translatable("GPU memory")}[kind]
        needs, left = gigabytes(wanted), gigabytes(preview.free)
        raise UserError(
            "training on one row of {length} tokens needs {needed} of {where} and {free} are free; "
            "try {ways}",
            length=one.length,
            needed=needs,
            where=where,
            free=left,
            ways=ways,
        )

    def largest(self) -> str:
        """Tokens of a packed line, or rows of a batch; empty if it is not known what is free."""
        from finetune.train.preview import MOST_TOKENS, longest

        if self.free is None:
            return ""
        rows, length = self.estimator.largest(self.sets, self.free), longest(self.sets.train).length
        all_fit = (rows + 1) * length > MOST_TOKENS
        count = rows * length if self.estimator.options.packing else rows
        return f"{count}" + (say(" (or more)") if all_fit else "")

    def show_line(self) -> None:
        """One line for what it takes, one for what would fit."""
        from rag.chatglm.memory import gigabytes

        estimate, options = self.estimator.peak(self.sets), self.estimator.options
        parts = say(", ").join(f"{name} {size}" for name, size in _parts(estimate))
        free = "?" if self.free is None else gigabytes(self.free)
        total = gigabytes(estimate.total)
        note(
            say(
                "memory: {total} at most ({parts}); {free} free",
                total=total,
                parts=parts,
                free=free,
            )
        )
        if largest := self.largest():
            option = "--pack-length" if options.packing else "--batch-size"
            beyond = self.free is not None and estimate.total > self.free
            warning = say("this does not fit; ") if beyond else ""
            text = say("the largest that fits: {option} {largest}", option=option, largest=largest)
            note(warning + text)

    def show_table(self) -> None:
        """The parts with these options, and with less memory."""
        from finetune.train.preview import Estimator
        from rag.chatglm.memory import gigabytes, stored_bits

        config, options = self.estimator.config, self.estimator.options
        others = [(say("as asked"), options)]
        if not options.gradient_checkpointing:
            others.append(("checkpointing", replace(options, gradient_checkpointing=True)))
        if options.quant == "none" and not stored_bits(config):
            others.append(("int8", replace(options, quant="int8")))
            if not options.gradient_checkpointing:
                both = replace(options, quant="int8", gradient_checkpointing=True)
                others.append((say("both"), both))
        rows: list[list[str]] = []
        names: list[str] = []
        for name, wanted in others:
            preview = replace(self, estimator=Estimator(config, wanted, self.estimator.device))
            estimate = preview.estimator.peak(self.sets)
            names, sizes = map(list, zip(*_parts(estimate), strict=True))
            total = gigabytes(estimate.total).removesuffix(" GB")
            rows.append([name, *sizes, total, preview.largest()])
        option = "--pack-length" if options.packing else "--batch-size"
        out(
            say(
                "GB (2^30 bytes) for the heaviest batch, and up to which {option} fits:",
                option=option,
            )
        )
        table("", [say("options"), *names, say("all"), say("up to")], rows)


def show_time(found: "TimeEstimate") -> None:
    """What a few steps took, and what follows."""
    from datetime import timedelta

    total = timedelta(seconds=round(found.total))
    out(
        say(
            "{step:.3g} s a step; {speed:,.0f} tokens/s; {total} for {steps} steps and their "
            "evaluations",
            step=found.step,
            speed=found.speed,
            total=total,
            steps=found.steps,
        )
    )


def _parts(estimate: "MemoryEstimate") -> list[tuple[str, str]]:
    """Names and sizes without unit."""
    from rag.chatglm.memory import gigabytes

    sizes = [
        (say("weights"), estimate.weights),
        (say("adapter"), estimate.adapter),
        (say("layers"), estimate.activations),
        (say("logits"), estimate.logits),
        (say("work"), estimate.work),
        (say("libs"), estimate.runtime),
    ]
    return [(name, gigabytes(size).removesuffix(" GB")) for name, size in sizes]
