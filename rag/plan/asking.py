"""Questions to a knowledge base, in a process of their own: python -m rag.plan.asking < request.

So the memory measured is that of a process that answers, and of nothing else. The request is a JSON
object, the answer one too.
"""

import json
import resource
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from time import perf_counter, process_time, thread_time
from typing import Any

LIMIT = 900  # seconds


@dataclass(frozen=True, slots=True)
class Asked:
    """Medians over the questions, one after the other: seconds of work, all cores' together, but for
    `p50` and `p95`, which are seconds until all searches are done, as the clock has it."""

    question: float
    """Until it has its vector."""
    search: float
    p50: float
    p95: float
    rank: float
    """Fetching passages."""
    answer: float
    dense: float
    lexical: float
    read: float
    """Postings that both searches by words read for a question, mean."""
    wanted: float
    """Postings that they would read if none were left out."""
    rate: float
    """Answers a second, all cores at work in this process; searches, where it was not to answer."""
    searches: float
    """Searches a second, likewise, of vectors made before."""
    resident: int
    """Peak bytes."""


def asked(
    path: Path, questions: Sequence[str], *, cache: Path, cores: int, answering: bool = True
) -> Asked:
    """What a process of its own tells of these questions; made text is searched, but not answered
    from: it has no sentences."""
    request = {"path": str(path), "questions": list(questions), "cache": str(cache)}
    request |= {"cores": cores, "answering": answering}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "rag.plan.asking"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)  # ours: its traceback
    return Asked(**json.loads(done.stdout))


def main() -> None:
    request = json.load(sys.stdin)
    json.dump(_measured(**request), sys.stdout)


def _measured(
    path: str, questions: list[str], cache: str, cores: int, answering: bool
) -> dict[str, Any]:
    import numpy as np

    from rag.i18n import Speaker
    from rag.load import open_pipeline
    from rag.retrieve import rank

    stages: dict[str, list[float]] = defaultdict(list)
    clock: list[float] = []
    last = 0.0, 0.0

    def done(stage: str, seconds: float, _: object) -> None:
        """The work since the stage before: this thread's where it does all, without what the others
        spin meanwhile."""
        nonlocal last
        now = process_time(), thread_time()
        own = stage in ("search", "retrieve")
        stages[stage].append(now[own] - last[own])
        last = now
        if stage == "search":
            clock.append(seconds)

    with open_pipeline(Path(path), cache=Path(cache), say=Speaker("en")) as plain:
        pipeline = plain.watched(done)
        store, background = plain.store, plain.background

        def answer(number: int) -> None:
            nonlocal last
            last = process_time(), thread_time()
            found = pipeline.retrieve(questions[number])
            if answering:
                plain.read(found)
            done("answer", 0.0, None)

        answer(0)  # opens what is opened once
        stages.clear()
        clock.clear()
        for number in range(len(questions)):
            answer(number)
        alone = {name: float(np.median(seconds)) for name, seconds in stages.items()}
        p50, p95 = np.percentile(clock, [50, 95])
        vectors = [plain.embedder.embed_query(question) for question in questions]
        legs: dict[str, list[float]] = defaultdict(list)
        counts: list[tuple[int, int]] = []
        for question, vector in zip(questions, vectors, strict=True):
            begun = thread_time()
            store.search_dense(background.centred(question, vector), plain.options.candidates)
            legs["dense"].append(thread_time() - begun)
            begun = thread_time()
            for field in ("words", "bigrams"):
                store.search_words(question, plain.options.candidates, field=field)
            legs["lexical"].append(thread_time() - begun)
            counts.append(_postings(store, question))
        candidates = plain.options.candidates

        def search(number: int) -> None:
            rank(questions[number], vectors[number], store, background, candidates=candidates)

        rates = []
        for work in (answer if answering else search, search):
            with ThreadPoolExecutor(cores) as pool:
                begun = perf_counter()
                list(pool.map(work, range(len(questions))))
                rates.append(len(questions) / (perf_counter() - begun))
    read, wanted = np.mean(counts, axis=0)
    return {
        "question": alone["embed"],
        "search": alone["search"],
        "p50": float(p50),
        "p95": float(p95),
        "rank": alone["retrieve"],
        "answer": alone["answer"],
        "dense": float(np.median(legs["dense"])),
        "lexical": float(np.median(legs["lexical"])),
        "read": float(read),
        "wanted": float(wanted),
        "rate": rates[0],
        "searches": rates[1],
        "resident": _peak(),
    }


def _peak() -> int:
    """Bytes this process held at most. Linux' getrusage would tell the parent's, if that is more."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def _postings(store: Any, question: str) -> tuple[int, int]:
    """How many postings the searches by words read, as `Words` picks them, and how many there are."""
    from ingest.normalize import bigrams, words
    from ingest.store.word_index import POSTINGS

    read = wanted = 0
    for field, split in (("words", words), ("bigrams", bigrams)):
        terms = sorted(set(split(question)))
        counts = sorted(count for count in store.doc_freq(terms, field=field) if count)
        sums = list(accumulate(counts))
        wanted += sums[-1] if sums else 0
        read += max([total for total in sums if total <= POSTINGS] or sums[:1], default=0)
    return read, wanted


if __name__ == "__main__":
    main()
