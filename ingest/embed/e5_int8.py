"""Linear layers with both sides in 8 bits, such that a text's vector is its own.

ONNX Runtime's `quantize_dynamic` takes one range of activations for a whole batch, so that the
outliers of one text blur all others. Here every token has its own range (`ByToken`), or, after a
layer norm, where a few channels are many times wider than the rest, every channel (`ByChannel`).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ingest.embed import onnx_session

_TOP = 127


@dataclass(frozen=True, slots=True)
class Range:
    """Least and largest value of each input channel: float32 (inputs,)."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]

    def widened(self, factor: float) -> "Range":
        """`factor` times as wide about its middle, and no channel under the median width."""
        two = np.float32(2)
        middle = (self.low + self.high) / two
        half = (self.high - self.low) / two * np.float32(factor)
        half = np.maximum(half, np.median(half).astype(np.float32))
        return Range(middle - half, middle + half)


@dataclass(frozen=True, slots=True)
class ByToken:
    """x @ weight.T = step * ((codes @ weight8) * scale) + low * total, for x = codes * step + low.

    low and step are each token's own: its least value and a 255th of its width. weight8 is int8
    (inputs, outputs); scale and total are float32 (outputs,).
    """

    weight8: NDArray[np.int8]
    scale: NDArray[np.float32]
    total: NDArray[np.float32]

    @classmethod
    def of(cls, weight: NDArray[np.float32]) -> "ByToken":
        """The int8 twin of `weight` (outputs, inputs)."""
        codes, scale = _rounded(weight)
        return cls(codes.T.astype(np.int8), scale, scale * codes.sum(axis=1))


@dataclass(frozen=True, slots=True)
class ByChannel:
    """x @ weight.T + bias = (codes @ weight8) * scale + bias8, where codes = x * gain + zero,
    rounded and cut to 0..255.

    gain and zero are float32 (inputs,); weight8 is int8 (inputs, outputs); scale and bias8, which
    takes back the zeros' share, are float32 (outputs,).
    """

    gain: NDArray[np.float32]
    zero: NDArray[np.float32]
    weight8: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias8: NDArray[np.float32]

    @classmethod
    def of(
        cls, weight: NDArray[np.float32], bias: NDArray[np.float32], limits: Range
    ) -> "ByChannel":
        """The int8 twin of `weight` (outputs, inputs) and `bias` for inputs within `limits`.

        A channel's step is multiplied into its weights (as in SmoothQuant, arXiv:2211.10438). No
        step is under their geometric mean: finer ones only cost the weights beside them bits.
        """
        step = ((limits.high - limits.low) / 255).astype(np.float32)
        step = np.maximum(step, np.exp(np.log(step).mean()).astype(np.float32))
        middle = (limits.low + limits.high) / 2 / step
        zero = np.round(127.5 - middle).astype(np.float32)
        codes, scale = _rounded(weight * step)
        bias8 = (bias - scale * (codes @ zero)).astype(np.float32)
        return cls(np.reciprocal(step), zero, codes.T.astype(np.int8), scale, bias8)


def _rounded(weight: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Whole numbers in -127..127 and what each row of them is multiplied with."""
    scale = np.maximum(np.abs(weight).max(axis=1), np.float32(1e-12)) / np.float32(_TOP)
    return np.round(weight / scale[:, None]), scale


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
    ids[:, 0], ids[:, -1] = onnx_session.BOS, onnx_session.EOS
    return ids
