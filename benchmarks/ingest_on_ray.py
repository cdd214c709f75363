"""What a Ray cluster gains and costs: python benchmarks/ingest_on_ray.py FOLDER [--files 300]. Markdown.

The same files are ingested without Ray and with it, on one core and on all, each time in processes
that have no other cores; first with the bundled encoder, then with a stand-in that costs nothing,
which shows what is spent beside it. Leave the machine alone meanwhile.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np

from ingest.chunk import Chunker, ChunkOptions
from ingest.embed import Embedder, Vector, Vectors, open_embedder
from ingest.files import walk
from ingest.pipeline import Ingestion
from ingest.ray_pipeline import Tools, cluster, ingest_on_ray
from ingest.sandbox import Sandbox
from ingest.store import Identity, open_store
from rag.cli.options import cache_home


class Nothing:
    """Counts .65 tokens a character, as the bundled encoder does on Chinese; every vector is one."""

    name, dim, max_tokens = "nothing", 384, 500

    def count(self, text: str) -> int:
        return int(0.65 * len(text)) + 1

    def count_many(self, texts: Sequence[str]) -> list[int]:
        return [self.count(text) for text in texts]

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        return np.full((len(texts), self.dim), self.dim**-0.5, np.float32)

    def embed_query(self, text: str) -> Vector:
        return self.embed_passages([text])[0]


ENCODERS: dict[str, Callable[[], Embedder]] = {
    "bundled": partial(open_embedder, cache=cache_home()),
    "nothing": Nothing,
}
WORKERS: dict[str, Callable[[], Embedder]] = ENCODERS | {
    "bundled": partial(open_embedder, cache=cache_home(), threads=1)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=300, help="at most, evenly over the folder")
    parser.add_argument("--one", nargs=3, help="ENCODER CORES ray|serial: one run, told as JSON")
    options = parser.parse_args()
    if options.one:
        encoder, cores, how = options.one
        sys.stdout.write(json.dumps(run(options.folder, options.files, encoder, int(cores), how)))
        return
    cores = sorted({1, len(os.sched_getaffinity(0))})
    for encoder in ENCODERS:
        runs = {
            (count, how): apart(options.folder, options.files, encoder, count, how)
            for count in cores
            for how in ("serial", "ray")
        }
        sys.stdout.write(f"{encoder}:\n\n{table(runs)}\n")
        sys.stdout.flush()


def apart(folder: Path, files: int, encoder: str, cores: int, how: str) -> dict[str, float]:
    """`run` in a process that has `cores` cores."""
    command = [sys.executable, __file__, str(folder), "--files", str(files)]
    mine = sorted(os.sched_getaffinity(0))[:cores]
    done = subprocess.run(
        [*command, "--one", encoder, str(cores), how],
        stdout=subprocess.PIPE,
        check=True,
        preexec_fn=partial(os.sched_setaffinity, 0, mine),
    )
    return json.loads(done.stdout)


def run(folder: Path, files: int, encoder: str, cores: int, how: str) -> dict[str, float]:
    """Seconds until the cluster is up, until the first document is stored, and in all."""
    found = [file for file in walk([folder]) if not file.skipped]
    found = found[:: -(-len(found) // files)]
    embedder = ENCODERS[encoder]()
    options = ChunkOptions()
    chunker = Chunker(embedder.count_many, embedder.max_tokens, options)
    identity = Identity(embedder.name, embedder.dim)
    first, chunks = 0.0, 0
    with tempfile.TemporaryDirectory() as scratch:
        kb = Path(scratch, "kb")
        parser = partial(Sandbox, ocr=False)
        start = perf_counter()
        with (
            open_store(kb, create=identity) as store,
            parser() as sandbox,
            cluster(workers=cores) if how == "ray" else nullcontext(1) as workers,
        ):
            up = perf_counter() - start
            if how == "ray":
                tools = Tools(WORKERS[encoder], parser, options, embedder.name)
                outcomes = ingest_on_ray(found, store, tools, workers=workers)
            else:
                outcomes = Ingestion(store, embedder, chunker, sandbox).run(found)
            for outcome in outcomes:
                first = first or perf_counter() - start
                chunks += outcome.chunks
        spent = perf_counter() - start
    return {"files": len(found), "chunks": chunks, "up": up, "first": first, "spent": spent}


def table(runs: dict[tuple[int, str], dict[str, float]]) -> str:
    head = ["cores", "", "files", "chunks", "cluster up", "first stored"]
    head += ["then, a file", "all", "files/s", "chunks/s", "overhead"]
    lines = [head, ["---"] * len(head)]
    for (cores, how), it in runs.items():
        serial = runs[cores, "serial"]["spent"]
        lines.append(
            [
                str(cores),
                "without Ray" if how == "serial" else f"Ray, workers: {cores}",
                f"{it['files']:,}",
                f"{it['chunks']:,}",
                f"{it['up']:.1f} s" if how == "ray" else "",
                f"{it['first']:.1f} s",
                f"{1000 * (it['spent'] - it['first']) / it['files']:.0f} ms",
                f"{it['spent']:.1f} s",
                f"{it['files'] / it['spent']:.2f}",
                f"{it['chunks'] / it['spent']:.1f}",
                f"{it['spent'] - serial:+.1f} s, {it['spent'] / serial - 1:+.0%}" if how == "ray" else "",
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


if __name__ == "__main__":
    main()
