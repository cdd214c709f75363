"""What the reader does for the product's answers and refusals, as a Markdown table.

    python benchmarks/reader.py SHARED [--reader FOLDER] [--sets drcd-a-near,laws,...] [--limit 200] [--cache FOLDER]

The sets are those of SHARED/eval (of cmrc2018, drcd and xquad only questions about articles that are kept
for development, because the others are trained on), and `laws` and `rust-book` of corpora/. Each is
measured without a reader and with it: the right entry first after reading, refusal (FA: false answers at
5 % false refusals), exact match and F1 of the answer's span, and the answer in the first sentence. At the
end, the processor time of the read stage for 3 chunks of 200 tokens.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path[0] = str(Path(__file__).parents[1])  # benchmarks/finetune.py is not the package

from benchmarks.reader_data import is_held, lines, write  # noqa: E402  (behind the line above)
from ingest.embed.e5 import BundledEmbedder, open_embedder  # noqa: E402
from ingest.types import Chunk  # noqa: E402
from rag.evaluate import run  # noqa: E402
from rag.evaluate.dataset import Dataset  # noqa: E402
from rag.reader import Reader, open_reader  # noqa: E402
from rag.score_norm import READER_CALIBRATION, Calibration  # noqa: E402

CORPORA = Path(__file__).parents[1] / "corpora"
SETS = "drcd-a-near,drcd-a,cmrc2018-a-chunk,xquad-a-zh2en-near,laws,rust-book"
TRAINED_ON = ("cmrc2018-a", "drcd-a", "xquad-a")
COLUMNS = {
    "R@1": "success@1", "AUROC": "auroc", "FA": "false_answers_at_5", "EM": "exact", "F1": "f1",
    "in sentence": "answer_in_sentence", "false refusals": "false_refusals",
}  # fmt: skip


def load(name: str, shared: Path, limit: int) -> Dataset:
    if (CORPORA / name).is_dir():
        return Dataset.load(CORPORA / name).sample(limit)
    dataset = Dataset.load(shared / "eval" / name)
    if name.startswith(TRAINED_ON):
        articles = articles_of(name, shared)
        kept = tuple(each for each in dataset.questions if is_held(articles.get(each.id, "")))
        dataset = replace(dataset, questions=kept)
    return dataset.sample(limit)


def articles_of(name: str, shared: Path) -> Mapping[str, str]:
    """The article of each question, named as in reader_data.py."""
    rows = lines(shared / "eval" / name / "queries.jsonl")
    sources = {row["_id"]: row["metadata"]["source_id"] for row in rows}
    if name.startswith("drcd"):
        return {id: source.split("-")[0] for id, source in sources.items()}
    if name.startswith("cmrc"):
        return {id: source.rsplit("_QUERY", 1)[0] for id, source in sources.items()}
    packed = lines(shared / "reader/data/xquad-a.jsonl.zst")
    articles = {each["id"]: f"xq{row['article']}" for row in packed for each in row["questions"]}
    return {id: articles.get(source, "") for id, source in sources.items()}


def measure(dataset: Dataset, reader: Reader, cache: Path) -> None:
    with run.prepare(dataset, cache / "reader", cache=cache) as pipeline:
        for name, used, calibration in (
            ("none", None, Calibration()),
            ("reader", reader, READER_CALIBRATION),
        ):
            found = run.report(replace(pipeline, reader=used, calibration=calibration), dataset).figures()
            cells = [f"{found[key].value:.3f}" if key in found else "" for key in COLUMNS.values()]
            write("|", " | ".join([dataset.name, str(len(dataset.questions)), name, *cells]), "|")


def processor_time(reader: Reader, embedder: BundledEmbedder) -> float:
    """Milliseconds for 3 chunks of 200 tokens each, the median of 20."""
    text = "试用期最长不得超过六个月，劳动合同期限三个月以上不满一年的除外。" * 30
    while embedder.count(text) > 200:
        text = text[:-1]
    chunk = Chunk("d", "d.md", "劳动合同法", (), "劳动合同法", 0, len(text), text, (0, len(text)))
    times = []
    for _ in range(20):
        start = time.process_time()
        reader.read("试用期最长几个月？", [chunk] * 3)
        times.append(1000 * (time.process_time() - start))
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shared", type=Path)
    parser.add_argument("--reader", default="bundled", help="folder of other weights")
    parser.add_argument("--sets", default=SETS)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/chatglm-rag")
    options = parser.parse_args()
    embedder = open_embedder(cache=options.cache, threads=1)
    assert isinstance(embedder, BundledEmbedder)
    reader = open_reader(options.reader, embedder)
    write("| set | questions | read by |", " | ".join(COLUMNS), "|")
    write("| --- " * (3 + len(COLUMNS)) + "|")
    for name in options.sets.split(","):
        measure(load(name, options.shared, options.limit), reader, options.cache)
    write(
        f"\nread stage, 3 chunks of 200 tokens: {processor_time(reader, embedder):.0f} ms of processor time"
    )


if __name__ == "__main__":
    main()
