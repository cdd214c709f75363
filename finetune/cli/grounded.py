"""`rag finetune grounded`: training rows from a knowledge base."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.options import KINDS, SyntheticOptions
from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.cli.console import counting, loading, note, note_message, out, say, table
from rag.cli.options import (
    KB,
    ModelOptions,
    argument,
    cache_home,
    chosen_kb,
    existing_kb,
    fetch_model,
    option,
    with_options,
)

if TYPE_CHECKING:
    from finetune.synth.build import SyntheticReport
    from rag.config import Config
    from rag.generate import Generator

WINDOW = 8192
"""The window in characters if no model is named."""
REJECTIONS = {
    "duplicate": Translatable("asked twice"),
    "ambiguous": Translatable("asked twice, with different answers"),
    "not retrieved": Translatable("the retriever does not find the passage"),
    "too long": Translatable("the model's window has no room for the passage"),
    "unsupported": Translatable("its citation would not be correct"),
    "invalid": Translatable("written by the model, but not valid"),
    "removed": Translatable("removed from the knowledge base meanwhile"),
}


@dataclass(frozen=True, kw_only=True)
class TrainedModel(ModelOptions):
    model: str | None = option(
        "--model MODEL",
        Translatable(
            "The ChatGLM to train (folder, or name on a hub), for its tokenizer and window; without "
            "one, a character counts as a token and the window is {window}.",
            window=WINDOW,
        ),
    )


@with_options("Generate training rows from a knowledge base: questions, retrieved passages, cited answers.")
def grounded(
    context: typer.Context,
    base: str = argument("KB", "The knowledge base, as for --kb."),
    folder: Path | None = argument("OUT", "Folder for train.jsonl and heldout.jsonl.", default=None),
    *,
    kb: str = KB,
    model: Annotated[TrainedModel, ("model",)],
    options: SyntheticOptions,
) -> None:
    source = context.get_parameter_source("kb")
    if folder is not None:
        kb = chosen_kb(context, base, kb)
    elif source is not None and source.name != "DEFAULT":
        folder = Path(base)  # the only argument beside --kb
    else:
        context.fail("Missing argument 'OUT'.")
    write_rows(existing_kb(kb), folder, options, model)


def write_rows(config: "Config", folder: Path, options: SyntheticOptions, model: ModelOptions) -> None:
    """Write the rows into the new folder, and show what they are."""
    if "model" in options.chosen and not model.model:
        raise UserError("a model is to write questions, but none is named; add --model MODEL")

    from finetune.synth.build import build
    from finetune.synth.raft import RaftBuilder
    from ingest.store.atomic import check_new
    from rag.generate import GenerateOptions, load
    from rag.load import open_pipeline

    check_new(folder)  # before the work
    if options.preferences:
        check_new_file(options.preferences)
    generator: Generator | None = None
    if "model" in options.chosen:
        generate = GenerateOptions(**model.values)
        with loading(Path(generate.model).name) as progress:
            generator = load(generate, cache=cache_home() / "models", progress=progress, note=note)
    with open_pipeline(config, cache=cache_home(), say=say) as pipeline:
        count, context = window(model.model)
        room = room_for_prompts(context, config)
        most = options.passages or config.retrieve.passages
        builder = RaftBuilder(pipeline, count, room, most, options.without_gold, options.seed)
        progress = partial(counting, say("questions"))
        report = build(builder, folder, options, generator=generator, progress=progress)
    _show(report, folder, options.heldout)
    if options.preferences:
        note(str(options.preferences))


def check_new_file(path: Path) -> None:
    """Raises `UserError`, before the work, if there is a file, or none can be written."""
    from finetune.evaluate.compare import check_place

    check_place(path)
    if path.exists():
        raise UserError("{path} is there already; name a new file", path=path)


@with_options(
    "Write an exam about a knowledge base: choices, true or false. `eval` asks it before and after."
)
def exam(
    base: str = argument("KB", "The knowledge base, as for --kb."),
    output: Path = option("--output -o FILE", "New file for the questions (JSON lines).", default=...),
    limit: int | None = option("--limit N", "Maximum number of questions.", least=1),
    seed: int = option("--seed", "The same seed gives the same file.", default=0),
) -> None:
    from finetune.synth import build

    check_new_file(output)
    with existing_kb(base).open_store() as store:
        rows = build.exam(store, limit=limit, seed=seed)
    build.write_lines(output, rows)
    note_message("{count} questions", count=len(rows))
    out(str(output))


def window(model: str | None) -> tuple[Any, int]:
    """A function that counts the tokens of a conversation, and how many the model's window holds."""
    if model is None:
        return lambda messages: sum(len(message.text) for message in messages), WINDOW
    from rag.chatglm.chat import context_of, encode_chat
    from rag.chatglm.configuration import generation_of
    from rag.chatglm.loading import read_model_config
    from rag.chatglm.tokenization import open_tokenizer

    directory = fetch_model(model, weights=False)
    config, tokenizer = read_model_config(directory), open_tokenizer(directory)
    generation = generation_of(config)
    return lambda messages: len(encode_chat(messages, tokenizer, generation)), context_of(config)


def room_for_prompts(context: int, config: "Config") -> int:
    """The tokens of the window that are left for a prompt. Raises `UserError` if there are none."""
    max_new_tokens, place = config.generate.max_new_tokens, config.place
    if max_new_tokens >= context:
        raise UserError(
            "[generate] max_new_tokens is {max_new_tokens}, but the model's window holds "
            "{context} tokens, prompt included; lower it in {settings}",
            max_new_tokens=max_new_tokens,
            context=context,
            settings=place / "rag.toml" if isinstance(place, Path) else place,
        )
    return context - max_new_tokens


def _show(report: "SyntheticReport", folder: Path, heldout: float) -> None:
    rows: list[tuple[object, ...]] = [
        (
            say(names),
            report.rows[kind, "train"],
            report.rows[kind, "heldout"],
            report.refusals[kind, "train"] + report.refusals[kind, "heldout"],
        )
        for kind, names in KINDS.items()
        if report.rows[kind, "train"] or report.rows[kind, "heldout"]
    ]
    sides = list(report.documents.values())
    refusals = sum(report.refusals.values())
    rows.append((say("total"), report.total("train"), report.total("heldout"), refusals))
    rows.append((say("documents"), sides.count("train"), sides.count("heldout"), ""))
    columns = [say("questions from"), say("train"), say("held out"), say("of them refusals")]
    table("", columns, rows)
    counts = report.rejected
    rejected = [(say(names), counts[why]) for why, names in REJECTIONS.items() if counts[why]]
    if rejected:
        table("", [say("rejected"), say("questions")], rejected)
    if heldout and not report.total("heldout"):
        note_message("only one document has questions, so none is held out; all rows are for training")
    note(str(folder))
