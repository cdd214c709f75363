"""The memory that a model needs in each mode, estimated from its config.json; which mode fits.

A need consists of the weights, the keys and values of the context, the working memory for reading a
prompt, and what the libraries take. GB are 2**30 bytes, as in upstream's figures and nvidia-smi;
tests/rag/chatglm/test_memory.py compares them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from transformers import Glm4Config, PreTrainedConfig

from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.chatglm.configuration import Quant, generation_of, stored_bits, stored_dtype
from rag.chatglm.quantize import BLOCK, HEAD_BLOCK

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """Free memory in bytes."""

    ram: int | None  # None if the system does not report it
    gpu: int  # of the current CUDA device; 0 without one

    @classmethod
    def here(cls) -> "MemoryBudget":
        gpu = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
        return cls(ram_free(), gpu)

    def on(self, device: Device) -> int | None:
        return self.ram if device == "cpu" else self.gpu

    def holds(self, size: int, device: Device) -> bool:
        """Whether `size` bytes are free; also True if the free memory is unknown."""
        free = self.on(device)
        return free is None or size <= free


def ram_free(root: Path = Path("/")) -> int | None:
    """Bytes that are free for this process: the least that the machine, its control groups and its
    own limit leave. None if the system has no /proc."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    table = {name: value for name, _, value in (line.partition(":") for line in lines)}
    limits = [int(table["MemAvailable"].split()[0]) * 1024, *_free_in_groups(root)]
    import resource  # exists on every system with /proc

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]  # of `ulimit -v`
    if limit != resource.RLIM_INFINITY:
        pages = int((root / "proc/self/statm").read_text().split()[0])
        limits.append(limit - pages * resource.getpagesize())
    return max(0, min(limits))


GROUP_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
"""By version: the files of a group with its limit and usage, and the field of memory.stat with the page
cache, which the kernel counts as used but frees when memory is short."""


def _free_in_groups(root: Path) -> Iterator[int]:
    """The bytes that each control group of this process leaves."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        *names, cache = GROUP_FILES[1 if controllers else 2]
        top = root / "sys/fs/cgroup" / controllers
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(top):
                break
            try:
                limit, used = (int((folder / name).read_text()) for name in names)
                stat = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # the group is not visible from here, or has no limit
                continue
            yield limit - used + int(stat.get(cache, 0))


GB = 2**30
CONTEXT = 2048
"""Tokens for which a need is estimated: ChatGLM-6B's whole window, and upstream's measurements."""
RUNTIME = {"cpu": GB // 2, "cuda": GB}
"""Python, torch, transformers and ONNX Runtime take 0.4 GB before a model loads. A CUDA context with
its kernels and cuBLAS' buffers was not measured: it is the remainder of upstream's six figures for
ChatGLM2, 0.85 to 1.2 GB."""
SCALE = {"cpu": 12, "cuda": 2}
"""Bytes per block of codes: one float16 scale; ONNX Runtime has the scale twice in float32, and the
sum of the block (measured: 0.688 and 1.188 bytes per weight with blocks of 64)."""
SPARE = {"cpu": 2, "cuda": 1}
"""Factor of the widest activations. On the CPU, malloc keeps freed pieces: 0.54 MB per token of a
prompt was measured at ChatGLM2-6B's width, packed, of which 0.32 MB are in use."""
QUANTISING = 6
"""Bytes per weight of the head while it is quantised on the CPU (measured: 4.2 for int4, 6.1 for
int8, at ChatGLM2-6B's width); the layers' matrices are smaller, and the head comes last."""
NF4_BLOCK = 64  # bitsandbytes: weights that share a float32 scale


@dataclass(frozen=True, slots=True)
class Parameters:
    """The numbers of parameters of each part of a model."""

    embedding: int
    head: int  # 0 if the head is the embedding
    linears: int  # the weights of the layers' linear modules, which quantisation changes
    rest: int  # norms and biases
    largest: int  # the largest single linear weight of a layer

    @property
    def total(self) -> int:
        return self.embedding + self.head + self.linears + self.rest


@dataclass(frozen=True, slots=True)
class Mode:
    """A way to load and run a model; `dtype` is that of activations and of weights without codes."""

    quant: Quant
    device: Device
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Need:
    """The memory that a mode needs, in bytes."""

    mode: Mode
    weights: int
    cache: int
    work: int
    runtime: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.work + self.runtime


def parameters(config: PreTrainedConfig) -> Parameters:
    """The parts of any generation's model; raises `UserError` if the config is of another family."""
    generation = generation_of(config)
    width, layers, words = config.hidden_size, config.num_hidden_layers, config.vocab_size
    inner = config.intermediate_size
    if generation == 1:
        shapes = [3 * width * width, width * width, inner * width, inner * width]
        rest = 3 * width + width + inner + width + 4 * width  # four biases, two norms with bias
        last = 2 * width
    else:
        queries = config.num_attention_heads * config.head_dim
        both = 2 * config.num_key_value_heads * config.head_dim
        shapes = [(queries + both) * width, queries * width, 2 * inner * width, inner * width]
        norms = 4 if isinstance(config, Glm4Config) else 2
        rest = norms * width + (queries + both if config.attention_bias else 0)
        last = width
    head = 0 if config.tie_word_embeddings else words * width
    return Parameters(words * width, head, layers * sum(shapes), layers * rest + last, max(shapes))


def modes(config: PreTrainedConfig, device: Device) -> list[Mode]:
    """The modes in which this checkpoint can run on the device, the most exact first."""
    if device == "cpu":
        exact = [Mode("none", device, torch.float32), Mode("none", device, torch.bfloat16)]
        codes = [Mode("int8", device, torch.float32), Mode("int4", device, torch.float32)]
    else:
        half = stored_dtype(config) if stored_dtype(config) != torch.float32 else torch.float16
        exact = [Mode("none", device, half)]
        codes = [Mode("int8", device, half), Mode("nf4", device, half), Mode("int4", device, half)]
    bits = stored_bits(config)
    return [mode for mode in codes if mode.quant == f"int{bits}"] if bits else exact + codes


def need(config: PreTrainedConfig, mode: Mode, *, context: int = CONTEXT) -> Need:
    """The need of a conversation whose prompt may fill the `context`, in tokens."""
    counts, size, words = parameters(config), mode.dtype.itemsize, config.vocab_size
    if generation_of(config) == 1:
        width = config.hidden_size
        wide = 3 * config.intermediate_size  # before, within and after gelu
    else:
        width = config.num_key_value_heads * config.head_dim
        wide = 4 * config.intermediate_size  # gate and up in one, silu(gate), the product
    cache = 2 * config.num_hidden_layers * width * context * size
    # One layer at a time: residual, norm, queries, keys and values, attention's output.
    spare = SPARE[mode.device]
    work = context * (6 * config.hidden_size + spare * wide) * size + words * size
    if mode.device == "cuda" and mode.quant != "none":
        work += counts.largest * size  # codes of one weight at a time become floats
    if mode.device == "cpu" and mode.quant != "none" and not stored_bits(config):
        work = max(work, QUANTISING * counts.embedding - cache)  # loading needs more than running
    return Need(mode, weights(config, mode), cache, work, RUNTIME[mode.device])


def weights(config: PreTrainedConfig, mode: Mode) -> int:
    """Bytes of the weights only."""
    counts, size = parameters(config), mode.dtype.itemsize
    if mode.quant == "none":
        return counts.total * size
    bits, scale, stored = int(mode.quant[-1]), SCALE[mode.device], stored_bits(config)
    linears = bits / 8 + scale / BLOCK
    # On the CPU rows of the embedding are cast when they are looked up.
    embedding = stored_dtype(config).itemsize if mode.device == "cpu" else size
    head = counts.head * size  # bitsandbytes and upstream do not quantise it
    by_bitsandbytes = mode.quant == "nf4" or (mode.quant == "int8" and mode.device == "cuda")
    if getattr(config, "packed", None) or not (stored or by_bitsandbytes):
        # If the head is the embedding, its codes are an additional copy.
        head = counts.embedding * (bits / 8 + scale / HEAD_BLOCK)
    elif not stored:
        linears = 1 if mode.quant == "int8" else 0.5 + 4 / NF4_BLOCK
    elif config.quantization_embeddings:  # both, from the same codes
        embedding, head = linears, counts.embedding * linears
    words = counts.embedding * embedding
    return round(counts.linears * linears + words + head + counts.rest * size)


def on_disk(directory: Path) -> int:
    """Bytes of the weight files that would be read: safetensors if there are both kinds."""
    files = list(directory.glob("*.safetensors")) or directory.glob("*.bin")
    return sum(path.stat().st_size for path in files)


def pick(config: PreTrainedConfig, budget: MemoryBudget, *, context: int = CONTEXT) -> Need | None:
    """The best mode that fits into the free memory; None if no mode fits.

    On CUDA this is the most exact one. On a CPU, reading the weights limits the speed of decoding, so
    codes come first: int8, whose answers hardly differ, then int4."""
    cpu = sorted(modes(config, "cpu"), key=lambda mode: mode.quant == "none")
    needs = (need(config, mode, context=context) for mode in [*modes(config, "cuda"), *cpu])
    return next((each for each in needs if budget.holds(each.total, each.mode.device)), None)


def check(config: PreTrainedConfig, mode: Mode, budget: MemoryBudget, *, context: int = CONTEXT) -> Need:
    """The need of this mode, with the bits of stored codes if there are any. Raises `UserError` if it is
    more than is free, with both figures and the way out."""
    bits = stored_bits(config)
    mode = replace(mode, quant="int4" if bits == 4 else "int8") if bits else mode
    estimate = need(config, mode, context=context)
    free = budget.on(mode.device)
    if free is None or estimate.total <= free:
        return estimate
    others = [need(config, other, context=context) for other in modes(config, mode.device)]
    smaller = [other for other in others if other.total <= free and other.mode.quant != "none"]
    if smaller:
        quant, size = smaller[0].mode.quant, gigabytes(smaller[0].total)
        out = Translatable("use --quant {quant} ({size})", quant=quant, size=size)
    else:
        missing = gigabytes(estimate.total - free)
        out = Translatable("free {missing} or use a smaller model", missing=missing)
    raise UserError(
        "the model needs {needed} of {where} ({mode}, {context} tokens) and {free} are free; {out}",
        needed=gigabytes(estimate.total),
        where=Translatable("memory") if mode.device == "cpu" else Translatable("GPU memory"),
        mode=f"{mode.quant}, {str(mode.dtype).removeprefix('torch.')}",
        context=context,
        free=gigabytes(free),
        out=out,
    )


def gigabytes(size: float) -> str:
    """`13.1 GB`, of 2**30 bytes; sizes below 1 with two digits."""
    amount = size / GB
    return f"{amount:.1f} GB" if amount >= 0.95 else f"{amount:.2f} GB"
