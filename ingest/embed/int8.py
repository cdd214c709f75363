"""Linear layers in int8, within limits measured once: fast, and a text's vector is its own.

Limits measured anew for every batch (ONNX Runtime's `quantize_dynamic`) let the outliers of one
text blur all others in its batch. These are fixed, and each input channel has its own.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_TOP = 127


@dataclass(frozen=True, slots=True)
class Range:
    """Least and largest value of each input channel: float32 (inputs,)."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]

    def widened(self, factor: float, floor: float, least: float) -> "Range":
        """`factor` times as wide about its middle, and no channel under `floor` median widths.

        Nothing reaches below `least`, which the values are known never to do.
        """
        two = np.float32(2)
        middle = (self.low + self.high) / two
        half = (self.high - self.low) / two * np.float32(factor)
        half = np.maximum(half, np.float32(floor * np.median(half)))
        return Range(np.maximum(middle - half, np.float32(least)), middle + half)


@dataclass(frozen=True, slots=True)
class Int8Linear:
    """y = scale * (codes @ weight) + bias, where codes = round(x * gain + zero), cut to 0..255.

    gain and zero float32 (inputs,); weight int8 (inputs, outputs); scale and bias float32
    (outputs,). The zeros' share is part of the bias.
    """

    gain: NDArray[np.float32]
    zero: NDArray[np.float32]
    weight: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]


def quantized(weight: NDArray[np.float32], bias: NDArray[np.float32], limits: Range) -> Int8Linear:
    """The int8 twin of `x @ weight.T + bias` for x within `limits`; weight is (outputs, inputs).

    A channel's step is multiplied into its weights, so that channels of very unlike ranges share
    one integer product (as in SmoothQuant, arXiv:2211.10438, but asymmetric and data-free). No
    step is under their geometric mean: finer ones would only cost the weights beside them bits.
    """
    step = (limits.high - limits.low) / np.float32(255)
    step = np.maximum(step, np.exp(np.log(step).mean()))
    # Whole, so that 0 stays exactly 0: most of GELU's outputs are close to it, and a shift that
    # they all share would add up.
    zero = np.round(127.5 - (limits.low + limits.high) / 2 / step)
    stepped = weight * step
    scale = np.maximum(np.abs(stepped).max(axis=1), np.float32(1e-12)) / _TOP
    codes = np.round(stepped / scale[:, None])
    return Int8Linear(
        (1 / step).astype(np.float32),
        zero.astype(np.float32),
        codes.T.astype(np.int8),
        scale.astype(np.float32),
        (bias - scale * (codes @ zero)).astype(np.float32),
    )
