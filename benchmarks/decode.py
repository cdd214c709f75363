"""Tokens a second on the processor at ChatGLM2-6B's width, beside chatglm.cpp and bitsandbytes.

    python benchmarks/decode.py [--layers 4 28] [--rounds 5] [--int8] [--bitsandbytes]
                                [--peer PYTHON --tokenizer FILE] [--scratch FOLDER]

Random weights of the true shapes. Every engine is a process of its own, all with two threads, and
they take turns: a prompt of 256 tokens, then 16 tokens after it, in each round. Figures are medians
over rounds, so that the machine's noise falls on all alike. `PYTHON` is the interpreter of an
environment with chatglm-cpp 0.4.2, `FILE` ChatGLM2's tokenizer.model; it builds by

    CMAKE_POLICY_VERSION_MINIMUM=3.5 CXXFLAGS="-include cstdint" pip install chatglm-cpp==0.4.2

"of the limit" is the time in which as many threads read as many bytes, over the time of a token.
The bytes are those of the matrices as stored (codes and float16 scales); the rate is that of
summing float32 numbers. Our models are loaded from what `rag quantize` writes, out of the page
cache; 28 layers need 17 GB in `FOLDER`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

THREADS = 2
TOKENS = 16
IDS = [(i * 37) % 60000 + 5 for i in range(256)]
NF4 = "bitsandbytes nf4"
Round = tuple[float, float]
"""Seconds of the prompt, and of a token after it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 28])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--bitsandbytes", action="store_true")
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--engine", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        return serve(options.engine[0], Path(options.engine[1]))
    for layers in options.layers:
        with TemporaryDirectory(dir=options.scratch) as folder:
            compare(layers, Path(folder), options)


def compare(layers: int, folder: Path, options: argparse.Namespace) -> None:
    """Make the models, start the engines, let them take turns, print the table."""
    from random_weights import write_ggml, write_upstream  # has numpy; the peer's Python may not

    write_upstream(folder / "fp16", layers)
    engines = {}
    for name, bits in {"int4": 4, "int8": 8}.items():
        if bits == 4 or options.int8:
            quantise = [sys.executable, __file__, "--engine", f"pack{bits}", str(folder)]
            subprocess.run(quantise, check=True, stdin=subprocess.DEVNULL)
            engines[name] = Engine(sys.executable, "ours", folder / f"pack{bits}")
    if options.bitsandbytes:
        engines[NF4] = Engine(sys.executable, NF4, folder / "fp16")
    if options.peer:
        write_ggml(folder / "q4_0.bin", layers, options.tokenizer.read_bytes())
        engines["chatglm.cpp q4_0"] = Engine(str(options.peer), "peer", folder / "q4_0.bin")
    times: dict[str, list[Round]] = {name: [] for name in engines}
    for turn in range(options.rounds):
        for name, engine in engines.items():
            if name != NF4 or turn < 2:  # minutes a round
                times[name].append(engine.round())
    for engine in engines.values():
        engine.stop()
    show(layers, engines, times)


def show(layers: int, engines: "dict[str, Engine]", times: dict[str, list[Round]]) -> None:
    from random_weights import parameters

    memory = Engine(sys.executable, "memory", Path())
    rate = max(1 / memory.round()[0] for _ in range(5))
    memory.stop()
    say(f"\n{layers} layers, {THREADS} threads, memory {rate / 1e9:.1f} GB/s\n")
    say("| engine | load s | peak GB | prefill tok/s | decode tok/s | ms | best ms | of the limit |")
    say("|---|---|---|---|---|---|---|---|")
    for name, engine in engines.items():
        first, token = (statistics.median(column) for column in zip(*times[name], strict=True))
        best = min(token for _, token in times[name])
        limit = engine.bits / 8 * parameters(layers) / rate
        say(
            f"| {name} | {engine.seconds:.1f} | {engine.peak / 1e9:.2f} | {len(IDS) / first:.1f} "
            f"| {1 / token:.2f} | {token * 1e3:.1f} | {best * 1e3:.1f} | {limit / token:.0%} |"
        )
    for name in list(engines)[1:]:
        pairs = list(zip(times["int4"], times[name], strict=False))
        first, token = (statistics.median(b[i] / a[i] for a, b in pairs) for i in (0, 1))
        say(f"\nint4 against {name}: prefill {first:.2f} times, decode {token:.2f} times")


class Engine:
    """A process that loads a model, and then runs a round whenever it gets a line."""

    def __init__(self, python: str, kind: str, path: Path) -> None:
        self.process = subprocess.Popen(
            [python, __file__, "--engine", kind, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(THREADS)},
        )
        self.seconds, self.bits = self._read()
        self.peak = 0.0

    def round(self) -> Round:
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        first, token, self.peak = self._read()
        return first, token

    def stop(self) -> None:
        self.process.communicate()

    def _read(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())


def serve(kind: str, path: Path) -> None:
    """In the engine's process: load, tell seconds and bits a weight, then do round by round."""
    if kind.startswith("pack"):
        return pack(path, int(kind[4:]))
    make = {"ours": ours, NF4: bitsandbytes, "peer": peer, "memory": memory}
    start = time.perf_counter()
    step, bits = make[kind](path)
    tell(time.perf_counter() - start, bits)
    for _ in sys.stdin:
        first, token = step()
        tell(first, token, peak())


def peak() -> int:
    """Bytes of this process at its largest; `getrusage` would give the parent's too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def tell(*values: float) -> None:
    say(json.dumps(values))


def pack(folder: Path, bits: int) -> None:
    import rag.chatglm.loading

    rag.chatglm.loading.save_quantized(folder / "fp16", folder / f"pack{bits}", bits=bits)


def ours(path: Path) -> tuple[Callable[[], Round], float]:
    from random_weights import parameters

    import rag.chatglm.loading

    model = rag.chatglm.loading.load(path)
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    shape = model.get_input_embeddings().weight.shape
    layers = model.config.num_hidden_layers
    return rounds(model, TOKENS), (size - 2 * shape.numel()) * 8 / parameters(layers)


def bitsandbytes(path: Path) -> tuple[Callable[[], Round], float]:
    import torch
    from transformers import BitsAndBytesConfig

    from rag.chatglm.modeling_chatglm import ChatGLM2ForCausalLM

    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = ChatGLM2ForCausalLM.from_pretrained(
        path, quantization_config=how, dtype=torch.float32, device_map="cpu"
    )
    return rounds(model.eval(), 1), 4.5


def rounds(model: Any, tokens: int) -> Callable[[], Round]:
    import torch
    from transformers import DynamicCache

    from rag.chatglm.configuration import CACHE

    def step() -> Round:
        options = {CACHE: DynamicCache(config=model.config), "use_cache": True}
        with torch.inference_mode():
            start = time.perf_counter()
            logits = model(torch.tensor([IDS]), **options, logits_to_keep=1).logits
            first = time.perf_counter()
            for _ in range(tokens):
                logits = model(logits[:, -1].argmax(-1, keepdim=True), **options).logits
        return first - start, (time.perf_counter() - first) / tokens

    return step


def peer(path: Path) -> tuple[Callable[[], Round], float]:
    """chatglm.cpp's extension alone: its package's Python part imports transformers 4."""
    import importlib.util

    package = importlib.util.find_spec("chatglm_cpp")
    assert package
    assert package.submodule_search_locations
    (file,) = Path(package.submodule_search_locations[0]).glob("_C*.so")
    spec = importlib.util.spec_from_file_location("chatglm_cpp._C", file)
    assert spec
    assert spec.loader
    engine = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(engine)
    room = len(IDS) + TOKENS + 8
    how = engine.GenerationConfig(max_length=room, max_context_length=room, do_sample=False)
    pipeline = engine.Pipeline(str(path), room)

    def step() -> Round:
        ids = list(IDS)
        start = time.perf_counter()
        ids.append(pipeline.model.generate_next_token(ids, None, how, 0, len(IDS)))
        first = time.perf_counter()
        for past in range(len(IDS), len(IDS) + TOKENS):
            ids.append(pipeline.model.generate_next_token(ids, None, how, past, len(IDS)))
        return first - start, (time.perf_counter() - first) / TOKENS

    return step, 4.5


def memory(path: Path) -> tuple[Callable[[], Round], float]:
    """Seconds that the threads take to sum a byte; the best of a few."""
    import torch

    del path
    numbers = torch.ones(1 << 28)

    def step() -> Round:
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            numbers.sum()
            seconds.append(time.perf_counter() - start)
        return min(seconds) / numbers.nbytes, 0

    return step, 0


if __name__ == "__main__":
    main()
