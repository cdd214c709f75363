"""From a question to an answer with citations: retrieve, refuse or answer, cite."""

import re
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Generator as Steps
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from time import perf_counter

from ingest.embed import Embedder, Vector
from ingest.errors import UserError
from ingest.i18n import Translatable, Translator
from ingest.store import Ranking, Store, Within
from ingest.types import Document
from rag.cite import cite, declines
from rag.config import Config
from rag.extract import extract
from rag.generate import Generator, check_sampling, until
from rag.prompt import compose
from rag.question import SmallTalk, analyze, asks_article, codes, small_talk, stand_alone, strays
from rag.reader import Reader
from rag.retrieve import Reranker, best_of_passages, by_reading, names_row, rank, rerank
from rag.scope import Scope
from rag.score_norm import Calibration, ScoreNorm, confidence
from rag.types import Answer, Message, Query, ReaderOutput, RefusalFeatures, Retrieval, Sampling, Source

LONGEST_QUESTION = 2000
RERANKED = 20  # passages that a reranker scores
NAMED, LISTED = 3, 20  # documents in a courteous reply, and in a list of the contents
EXAMPLES = 3  # questions in that list
OPENINGS: dict[SmallTalk, Translatable] = {
    "thanks": Translatable("You are welcome."),
    "greeting": Translatable("Hello!"),
    "farewell": Translatable("Goodbye!"),
}
TRIES = 3  # searches until the store does not change meanwhile

Observer = Callable[[str, float], None]
"""Called after each stage with its name and the seconds it took."""


@dataclass(frozen=True)
class Pipeline:
    """The whole read path. `say` writes a refusal in the reader's language.

    Without a `generator`, an answer consists of sentences of the documents. `within` are the documents that
    are asked, as `scoped` sets them. `observe` is called after the stages embed, search, retrieve (which
    includes both), read, then extract, or prompt, generate and cite.
    """

    store: Store
    embedder: Embedder
    norm: ScoreNorm
    say: Translator
    config: Config = Config()
    calibration: Calibration = Calibration()
    reranker: Reranker | None = None
    generator: Generator | None = None
    reader: Reader | None = None
    within: Within = None
    observe: Observer = lambda stage, seconds: None

    def stream(
        self, question: str, history: Sequence[Message] = (), sampling: Sampling | None = None
    ) -> Steps[Retrieval | str | Answer]:
        """Yield the retrieval result, the answer's text piece by piece, then the `Answer` itself.

        The pieces add up to `Answer.text`. A refusal is an answer too; the generator is not called
        for it. Closing the iterator stops the generator.
        """
        if talk := small_talk(question):
            found = replace(
                self.retrieve(question), hits=(), passages=(), readings=(), confidence=0.0, answerable=False
            )
            yield found
            yield (text := self.courtesy(talk))
            yield Answer(question, text, (), (), 0.0, refused=False)
            return
        found = self.retrieve(stand_alone(question, history))
        if (
            not found.answerable
            and (both := stand_alone(question, history, replace=False)) != found.query.text
        ):
            found = max(found, self.retrieve(both), key=lambda each: each.answerable)
        if found.query.text != question and strays(question, (each.text for each in found.passages)):
            found = self.retrieve(question)
        yield found
        if found.answerable and self.generator:
            yield from self.write(found, self.generator, history, sampling)
            return
        answer = self.extract(found) if found.answerable else None
        if not answer or not answer.citations:
            answer = self.refusal(found)
        yield answer.text
        yield answer

    def ask(self, question: str, history: Sequence[Message] = (), sampling: Sampling | None = None) -> Answer:
        """The answer, or a refusal that names the nearest passages."""
        *_, answer = self.stream(question, history, sampling)
        assert isinstance(answer, Answer)
        return answer

    def retrieve(self, question: str, *, limit: int | None = None) -> Retrieval:
        """The best passages for a stand-alone question, and how likely they answer it."""
        _check(question)
        limit = limit or self.config.retrieve.passages
        depth = max(limit, RERANKED if self.reranker else self.config.read.passages)
        query = analyze(question)
        with self._stage("retrieve"):
            vector = self._embed(query)
            tries = 0
            while True:
                sequence, tries = self.store.sequence, tries + 1
                ranking = self._search(query, vector)
                hits, passages = best_of_passages(ranking, self.store, depth)
                if self.store.sequence == sequence or tries == TRIES:
                    break
            if self.reranker:
                hits, passages = rerank(query.text, hits, passages, self.reranker)
        readings: list[ReaderOutput] = []
        if self.reader:
            with self._stage("read"):
                readings = self.reader.read(
                    query.text, [hit.chunk for hit in hits[: self.config.read.passages]]
                )
                if not self.reranker:
                    hits, passages, readings = by_reading(hits, passages, readings)
        native = self.norm.native[query.script]
        curve = self.calibration.native if native else self.calibration.foreign
        excess = float(ranking.scores.max(initial=0.0)) - self.norm.level[query.script]
        reading = max((each.score for each in readings), default=0.0)
        best = hits[0].chunk if hits else None
        if best and (names_row(query, best) or (query.codes and query.codes <= codes(best.indexed))):
            reading = max(reading, 0.0)  # a cell, or an article or an error code as a whole, is asked for
        features = RefusalFeatures(excess, reading)
        likelihood = confidence(features, curve) if hits else 0.0
        if asks_article(query) and not any(query.codes <= codes(hit.chunk.indexed) for hit in hits):
            likelihood = 0.0  # another article does not answer
        return Retrieval(
            query=query,
            vector=vector,
            ranking=ranking,
            hits=tuple(hits[:limit]),
            passages=tuple(passages[:limit]),
            readings=tuple(readings[:limit]),
            features=features,
            confidence=likelihood,
            threshold=curve.threshold,
            answerable=bool(hits) and likelihood >= curve.threshold,
            sequence=sequence,
        )

    def courtesy(self, talk: SmallTalk) -> str:
        """The reply to a message that asks nothing: the documents, and what can be asked of them."""
        most = LISTED if talk == "contents" else NAMED
        names = [Path(each.source).name for each in islice(self._documents(), most)]
        if not names:
            return self.say("The knowledge base has no documents yet. Add some, and ask about them.")
        total = self.store.info().documents if self.within is None else len(self.within)
        if others := total - len(names):
            names.append(self.say("{n} more", n=others))
        if talk != "contents":
            opening = self.say(OPENINGS[talk]) if talk in OPENINGS else ""
            return f"{opening} {self.say('You can ask about: {names}.', names=names)}".lstrip()
        lines = [self.say("The documents are:"), *(f"- {name}" for name in names)]
        if examples := [*islice(self._examples(), EXAMPLES)]:
            lines += [self.say("You can ask, for example:"), *(f"- {each}" for each in examples)]
        return "\n".join(lines)

    def _examples(self) -> Iterator[str]:
        """Questions about the first documents, or their sections, which the knowledge base answers."""
        for document in islice(self._documents(), 2 * EXAMPLES):
            title, hits = document.title, self.retrieve(document.title).hits
            labels = [hit.chunk.label(hit.chunk.start) for hit in hits if hit.chunk.document == document.id]
            sections = [label.rpartition(" › ")[2] for label in labels if " › " in label]
            question = self.say("What does {title} say?", title=title)
            if sections:
                section = re.sub(r"^第\S+[章节条编]\s*", "", max(sections, key=len))
                question = self.say("What does {title} say about {section}?", title=title, section=section)
            if self.retrieve(question).answerable:
                yield question

    def _documents(self) -> Iterator[Document]:
        """The documents that are asked."""
        wanted = self.within and frozenset(self.within)
        return (each for each in self.store.documents() if wanted is None or each.id in wanted)

    def refusal(self, found: Retrieval) -> Answer:
        """The answer that says that the knowledge base has none, or the documents that are asked."""
        if self.within:
            text = self._refusal_within(self.within, found.query.text)
        else:
            documents, chunks = self.store.info().documents, self.store.count()
            text = self.say(
                "Not found: the knowledge base ({documents} documents, {chunks} chunks) does not "
                "answer this. Nearest passages:",
                documents=documents,
                chunks=chunks,
            )
        return Answer(found.query.text, text, (), found.hits, found.confidence, refused=True)

    def _refusal_within(self, documents: Sequence[str], question: str) -> str:
        there = [each for id in documents[:NAMED] if (each := self.store.by_id(id))]
        names = [Path(each.source).name for each in there]
        if others := len(documents) - len(there):
            names.append(self.say("{n} more", n=others))
        elsewhere = replace(self, within=None, observe=lambda stage, seconds: None).retrieve(question)
        if elsewhere.answerable:
            other = Path(elsewhere.hits[0].chunk.source).name
            return self.say(
                "Not found in {names}, but {other} may answer this. Nearest passages:",
                names=names,
                other=other,
            )
        return self.say("Not found in {names}. Nearest passages:", names=names)

    def extract(self, found: Retrieval) -> Answer:
        """The best sentences with citations, even if the question should be refused."""
        with self._stage("extract"):
            return extract(found, self.store, self.embedder, self.norm, self.config.read)

    def write(
        self,
        found: Retrieval,
        generator: Generator,
        history: Sequence[Message] = (),
        sampling: Sampling | None = None,
    ) -> Steps[str | Answer]:
        """The generator's text, piece by piece, then the `Answer` with its citations."""
        sampling = sampling or self.config.generate.sampling
        room = _room(generator, sampling)
        sources = [Source(*pair) for pair in zip(found.passages, found.hits, strict=True)]
        with self._stage("prompt"):
            prompt = compose(found.query.text, sources, history, generator.count, room, self.config.prompt)
        pieces: list[str] = []
        with self._stage("generate"):
            reason = yield from until(generator.stream(prompt.messages, sampling), sampling.stop, pieces)
        text = "".join(pieces)
        with self._stage("cite"):
            cited = cite(text, found.query.text, prompt.sources, self.store)
        yield Answer(
            question=found.query.text,
            text=text,
            citations=cited.citations,
            hits=found.hits,
            confidence=found.confidence,
            refused=declines(text),
            generator=generator.name,
            unsupported=cited.unsupported,
            unknown=cited.unknown,
            dropped=prompt.dropped,
            prompt=prompt,
            finish_reason=reason,
        )

    def scoped(self, scope: Scope | None) -> "Pipeline":
        """The same pipeline for the documents in scope. Raises `UserError` if there are none."""
        return replace(self, within=scope.within(self.store)) if scope else self

    def observed(self, observe: Observer) -> "Pipeline":
        """The same pipeline with another observer."""
        return replace(self, observe=observe)

    def close(self) -> None:
        self.store.close()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Times the block; the observer is not called if it raises."""
        start = perf_counter()
        yield
        self.observe(name, perf_counter() - start)

    def _embed(self, query: Query) -> Vector:
        with self._stage("embed"):
            return self.embedder.embed_query(query.text)

    def _search(self, query: Query, vector: Vector) -> Ranking:
        candidates = self.config.retrieve.candidates
        with self._stage("search"):
            return rank(query, vector, self.store, self.norm, candidates=candidates, within=self.within)


def _check(question: str) -> None:
    if not question.strip():
        raise UserError("the question is empty")
    n, most = len(question), LONGEST_QUESTION
    if n > most:
        raise UserError("the question has {n} characters; the limit is {most}", n=n, most=most)


def _room(generator: Generator, sampling: Sampling) -> int:
    """Tokens for the prompt: the window without those that are reserved for the answer."""
    check_sampling(sampling)
    room = generator.context - sampling.max_new_tokens
    if room < 1:
        raise UserError(
            "max_new_tokens is {n}, but the window of {name} is {context} tokens, prompt included; lower it",
            n=sampling.max_new_tokens, name=generator.name, context=generator.context,
        )  # fmt: skip
    return room
