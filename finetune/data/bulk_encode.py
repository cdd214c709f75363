"""Texts -> ids for any tokenizer, in bulk and in worker processes.

A worker is `python -m finetune.data.words`: it loads SentencePiece and numpy (0.5 s), neither torch nor
transformers. Tokenizers of the kind `tokenizer.json` (GLM-4) spread texts over the cores by
themselves.
"""

import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import numpy as np

from finetune.data.words import Flat, Words, packed
from ingest.errors import UserError
from rag.chatglm.chat import CONTROL, encode_text

WAITING = 4
"""Lists that a worker has before it; this process encodes what comes beyond, and is idle no more
than they are."""
Spelt = Callable[[], Flat]
"""Waits for the ids of texts that were handed in."""


class Speller:
    """`speller.submit(texts)()` are the ids of the texts, without special tokens around them.

    As `encode_text` gives them, to which no word is special; with `parsing` as the tokenizer's own
    `encode` does, to which some are. So many `workers` do it beside this process.
    """

    def __init__(self, tokenizer: Any, *, parsing: bool = False, workers: int = 0) -> None:
        self.tokenizer, self.parsing = tokenizer, parsing
        self.rust = None if hasattr(tokenizer, "sp") else _copied(tokenizer, parsing=parsing)
        self.words: Words | None = None
        # Words that `encode` may take for special tokens; it decides.
        self.special: tuple[str, ...] = ()
        self.free: SimpleQueue[Worker] = SimpleQueue()
        self.workers: list[Worker] = []
        if self.rust:
            return
        if parsing:
            self.special = (*tokenizer.parsed, *tokenizer.added_tokens_encoder)
        self.workers = [Worker(Path(tokenizer.vocab_file)) for _ in range(workers)]
        for worker in self.workers:
            self.free.put(worker)
        self.threads = ThreadPoolExecutor(workers) if workers else None
        self.handed: deque[Future[Flat]] = deque()

    @property
    def ahead(self) -> int:
        """How many lists of texts are worth handing in before the first is asked for."""
        return 16 * len(self.workers)

    @property
    def _idle(self) -> bool:
        """Whether a worker will soon have nothing to do."""
        while self.handed and self.handed[0].done():
            self.handed.popleft()
        return len(self.handed) < WAITING * len(self.workers)

    def __enter__(self) -> "Speller":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.threads:
            self.threads.shutdown(cancel_futures=True)
        for worker in self.workers:
            worker.end()

    def submit(self, texts: Sequence[str]) -> Spelt:
        if not (self.rust or self.special):
            return self._bulk(texts)
        alone = [i for i, text in enumerate(texts) if self._is_special(text)]
        if not alone:
            return self._bulk(texts)
        rest = self._bulk(["" if self._is_special(text) else text for text in texts])

        def spelt() -> Flat:
            lists = [ids.tolist() for ids in rest().lists()]
            for i in alone:
                lists[i] = spell(texts[i], self.tokenizer, parsing=self.parsing)
            return Flat.of(lists)

        return spelt

    def _is_special(self, text: str) -> bool:
        if self.rust:
            return not self.parsing and bool(CONTROL.search(text))
        return any(word in text for word in self.special)

    def _bulk(self, texts: Sequence[str]) -> Spelt:
        if self.rust:
            found = self.rust.encode_batch_fast(texts, add_special_tokens=False)
            return lambda: Flat.of([each.ids for each in found])
        written = [self.tokenizer.written(text) for text in texts]
        if self.threads and self._idle:
            self.handed.append(self.threads.submit(self._ask, written))
            return self.handed[-1].result
        self.words = self.words or Words(self.tokenizer.sp.serialized_model_proto())
        found = self.words(written)
        return lambda: found

    def _ask(self, texts: Sequence[str]) -> Flat:
        worker = self.free.get()
        try:
            return worker.ask(texts)
        finally:
            self.free.put(worker)  # also one that has died: the next to ask it is told as well


def spell(text: str, tokenizer: Any, *, parsing: bool) -> list[int]:
    """The ids of one text."""
    if parsing:
        return tokenizer.encode(text, add_special_tokens=False)
    return encode_text(text, tokenizer)


class Worker:
    """A process that encodes texts by a SentencePiece model. It ends when this one does."""

    def __init__(self, vocabulary: Path) -> None:
        command = [sys.executable, "-P", "-m", "finetune.data.words", str(vocabulary)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        asked, answers = self.process.stdin, self.process.stdout
        assert asked is not None
        assert answers is not None
        self.asked, self.answers = asked, answers

    def ask(self, texts: Sequence[str]) -> Flat:
        try:
            self.asked.write(packed(texts))
            self.asked.flush()
            lists, ids = self._read(2, np.int64).tolist()
            counts = self._read(lists, np.int64)
            return Flat(self._read(ids, np.int32), counts)
        except (BrokenPipeError, ValueError):
            raise UserError(
                "a process that encodes texts has ended, perhaps for want of memory; "
                "try again with --workers 1",
                zh="编码文本的进程已终止，可能是内存不足；请加 --workers 1 重试",
            ) from None

    def _read(self, count: int, kind: Any) -> Any:
        """`ValueError` where there is less."""
        return np.frombuffer(self.answers.read(count * np.dtype(kind).itemsize), kind, count)

    def end(self) -> None:
        self.process.kill()
        for pipe in (self.asked, self.answers):
            with suppress(BrokenPipeError):  # what was not sent
                pipe.close()
        self.process.wait()


def _copied(tokenizer: Any, *, parsing: bool) -> Any:
    """The library's own tokenizer, set as `encode` sets it."""
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = not parsing
    return copy
