"""The value ranges that the int8 layers need, measured without any text.

Ids are drawn from the tokenizer's own unigram distribution, which knows how common every piece is
in every language. After a layer norm, ranges on such rows and on real text differ by a quarter at
most; for the other inputs see `_MARGINS`.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ingest.embed import session, tokens
from ingest.embed.int8 import Range

_TEXTS, _TOKENS = 32, 128

# How far to widen what was measured, the least width of a channel in median widths, and the least
# value, by the matrix that reads it. The outputs of attention and of GELU are sparse: a channel
# that kept quiet here may speak on real text, and a value cut off costs more than coarse steps.
_MARGINS = {
    "q": (1.2, 0.0, -np.inf),
    "fi": (1.3, 0.0, -np.inf),
    "ao": (2.0, 2.0, -np.inf),
    "fo": (2.0, 2.0, -0.17),  # GELU's minimum is -0.16997
}


def ranges(ids: NDArray[np.int32], watched: Path) -> dict[str, Range]:
    """The range of what each matrix reads on `ids`, from the graph `watched` (`Graph.model`)."""
    watcher = session.load(watched, threads=1)
    names = [output.name for output in watcher.get_outputs()][1:]
    extremes = map(np.asarray, watcher.run(names, {"ids": ids, "mask": ids * 0 + 1}))
    found = dict(zip(names, extremes, strict=True))
    return {
        name: Range(found[f"{name}.low"], found[f"{name}.high"]).widened(
            *_MARGINS[name.rpartition(".")[2]]
        )
        for name in {name.rpartition(".")[0] for name in names}
    }


def sample(scores: NDArray[np.float32]) -> NDArray[np.int32]:
    """Ids (texts, tokens) by their pieces' log probabilities; always the same ones."""
    chances = np.exp(scores.astype(np.float64))
    chances[scores >= 0] = 0  # the marks
    draw = np.random.default_rng(0).choice
    ids = draw(len(chances), (_TEXTS, _TOKENS), p=chances / chances.sum()).astype(np.int32)
    ids[:, 0], ids[:, -1] = tokens.BOS, tokens.EOS
    return ids
