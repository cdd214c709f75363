"""Retrieval, reading and refusal on a folder of BEIR-like sets, as the table of goals.

    python benchmarks/retrieval.py SETS [--only 'drcd*'] [--limit 600] [--cache FOLDER] [--milvus URL]

With `--milvus milvus://127.0.0.1:19530` the knowledge bases are made there, and Milvus's own fusions
of the same three searches are measured beside ours.

Knowledge bases and reports stay in the cache, so that a second run only asks, and two commits'
reports can be compared. R@k is the share of questions with a relevant entry among the first k
(trec_eval's success), as in the published baselines.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingest.normalize import terms
from rag.config import SETTINGS
from rag.evaluate import run
from rag.evaluate.dataset import Dataset
from rag.evaluate.report import EvalReport, Figure, compare
from rag.evaluate.score import Prediction, evaluate

if TYPE_CHECKING:
    from ingest.store import Ranking
    from rag.pipeline import Pipeline

DEPTH = 100  # chunks a leg returns: enough for ten distinct entries of long documents
LEGS = ("dense", "words", "bigrams")
OWN = ("Milvus RRF", "Milvus weighted")
COLUMNS = {
    "R@1": "success@1",
    "R@5": "success@5",
    "R@10": "success@10",
    "MRR@10": "mrr@10",
    "nDCG@10": "ndcg@10",
}


@dataclass(frozen=True)
class Goal:
    """`measure` of `system` on the sets that match `pattern` is at least `least`."""

    what: str
    pattern: str
    system: str
    measure: str
    least: float


GOALS = (
    Goal("R@1", "cmrc2018-?-chunk", "fused", "success@1", 0.83),
    Goal("R@5", "cmrc2018-?-chunk", "fused", "success@5", 0.988),
    Goal("R@1", "drcd-?", "fused", "success@1", 0.93),
    Goal("R@5", "xquad-?-zh2en", "fused", "success@5", 0.85),
    Goal("R@5", "xquad-?-en2zh", "fused", "success@5", 0.92),
    Goal("answer in the best sentence", "cmrc2018-?", "answers", "answer_in_sentence", 0.76),
    Goal("answer in two sentences", "cmrc2018-?", "answers", "answer_in_two", 0.85),
    Goal("refusal AUROC", "cmrc2018-?-chunk", "answers", "auroc", 0.98),
    Goal("refusal AUROC", "drcd-?", "answers", "auroc", 0.95),
    Goal("refusal AUROC", "xquad-?-zh2en", "answers", "auroc", 0.80),
    Goal("exact citations", "*", "answers", "citations", 1.0),
)
ALLOWED_LOSS = 0.005  # of the fused ranking against its better leg, in R@5 and nDCG@10


@dataclass(frozen=True)
class Measured:
    """One system on one set."""

    report: EvalReport
    figures: Mapping[str, Figure]


Systems = Mapping[str, Measured]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sets", type=Path, help="a folder of BEIR-like folders")
    parser.add_argument("--only", default="*", help="sets whose name matches, such as 'drcd*'")
    parser.add_argument("--limit", type=int, default=sys.maxsize, help="questions a set, at random")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/chatglm-rag/benchmarks")
    parser.add_argument("--milvus", default="", help="a server: milvus://host:port")
    options = parser.parse_args()
    found: dict[str, Systems] = {}
    for folder in sorted(path.parent for path in options.sets.glob("*/corpus.jsonl")):
        if fnmatch(folder.name, options.only):
            dataset = Dataset.load(folder).sample(options.limit)
            found[folder.name] = measure(dataset, options.cache, options.milvus)
    write(["what", "set", "at least", "value", "95 % interval", "met"], goal_rows(found))
    write(["set", "system", *COLUMNS], set_rows(found))


def measure(dataset: Dataset, cache: Path, milvus: str) -> Systems:
    """Every system on `dataset`; the reports are saved in the cache."""
    (cache / "reports").mkdir(parents=True, exist_ok=True)
    measured: dict[str, Measured] = {}
    with prepared(dataset, cache, milvus) as pipeline:
        texts = run.source_text(pipeline, dataset)
        for system, ask in systems(pipeline).items():
            sys.stderr.write(f"{dataset.name}: {system}\n")
            settings = {"name": system, "embedder": pipeline.embedder.name}
            report = evaluate(dataset, ask, texts, settings=settings)
            where = "milvus." if milvus else ""
            report.save(cache / "reports" / f"{where}{dataset.name}.{system}.json")
            measured[system] = Measured(report, report.figures())
    return measured


def prepared(dataset: Dataset, cache: Path, milvus: str) -> "Pipeline":
    if not milvus:
        return run.prepare(dataset, cache / "kb", cache=cache)
    name = "".join(c if c.isalnum() else "_" for c in dataset.name)
    with tempfile.TemporaryDirectory() as scratch:
        settings = Path(scratch, SETTINGS)
        settings.write_text(f'[store]\nurl = "{milvus}/eval_{name}"\n', "utf-8")
        return run.prepare(dataset, cache / "kb-milvus", cache=cache, settings=settings, settle=True)


def systems(pipeline: "Pipeline") -> dict[str, Callable[[str], Prediction]]:
    """The legs by themselves, the fused ranking, and the whole way to the answer."""
    store, embedder = pipeline.store, pipeline.embedder

    def leg(search: "Callable[[str], Ranking]") -> Callable[[str], Prediction]:
        return lambda question: Prediction(run.spans(store.chunks(search(question).keys).values()))

    return {
        "dense": leg(lambda question: store.search_dense(embedder.embed_query(question), DEPTH)),
        "words": leg(lambda question: store.search_words(terms(question), DEPTH)),
        "bigrams": leg(lambda question: store.search_words(terms(question), DEPTH, field="bigrams")),
        "fused": lambda question: fused(pipeline, question),
        "answers": lambda question: run.predict(pipeline, question),
        **milvus_fusions(pipeline),
    }


def milvus_fusions(pipeline: "Pipeline") -> dict[str, Callable[[str], Prediction]]:
    """The three searches fused by the server, as its hybrid search does it."""
    if not pipeline.store.location.startswith("milvus"):
        return {}
    from pymilvus import AnnSearchRequest, MilvusClient, RRFRanker, WeightedRanker

    from ingest.store import parse_address
    from ingest.store.milvus.client import query_text
    from rag.question import analyze

    address = parse_address(pipeline.store.location)
    token = os.environ.get("MILVUS_TOKEN", "")
    client = MilvusClient(address.uri, token=token, db_name=address.database)

    def hybrid(question: str, ranker: Any) -> Prediction:
        query, vector = analyze(question), pipeline.embedder.embed_query(question)
        centred = pipeline.norm.centred(query.script, vector).tolist()
        asks = [(field, query_text(query.content.text, field)) for field in ("words", "bigrams")]
        legs = [AnnSearchRequest([centred], "vector", {}, DEPTH)]
        legs += [AnnSearchRequest([text], f"{field}_bm25", {}, DEPTH) for field, text in asks if text]
        chosen = ranker(len(legs))
        hits = client.hybrid_search(address.name, legs, chosen, limit=DEPTH)[0]
        found = pipeline.store.chunks([hit["key"] for hit in hits])
        return Prediction(run.spans(found.values()))

    def weighted(legs: int) -> Any:
        return WeightedRanker(0.5, *([0.5 / (legs - 1)] * (legs - 1)) if legs > 1 else ())

    return {
        OWN[0]: lambda question: hybrid(question, lambda legs: RRFRanker()),
        OWN[1]: lambda question: hybrid(question, weighted),
    }


def fused(pipeline: "Pipeline", question: str) -> Prediction:
    if not question.strip():  # a set holds one
        return Prediction([])
    hits = pipeline.retrieve(question, limit=DEPTH).hits
    return Prediction(run.spans(hit.chunk for hit in hits))


def goal_rows(found: Mapping[str, Systems]) -> Iterator[list[str]]:
    for goal in GOALS:
        for name, measured in found.items():
            figure = measured[goal.system].figures.get(goal.measure)
            if figure and fnmatch(name, goal.pattern):
                span = f"{figure.low:.3f} to {figure.high:.3f}"
                met = "yes" if figure.value >= goal.least else "no"
                yield [goal.what, name, f"{goal.least:.3f}", f"{figure.value:.3f}", span, met]
    for name, measured in found.items():
        yield from loss_rows(name, measured)


def loss_rows(name: str, measured: Systems) -> Iterator[list[str]]:
    """What the fused ranking gains or loses against the better of vectors and words."""
    for column, title in (("success@5", "R@5"), ("ndcg@10", "nDCG@10")):
        best = max(LEGS[:2], key=lambda leg: measured[leg].figures[column].value)
        loss = compare(measured[best].report, measured["fused"].report)[column]
        span = f"{loss.low:+.3f} to {loss.high:+.3f}"
        met = "yes" if loss.difference >= -ALLOWED_LOSS else "no"
        what = f"{title}, fused less the better leg ({best})"
        yield [what, name, f"{-ALLOWED_LOSS:+.3f}", f"{loss.difference:+.3f}", span, met]


def set_rows(found: Mapping[str, Systems]) -> Iterator[list[str]]:
    for name, measured in found.items():
        for system in (*LEGS, "fused", *(own for own in OWN if own in measured)):
            figures = measured[system].figures
            yield [name, system, *(f"{figures[key].value:.3f}" for key in COLUMNS.values())]


def write(head: list[str], rows: Iterator[list[str]]) -> None:
    """A Markdown table on standard output."""
    for row in (head, ["---"] * len(head), *rows):
        sys.stdout.write(f"| {' | '.join(row)} |\n")
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
