"""One `Config` -> the knowledge base's store, encoder, chunker and pipeline."""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ingest.chunk import Chunker
from ingest.embed import BUNDLED, Backend, Embedder, Vectors, open_embedder
from ingest.embed.e5 import BundledEmbedder
from ingest.errors import Absent, Mismatch, UserError
from ingest.i18n import Translator
from ingest.store import Identity, Store
from rag.config import SETTINGS, Config, EmbedOptions
from rag.generate import Generator
from rag.pipeline import Pipeline
from rag.question import analyze, script_of
from rag.reader import Reader, open_reader
from rag.retrieve import CrossEncoderReranker, rank
from rag.score_norm import (
    READER_CALIBRATION,
    SCRIPTS,
    Calibration,
    Curve,
    RefusalFeatures,
    ScoreNorm,
    background,
    background_level,
    background_weight,
    calibrate,
    level,
    measure,
    unrelated_questions,
)
from rag.types import Script

logger = logging.getLogger(__name__)

SCORE_NORM = "background"  # the key in knowledge bases that are older than the name `ScoreNorm`
CALIBRATION = "calibration"
SAMPLE = 500  # chunks that represent the knowledge base

Encoders = Callable[[str, Backend], Embedder]
"""Opens an encoder by its name and runtime. Callers that open many can share encoders this way."""


def encoders(cache: Path, *, threads: int | None = None) -> Encoders:
    """Opens a new encoder on each call; files that are built for it go to `cache`."""

    def open_encoder(name: str, backend: Backend) -> Embedder:
        return open_embedder(name, cache=cache, threads=threads, backend=backend)

    return open_encoder


@dataclass(frozen=True, slots=True)
class Writer:
    """What an ingestion needs to write to one knowledge base."""

    store: Store
    embedder: Embedder
    chunker: Chunker


def open_writer(
    config: Config, *, embedder: str | None, cache: Path, open_encoder: Encoders | None = None
) -> Writer:
    """Open a knowledge base to write, or create it with `embedder` (the bundled one if None).

    `open_encoder` opens the encoder; by default this writer gets one of its own. Raises `Mismatch`
    if the knowledge base was created with another embedder or other chunk options.
    """
    open_encoder = open_encoder or encoders(cache)
    chunk = asdict(config.chunk)

    def writer(store: Store, encoder: Embedder) -> Writer:
        return Writer(store, encoder, Chunker(encoder.count_many, encoder.max_tokens, config.chunk))

    try:
        store = config.open_store()
    except Absent:
        name = _full_name(embedder or BUNDLED)
        encoder = open_encoder(name, config.embed.backend)
        recorded = {"embedder": name, "chunk": chunk}
        identity = Identity(encoder.name, encoder.dim, recorded)
        return writer(config.open_store(create=identity), encoder)
    recorded = store.identity.options
    if embedder and _full_name(embedder) != _full_name(str(recorded["embedder"])):
        raise Mismatch(
            "{location} was created with the encoder {name}, not {embedder}; omit --embedder, "
            "or create a new knowledge base with --kb",
            location=config.location, name=recorded["embedder"], embedder=embedder,
        )  # fmt: skip
    if recorded["chunk"] != chunk:
        raise Mismatch(
            "{location} was created with [chunk] {recorded}, but {settings} has {options}; restore "
            "the old values, or create a new knowledge base with --kb",
            location=config.location, recorded=recorded["chunk"], settings=SETTINGS, options=chunk,
        )  # fmt: skip
    return writer(store, encoder_of(store, config.embed, open_encoder))


def _full_name(embedder: str) -> str:
    return BUNDLED if embedder == "bundled" else embedder


def encoder_of(store: Store, options: EmbedOptions, open_encoder: Encoders) -> Embedder:
    """The encoder that made the store's vectors. Raises `Mismatch` if it is not available."""
    encoder = open_encoder(str(store.identity.options["embedder"]), options.backend)
    need, name = (f"{each.name} ({each.dim}-d)" for each in (store.identity, encoder))
    if name != need:
        raise Mismatch(
            "{location} holds vectors of {need}, but this encoder is {encoder}; install the former "
            "or ingest again into a new knowledge base with --kb",
            location=store.location, need=need, encoder=name,
        )  # fmt: skip
    return encoder


def open_pipeline(
    config: Config, *, cache: Path, say: Translator, generator: Generator | None = None
) -> Pipeline:
    """The pipeline of an existing knowledge base; without a generator, answers are extracts."""
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
    """The pipeline over an open store, with the store's current calibration."""
    reranker = CrossEncoderReranker(name) if (name := config.retrieve.reranker) else None
    reader = reader_of(config.read.reader, embedder)
    stored: Any = store.get_meta(CALIBRATION)
    calibration = Calibration.from_json(stored) if stored else None
    if calibration is None or (calibration.reads and not reader):
        calibration = READER_CALIBRATION if reader else Calibration()
    if (threshold := config.refuse.threshold) is not None:
        curves = (calibration.native, calibration.foreign)
        calibration = Calibration(*(replace(curve, threshold=threshold) for curve in curves))
    return Pipeline(store, embedder, norm, say, config, calibration, reranker, generator, reader)


def reader_of(weights: str, embedder: Embedder) -> Reader | None:
    """The reader; None if it is turned off, or the encoder is not the one that it was trained on.

    If the bundled weights are damaged, a line in the log says so, and answers go on without them.
    """
    encoder = getattr(embedder, "embedder", embedder)  # the server's cache of vectors is around it
    if weights == "none" or not isinstance(encoder, BundledEmbedder):
        return None
    try:
        return open_reader(weights, encoder)
    except UserError as error:
        if weights != "bundled":
            raise
        logger.warning("answers are without the reader: %s", error)
        return None


def recalibrate(pipeline: Pipeline, questions: Mapping[str, bool]) -> Calibration:
    """Fit and store a calibration; `questions` maps each question to whether it is answerable.

    Questions in the knowledge base's script and in other scripts have a curve each, which changes
    only if there are both answerable and unanswerable ones. Raises `UserError` if neither does.
    """
    fitted: dict[str, Curve] = {}
    for name, native in (("native", True), ("foreign", False)):
        features: dict[bool, list[RefusalFeatures]] = {True: [], False: []}
        for question, answerable in questions.items():
            if pipeline.norm.native[script_of(question)] is native:
                features[answerable].append(pipeline.retrieve(question).features)
        if all(features.values()):
            fitted[name] = calibrate(features[True], features[False])
    if not fitted:
        yes = sum(questions.values())
        raise UserError(
            "{yes} answerable and {no} unanswerable questions; calibration needs both in one language",
            yes=yes,
            no=len(questions) - yes,
        )
    calibration = replace(pipeline.calibration, **fitted)
    with pipeline.store.change(reason="calibrate") as change:
        change.set_meta(CALIBRATION, asdict(calibration))
    return calibration


def score_norm_of(store: Store, embedder: Embedder, *, stale: bool = False) -> ScoreNorm:
    """How the encoder scores unrelated questions in this knowledge base.

    The statistics are stored with the knowledge base, and measured again after it has grown or
    shrunk by a fifth; with `stale`, only if none are stored.
    """
    chunks = store.count()
    stored: Any = store.get_meta(SCORE_NORM)
    if stored and (stale or abs(chunks - stored["chunks"]) <= 0.2 * stored["chunks"]):
        return ScoreNorm.from_json(stored)
    unrelated, embed = unrelated_questions(), embedder.embed_query
    questions: dict[Script, Vectors] = {
        script: np.array([embed(text) for text in unrelated[script]]) for script in SCRIPTS
    }
    keys = store.sample(SAMPLE)
    texts = [chunk.text for chunk in store.chunks(keys).values()]
    prior: dict[Script, Vectors] | None = None
    if background_weight(chunks):
        prior = {script: embedder.embed_passages(background()[script]) for script in SCRIPTS}
    norm = measure(questions, store.vectors(keys), texts, prior)
    best: dict[Script, list[float]] = {
        script: [
            rank(analyze(text), vector, store, norm, candidates=50).scores.max(initial=0.0)
            for text, vector in zip(unrelated[script], questions[script], strict=True)
        ]
        for script in SCRIPTS
    }
    norm = replace(norm, level=level(best))
    if prior:  # what unrelated questions find in texts at large
        floor = background_level(norm, questions, prior)
        least = {script: background_weight(chunks) * floor[script] for script in SCRIPTS}
        norm = replace(norm, level={s: max(norm.level[s], least[s]) for s in SCRIPTS})
    if not chunks:
        return norm
    # With another writer, or a full or read-only disk, the next call measures again.
    with suppress(UserError), store.change(reason="score normalisation", timeout=0) as change:
        change.set_meta(SCORE_NORM, norm.to_json() | {"chunks": chunks})
    return norm
