"""`rag ask` as a new process on a large knowledge base: python benchmarks/ask.py FOLDER [--chunks N].

The chunks are made (random vectors and text); the encoder, the settings and the way through the
program are the real ones. Prints wall times of whole processes and whether torch was imported.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from plan import Synthetic, build

from ingest.chunk import ChunkOptions
from ingest.embed import BUNDLED, open_embedder
from ingest.store import Identity, open_store
from rag.load import score_norm_of

QUESTIONS = ("试用期最长不得超过几个月？", "How long may probation be at most?")
LOADED = (
    "import sys; from rag.cli.app import main\n"
    "try: main()\n"
    "except SystemExit: pass\n"
    "names = {name.partition('.')[0] for name in sys.modules}\n"
    "sys.stderr.write(' '.join(sorted(names & {'torch', 'transformers'})))"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    path = options.folder / f"ask-{options.chunks}"
    prepare(path, options.chunks)
    for question in QUESTIONS:
        spent = [timed(path, question) for _ in range(options.runs)]
        first, *rest = spent
        sys.stdout.write(
            f"{question} {options.chunks} chunks: first {first:.2f} s, "
            f"then median {np.median(rest):.2f}, worst {max(rest):.2f} s\n"
        )
    loaded = subprocess.run(command(LOADED, path, QUESTIONS[0]), capture_output=True, text=True)
    sys.stdout.write(f"imported of torch, transformers: {loaded.stderr.strip() or 'none'}\n")


def prepare(path: Path, chunks: int) -> None:
    """The knowledge base at `path`, made where it is not there yet."""
    embedder = open_embedder()
    settings = {"embedder": BUNDLED, "chunk": asdict(ChunkOptions())}
    identity = Identity(embedder.name, embedder.dim, settings)
    with open_store(path, create=identity) as store:
        for _ in build(store, Synthetic(chunks), chunks):
            pass
        score_norm_of(store, embedder)


def command(code: str, path: Path, question: str) -> list[str]:
    return [sys.executable, "-c", code, "ask", "--kb", f"{path}/", question]


def timed(path: Path, question: str) -> float:
    start = time.perf_counter()
    code = "from rag.cli.app import main; main()"
    subprocess.run(command(code, path, question), capture_output=True, check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
