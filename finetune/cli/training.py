"""What a person sees of a training: what it was given, how it goes, what came out."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from finetune.cli.counting import fates
from ingest.errors import UserError
from rag.cli.console import note, out, say

if TYPE_CHECKING:
    from finetune.train.finish import Finished
    from finetune.train.loop import Report
    from finetune.train.setup import Told


class Screen:
    """A bar where a person watches, a line a report where a log does; nothing if `quiet`."""

    def __init__(self, folder: Path, *, quiet: bool) -> None:
        self.folder, self.quiet = folder, quiet
        self.bar = None
        self.stopped = ""
        if sys.stderr.isatty() and not quiet:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), console=Console(stderr=True)
            )
            self.task = self.bar.add_task("", total=None)

    def __enter__(self) -> "Screen":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar:
            self.bar.stop()
        if kind is KeyboardInterrupt:
            from finetune.train.checkpoint import found

            text = say(
                "stopped before the first checkpoint; add --overwrite-output-dir to begin anew",
                "在第一个检查点之前停止；加 --overwrite-output-dir 可重新开始",
            )
            if found(self.folder):
                text = say(
                    "stopped; the same command with --resume goes on from the last checkpoint",
                    "已停止；用同一命令加 --resume 从最近的检查点继续",
                )
            self.note(text)

    def note(self, text: str) -> None:
        if not self.quiet:
            note(text)

    def data(self, told: "Told") -> None:
        """The counts of what was read."""
        rows = told.rows
        self.note(
            say(
                f"{rows['train']} rows to learn, {rows['dev']} held out; of general ones "
                f"{rows['general']} mixed in, {rows['general_dev']} measured",
                f"训练 {rows['train']} 行，留出 {rows['dev']} 行；通用数据混入 {rows['general']} 行，"
                f"评估 {rows['general_dev']} 行",
            )
        )
        for name, counts in told.counts.items():
            for fate in fates(counts):
                self.note(say(f"{name}: {fate}", f"{name}：{fate}"))

    def show(self, report: "Report") -> None:
        """Loss, speed, time left."""
        text = say(
            f"step {report.step}/{report.steps}, loss {report.loss:.4f}",
            f"第 {report.step}/{report.steps} 步，损失 {report.loss:.4f}",
        )
        for name, zh, loss in (
            ("dev", "验证", report.dev_loss),
            ("general", "通用", report.general_loss),
        ):
            if loss is not None:
                text += say(f", {name} {loss:.4f}", f"，{zh} {loss:.4f}")
        speed, left = f"{report.speed:,.0f}", _time(report.left)
        text += say(f", {speed} tokens/s, {left} left", f"，{speed} 词元/秒，剩余 {left}")
        if self.bar:
            self.bar.update(self.task, description=text, total=report.steps, completed=report.step)
        else:
            self.note(text)
        self.stopped = report.stopped

    def finished(self, done: "Finished") -> None:
        """What was written, and how far it may be trusted."""
        if self.stopped:
            self.note(say(f"stopped early: {self.stopped}", f"提前停止：{self.stopped}"))
        if done.strength != 1:
            self.note(say(f"kept at strength {done.strength:g}", f"以强度 {done.strength:g} 保留"))
        for name, zh in (("dev", "验证"), ("general", "通用")):
            before, after = (done.losses.get(f"{name}_loss{when}") for when in ("_before", ""))
            if before is not None and after is not None:
                text = say(
                    f"{name} loss {before:.4f} before, {after:.4f} now",
                    f"{zh}损失：训练前 {before:.4f}，现在 {after:.4f}",
                )
                best, step = done.losses.get(f"{name}_best", after), done.losses.get("dev_step", 0)
                if best < after and step != done.steps:
                    text += say(
                        f" (least: {best:.4f} in step {step:.0f} of {done.steps})",
                        f"（最低 {best:.4f}，在第 {step:.0f} 步，共 {done.steps} 步）",
                    )
                self.note(text)
        self.note(
            say(
                f"read back, its logits differ by {done.apart:.1e} of the largest at most",
                f"读回校验：输出相对差异不超过 {done.apart:.1e}",
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
            f"{where}: {problem.strerror or problem}; see to it, and run the same command with "
            "--resume",
            zh=f"{where}：{problem.strerror or problem}；请处理后用同一命令加 --resume 继续",
        ) from problem


def _time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
