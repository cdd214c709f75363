"""`rag finetune eval`: an adapter beside its base on held-out questions, and whether to ship it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.cli.console import counting, loading, note, note_message, out, out_message, say, table
from rag.cli.options import KB, argument, option, with_options
from rag.cli.paths import cache_home, existing_kb, fetch_model

if TYPE_CHECKING:
    from finetune.evaluate.compare import Comparison, Decision
    from finetune.evaluate.questions import Cases, Condition, HeldOutQuestion, Pair
    from finetune.evaluate.run import CaseResult
    from rag.pipeline import Pipeline


def show(comparisons: "Sequence[Comparison]", title: str) -> None:
    from finetune.evaluate.compare import BLEU4, CONDITION_TITLES, MEASURES

    rows: list[tuple[object, ...]] = []
    last = ""
    for each in comparisons:
        measure = MEASURES[each.measure]
        name = say(measure.title)
        rows.append(
            (
                "" if each.condition == last else say(CONDITION_TITLES[each.condition]),
                name if measure.larger_is_better else f"{name} ↓",
                _number(each.base.value),
                _number(each.adapter.value),
                _number(each.difference, "+"),
                f"{_number(each.low, '+')} – {_number(each.high, '+')}",
                "< 0.001" if each.p < 0.001 else _number(each.p),
                each.questions,
            )
        )
        last = each.condition
    columns = [say("condition"), say("measure"), say("base"), say("adapter"), say("difference")]
    table(title, [*columns, "95 %", "p", "n"], rows)
    if any(each.measure == "bleu4" for each in comparisons):
        out_message(BLEU4)


def _number(value: float, sign: str = "") -> str:
    return "–" if value != value else f"{value:{sign}.3f}"


def show_verdict(verdict: "Decision", count: int) -> None:
    if verdict.ship:
        out_message("ship it (on {count} questions)", count=count)
    else:
        out_message("do not ship (on {count} questions)", count=count)
    for reason in verdict.reasons:
        out(f"  {say(reason)}")


DO_NOT_SHIP = 3
"""The exit code of a verdict against the adapter; 1 is a user's mistake, 2 a wrong option."""
STOPPED = 130


@dataclass(frozen=True, kw_only=True)
class TrialOptions:
    """Two models, and how they are asked."""

    model: str = option("--model MODEL", "The base: a folder, or a name on a hub.", default=...)
    adapter: Path = option(
        "--adapter DIR", "The adapter that is tried: LoRA or P-Tuning.", default=...
    )
    conditions: str = option(
        "--conditions closed,gold,retrieved,distractors",
        "The conditions of the test; all that the questions allow, if left out.",
        default="",
    )
    general: Path | None = option(
        "--general FILE", "Alpaca rows about other things, which must not be forgotten."
    )
    limit: int | None = option("--limit", "Ask only this many of them.", least=1)
    quant: str = option(
        "--quant auto|none|int8|int4|nf4", "How the weights are held.", default="auto"
    )
    max_new_tokens: int = option(
        "--max-new-tokens N", "The length of an answer in tokens, at most.", default=256, least=1
    )
    resamples: int = option(
        "--resamples N", "The number of bootstrap resamples.", default=2000, least=100
    )
    seed: int = option("--seed", "The seed of drawing and resampling.", default=0)


@with_options(
    "Compare an adapter with its base on questions that it has not seen; exit code 3: do not ship."
)
def evaluate(
    questions: Path = argument(
        "QUESTIONS", "heldout.jsonl of `grounded`, a set of `rag eval`, or alpaca rows."
    ),
    *,
    kb: str = KB,
    options: TrialOptions,
    json: Path | None = option("--json FILE", "All figures and replies."),
    picture: Path | None = option("--picture FILE", "PNG or SVG of the bars."),
) -> None:
    from finetune.evaluate.compare import BLEU4, check_place, compare, decide, draw, record
    from finetune.evaluate.questions import Cases
    from ingest.store.atomic import write_whole
    from rag.plot import check_picture
    from rag.types import Sampling

    if picture:
        check_picture(picture)
    for file in (json, picture):
        if file:
            check_place(file)
    limit, seed, general = options.limit, options.seed, options.general
    wanted = _conditions(options.conditions, questions)
    with _opened(kb, wanted) as pipeline:
        asked = _read(questions, pipeline, limit, seed)
        others = _read(general, None, limit, seed) if general else ()
        pair = _pair(options.model, options.adapter, options.quant)
        cases = Cases(pair, pipeline, Sampling(options.max_new_tokens, temperature=0))
        results, whole = ask([(asked, wanted), (others, ("general",))], cases)
    comparisons = compare(results, resamples=options.resamples, seed=seed)
    decided = decide(comparisons)
    title = f"{Path(options.model).name} + {options.adapter.name}"
    show(comparisons, title)
    if whole:
        show_verdict(decided, sum(map(bool, results)))
    else:
        count = len(asked) + len(others)
        note_message(
            "stopped after {done} of {count} questions: no decision", done=len(results), count=count
        )
    if picture:
        draw(comparisons, picture, title=title, say=say)
        note(str(picture))
    if json:
        about = {
            "model": options.model,
            "adapter": str(options.adapter),
            "questions": str(questions),
            "general": str(general) if general else None,
            "conditions": wanted,
            "max_new_tokens": options.max_new_tokens,
            "resamples": options.resamples,
            "seed": seed,
            "whole": whole,
            "bleu4": BLEU4,
        }
        write_whole(json, record(about, results, comparisons, decided))
        note(str(json))
    if not whole:
        raise typer.Exit(STOPPED)
    if not decided.ship:
        raise typer.Exit(DO_NOT_SHIP)


def _conditions(text: str, questions: Path) -> "tuple[Condition, ...]":
    """Those named, in their order; else all that the questions' form allows."""
    from finetune.evaluate.questions import CONDITIONS, form_of

    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in CONDITIONS:
            known = ", ".join(CONDITIONS)
            raise UserError("--conditions has {name}; they are {known}", name=name, known=known)
    if not names and form_of(questions) != "alpaca":
        return CONDITIONS
    if set(names) - {"closed"} and form_of(questions) == "alpaca":
        raise UserError(
            "--conditions is {conditions}, but the rows of {questions} name no place in a document; "
            "leave it out (closed), or ask the heldout.jsonl of rag finetune grounded",
            conditions=text,
            questions=questions,
        )
    return tuple(name for name in CONDITIONS if name in (names or ["closed"]))


@contextmanager
def _opened(kb: str, conditions: "Sequence[Condition]") -> "Iterator[Pipeline | None]":
    """The knowledge base, if a condition needs passages."""
    from finetune.evaluate.compare import READING
    from rag.load import open_pipeline

    if not set(conditions) & set(READING):
        yield None
        return
    with open_pipeline(existing_kb(kb), cache=cache_home(), say=say) as pipeline:
        yield pipeline


def _read(
    path: Path, pipeline: "Pipeline | None", limit: int | None, seed: int
) -> "tuple[HeldOutQuestion, ...]":
    from finetune.evaluate.questions import read, sample

    found = read(path, pipeline.store if pipeline else None)
    if found.lost:
        examples = ", ".join(found.lost[:3])
        if len(found.lost) > 3:
            examples = Translatable("{examples}, …", examples=examples)
        note_message(
            "left out: {count} questions whose answer is not in this knowledge base ({examples})",
            count=len(found.lost),
            examples=examples,
        )
    return sample(found.questions, limit, seed=seed) if limit else found.questions


def _pair(model: str, adapter: Path, quant: str) -> "Pair":
    from finetune.evaluate.run import pair_of
    from rag.chatglm.adapter_files import read_adapter
    from rag.chatglm.generator import open_generator
    from rag.generate import GenerateOptions

    GenerateOptions(model=model, quant=cast(Any, quant))  # checks --quant
    read_adapter(adapter)  # a wrong one is reported before minutes of loading
    directory = fetch_model(model)
    with loading(directory.name) as progress:
        generator = open_generator(directory, quant=quant, progress=progress)
    pair, assumed = pair_of(generator, adapter)
    for line in assumed:
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
                for asked in evaluate(questions, conditions, cases):
                    results.append(asked)
                    tick()
        except KeyboardInterrupt:
            if not any(results):
                raise
            return results, False
    if not any(results):
        raise UserError(
            "none of the questions can be asked under these conditions; name others with "
            "--conditions"
        )
    return results, True
