"""Measures the ranges of activations that `ingest/embed/e5_graph.py` multiplies in int8 with.

    python benchmarks/encoder_ranges.py ingest/embed/e5_ranges.safetensors

They are the extremes of each layer norm's output, by channel, on tokens that are drawn by the tokenizer's own
probabilities; so no text is needed. Other ranges give other vectors: raise `_RECIPE` in `ingest/embed/e5.py`.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from safetensors.numpy import save_file

from ingest.embed import e5, e5_graph

MARGIN = 1.2


class Watched(e5_graph.Graph):
    """The float32 graph with outputs `<matrix>.low` and `.high` for the input of the first matrix that
    reads a layer norm."""

    def _model(self, inputs, outputs):
        axes = self._weight("axes", np.array([0, 1]))
        extremes = [
            self._op(kind, [x, axes], output=f"{name}.{end}", keepdims=0)
            for x, name in self._readers.items()
            if name.endswith((".q", ".fi"))
            for kind, end in (("ReduceMin", "low"), ("ReduceMax", "high"))
        ]
        return super()._model(inputs, extremes)


def main(target: Path) -> None:
    checkpoint = e5_graph.read(e5.data_file())
    ids = e5_graph.sample(checkpoint.scores)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder, "watched.onnx")
        with Path(folder, "weights.bin").open("wb") as file:
            onnx.save(Watched(checkpoint, e5_graph.Weights(file)).model(), graph)
        session = e5_graph.open_session(graph, threads=1)
        names = [output.name for output in session.get_outputs()]
        values = session.run(names, {"ids": ids, "mask": np.ones_like(ids)})
    ends = dict(zip(names, map(np.asarray, values), strict=True))
    for name in {name.rpartition(".")[0] for name in names}:
        ends[f"{name}.low"], ends[f"{name}.high"] = widen(ends[f"{name}.low"], ends[f"{name}.high"])
    save_file(ends, target)


def widen(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`MARGIN` times as wide about its middle, and no channel narrower than the median width."""
    two = np.float32(2)
    middle, half = (low + high) / two, (high - low) / two * np.float32(MARGIN)
    half = np.maximum(half, np.median(half).astype(np.float32))
    return middle - half, middle + half


if __name__ == "__main__":
    main(Path(sys.argv[1]))
