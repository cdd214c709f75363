"""Measure the constants of `rag plan` on this machine: a minute or two, nothing else should run.

    python benchmarks/plan.py FILE [PATH...] [--sizes 10000 50000] [--scratch FOLDER]
    rag plan --documents 200000 --qps 20 --constants FILE

PATHs are documents like those to come; without them, those of corpora/. The shipped file is written by
`benchmarks/plan.py rag/plan.json --sizes 10000 100000 1000000` (4 GB of disk, some 15 minutes).

Real documents are read, embedded, written and asked about; then a synthetic knowledge base is searched
at growing sizes. Constants count the processor's work, not the clock, so that other programs hardly
matter; only what is called `p50`, `p95`, `build` and `rate` is by the clock.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from time import perf_counter, process_time, thread_time
from typing import Any, NamedTuple

import numpy as np

from ingest.chunk import Chunker, ChunkOptions
from ingest.embed import BUNDLED, Embedder, open_embedder
from ingest.errors import Unreadable
from ingest.files import walk
from ingest.normalize import bigrams, words
from ingest.sandbox import Sandbox
from ingest.store import Identity, Store, open_store
from ingest.store.atomic import disk_usage
from ingest.store.vector_index import EXACT_ROWS, FEWEST, Candidates
from ingest.store.word_index import POSTINGS
from ingest.types import Chunk, Document, DocumentPart, ParseReport, Passage
from rag.cli.plan import FORMAT, Costs, FormatCosts

ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chatglm-rag"
VERSIONS = ("chatglm-rag", "faiss-cpu", "numpy", "onnxruntime", "tantivy")
QUESTIONS = 120
EMBEDDED, WRITTEN, SCANNED = 192, 6_000, 400_000  # chunks, chunks, codes
LAYERS, WIDTH, INNER = 12, 384, 1536  # of the bundled encoder

DIM = 384
VOCABULARY = 100_000
WORDS = 60  # of a synthetic chunk
CHUNKS = 20  # of a synthetic document
FAMILY = 50  # synthetic chunks around one centre
BATCH = 20_000  # chunks in one transaction


class Synthetic:
    """Text and vectors of `chunks` chunks, the same at every run: words by Zipf's law, vectors in
    clusters whose dimensions differ in size, like real ones."""

    def __init__(self, chunks: int) -> None:
        rng = np.random.default_rng(0)
        letters = np.array([chr(0x4E00 + offset) for offset in range(4_000)])
        first, second = rng.integers(0, len(letters), (2, VOCABULARY))
        self.words = np.char.add(letters[first], letters[second])
        share = 1 / np.arange(1, VOCABULARY + 1)
        self.cumulative = np.cumsum(share / share.sum())
        self.centres = rng.standard_normal((max(1, chunks // FAMILY), DIM), dtype=np.float32)
        self.sizes = np.exp(0.5 * rng.standard_normal(DIM, dtype=np.float32))

    def texts(self, rng: np.random.Generator, count: int, length: int) -> list[str]:
        drawn = np.searchsorted(self.cumulative, rng.random((count, length)))
        return ["".join(row) for row in self.words[drawn.clip(0, VOCABULARY - 1)]]

    def vectors(self, rng: np.random.Generator, count: int) -> np.ndarray:
        centres = self.centres[rng.integers(0, len(self.centres), count)]
        own = rng.standard_normal((count, DIM), dtype=np.float32)
        return unit((centres + 0.8 * own + 1) * self.sizes)

    def near(self, rng: np.random.Generator, vectors: np.ndarray) -> np.ndarray:
        """Questions: each near one of `vectors`, about as far as its family is."""
        return unit(vectors + 0.03 * rng.standard_normal(vectors.shape, dtype=np.float32))


class Text(NamedTuple):
    document: Document
    passages: list[Passage]
    chunks: list[Chunk]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Each row with length 1, float32."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / lengths).astype(np.float32, copy=False)


def synthetic_text(source: str, texts: list[str]) -> Text:
    """A document whose passages are single chunks."""
    text, start = Text(Document(source, source, source, ParseReport("synthetic")), [], []), 0
    name = text.document.id
    for part in texts:
        end, offsets = start + len(part), ((start, ""),)
        text.passages.append(Passage(name, start, end, part, ""))
        text.chunks.append(Chunk(name, source, source, offsets, "", start, end, part, passage=(start, end)))
        start = end
    return text


def add(store: Store, texts: Sequence[Text], vectors: np.ndarray) -> None:
    """Write the documents in one transaction; a row of `vectors` belongs to each chunk."""
    start = 0
    with store.change() as change:
        for text in texts:
            end = start + len(text.chunks)
            change.put(text.document)
            change.add(DocumentPart(*text, vectors[start:end]))
            start = end


def build(store: Store, synthetic: Synthetic, chunks: int) -> Iterator[tuple[int, float]]:
    """Fill the store up to `chunks`; yields after each batch how many there are, and its seconds."""
    for start in range(store.count(), chunks, BATCH):
        count = min(BATCH, chunks - start)
        rng = np.random.default_rng(start + 1)
        parts, vectors = synthetic.texts(rng, count, WORDS), synthetic.vectors(rng, count)
        begin, firsts = perf_counter(), range(0, count, CHUNKS)
        texts = [synthetic_text(f"{start + i}", parts[i : i + CHUNKS]) for i in firsts]
        add(store, texts, vectors)
        yield start + count, perf_counter() - begin


def read(paths: Sequence[Path], chunker: Chunker, *, ocr: bool) -> tuple[dict[str, FormatCosts], list[Text]]:
    """The documents, and what each format costs; unreadable ones are skipped.

    Seconds are shares by the clock of the work of all: the child's is known only when it has ended.
    """
    formats: dict[str, FormatCosts] = {}
    texts: list[Text] = []
    begin, before = perf_counter(), work()
    with Sandbox(ocr=ocr) as sandbox:
        for file in walk(paths):
            if file.skipped:
                continue
            start = perf_counter()
            try:
                parsed = sandbox.parse(file.path)
                document = Document(file.source, parsed.title, file.source, parsed.report)
                parts = list(chunker.split(document, parsed.segments))
            except Unreadable:
                continue
            seconds = perf_counter() - start
            passages = [passage for found, _ in parts for passage in found]
            chunks = [chunk for _, found in parts for chunk in found]
            if chunks:
                texts.append(Text(document, passages, chunks))
                name = parsed.report.format + ("+ocr" if parsed.report.ocr_pages else "")
                costs = FormatCosts(1, file.size, len(chunks), seconds)
                total = zip(formats.get(name, (0, 0, 0, 0.0)), costs, strict=True)
                formats[name] = FormatCosts(*map(sum, total))
    if not texts:
        raise SystemExit(f"nothing in {', '.join(map(str, paths))} could be read")
    share = min(1.0, (work() - before) / (perf_counter() - begin))
    return {
        name: costs._replace(seconds=costs.seconds * share) for name, costs in sorted(formats.items())
    }, texts


def work() -> float:
    """Seconds that this process and its ended children worked."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return process_time() + children.ru_utime + children.ru_stime


def embedding(texts: Sequence[Text], one: Embedder, every: Embedder) -> dict[str, float]:
    """A chunk's tokens, operations, and core seconds; `one` keeps one core busy, `every` all."""
    chunks = [chunk.indexed for text in texts for chunk in text.chunks]
    drawn = chunks[:: max(1, len(chunks) // EMBEDDED)][:EMBEDDED]
    counts = np.array(one.count_many(drawn), float)
    layers = LAYERS * 2 * (4 * WIDTH * WIDTH + 2 * WIDTH * INNER)  # multiplications, additions
    attention = LAYERS * 4 * WIDTH * counts  # to each other token, twice
    seconds = []
    for embedder in (one, every):
        embedder.embed_passages(drawn[:8])  # opens its session
        seconds.append(spent(process_time, lambda e=embedder: e.embed_passages(drawn)) / len(drawn))
    return {
        "tokens": float(counts.mean()),
        "flops": float((counts * (layers + attention)).mean()),
        "embed": seconds[0],
        "scaling": min(1.0, seconds[0] / seconds[1]),
    }


def storing(texts: Sequence[Text], folder: Path, identity: Identity) -> dict[str, float]:
    """A chunk's seconds and bytes. The documents are written under new names until there are enough."""
    rng = np.random.default_rng(0)
    chunks = [chunk.indexed for text in texts for chunk in text.chunks]
    repeats, seconds = -(-WRITTEN // len(chunks)), 0.0
    with open_store(folder, create=identity) as store:
        for number in range(repeats):
            batch = [copy_of(text, number) for text in texts]
            vectors = unit(rng.standard_normal((len(chunks), DIM), dtype=np.float32))
            seconds += spent(process_time, lambda b=batch, v=vectors: add(store, b, v))
    drawn = chunks[:: max(1, len(chunks) // 500)]
    terms = [len(set(split(text))) for text in drawn for split in (words, bigrams)]
    total = repeats * len(chunks)
    return {
        "write": seconds / total,
        "sqlite": (folder / "kb.sqlite").stat().st_size / total,
        "word_index": disk_usage(folder / "words") / total,
        "text": sum(len(text.encode()) for text in drawn) / len(drawn),
        "terms": sum(terms) / len(drawn),
    }


def copy_of(text: Text, number: int) -> Text:
    document = replace(text.document, source=f"{text.document.source} {number}")
    names = {"document": document.id, "source": document.source}
    return Text(
        document,
        [replace(passage, document=document.id) for passage in text.passages],
        [replace(chunk, **names) for chunk in text.chunks],
    )


def scanning(rows: int) -> tuple[float, float]:
    """Core seconds that a search takes for each code, and a code's bytes."""
    rng = np.random.default_rng(0)
    candidates, step = Candidates(DIM), rows // 4
    drawn = unit(rng.standard_normal((step, DIM), dtype=np.float32))
    candidates.train(drawn[:5_000], step)
    counts, medians, sizes = [], [], []
    for start in range(0, rows, step):
        candidates.add(np.arange(start + 1, start + step + 1), drawn)
        times = [spent(thread_time, lambda v=v: candidates.search(v, FEWEST)) for v in drawn[:40]]
        counts.append(candidates.rows)
        medians.append(float(np.median(times)))
        sizes.append(len(candidates.dump()))
    return line(counts, medians)[0], line(counts, sizes)[0]


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Slope and height of the line nearest the points, both kept above 0."""
    slope, height = np.polyfit(x, y, 1) if len(set(x)) > 1 else (y[0] / x[0], 0.0)
    return max(1e-12, float(slope)), max(1e-6, float(height))


def note(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def spent(clock: Callable[[], float], task: Callable[[], object]) -> float:
    start = clock()
    task()
    return clock() - start


def now() -> np.ndarray:
    return np.array([process_time(), thread_time(), perf_counter()])


def in_child(name: str, *arguments: Any) -> Any:
    """What the function of CHILDREN returns in a process of its own, which does nothing else."""
    command = [sys.executable, "-P", __file__, "--child", name]
    request = json.dumps(arguments)
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def answering(path: str, questions: list[str], cache: str, cores: int, whole: bool) -> dict[str, float]:
    """Medians over the questions, in seconds: `embed`, `ask` (all cores' work), `vectors`, `words`,
    `retrieve` (this thread's work, without embedding), `p50` and `p95` of it by the clock; means of the
    postings that are read and there; answers (if `whole`) and searches a second; peak bytes."""
    from ingest.i18n import Translator
    from ingest.normalize import terms
    from rag.config import read_config
    from rag.load import open_pipeline

    with open_pipeline(read_config(Path(path)), cache=Path(cache), say=Translator("en")) as pipeline:
        store, embed = pipeline.store, pipeline.embedder.embed_query
        run = pipeline.ask if whole else pipeline.retrieve
        run(questions[0])  # opens what is opened once
        vectors = [embed(question) for question in questions]

        def by_words(question: str) -> None:
            for field in ("words", "bigrams"):
                store.search_words(terms(question), 100, field=field)

        def search(number: int) -> None:
            store.search_dense(vectors[number], 100)
            by_words(questions[number])

        rows: list[list[float]] = []
        for question, vector in zip(questions, vectors, strict=True):
            start = now()
            embed(question)
            embedded = now()
            pipeline.retrieve(question)
            first, second = embedded - start, now() - embedded
            extract = spent(process_time, lambda q=question: run(q)) - second[0] if whole else 0
            by_vectors = spent(thread_time, lambda v=vector: store.search_dense(v, 100))
            lexical = spent(thread_time, lambda q=question: by_words(q))
            times = (first[0], second[1] - first[1], second[2] - first[2], extract)
            rows.append([*times, by_vectors, lexical, *postings(store, question)])
        rates = []
        for task, items in ((run, questions), (search, range(len(questions)))):
            with ThreadPoolExecutor(cores) as pool:
                seconds = spent(perf_counter, lambda t=task, i=items: list(pool.map(t, i)))
            rates.append(len(questions) / seconds)
    columns = np.array(rows).T
    names = ("embed", "retrieve", "clock", "extract", "vectors", "words")
    medians = {name: float(np.median(column)) for name, column in zip(names, columns, strict=False)}
    p50, p95 = np.percentile(columns[2], [50, 95])
    return medians | {
        "p50": float(p50), "p95": float(p95), "read": float(columns[6].mean()),
        "all_postings": float(columns[7].mean()), "answers": rates[0], "searches": rates[1],
        "resident": peak(),
    }  # fmt: skip


def postings(store: Store, question: str) -> tuple[int, int]:
    """How many postings the searches by words read for the question, and how many there are."""
    read = total = 0
    for field, split in (("words", words), ("bigrams", bigrams)):
        counts = sorted(filter(None, store.doc_freq(sorted(set(split(question))), field=field)))
        sums = list(accumulate(counts))
        total += sums[-1] if sums else 0
        read += max([each for each in sums if each <= POSTINGS] or sums[:1], default=0)
    return read, total


def peak() -> int:
    """The most bytes that this process held. On Linux, getrusage may report the parent's."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def multiplying() -> tuple[float, float]:
    """Products with int4 weights on all cores: operations/s of a prompt, bytes/s of a token."""
    import torch

    from rag.chatglm.quantize import BLOCK, Kernel, PackedWeight

    rows, columns = 27_392, 4_096  # ChatGLM2-6B's widest
    codes = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8)
    scales = torch.full((rows, columns // BLOCK), 1e-3, dtype=torch.float16)
    packed = PackedWeight(codes, scales, 4, BLOCK, (rows, columns))
    kernels = [Kernel(packed) for _ in range(4)]  # so many that no cache holds them
    best = []
    for length, repeats in ((256, 12), (1, 120)):
        vectors = torch.randn(length, columns)
        times = [
            spent(perf_counter, lambda i=i, v=vectors: kernels[i % len(kernels)](v)) for i in range(repeats)
        ]
        best.append(sorted(times)[repeats // 10])  # without other programs' turns
    size = codes.nbytes + scales.numel() * 4  # as ONNX Runtime holds them
    return 2 * rows * columns * 256 / best[0], size / best[1]


CHILDREN: dict[str, Callable[..., Any]] = {"answering": answering, "multiplying": multiplying}


def grow(
    folder: Path, identity: Identity, sizes: Sequence[int], cores: int
) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
    """One synthetic knowledge base, measured at each size: what the file keeps, and all figures."""
    synthetic, seconds = Synthetic(max(sizes)), 0.0
    questions = synthetic.texts(np.random.default_rng(10**9), QUESTIONS, 10)
    for size in sizes:
        with open_store(folder, create=identity) as store:
            seconds += sum(each for _, each in build(store, synthetic, size))
        found = in_child("answering", str(folder), questions, str(CACHE), cores, False)
        point = {"chunks": size, "build": seconds, "sqlite": (folder / "kb.sqlite").stat().st_size}
        point |= {"vector_index": disk_usage(folder / "vectors"), "word_index": disk_usage(folder / "words")}
        point |= {name: found[name] for name in ("resident", "p50", "p95", "vectors", "words")}
        yield point | {"postings": found["read"], "rate": found["searches"]}, found


def measure(paths: Sequence[Path], sizes: Sequence[int], scratch: Path | None) -> dict[str, Any]:
    """What `rag plan --constants` reads, with the figures that docs/scale.md shows beside it."""
    cores = len(os.sched_getaffinity(0))
    embedder, one = open_embedder(cache=CACHE), open_embedder(cache=CACHE, threads=1)
    settings = {"embedder": BUNDLED, "chunk": asdict(ChunkOptions())}
    identity = Identity(embedder.name, embedder.dim, settings)
    with tempfile.TemporaryDirectory(prefix="rag-plan-", dir=scratch) as folder:
        note("reading the documents")
        chunker = Chunker(embedder.count_many, embedder.max_tokens)
        formats, texts = read(paths, chunker, ocr=find_spec("rapidocr") is not None)
        note("embedding a part of them")
        embedded = embedding(texts, one, embedder)
        note("writing them")
        place = Path(folder, "documents")
        stored = storing(texts, place, identity)
        chunks = [chunk.text for text in texts for chunk in text.chunks if len(chunk.text) > 20]
        step = max(1, len(chunks) // QUESTIONS)
        questions = [text[:20] for text in chunks[::step]][:QUESTIONS]
        note("asking")
        real = in_child("answering", str(place), questions, str(CACHE), cores, True)
        note("scanning codes")
        scan, code = scanning(SCANNED)
        grown = []
        for pair in grow(Path(folder, "synthetic"), identity, sizes, cores):
            note(f"searched {pair[0]['chunks']:,} synthetic chunks")
            grown.append(pair)
    points, figures = [point for point, _ in grown], [found for _, found in grown]
    posting, rest = line([found["read"] for found in figures], [found["words"] for found in figures])
    coded = [point for point in points if point["chunks"] > EXACT_ROWS] or points[-1:]
    vectors = float(np.mean([point["vectors"] - scan * point["chunks"] for point in coded]))
    one_question = real["embed"] + real["retrieve"] + real["extract"]
    costs = Costs(
        embed=embedded["embed"],
        scaling=embedded["scaling"],
        vector_index=code,
        process=real["resident"],
        embed_question=real["embed"],
        scan=scan,
        vectors=max(1e-6, vectors),
        posting=posting,
        words=rest,
        postings=figures[-1]["all_postings"] / points[-1]["chunks"],
        fuse=max(1e-6, real["retrieve"] - real["vectors"] - real["words"]),
        extract=max(1e-6, real["extract"]),
        parallel=max(1.0, min(cores, real["answers"] * one_question)),
        **stored,
    )
    if find_spec("torch"):
        note("multiplying as a language model does")
        flops, bandwidth = in_child("multiplying")
        costs = replace(costs, int4_flops=flops, int4_bandwidth=bandwidth)
    given = {name: value for name, value in asdict(costs).items() if value is not None}
    return {
        "format": FORMAT,
        "cpu": cpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: version(name) for name in VERSIONS} | {"python": platform.python_version()},
        "machine": {"cores": cores, "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")},
        "formats": {name: each._asdict() for name, each in formats.items()},
        "costs": given,
        "chunk": {name: embedded[name] for name in ("tokens", "flops")},
        "synthetic": points,
    }


def cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(each.partition(":")[2].strip() for each in lines if each.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        json.dump(CHILDREN[sys.argv[2]](*json.load(sys.stdin)), sys.stdout)
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("paths", type=Path, nargs="*")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 50_000])
    parser.add_argument("--scratch", type=Path)
    options = parser.parse_args()
    paths = options.paths or sorted((ROOT / "corpora").glob("*/docs"))
    value = measure(paths, sorted(options.sizes), options.scratch)
    options.file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")
    for name, each in value["formats"].items():
        seconds = 1e6 * each["seconds"] / each["size"]
        sys.stdout.write(f"{name}: {each['files']} files, {each['chunks']} chunks, {seconds:.2g} s/MB\n")
    for name, number in value["costs"].items():
        sys.stdout.write(f"{name}: {number:.3g}\n")


if __name__ == "__main__":
    main()
