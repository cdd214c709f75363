"""A question goes in, an answer with citations comes out: retrieve, refuse or answer, cite."""

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Generator as Steps
from dataclasses import dataclass, replace
from time import perf_counter
from types import TracebackType
from typing import TypeVar

from ingest.embed import Embedder, Vector
from ingest.errors import UserError
from ingest.store import Store
from rag.cite import cite
from rag.extract import ReadOptions, read
from rag.generate import Generator
from rag.i18n import Speaker
from rag.prompt import PromptOptions, compose, declines
from rag.question import condense
from rag.refuse import Calibration, confidence
from rag.retrieve import Ranked, Reranker, RetrieveOptions, best_of_passages, rank, rerank
from rag.score_norm import Background, script_of
from rag.types import Answer, Message, Retrieved, Sampling, Source

LONGEST_QUESTION = 2000
RERANKED = 20  # passages that a reranker looks at
TRIES = 3  # to find the store at rest while passages are looked up

T = TypeVar("T")
Observe = Callable[[str, float, object], None]
"""Told of each stage when it is done: its name, the seconds it took, what it made."""


def unobserved(stage: str, seconds: float, made: object) -> None:
    """Nobody looks."""


@dataclass(frozen=True)
class Pipeline:
    """The whole read path. `say` speaks the reader's language where a question is refused.

    Without a `generator` an answer is sentences of the documents; `sampling` and `prompting` are for
    the generator. `observe` is told of the stages embed, search, retrieve, then read, or prompt,
    generate and cite.
    """

    store: Store
    embedder: Embedder
    background: Background
    say: Speaker
    options: RetrieveOptions = RetrieveOptions()
    reading: ReadOptions = ReadOptions()
    calibration: Calibration = Calibration()
    reranker: Reranker | None = None
    generator: Generator | None = None
    sampling: Sampling = Sampling()
    prompting: PromptOptions = PromptOptions()
    observe: Observe = unobserved

    def retrieve(self, question: str, *, limit: int | None = None) -> Retrieved:
        """The best passages for a question that stands alone, and how likely they answer it."""
        _check(question)
        return self._stage("retrieve", lambda: self._retrieve(question, limit))

    def _retrieve(self, question: str, limit: int | None) -> Retrieved:
        limit = limit or self.options.passages
        wide = max(limit, RERANKED) if self.reranker else limit
        vector = self._embed(question)
        tries = 0
        while True:
            sequence, tries = self.store.sequence, tries + 1
            ranked = self._rank(question, vector)
            hits, passages = best_of_passages(ranked, self.store, wide)
            if self.store.sequence == sequence or tries == TRIES:
                break
        if self.reranker:
            hits, passages = rerank(question, hits, passages, self.reranker)
        curve = self.calibration.curve(native=self.native(question))
        sure = confidence(self._excess(question, ranked), curve) if hits else 0.0
        return Retrieved(
            question=question,
            vector=vector,
            hits=tuple(hits[:limit]),
            passages=tuple(passages[:limit]),
            confidence=sure,
            threshold=curve.threshold,
            sequence=sequence,
        )

    def native(self, question: str) -> bool:
        """Whether the question is in a script of the knowledge base."""
        return self.background.native[script_of(question)]

    def excess(self, question: str) -> float:
        """How much better the best chunk matches than it does questions about something else."""
        _check(question)
        return self._excess(question, self._rank(question, self._embed(question)))

    def read(self, found: Retrieved) -> Answer:
        """The sentences that answer, with citations, whether or not they are worth showing."""
        return read(found, self.store, self.embedder, self.background, self.reading)

    def stream(
        self, question: str, history: Sequence[Message] = (), sampling: Sampling | None = None
    ) -> Steps[Retrieved | str | Answer]:
        """Yield what was found, the answer's text piece by piece, then the `Answer` itself.

        The pieces are `Answer.text` together. A refusal is an answer too; it comes before the
        generator is asked anything. Closing the iterator stops the generator.
        """
        found = self.retrieve(condense(question, history))
        yield found
        if found.answerable and self.generator:
            yield from self._write(found, history, self.generator, sampling or self.sampling)
            return
        answer = self._refusal(found)
        if found.answerable:
            answer = self._stage("read", lambda: self.read(found))
        yield answer.text
        yield answer

    def ask(
        self, question: str, history: Sequence[Message] = (), sampling: Sampling | None = None
    ) -> Answer:
        """The answer, or a refusal that says what was looked at."""
        *_, answer = self.stream(question, history, sampling)
        assert isinstance(answer, Answer)
        return answer

    def watched(self, observe: Observe) -> "Pipeline":
        """The same pipeline, whose stages `observe` is told of."""
        return replace(self, observe=observe)

    def close(self) -> None:
        self.store.close()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _embed(self, question: str) -> Vector:
        return self._stage("embed", lambda: self.embedder.embed_query(question))

    def _rank(self, question: str, vector: Vector) -> Ranked:
        candidates = self.options.candidates
        return self._stage(
            "search",
            lambda: rank(question, vector, self.store, self.background, candidates=candidates),
        )

    def _stage(self, name: str, work: Callable[[], T]) -> T:
        begun = perf_counter()
        made = work()
        self.observe(name, perf_counter() - begun, made)
        return made

    def _excess(self, question: str, ranked: Ranked) -> float:
        best = float(ranked.scores.max(initial=0.0))
        return best - self.background.level[script_of(question)]

    def _write(
        self, found: Retrieved, history: Sequence[Message], generator: Generator, sampling: Sampling
    ) -> Iterator[str | Answer]:
        room = _room(generator, sampling)
        sources = [Source(*pair) for pair in zip(found.passages, found.hits, strict=True)]
        prompt = self._stage(
            "prompt",
            lambda: compose(
                found.question, sources, history, generator.count, room, self.prompting
            ),
        )
        text, begun = "", perf_counter()
        for piece in generator.stream(prompt.messages, sampling):
            text += piece
            yield piece
        self.observe("generate", perf_counter() - begun, text)
        cited = self._stage("cite", lambda: cite(text, found.question, prompt.sources, self.store))
        yield Answer(
            question=found.question,
            text=text,
            citations=cited.citations,
            hits=found.hits,
            confidence=found.confidence,
            refused=declines(text),
            generator=generator.name,
            unsupported=cited.unsupported,
            unknown=cited.unknown,
            dropped=prompt.dropped,
        )

    def _refusal(self, found: Retrieved) -> Answer:
        documents, chunks = self.store.info().documents, self.store.count()
        text = self.say(
            f"Not found: the knowledge base ({documents} documents, {chunks} chunks) does not "
            "answer this. Nearest passages:",
            f"未找到：知识库（{documents} 个文档、{chunks} 块）没有回答这个问题的内容。最接近的段落：",
        )
        return Answer(found.question, text, (), found.hits, found.confidence, refused=True)


def _check(question: str) -> None:
    if not question.strip():
        raise UserError("the question is empty", zh="问题是空的")
    if len(question) > LONGEST_QUESTION:
        raise UserError(
            f"the question has {len(question)} characters; ask in {LONGEST_QUESTION} or fewer",
            zh=f"问题有 {len(question)} 个字符；请控制在 {LONGEST_QUESTION} 个以内",
        )


def _room(generator: Generator, sampling: Sampling) -> int:
    """Tokens for the prompt: the window without what is kept free for the answer."""
    room = generator.context - sampling.max_new_tokens
    if room < 1:
        raise UserError(
            f"max_new_tokens is {sampling.max_new_tokens}, but the window of {generator.name} "
            f"holds {generator.context} tokens, prompt included; lower it",
            zh=f"max_new_tokens 为 {sampling.max_new_tokens}，而 {generator.name} 的窗口连同提示"
            f"只有 {generator.context} 个词元；请调小",
        )
    return room
