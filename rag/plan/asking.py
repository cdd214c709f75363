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
from time import perf_counter
from typing import Any

LIMIT = 900  # seconds


@dataclass(frozen=True, slots=True)
class Asked:
    """Seconds are medians over the questions, one after the other."""

    question: float
    """Until it has its vector."""
    search: float
    search_p95: float
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
        [sys.executable, "-m", "rag.plan.asking"],
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

    from rag.language import Speaker
    from rag.open import open_pipeline
    from rag.retrieve import rank

    stages: dict[str, list[float]] = defaultdict(list)
    with open_pipeline(Path(path), cache=Path(cache), say=Speaker("en")) as plain:
        pipeline = plain.watched(lambda stage, seconds, made: stages[stage].append(seconds))
        store, background = plain.store, plain.background

        def answer(number: int) -> None:
            found = pipeline.retrieve(questions[number])
            begun = perf_counter()
            if answering:
                plain.read(found)
            stages["answer"].append(perf_counter() - begun)

        answer(0)  # opens what is opened once
        stages.clear()
        for number in range(len(questions)):
            answer(number)
        alone = {name: np.array(seconds) for name, seconds in stages.items()}
        vectors = [plain.embedder.embed_query(question) for question in questions]
        legs: dict[str, list[float]] = defaultdict(list)
        counts: list[tuple[int, int]] = []
        for question, vector in zip(questions, vectors, strict=True):
            begun = perf_counter()
            store.search_dense(background.centred(question, vector), plain.options.candidates)
            legs["dense"].append(perf_counter() - begun)
            begun = perf_counter()
            for field in ("words", "bigrams"):
                store.search_words(question, plain.options.candidates, field=field)
            legs["lexical"].append(perf_counter() - begun)
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
    passages = alone["retrieve"] - alone["embed"] - alone["search"]
    read, wanted = np.mean(counts, axis=0)
    return {
        "question": float(np.median(alone["embed"])),
        "search": float(np.median(alone["search"])),
        "search_p95": float(np.percentile(alone["search"], 95)),
        "rank": float(np.median(passages)),
        "answer": float(np.median(alone["answer"])),
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
    from ingest.store.fold import bigrams, words
    from ingest.store.words import POSTINGS

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
