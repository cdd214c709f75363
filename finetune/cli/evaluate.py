"""`rag finetune eval`: an adapter beside its base on held-out questions, and whether to ship it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.cli.console import counting, loading, note, out, say, table
from rag.cli.paths import KbOption, cache_home, existing_kb

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
    columns = [
        say("condition"),
        say("measure"),
        say("base"),
        say("adapter"),
        say("difference"),
        "95 %",
        "p",
        "n",
    ]
    table(title, columns, rows)
    if any(each.measure == "bleu4" for each in comparisons):
        out(say(BLEU4))


def _number(value: float, sign: str = "") -> str:
    return "–" if value != value else f"{value:{sign}.3f}"


def tell(verdict: "Decision", count: int) -> None:
    if verdict.ship:
        head = say("ship it (on {count} questions)", count=count)
    else:
        head = say("do not ship (on {count} questions)", count=count)
    out(head)
    for reason in verdict.reasons:
        out(f"  {say(reason)}")


DO_NOT_SHIP = 3
"""The exit code of a verdict against the adapter; 1 is a user's mistake, 2 a wrong option."""
STOPPED = 130


def evaluate(
    questions: Annotated[
        Path,
        typer.Argument(
            metavar="QUESTIONS",
            help=say("heldout.jsonl of `grounded`, a set of `rag eval`, or alpaca rows."),
        ),
    ],
    model: Annotated[
        str, typer.Option(metavar="MODEL", help=say("The base: a folder, or a name on a hub."))
    ],
    adapter: Annotated[
        Path, typer.Option(metavar="DIR", help=say("The adapter that is tried: LoRA or P-Tuning."))
    ],
    kb: Annotated[str, KbOption] = "default",
    conditions: Annotated[
        str,
        typer.Option(
            metavar="closed,gold,retrieved,distractors",
            help=say("Asked with; all that the questions allow."),
        ),
    ] = "",
    general: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help=say("Alpaca rows about other things, which must not be forgotten.")
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help=say("Ask only so many of them."))] = None,
    quant: Annotated[
        str, typer.Option(metavar="auto|none|int8|int4|nf4", help=say("How the weights are held."))
    ] = "auto",
    max_new_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help=say("Of a reply, at most."))
    ] = 256,
    resamples: Annotated[
        int, typer.Option(min=100, metavar="N", help=say("Of the bootstrap."))
    ] = 2000,
    seed: Annotated[int, typer.Option(help=say("Of drawing and resampling."))] = 0,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help=say("All figures and replies."))
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help=say("PNG or SVG of the bars."))
    ] = None,
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
    wanted = _conditions(conditions, questions)
    with _opened(kb, wanted) as pipeline:
        asked = _read(questions, pipeline, limit, seed)
        others = _read(general, None, limit, seed) if general else ()
        pair = _pair(model, adapter, quant)
        cases = Cases(pair, pipeline, Sampling(max_new_tokens, temperature=0))
        results, whole = ask([(asked, wanted), (others, ("general",))], cases)
    comparisons = compare(results, resamples=resamples, seed=seed)
    decided = decide(comparisons)
    title = f"{Path(model).name} + {adapter.name}"
    show(comparisons, title)
    if whole:
        tell(decided, sum(map(bool, results)))
    else:
        count = len(asked) + len(others)
        note(
            say(
                "stopped after {done} of {count} questions: no verdict",
                done=len(results),
                count=count,
            )
        )
    if picture:
        draw(comparisons, picture, title=title, say=say)
        note(str(picture))
    if json:
        about = {
            "model": model,
            "adapter": str(adapter),
            "questions": str(questions),
            "general": str(general) if general else None,
            "conditions": wanted,
            "max_new_tokens": max_new_tokens,
            "resamples": resamples,
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


evaluate.__doc__ = say(
    "Compare an adapter with its base on questions that it has not seen; exit code 3: do not ship."
)


def _conditions(said: str, questions: Path) -> "tuple[Condition, ...]":
    """Those named, in their order; else all that the questions' form allows."""
    from finetune.evaluate.questions import CONDITIONS, form_of

    names = [name.strip() for name in said.split(",") if name.strip()]
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
            conditions=said,
            questions=questions,
        )
    return tuple(name for name in CONDITIONS if name in (names or ["closed"]))


@contextmanager
def _opened(kb: str, conditions: "Sequence[Condition]") -> "Iterator[Pipeline | None]":
    """The knowledge base, where passages are asked for."""
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
        note(
            say(
                "left out: {count} questions whose answer is not in this knowledge base "
                "({examples})",
                count=len(found.lost),
                examples=examples,
            )
        )
    return sample(found.questions, limit, seed=seed) if limit else found.questions


def _pair(model: str, adapter: Path, quant: str) -> "Pair":
    from finetune.evaluate.run import pair_of
    from rag.chatglm.adapter_files import read_adapter
    from rag.chatglm.generator import open_generator
    from rag.chatglm.hub import fetch
    from rag.generate import GenerateOptions

    GenerateOptions(model=model, quant=cast(Any, quant))  # says what it may be
    read_adapter(adapter)  # a wrong one is told before minutes of loading
    directory = fetch(model, cache=cache_home() / "models")
    with loading(directory.name) as progress:
        generator = open_generator(directory, quant=quant, progress=progress)
    pair, assumed = pair_of(generator, adapter)
    for line in assumed:
        note(line)
    return pair


def ask(
    sets: "Sequence[tuple[Sequence[HeldOutQuestion], Sequence[Condition]]]", cases: "Cases"
) -> "tuple[list[tuple[CaseResult, ...]], bool]":
    """What came of the questions, and whether of all of them: Ctrl-C ends it with what there is."""
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
