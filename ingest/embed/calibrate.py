"""The ranges of the layer norms' outputs, measured without any text.

Ids are drawn from the tokenizer's own unigram distribution, which knows how common every piece is
in every language. Real text is .8 to 1.5 times as wide in nine channels of ten.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ingest.embed import onnx_session, tokens
from ingest.embed.e5_int8 import Range

_TEXTS, _TOKENS = 32, 128
_MARGIN = 1.2


def ranges(ids: NDArray[np.int32], watched: Path) -> dict[str, Range]:
    """The range of what each matrix reads on `ids`, from the graph `watched` (`Graph.model`)."""
    watcher = onnx_session.load(watched, threads=1)
    names = [output.name for output in watcher.get_outputs()][1:]
    extremes = map(np.asarray, watcher.run(names, {"ids": ids, "mask": np.ones_like(ids)}))
    found = dict(zip(names, extremes, strict=True))
    matrices = sorted({name.rpartition(".")[0] for name in names})
    return {
        name: Range(found[f"{name}.low"], found[f"{name}.high"]).widened(_MARGIN)
        for name in matrices
    }


def sample(scores: NDArray[np.float32]) -> NDArray[np.int32]:
    """Ids (texts, tokens) by their pieces' log probabilities; always the same ones."""
    chances = np.exp(scores.astype(np.float64))
    chances[scores >= 0] = 0  # the marks
    draw = np.random.default_rng(0).choice
    ids = draw(len(chances), (_TEXTS, _TOKENS), p=chances / chances.sum()).astype(np.int32)
    ids[:, 0], ids[:, -1] = tokens.BOS, tokens.EOS
    return ids
