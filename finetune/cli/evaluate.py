"""`rag finetune eval`: an adapter beside its base on held-out questions, and whether to ship it."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.options import Columns
from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.cli.console import counting, loading, note, note_message, out, out_message, say
from rag.cli.evaluate import show_differences
from rag.cli.options import (
    KB,
    ModelOptions,
    argument,
    cache_home,
    existing_kb,
    fetch_model,
    option,
    with_options,
)

if TYPE_CHECKING:
    from finetune.evaluate.compare import Comparisons
    from finetune.evaluate.questions import Cases, Condition, HeldOutQuestion, Pair
    from finetune.evaluate.run import CaseResult
    from rag.config import Config
    from rag.generate import GenerateOptions
    from rag.pipeline import Pipeline


def show(comparisons: "Comparisons", title: str) -> None:
    from finetune.evaluate.compare import BLEU4, CONDITION_TITLES, MEASURES

    names = {
        name: say(measure.title) + ("" if measure.larger_is_better else " ↓")
        for name, measure in MEASURES.items()
    }
    rows = [((CONDITION_TITLES[at], names[name]), each) for (at, name), each in comparisons.items()]
    show_differences(title, [say("condition"), say("measure"), say("base"), say("adapter")], rows)
    if any(name == "bleu4" for _, name in comparisons):
        out_message(BLEU4)


DO_NOT_SHIP = 3
"""The exit code of a decision against the adapter; 1 is a user's mistake, 2 a wrong option."""
STOPPED = 130


@dataclass(frozen=True, kw_only=True)
class ComparedModels(ModelOptions):
    """The base and the adapter. Both reply greedily: nothing is drawn."""

    model: str = option("--model MODEL", "Base model: folder, or name on a hub.", default=...)
    adapter: str = option("--adapter DIR", "Adapter to evaluate: LoRA or P-Tuning.", default=...)
    max_new_tokens: int = option(
        "--max-new-tokens N", "Maximum length of an answer in tokens.", default=256, least=1
    )


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions:
    conditions: str = option(
        "--conditions closed,gold,retrieved,distractors",
        "Conditions to test; default: all that the questions allow.",
        default="",
    )
    general: Path | None = option(
        "--general FILE", "Alpaca rows on other subjects, to check what the adapter has forgotten."
    )
    limit: int | None = option("--limit", "Maximum number of questions to ask.", least=1)
    resamples: int = option("--resamples N", "Number of bootstrap resamples.", default=2000, least=100)
    seed: int = option("--seed", "Seed for drawing questions and for resampling.", default=0)
    json: Path | None = option("--json FILE", "Write all figures and replies here.")
    picture: Path | None = option("--picture FILE", "Write a chart here (PNG or SVG).")


@with_options("Compare an adapter with its base on questions that it has not seen; exit code 3: do not ship.")
def evaluate(
    questions: Path = argument(
        "QUESTIONS", "heldout.jsonl of `grounded`, a set of `rag eval`, a file of `exam`, or alpaca rows."
    ),
    *,
    kb: str = KB,
    models: Annotated[ComparedModels, ("model", "adapter", "quant", "max_new_tokens")],
    options: ComparisonOptions,
    columns: Columns,
) -> None:
    if code := compare_models(questions, lambda: existing_kb(kb), models, options, columns):
        raise typer.Exit(code)


def compare_models(
    file: Path,
    kb: "Callable[[], Config]",
    models: ComparedModels,
    options: ComparisonOptions,
    columns: Columns,
) -> int:
    """Ask, show and write everything. `kb` is called if a condition needs the knowledge base.

    Returns the exit code of the command: 0 if the decision is for the adapter.
    """
    from finetune.evaluate.compare import BLEU4, READING, check_place, compare, decide, draw, record
    from finetune.evaluate.questions import Cases
    from ingest.store.atomic import write_whole
    from rag.generate import GenerateOptions
    from rag.load import open_pipeline
    from rag.plot import check_picture

    if options.picture:
        check_picture(options.picture)
    for path in filter(None, (options.json, options.picture)):
        check_place(path)
    conditions = _conditions(options.conditions, file)
    needed = set(conditions) & set(READING)
    opened = open_pipeline(kb(), cache=cache_home(), say=say) if needed else nullcontext()
    with opened as pipeline:
        questions = _read(file, pipeline, options, columns)
        general = _read(options.general, None, options, columns) if options.general else ()
        generate = GenerateOptions(**models.values, temperature=0)
        cases = Cases(_pair(generate), pipeline, generate.sampling)
        results, whole = ask([(questions, conditions), (general, ("general",))], cases)
    comparisons = compare(results, resamples=options.resamples, seed=options.seed)
    decision = decide(comparisons)
    title = f"{Path(models.model).name} + {Path(models.adapter).name}"
    show(comparisons, title)
    if whole:
        ship = Translatable("ship it") if decision.ship else Translatable("do not ship")
        out_message("{decision} (on {count} questions)", decision=ship, count=sum(map(bool, results)))
        for reason in decision.reasons:
            out(f"  {say(reason)}")
    else:
        count = len(questions) + len(general)
        note_message("stopped after {done} of {count} questions: no decision", done=len(results), count=count)
    if options.picture:
        draw(comparisons, options.picture, title=title, say=say)
        note(str(options.picture))
    if options.json:
        about = {
            "model": models.model,
            "adapter": str(models.adapter),
            "max_new_tokens": models.max_new_tokens,
            "questions": str(file),
            "general": str(options.general) if options.general else None,
            "conditions": conditions,
            "resamples": options.resamples,
            "seed": options.seed,
            "whole": whole,
            "bleu4": BLEU4,
        }
        write_whole(options.json, record(about, results, comparisons, decision))
        note(str(options.json))
    if not whole:
        return STOPPED
    return 0 if decision.ship else DO_NOT_SHIP


def _conditions(text: str, questions: Path) -> "tuple[Condition, ...]":
    """Those named, in their order; else all that the questions' form allows."""
    from finetune.evaluate.questions import CONDITIONS, form_of

    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in CONDITIONS:
            known = ", ".join(CONDITIONS)
            raise UserError("--conditions has {name}; they are {known}", name=name, known=known)
    possible = ("closed",) if form_of(questions) in ("alpaca", "exam") else CONDITIONS
    if set(names) - set(possible):
        raise UserError(
            "--conditions is {conditions}, but the rows of {questions} name no place in a document; "
            "leave it out (closed), or ask the heldout.jsonl of rag finetune grounded",
            conditions=text,
            questions=questions,
        )
    return tuple(name for name in possible if name in (names or possible))


def _read(
    path: Path, pipeline: "Pipeline | None", options: ComparisonOptions, columns: Columns
) -> "tuple[HeldOutQuestion, ...]":
    from finetune.evaluate.questions import read
    from rag.evaluate.dataset import sample

    found = read(path, pipeline.store if pipeline else None, columns)
    if found.lost:
        note_message(
            "left out: {count} questions whose answer is not in this knowledge base ({examples})",
            count=len(found.lost),
            examples=[*found.lost[:3], *["…"] * (len(found.lost) > 3)],
        )
    if options.limit is None:
        return found.questions
    return sample(found.questions, options.limit, seed=options.seed)


def _pair(options: "GenerateOptions") -> "Pair":
    from finetune.evaluate.run import pair_of
    from rag.chatglm.adapter_files import read_adapter
    from rag.chatglm.generator import open_generator

    adapter = Path(options.adapter)
    read_adapter(adapter)  # a wrong one is reported before minutes of loading
    directory = fetch_model(options.model)
    with loading(directory.name) as progress:
        generator = open_generator(directory, quant=options.quant, progress=progress)
    pair, assumptions = pair_of(generator, adapter)
    for line in assumptions:
        note(line)
    return pair


def ask(
    sets: "Sequence[tuple[Sequence[HeldOutQuestion], Sequence[Condition]]]", cases: "Cases"
) -> "tuple[list[tuple[CaseResult, ...]], bool]":
    """The results, and whether of all questions: after Ctrl-C those so far."""
    from finetune.evaluate.run import evaluate

    results: list[tuple[CaseResult, ...]] = []
    with counting(say("questions"), sum(len(questions) for questions, _ in sets)) as tick:
        try:
            for questions, conditions in sets:
                for result in evaluate(questions, conditions, cases):
                    results.append(result)
                    tick()
        except KeyboardInterrupt:
            if not any(results):
                raise
            return results, False
    if not any(results):
        raise UserError(
            "none of the questions can be asked under these conditions; name others with --conditions"
        )
    return results, True
