"""A language model's speed and size: on this machine by measured rates, on GPUs by data sheets.

A word's time is that of reading the weights, a prompt's that of multiplying with them: the roofline.
GPUs are simulated, not measured: `SHARE` of the data sheet's rates is assumed to be reached.
"""

from dataclasses import dataclass
from math import ceil

from rag.plan.constants import Costs

PROMPT, ANSWER = 1_500, 200  # tokens: five passages of some 250 and the rest; a paragraph
BATCH = 256  # questions that an engine answers at once (vLLM's max_num_seqs, by default)
CACHE = (
    4_600  # bytes of keys and values a token and billion parameters: ChatGLM3-6B's 28 x 2 x 256 x 2
)
INT4 = 0.5 + 4 / 128  # bytes a weight: codes, and a float32 scale for 128
SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Gpu:
    """Dense 16-bit operations a second, bytes a second, bytes of memory: by NVIDIA's data sheet."""

    name: str
    flops: float
    bandwidth: float
    memory: float


GPUS = {
    "a100": Gpu("A100 80 GB", 312e12, 2.0e12, 80e9),
    "h200": Gpu("H200 141 GB", 989e12, 4.8e12, 141e9),
}


@dataclass(frozen=True, slots=True)
class Writing:
    """Seconds of an answer when nothing else is asked, answers a second of one unit, and the units:
    `gpus`, or 0 for the processor of the machine that answers."""

    seconds: float
    rate: float
    memory: float
    gpus: int
    fits: bool = True


def on_processor(costs: Costs, billions: float) -> Writing | None:
    """An int4 model on the measured machine, one answer at a time; None where rates are unmeasured."""
    if costs.flops_rate is None or costs.bytes_rate is None:
        return None
    prompt = PROMPT * 2 * billions * 1e9 / costs.flops_rate
    seconds = prompt + ANSWER * billions * 1e9 * INT4 / costs.bytes_rate
    return Writing(seconds, 1 / seconds, billions * 1e9 * INT4, 0)


def on_gpus(gpu: Gpu, billions: float, qps: float, *, busy: float) -> Writing:
    """A 16-bit model behind an engine that batches; as many GPUs as `qps` takes, each `busy` at most."""
    weights, flops, bandwidth = 2e9 * billions, SHARE * gpu.flops, SHARE * gpu.bandwidth
    shards = ceil(weights / (0.8 * gpu.memory))  # tensor parallel: the rest is for keys and values
    flops, bandwidth = shards * flops, shards * bandwidth
    prompt = PROMPT * weights / flops
    context = (PROMPT + ANSWER / 2) * CACHE * billions
    room = shards * 0.9 * gpu.memory - weights
    batch = max(1, min(BATCH, int(room / context)))
    step = max((weights + batch * context) / bandwidth, batch * weights / flops)
    rate = 1 / (prompt + ANSWER * step / batch)
    alone = prompt + ANSWER * (weights + context) / bandwidth
    return Writing(alone, rate / shards, weights, shards * ceil(qps / (busy * rate)))
