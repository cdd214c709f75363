"""What a model needs in each mode, told from its config.json before any weight loads; which fits.

A need is the weights, the keys and values of the context, the work space of reading a prompt, and
what the libraries hold themselves. Upstream gives its figures in units of 2**30 bytes, as
nvidia-smi does, and so does this; tests/rag/chatglm/test_memory.py compares them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import Glm4Config, PreTrainedConfig

from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.chatglm.configuration import generation_of, stored_dtype
from rag.chatglm.quantize import BLOCK, HEAD_BLOCK

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes that may still be taken."""

    ram: int | None
    """None where the system does not tell."""
    gpu: int
    """Of the current CUDA device; 0 without one."""

    @classmethod
    def here(cls) -> "Room":
        gpu = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
        return cls(ram_free(), gpu)

    def on(self, device: Device) -> int | None:
        return self.ram if device == "cpu" else self.gpu

    def holds(self, size: int, device: Device) -> bool:
        """Whether there is room for so much; where it can't be told, there is."""
        free = self.on(device)
        return free is None or size <= free


def ram_free(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take: the least of what the machine has free and its control
    groups and its own limit leave. None where the system has no /proc.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    table = {name: value for name, _, value in (line.partition(":") for line in lines)}
    machine = int(table["MemAvailable"].split()[0]) * 1024
    return max(0, min([machine, *_groups_free(root), *_limit_free(root)]))


def _groups_free(root: Path) -> list[int]:
    """What each control group above this process leaves (versions 1 and 2). Their page cache counts
    as used by the kernel, but is given up when memory is short.
    """
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found: list[int] = []
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        version = 1 if controllers else 2
        top = root / "sys/fs/cgroup" / ("memory" if version == 1 else "")
        group = top / path.strip("/")
        while True:
            left = _group_free(group, version)
            found += [] if left is None else [left]
            if group == top or top not in group.parents:
                break
            group = group.parent
    return found


def _group_free(group: Path, version: int) -> int | None:
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    try:
        limit, used = (int((group / name).read_text()) for name in names[:2])
        stat = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        cached = next((int(value) for name, value in stat if name == names[2]), 0)
    except (OSError, ValueError):  # no such group seen from here, or "max"
        return None
    return limit - used + cached


def _limit_free(root: Path) -> list[int]:
    """What `ulimit -v` leaves."""
    import resource  # where there is /proc, there is this

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return []
    pages = int((root / "proc/self/statm").read_text().split()[0])
    return [limit - pages * resource.getpagesize()]


Quant = Literal["none", "int8", "int4", "nf4"]
GB = 2**30
CONTEXT = 2048
"""Tokens that a need is told for: ChatGLM-6B's whole window, and upstream's own measurements."""
RUNTIME = {"cpu": GB // 2, "cuda": GB}
"""Python, torch, transformers and ONNX Runtime hold 0.4 GB before a model. A CUDA context with its
kernels and cuBLAS' buffers is not measured here: it is what upstream's six figures for ChatGLM2
leave when the rest is taken off, 0.85 to 1.2 GB."""
SCALE = {"cpu": 12, "cuda": 2}
"""Bytes beside a block of codes: one float16 scale; ONNX Runtime keeps the scale twice in float32,
and the sum of the block (measured: 0.688 and 1.188 bytes a weight with blocks of 64)."""
SPARE = {"cpu": 2, "cuda": 1}
"""What the widest activations take, in their own size. On the CPU freed pieces stay with malloc:
0.54 MB a token of a prompt was measured at ChatGLM2-6B's width, packed, of which 0.32 are in use."""
MAKING = 6
"""Bytes a weight of the head while its codes are made on the CPU (measured: 4.2 for int4, 6.1 for
int8, at ChatGLM2-6B's width); the layers' matrices are smaller, and it comes last."""
NF4_BLOCK = 64  # bitsandbytes: weights that share a float32 scale


@dataclass(frozen=True, slots=True)
class Parameters:
    """How many numbers each part of a model has."""

    embedding: int
    head: int
    """0 where the head is the embedding."""
    linears: int
    """The weights of the layers' linear modules: what quantisation is about."""
    rest: int
    """Norms and biases."""
    largest: int
    """The largest single linear weight of a layer."""

    @property
    def total(self) -> int:
        return self.embedding + self.head + self.linears + self.rest


@dataclass(frozen=True, slots=True)
class Mode:
    """A way to hold and run a model; `dtype` is that of what is not codes, and of activations."""

    quant: Quant
    device: Device
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes."""

    mode: Mode
    weights: int
    cache: int
    work: int
    runtime: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.work + self.runtime


def parameters(config: PreTrainedConfig) -> Parameters:
    """The parts of any generation's model; `UserError` where the config is of another family."""
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


def stored_bits(config: PreTrainedConfig) -> int | None:
    """4 or 8 where the checkpoint holds codes, upstream's or ours."""
    packed = getattr(config, "packed", None)
    return int(packed["bits"]) if packed else getattr(config, "quantization_bit", None) or None


def modes(config: PreTrainedConfig, device: Device) -> list[Mode]:
    """How this checkpoint can run on the device, the most exact first."""
    if device == "cpu":
        exact = [Mode("none", device, torch.float32), Mode("none", device, torch.bfloat16)]
        codes = [Mode("int8", device, torch.float32), Mode("int4", device, torch.float32)]
    else:
        half = stored_dtype(config) if stored_dtype(config) != torch.float32 else torch.float16
        exact = [Mode("none", device, half)]
        codes = [Mode("int8", device, half), Mode("nf4", device, half), Mode("int4", device, half)]
    bits = stored_bits(config)
    return [mode for mode in codes if mode.quant == f"int{bits}"] if bits else exact + codes


def need(
    config: PreTrainedConfig,
    mode: Mode,
    *,
    context: int = CONTEXT,
    prompt: int | None = None,
    logits: int = 1,
) -> Need:
    """Bytes for a conversation of `context` tokens of which `prompt` (all, if None) are read at once.

    `logits` is at how many positions they are computed: one in generation, upstream's measurement
    of "encoding" all.
    """
    counts, size, words = parameters(config), mode.dtype.itemsize, config.vocab_size
    prompt = context if prompt is None else prompt
    if generation_of(config) == 1:
        kept = config.hidden_size
        wide = 3 * config.intermediate_size  # before, within and after gelu
    else:
        kept = config.num_key_value_heads * config.head_dim
        wide = 4 * config.intermediate_size  # gate and up in one, silu(gate), the product
    cache = 2 * config.num_hidden_layers * kept * context * size
    # One layer at a time: residual, norm, queries, keys and values, attention's output.
    spare = SPARE[mode.device]
    work = prompt * (6 * config.hidden_size + spare * wide) * size + logits * words * size
    if mode.device == "cuda" and mode.quant != "none":
        work += counts.largest * size  # one weight is made from its codes at a time
    if mode.device == "cpu" and mode.quant != "none" and not stored_bits(config):
        work = max(work, MAKING * counts.embedding - cache)  # loading needs more than running
    return Need(mode, weights(config, mode), cache, work, RUNTIME[mode.device])


def weights(config: PreTrainedConfig, mode: Mode) -> int:
    """Bytes of the weights alone."""
    counts, size = parameters(config), mode.dtype.itemsize
    # On the CPU rows of the embedding are cast when they are looked up.
    embedding = stored_dtype(config).itemsize if mode.device == "cpu" else size
    packed = getattr(config, "packed", None)
    head = counts.head * size  # left alone by bitsandbytes and upstream
    if mode.quant == "none":
        return counts.total * size
    if packed or not (stored_bits(config) or _by_bitsandbytes(mode)):
        linears = int(mode.quant[-1]) / 8 + SCALE[mode.device] / BLOCK
        # Its codes stand beside the embedding where the two are one.
        head = counts.embedding * (int(mode.quant[-1]) / 8 + SCALE[mode.device] / HEAD_BLOCK)
    elif not stored_bits(config):
        linears = 1 if mode.quant == "int8" else 0.5 + 4 / NF4_BLOCK
    else:
        linears = int(mode.quant[-1]) / 8 + SCALE[mode.device] / BLOCK
        if config.quantization_embeddings:  # both, from the same codes
            embedding, head = linears, counts.embedding * linears
    words = counts.embedding * embedding
    return round(counts.linears * linears + words + head + counts.rest * size)


def _by_bitsandbytes(mode: Mode) -> bool:
    return mode.quant == "nf4" or (mode.quant == "int8" and mode.device == "cuda")


def on_disk(directory: Path) -> int:
    """Bytes of the weight files that would be read: safetensors where there are both."""
    for pattern in ("*.safetensors", "*.bin"):
        sizes = [path.stat().st_size for path in directory.glob(pattern)]
        if sizes:
            return sum(sizes)
    return 0


def pick(config: PreTrainedConfig, room: Room, *, context: int = CONTEXT) -> Need | None:
    """The mode that fits into the room and serves best, or None.

    On CUDA the most exact. On a CPU the speed of decoding is that of reading the weights, so codes
    go first: int8, whose answers hardly differ, then int4.
    """
    cpu = sorted(modes(config, "cpu"), key=lambda mode: mode.quant == "none")
    needs = (need(config, mode, context=context) for mode in [*modes(config, "cuda"), *cpu])
    return next((found for found in needs if room.holds(found.total, found.mode.device)), None)


def check(
    config: PreTrainedConfig,
    quant: Quant | None,
    *,
    device: Device,
    dtype: torch.dtype,
    room: Room,
    context: int = CONTEXT,
) -> Need:
    """What loading with these options needs (`quant` None: as stored), or `UserError` where it is
    more than is free, with both figures and the way out.
    """
    bits = stored_bits(config)
    mode = Mode("int4" if bits == 4 else "int8" if bits else quant or "none", device, dtype)
    wanted = need(config, mode, context=context)
    free = room.on(device)
    if free is None or wanted.total <= free:
        return wanted
    others = [need(config, other, context=context) for other in modes(config, device)]
    smaller = [other for other in others if other.total <= free and other.mode.quant != "none"]
    where = {"cpu": Translatable("memory"), "cuda": Translatable("GPU memory")}[device]
    if smaller:
        best = smaller[0]
        quant, size = best.mode.quant, gigabytes(best.total)
        out = Translatable("use --quant {quant} ({size})", quant=quant, size=size)
    else:
        missing = gigabytes(wanted.total - free)
        out = Translatable("free {missing} or use a smaller model", missing=missing)
    name = f"{mode.quant}, {str(mode.dtype).removeprefix('torch.')}"
    raise UserError(
        "the model needs {needed} of {where} ({mode}, {context} tokens) and {free} are free; {out}",
        needed=gigabytes(wanted.total),
        where=where,
        mode=name,
        context=context,
        free=gigabytes(free),
        out=out,
    )


def gigabytes(size: float) -> str:
    """`13.1 GB`, of 2**30 bytes; sizes below 1 with two digits."""
    amount = size / GB
    return f"{amount:.1f} GB" if amount >= 0.95 else f"{amount:.2f} GB"
