"""One `Config` -> the knowledge base's store, encoder, chunker and pipeline."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ingest.chunk import Chunker
from ingest.embed import BUNDLED, Backend, Embedder, Vectors, open_embedder
from ingest.errors import Absent, Mismatch, UserError
from ingest.i18n import Translator
from ingest.store import Identity, Store
from rag.config import SETTINGS, Config, EmbedOptions
from rag.generate import Generator
from rag.pipeline import Pipeline
from rag.question import analyze
from rag.refuse import Calibration, Curve, RefuseOptions, calibrate
from rag.retrieve import CrossEncoderReranker, rank
from rag.score_norm import SCRIPTS, UNRELATED, ScoreNorm, level, measure
from rag.types import Script

SCORE_NORM = "background"  # as knowledge bases have it that are older than the name `ScoreNorm`
CALIBRATION = "calibration"
SAMPLE = 500  # chunks that stand for all


Encoders = Callable[[str, Backend], Embedder]
"""An encoder by its name and what is to run it; those who open many share one this way."""


def encoders(cache: Path, *, threads: int | None = None) -> Encoders:
    """Opens an encoder each time; what is built for it lies in `cache`."""

    def open_encoder(name: str, backend: Backend) -> Embedder:
        return open_embedder(name, cache=cache, threads=threads, backend=backend)

    return open_encoder


@dataclass(frozen=True, slots=True)
class Writer:
    """All that an ingestion needs of one knowledge base."""

    store: Store
    embedder: Embedder
    chunker: Chunker


def open_writer(
    config: Config, *, embedder: str | None, cache: Path, open_encoder: Encoders | None = None
) -> Writer:
    """Open a knowledge base to write, or make it with `embedder` (the bundled one if None).

    `open_encoder` brings the encoder; without it, one is opened for this writer alone.

    Raises `Mismatch` if the knowledge base was made by another embedder or with other chunks.
    """
    open_encoder = open_encoder or encoders(cache)
    location, options = config.location, config.chunk
    try:
        store = config.open_store()
    except Absent:
        encoder = open_encoder(embedder or BUNDLED, config.embed.backend)
        chunker = Chunker(encoder.count_many, encoder.max_tokens, options)
        recorded = {"embedder": embedder or BUNDLED, "chunk": asdict(options)}
        identity = Identity(encoder.name, encoder.dim, recorded)
        return Writer(config.open_store(create=identity), encoder, chunker)
    recorded = store.identity.options
    name = str(recorded["embedder"])
    if embedder not in (None, name):
        raise Mismatch(
            "{location} was made with the encoder {name}, not {embedder}; leave --embedder out, "
            "or make a new knowledge base with --kb",
            location=location,
            name=name,
            embedder=embedder,
        )
    if recorded["chunk"] != asdict(options):
        raise Mismatch(
            "{location} was made with [chunk] {recorded}, but {settings} says {options}; put the "
            "old values back, or make a new knowledge base with --kb",
            location=location,
            recorded=recorded["chunk"],
            settings=SETTINGS,
            options=asdict(options),
        )
    encoder = encoder_of(store, config.embed, open_encoder)
    return Writer(store, encoder, Chunker(encoder.count_many, encoder.max_tokens, options))


def encoder_of(store: Store, options: EmbedOptions, open_encoder: Encoders) -> Embedder:
    """The encoder that made the store's vectors. Raises `Mismatch` if only another one is here."""
    encoder = open_encoder(str(store.identity.options["embedder"]), options.backend)
    if (encoder.name, encoder.dim) != (store.identity.name, store.identity.dim):
        raise Mismatch(
            "{location} holds vectors of {name} ({dim}-d), but this encoder is {name_2} "
            "({dim_2}-d); install the former, or ingest again into a new knowledge base with --kb",
            location=store.location,
            name=store.identity.name,
            dim=store.identity.dim,
            name_2=encoder.name,
            dim_2=encoder.dim,
        )
    return encoder


def open_pipeline(
    config: Config, *, cache: Path, say: Translator, generator: Generator | None = None
) -> Pipeline:
    """The read path of a knowledge base that exists.

    Without a generator its answers are sentences of the documents.
    """
    store = config.open_store()
    embedder = encoder_of(store, config.embed, encoders(cache))
    return pipeline_of(config, store, embedder, score_norm_of(store, embedder), say, generator)


def pipeline_of(
    config: Config,
    store: Store,
    embedder: Embedder,
    norm: ScoreNorm,
    say: Translator,
    generator: Generator | None,
) -> Pipeline:
    """The read path over an open store, with the calibration that the store has now."""
    reranker = config.retrieve.reranker
    return Pipeline(
        store=store,
        embedder=embedder,
        norm=norm,
        say=say,
        config=config,
        calibration=calibration_of(store, config.refuse),
        reranker=CrossEncoderReranker(reranker) if reranker else None,
        generator=generator,
    )


def calibration_of(store: Store, options: RefuseOptions) -> Calibration:
    """The knowledge base's own calibration, else the general one; `options` has the last word."""
    stored: Any = store.get_meta(CALIBRATION)
    calibration = Calibration.from_json(stored) if stored else Calibration()
    if options.threshold is None:
        return calibration
    return Calibration(
        replace(calibration.native, threshold=options.threshold),
        replace(calibration.foreign, threshold=options.threshold),
    )


def recalibrate(pipeline: Pipeline, questions: Mapping[str, bool]) -> Calibration:
    """Fit and keep a calibration; `questions` maps questions to whether they are answerable here.

    A kind of questions (in the knowledge base's script, in another) of which there are not both
    answerable and unanswerable ones keeps its curve; `UserError` if that holds for both kinds.
    """
    fitted: dict[str, Curve] = {}
    for name, native in (("native", True), ("foreign", False)):
        excess: dict[bool, list[float]] = {True: [], False: []}
        for question, answerable in questions.items():
            if pipeline.native(question) is native:
                excess[answerable].append(pipeline.excess(question))
        if all(excess.values()):
            fitted[name] = calibrate(excess[True], excess[False])
    if not fitted:
        right = sum(questions.values())
        raise UserError(
            "{right} answerable and {questions_count} unanswerable questions; calibration needs "
            "some of both in one language",
            right=right,
            questions_count=len(questions) - right,
        )
    calibration = replace(pipeline.calibration, **fitted)
    with pipeline.store.change(reason="calibrate") as change:
        change.set_meta(CALIBRATION, asdict(calibration))
    return calibration


def score_norm_of(store: Store, embedder: Embedder, *, stale: bool = False) -> ScoreNorm:
    """How the encoder scores unrelated questions in this knowledge base.

    It is kept with the knowledge base, and measured again when that has grown or shrunk by a
    fifth; with `stale`, only if none is kept.
    """
    chunks = store.count()
    stored = store.get_meta(SCORE_NORM)
    if isinstance(stored, dict) and (
        stale or abs(chunks - stored["chunks"]) <= 0.2 * stored["chunks"]
    ):
        return ScoreNorm.from_json(stored)
    questions: dict[Script, Vectors] = {
        script: np.array([embedder.embed_query(text) for text in UNRELATED[script]])
        for script in SCRIPTS
    }
    keys = store.sample(SAMPLE)
    texts = [chunk.text for chunk in store.chunks(keys).values()]
    norm = measure(questions, store.vectors(keys), texts)
    best: dict[Script, list[float]] = {
        script: [
            rank(analyze(text), vector, store, norm, candidates=50).scores.max(initial=0.0)
            for text, vector in zip(UNRELATED[script], questions[script], strict=True)
        ]
        for script in SCRIPTS
    }
    norm = replace(norm, level=level(best))
    if not chunks:
        return norm
    # Another writer, a full or a read-only disk: it is measured again the next time.
    with suppress(UserError), store.change(reason="score normalisation", timeout=0) as change:
        change.set_meta(SCORE_NORM, norm.to_json() | {"chunks": chunks})
    return norm
