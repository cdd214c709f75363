"""A knowledge base's place -> its store, encoder, chunker and pipeline, as its settings say."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ingest.chunk import Chunker, ChunkOptions
from ingest.embed import BUNDLED, Backend, Embedder, Vectors, open_embedder
from ingest.errors import Absent, Mismatch, UserError
from ingest.store import Identity, Store, open_store
from rag.config import SETTINGS, EmbedOptions, Place, open_base, settings_of, store_at
from rag.generate import Generator
from rag.i18n import Speaker
from rag.pipeline import Pipeline
from rag.refuse import Calibration, Curve, RefuseOptions, calibrate
from rag.retrieve import CrossEncoderReranker, RetrieveOptions, rank
from rag.score_norm import SCRIPTS, Background, Script, generic_questions, level, measure
from rag.types import Sampling

BACKGROUND = "background"
CALIBRATION = "calibration"
SAMPLE = 500  # chunks that stand for all


Encoders = Callable[[str, Backend], Embedder]
"""An encoder by its name and what is to run it; those who open many share one this way."""


def encoders(cache: Path, *, threads: int | None = None) -> Encoders:
    """Opens an encoder each time; what is built for it lies in `cache`."""

    def opened(name: str, backend: Backend) -> Embedder:
        return open_embedder(name, cache=cache, threads=threads, backend=backend)

    return opened


@dataclass(frozen=True, slots=True)
class Writer:
    """All that an ingestion needs of one knowledge base."""

    store: Store
    embedder: Embedder
    chunker: Chunker


def open_writer(
    place: Place, *, embedder: str | None, cache: Path, opened: Encoders | None = None
) -> Writer:
    """Open `place` to write, or make it with `embedder` (the bundled one if None).

    `opened` brings the encoder; without it, one is opened anew.

    Raises `Mismatch` where the knowledge base was made by another embedder or with other chunks.
    """
    said = settings_of(place)
    opened = opened or encoders(cache)
    options: ChunkOptions = said["chunk"]
    at = store_at(place)
    try:
        store = open_store(at)
    except Absent:
        encoder = opened(embedder or BUNDLED, said["embed"].backend)
        chunker = Chunker(encoder.count_many, encoder.max_tokens, options)
        made = {"embedder": embedder or BUNDLED, "chunk": asdict(options)}
        identity = Identity(encoder.name, encoder.dim, made)
        return Writer(open_store(at, create=identity), encoder, chunker)
    recorded = store.identity.options
    name = str(recorded["embedder"])
    if embedder not in (None, name):
        raise Mismatch(
            f"{at} was made with the encoder {name}, not {embedder}; leave --embedder out, "
            "or make a new knowledge base with --kb",
            zh=f"{at} 由编码器 {name} 建立，不是 {embedder}；请去掉 --embedder，或用 --kb 另建知识库",
        )
    if recorded["chunk"] != asdict(options):
        raise Mismatch(
            f"{at} was made with [chunk] {recorded['chunk']}, but {SETTINGS} says "
            f"{asdict(options)}; put the old values back, or make a new knowledge base with --kb",
            zh=f"{at} 建立时的 [chunk] 为 {recorded['chunk']}，而 {SETTINGS} 为 {asdict(options)}；"
            "请改回原值，或用 --kb 另建知识库",
        )
    encoder = encoder_of(store, said["embed"], opened)
    return Writer(store, encoder, Chunker(encoder.count_many, encoder.max_tokens, options))


def encoder_of(store: Store, options: EmbedOptions, opened: Encoders) -> Embedder:
    """The encoder that made the store's vectors; `Mismatch` where its like is not to be had."""
    encoder = opened(str(store.identity.options["embedder"]), options.backend)
    if (encoder.name, encoder.dim) != (store.identity.name, store.identity.dim):
        raise Mismatch(
            f"{store.location} holds vectors of {store.identity.name} ({store.identity.dim}-d), but this "
            f"encoder is {encoder.name} ({encoder.dim}-d); install the former, or ingest again "
            "into a new knowledge base with --kb",
            zh=f"{store.location} 存有 {store.identity.name}（{store.identity.dim} 维）的向量，而当前编码器为 "
            f"{encoder.name}（{encoder.dim} 维）；请安装前者，或用 --kb 重新入库",
        )
    return encoder


def open_pipeline(
    place: Place,
    *,
    cache: Path,
    say: Speaker,
    generator: Generator | None = None,
    sampling: Sampling | None = None,
) -> Pipeline:
    """The read path of the knowledge base at `place`, which must exist.

    Without a generator its answers are sentences of the documents.
    """
    store = open_base(place)
    embedder = encoder_of(store, settings_of(place)["embed"], encoders(cache))
    pipeline = pipeline_of(place, store, embedder, background_of(store, embedder), say, generator)
    return replace(pipeline, sampling=sampling or pipeline.sampling)


def pipeline_of(
    place: Place,
    store: Store,
    embedder: Embedder,
    background: Background,
    say: Speaker,
    generator: Generator | None,
) -> Pipeline:
    """The read path as the settings and the calibration of an open store say now."""
    options = settings_of(place)
    retrieval: RetrieveOptions = options["retrieve"]
    return Pipeline(
        store=store,
        embedder=embedder,
        background=background,
        say=say,
        options=retrieval,
        reading=options["read"],
        calibration=calibration_of(store, options["refuse"]),
        reranker=CrossEncoderReranker(retrieval.reranker) if retrieval.reranker else None,
        generator=generator,
        sampling=options["generate"].sampling,
        prompting=options["prompt"],
    )


def calibration_of(store: Store, options: RefuseOptions) -> Calibration:
    """The knowledge base's own calibration, else the general one; `options` has the last word."""
    kept: Any = store.get_meta(CALIBRATION)
    calibration = Calibration.from_json(kept) if kept else Calibration()
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
            f"{right} answerable and {len(questions) - right} unanswerable questions; "
            "calibration needs some of both in one language",
            zh=f"可回答的问题 {right} 个，不可回答的 {len(questions) - right} 个；"
            "校准需要同一语言中两种都有",
        )
    calibration = replace(pipeline.calibration, **fitted)
    with pipeline.store.change(reason="calibrate") as change:
        change.set_meta(CALIBRATION, asdict(calibration))
    return calibration


def background_of(store: Store, embedder: Embedder, *, stale: bool = False) -> Background:
    """The encoder's background over this knowledge base.

    It is kept with the knowledge base, and measured anew when that has grown or shrunk by a fifth;
    with `stale`, only where none is kept.
    """
    chunks = store.count()
    kept = store.get_meta(BACKGROUND)
    if isinstance(kept, dict) and (stale or abs(chunks - kept["chunks"]) <= 0.2 * kept["chunks"]):
        return Background.from_json(kept)
    questions: dict[Script, Vectors] = {
        script: np.array([embedder.embed_query(text) for text in generic_questions(script)])
        for script in SCRIPTS
    }
    keys = store.sample(SAMPLE)
    texts = [chunk.text for chunk in store.chunks(keys).values()]
    background = measure(questions, store.vectors(keys), texts)
    best: dict[Script, list[float]] = {
        script: [
            rank(text, vector, store, background, candidates=50).scores.max(initial=0.0)
            for text, vector in zip(generic_questions(script), questions[script], strict=True)
        ]
        for script in SCRIPTS
    }
    background = replace(background, level=level(best))
    if not chunks:
        return background
    # Another writer, a full or a read-only disk: it is measured again the next time.
    with suppress(UserError), store.change(reason="background", timeout=0) as change:
        change.set_meta(BACKGROUND, background.to_json() | {"chunks": chunks})
    return background
