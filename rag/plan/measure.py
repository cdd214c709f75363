"""Measuring the constants: real documents, then made knowledge bases of growing size.

What goes into the model is work, the time of a processor: another program's turn does not count. What
is shown beside it (`Point`) is as the clock has it.
"""

import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from time import thread_time

import numpy as np

from ingest.chunk import Chunker, ChunkOptions
from ingest.embed import BUNDLED, Embedder, open_embedder
from ingest.store import Identity, open_store
from ingest.store.atomic import taken
from ingest.store.vector_index import EXACT_ROWS, FEWEST, Candidates
from rag.plan import documents, linear
from rag.plan.asking import Asked, asked
from rag.plan.constants import Constants, Costs, Machine, Point
from rag.plan.documents import Tell
from rag.plan.made import DIM, Made, build, unit

VERSIONS = ("chatglm-rag", "faiss-cpu", "numpy", "onnxruntime", "tantivy")


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done to measure; `sizes` of made knowledge bases, growing."""

    sizes: tuple[int, ...]
    scanned: int = 400_000
    """Codes: enough that a question's scan takes milliseconds."""
    embedded: int = 192
    """Chunks, as `written`: so many that what is fixed weighs little."""
    written: int = 6_000
    questions: int = 120


QUICK = Effort((10_000, 50_000))
FULL = Effort((10_000, 100_000, 1_000_000))


def measure(
    paths: Sequence[Path],
    *,
    cache: Path,
    tell: Tell,
    effort: Effort = QUICK,
    ocr: bool = False,
    scratch: Path | None = None,
) -> Constants:
    """What this machine does with the documents under `paths` and with made ones.

    Takes a minute or two with `QUICK`, and 3 KB of disk a chunk in `scratch` while it runs.
    """
    cores = len(os.sched_getaffinity(0))
    embedder = open_embedder(cache=cache)
    chunker = Chunker(embedder.count_many, embedder.max_tokens)
    with tempfile.TemporaryDirectory(prefix="rag-plan-", dir=scratch) as folder:
        tell("reading the documents", "读取文档")
        kinds, texts = documents.read(paths, chunker, ocr=ocr)
        tell("embedding a part of them", "对其中一部分做向量化")
        one = open_embedder(cache=cache, threads=1)
        vectors = documents.embed(texts, one, embedder, most=effort.embedded)
        tell("writing them", "写入知识库")
        place = Path(folder, "documents")
        stored = documents.write(texts, place, identity(embedder), least=effort.written)
        chunks = [chunk for text in texts for chunk in text.chunks if len(chunk.text) > 20]
        step = max(1, len(chunks) // effort.questions)
        questions = [chunk.text[:20] for chunk in chunks[::step]][: effort.questions]
        tell("asking", "提问")
        real = asked(place, questions, cache=cache, cores=cores)
        tell("scanning codes", "扫描向量编码")
        scan, codes = scanned(effort.scanned)
        points, made = [], []
        for size, point, found in grown(Path(folder, "made"), embedder, effort, cache, cores):
            tell(f"searched {size:,} made chunks", f"已检索 {size:,} 个合成块")
            points.append(point)
            made.append(found)
    flops_rate, bytes_rate = None, None
    if find_spec("torch"):
        tell("multiplying as a language model does", "语言模型的矩阵乘法")
        flops_rate, bytes_rate = linear.rates()
    posting, lookup = line([found.read for found in made], [found.lexical for found in made])
    coded = [point for point in points if point.chunks > EXACT_ROWS] or points[-1:]
    costs = Costs(
        tokens=vectors.tokens,
        flops=vectors.flops,
        embed=vectors.alone,
        embed_all=vectors.together,
        write=stored.seconds,
        truth=stored.truth,
        codes=codes,
        words=stored.words,
        characters=stored.characters,
        postings=stored.postings,
        process=real.resident,
        question=real.question,
        scan=scan,
        vectors=max(1e-6, float(np.mean([p.dense - scan * p.chunks for p in coded]))),
        posting=posting,
        lookup=lookup,
        read_share=made[-1].wanted / points[-1].chunks,
        rank=max(1e-6, real.rank + real.search - real.dense - real.lexical),
        answer=real.answer,
        parallel=max(1.0, min(cores, real.rate * sum_of(real))),
        flops_rate=flops_rate,
        bytes_rate=bytes_rate,
    )
    named = {name: version(name) for name in VERSIONS} | {"python": platform.python_version()}
    today = datetime.now(UTC).date().isoformat()
    return Constants(machine(cores), today, named, kinds, costs, tuple(points))


def identity(embedder: Embedder) -> Identity:
    """That of a knowledge base that `rag ingest` makes."""
    settings = {"embedder": BUNDLED, "chunk": asdict(ChunkOptions())}
    return Identity(embedder.name, embedder.dim, settings)


def sum_of(found: Asked) -> float:
    """Seconds of a core from a question's words to its answer."""
    return found.question + found.search + found.rank + found.answer


def scanned(rows: int) -> tuple[float, float]:
    """Seconds of a core that a search takes for each code, and a code's bytes."""
    rng = np.random.default_rng(0)
    candidates, step = Candidates(DIM), rows // 4
    drawn = unit(rng.standard_normal((step, DIM), dtype=np.float32))
    candidates.train(drawn[:5_000], step)
    counts, medians, sizes = [], [], []
    for at in range(0, rows, step):
        candidates.add(np.arange(at + 1, at + step + 1), drawn)
        spent = []
        for vector in drawn[:40]:
            begun = thread_time()
            candidates.search(vector, FEWEST)
            spent.append(thread_time() - begun)
        counts.append(candidates.rows)
        medians.append(float(np.median(spent)))
        sizes.append(len(candidates.dump()))
    return line(counts, medians)[0], line(counts, sizes)[0]


def grown(
    folder: Path, embedder: Embedder, effort: Effort, cache: Path, cores: int
) -> Iterator[tuple[int, Point, Asked]]:
    """One knowledge base, searched at each size as it grows."""
    made, spent = Made(max(effort.sizes)), 0.0
    drawn = made.texts(np.random.default_rng(10**9), effort.questions, 10)
    for size in effort.sizes:
        with open_store(folder, create=identity(embedder)) as store:
            spent += sum(seconds for _, seconds in build(store, made, size))
        found = asked(folder, drawn, cache=cache, cores=cores, answering=False)
        point = Point(
            chunks=size,
            build=spent,
            truth=(folder / "kb.sqlite").stat().st_size,
            codes=taken(folder / "vectors"),
            words=taken(folder / "words"),
            resident=found.resident,
            p50=found.p50,
            p95=found.p95,
            dense=found.dense,
            lexical=found.lexical,
            read=found.read,
            rate=found.searches,
        )
        yield size, point, found


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Slope and height of the line nearest the points, both kept above 0."""
    slope, height = np.polyfit(x, y, 1) if len(set(x)) > 1 else (y[0] / x[0], 0.0)
    return max(1e-12, float(slope)), max(1e-6, float(height))


def machine(cores: int) -> Machine:
    """This one: `cores` that this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(cpu, cores, memory, f"{platform.system()} {platform.machine()}")
