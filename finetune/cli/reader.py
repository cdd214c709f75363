"""`rag finetune reader`: the reader of a knowledge base, trained further on its user's questions."""

import shutil
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from ingest.errors import UserError
from rag.cli.console import Progress, counting, note_message, out_message, say
from rag.cli.evaluate import show_comparison
from rag.cli.options import KB, argument, cache_home, existing_kb, kb_path, option, with_options

LEAST = 20
"""Questions with an answer, and questions without one."""
SHOWN = ("auroc", "false_answers_at_5", "exact", "f1")
DECISIVE = ("auroc", "f1")
"""By the 95 % intervals of the differences, neither may be worse, and one must be better."""


@dataclass(frozen=True, kw_only=True)
class ReaderOptions:
    output: Path | None = option("--output DIR", "Folder for checkpoints and weights; default: in the cache.")
    epochs: int = option("--epochs N", "Passes over the rows.", default=3, least=1)
    rate: float = option("--learning-rate R", "Learning rate of the uppermost layer.", default=1e-4, least=0)
    batch: int = option("--batch N", "Rows per step.", default=32, least=1)
    seed: int = option("--seed N", "Seed of the held-out part, the rows and their order.", default=0)


@with_options(
    "Train a knowledge base's reader on your questions, and put it in use if it is better on held-out ones."
)
def reader(
    questions: Path = argument("QUESTIONS", "Evaluation set in the format of `rag eval`."),
    *,
    kb: str = KB,
    options: ReaderOptions,
) -> None:
    import tomlkit

    from finetune.reader.examples import held_out, questions_of, training_rows
    from finetune.reader.train import train
    from ingest.embed.e5 import BundledEmbedder
    from ingest.store.atomic import new_folder
    from rag.config import SETTINGS, change_settings
    from rag.evaluate.dataset import Dataset
    from rag.evaluate.report import compare
    from rag.evaluate.run import report
    from rag.load import open_pipeline, recalibrate
    from rag.reader import RowBuilder, open_reader, weights_file

    config, home = existing_kb(kb), kb_path(kb)
    dataset = Dataset.load(questions.parent if questions.is_file() else questions)
    with open_pipeline(config, cache=cache_home(), say=say) as pipeline:
        embedder = pipeline.embedder
        if pipeline.reader is None or not isinstance(embedder, BundledEmbedder):
            raise UserError(
                '{kb} has no reader to train; it needs the bundled encoder and [read] reader = "bundled"',
                kb=kb,
            )
        with counting(say("questions"), len(dataset.questions)) as tick:
            known = questions_of(dataset, pipeline, tick)
        yes = sum(each.right is not None for each in known.values())
        if min(yes, len(known) - yes) < LEAST:
            raise UserError(
                "{questions} has {yes} questions whose answer was found in {kb}, and {no} without an answer; "
                "need {least} of each",
                questions=questions, yes=yes, kb=kb, no=len(known) - yes, least=LEAST,
            )  # fmt: skip
        held = held_out(known, options.seed)
        learnt = [each for id, each in known.items() if id not in held]
        builder = RowBuilder(embedder.pieces)
        rows = list(training_rows(learnt, builder, seed=options.seed, second=1.0, titled=1.0))
        note_message(
            "{rows} rows from {learnt} questions; {held} questions held out; {lost} left out, because the "
            "knowledge base does not have their answer",
            rows=len(rows), learnt=len(learnt), held=len(held), lost=len(dataset.questions) - len(known),
        )  # fmt: skip
        values = dict(vars(options))
        work = values.pop("output") or cache_home() / "readers"
        before = weights_file(config.read.reader).read_bytes()
        with Progress(say("steps"), -(-len(rows) * options.epochs // options.batch)) as progress:
            weights = train(rows, before, work, **values, progress=progress)
        trained = replace(pipeline, reader=open_reader(str(weights.parent), embedder))
        part = replace(dataset, questions=tuple(each for each in dataset.questions if each.id in held))
        found = compare(report(pipeline, part), report(trained, part))
        show_comparison(dataset.name, {name: found[name] for name in SHOWN if name in found})
        decisive = [found[name] for name in DECISIVE if name in found]
        if any(each.high < 0 for each in decisive) or all(each.low <= 0 for each in decisive):
            out_message(
                "not better; {kb} keeps its reader, and the new one stays in {path}", kb=kb, path=weights
            )
            return
        name = f"reader-{sha256(weights.read_bytes()).hexdigest()[:8]}"
        with new_folder(home / name, replace=True) as new:
            shutil.copy(weights, new)
        settings = home / SETTINGS
        recalibrate(trained, {each.text: each.answerable for each in part.questions})
        if change_settings(settings, {"read": {"reader": name}}):
            out_message("better; {settings} names it, and refusals are calibrated again", settings=settings)
            return
    out_message(
        "better, but {settings} can't be changed; put {line} below its [read], then run: rag kb calibrate "
        "{questions} {kb}",
        settings=settings, line=tomlkit.dumps({"reader": name}).strip(), questions=questions, kb=kb,
    )  # fmt: skip
