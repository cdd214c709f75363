"""Prefill and tokens a second on the processor at ChatGLM2-6B's width, beside llama.cpp and bitsandbytes.

    python benchmarks/decode.py [--layers 4 28] [--threads 1 2] [--rounds 5] [--bitsandbytes]
                                [--peer PYTHON] [--scratch FOLDER]

Weights of the true shapes, with which every matrix is computed and the word `t` is followed by the word
`t + 1` (random_weights.py). Every engine is a process of its own, and they take turns: in each round a
prompt of 256 tokens, then 32 tokens one by one, then the first word of another question behind the first
240 of those tokens, then the prompt with a question of which the last two tokens also stand earlier,
followed by 64 tokens that are copied from it. Figures are medians over rounds, so that the machine's
noise falls on all alike. `PYTHON` is the interpreter of an environment with
llama-cpp-python, built from source for this processor, and gguf is installed beside us:

    CMAKE_ARGS="-DGGML_NATIVE=ON" pip install llama-cpp-python==0.3.36 --no-binary llama-cpp-python

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
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

TOKENS, COPIED = 32, 64
TEXT = list(range(2000, 2200))  # every token is followed by the next number
IDS = [(i * 37) % 60000 + 5 for i in range(54)] + TEXT + TEXT[20:22]
PLAIN = [*IDS[:-2], 40_000, 50_000]  # continues with numbers that do not stand in it
AGAIN = [*PLAIN[:-16], *range(41_000, 41_016)]
NF4 = "bitsandbytes nf4"
Round = tuple[float, float, float, float]
"""Seconds of the prompt, of a token after it, of a second prompt that begins alike, and of a copied token."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 28])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bitsandbytes", action="store_true")
    parser.add_argument("--peer", type=Path)
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
    from random_weights import write_gguf, write_upstream  # has numpy; the peer's Python may not

    write_upstream(folder / "fp16", layers)
    subprocess.run([sys.executable, __file__, "--engine", "pack", str(folder)], check=True)
    if options.peer:
        write_gguf(folder / "q4_0.gguf", folder / "fp16", layers)
    for threads in options.threads:
        engines = {"int4": Engine(sys.executable, "ours", folder / "pack", threads)}
        if options.bitsandbytes:
            engines[NF4] = Engine(sys.executable, NF4, folder / "fp16", threads)
        if options.peer:
            engines["llama.cpp q4_0"] = Engine(str(options.peer), "peer", folder / "q4_0.gguf", threads)
        times: dict[str, list[Round]] = {name: [] for name in engines}
        for turn in range(options.rounds):
            for name, engine in engines.items():
                if name != NF4 or turn < 2:  # minutes a round
                    times[name].append(engine.round())
        for engine in engines.values():
            engine.stop()
        show(layers, threads, engines, times)


def show(layers: int, threads: int, engines: "dict[str, Engine]", times: dict[str, list[Round]]) -> None:
    from random_weights import parameters

    memory = Engine(sys.executable, "memory", Path(), threads)
    rate = max(1 / memory.round()[0] for _ in range(5))
    memory.stop()
    say(f"\n{layers} layers, {threads} threads, memory {rate / 1e9:.1f} GB/s\n")
    say(
        "| engine | load s | peak GB | prefill tok/s | decode ms | best ms | of the limit | again | copied ms |"
    )
    say("|---|---|---|---|---|---|---|---|---|")
    for name, engine in engines.items():
        first, token, again, copied = (statistics.median(each) for each in zip(*times[name], strict=True))
        best = min(each[1] for each in times[name])
        limit = engine.bits / 8 * parameters(layers) / rate
        say(
            f"| {name} | {engine.seconds:.1f} | {engine.peak / 1e9:.2f} | {len(IDS) / first:.1f} "
            f"| {token * 1e3:.1f} | {best * 1e3:.1f} | {limit / token:.0%} | {again / first:.2f} | {copied * 1e3:.1f} |"
        )
    for name in list(engines)[1:]:
        pairs = list(zip(times["int4"], times[name], strict=False))
        ratios = (statistics.median(b[i] / a[i] for a, b in pairs) for i in (0, 1, 3))
        say(f"\nint4 against {name}: " + "prefill {:.2f}, decode {:.2f}, copied {:.2f} times".format(*ratios))


class Engine:
    """A process that loads a model, and then runs a round whenever it gets a line."""

    def __init__(self, python: str, kind: str, path: Path, threads: int) -> None:
        self.process = subprocess.Popen(
            [python, __file__, "--engine", kind, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )
        self.seconds, self.bits = self._read()
        self.peak = 0.0

    def round(self) -> Round:
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        *seconds, self.peak = self._read()
        return tuple(seconds)

    def stop(self) -> None:
        self.process.communicate()

    def _read(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())


def serve(kind: str, path: Path) -> None:
    """In the engine's process: load, tell seconds and bits a weight, then do round by round."""
    if kind == "pack":
        import rag.chatglm.loading

        return rag.chatglm.loading.save_quantized(path / "fp16", path / "pack", bits=4)
    make = {"ours": ours, NF4: bitsandbytes, "peer": peer, "memory": memory}
    start = time.perf_counter()
    step, bits = make[kind](path)
    tell(time.perf_counter() - start, bits)
    for _ in sys.stdin:
        tell(*step(), peak())


def peak() -> int:
    """Bytes of this process at its largest; `getrusage` would give the parent's too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def tell(*values: float) -> None:
    say(json.dumps(values))


Writer = Callable[[list[int], int], Any]
"""Gets a prompt and a number of tokens, and gives an iterator over ids."""


def timed(write: Writer, again: Writer, copy: Writer) -> Round:
    """A round. `write` begins with an empty cache, `again` with what `write` left."""
    start = time.perf_counter()
    ids = write(PLAIN, TOKENS + 1)
    next(ids)
    first = time.perf_counter()
    for _ in islice(ids, TOKENS):
        pass
    token = (time.perf_counter() - first) / TOKENS
    ids.close()
    begin = time.perf_counter()
    next(second := again(AGAIN, 2))
    repeated = time.perf_counter() - begin
    second.close()
    copied = copy(IDS, COPIED + 1)
    written = [next(copied)]
    begin = time.perf_counter()
    written += islice(copied, COPIED)
    assert written == TEXT[22 : 22 + COPIED + 1], written
    return first - start, token, repeated, (time.perf_counter() - begin) / COPIED


def ours(path: Path) -> tuple[Callable[[], Round], float]:
    from random_weights import parameters

    import rag.chatglm.loading

    model = rag.chatglm.loading.load(path)
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    shape = model.get_input_embeddings().weight.shape
    layers = model.config.num_hidden_layers

    return lambda: timed(*decoder_writers(model)), (size - 2 * shape.numel()) * 8 / parameters(layers)


def bitsandbytes(path: Path) -> tuple[Callable[[], Round], float]:
    import torch
    from transformers import BitsAndBytesConfig

    from rag.chatglm.modeling_chatglm import ChatGLM2ForCausalLM

    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = ChatGLM2ForCausalLM.from_pretrained(
        path, quantization_config=how, dtype=torch.float32, device_map="cpu"
    ).eval()

    return lambda: timed(*decoder_writers(model)), 4.5


def decoder_writers(model: Any) -> tuple[Writer, Writer, Writer]:
    from rag.chatglm.decoding import Decoder

    first, last = Decoder(model, name="first"), Decoder(model, name="last")
    write, copy = (lambda prompt, most, d=d: d.tokens(prompt, None, most) for d in (first, last))
    return write, write, copy


def peer(path: Path) -> tuple[Callable[[], Round], float]:
    """llama.cpp, plainly and with its own prompt lookup (of as many tokens as ours)."""
    import llama_cpp
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    threads = int(os.environ["OMP_NUM_THREADS"])
    options: Any = {"n_ctx": 512, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
    model = llama_cpp.Llama(str(path), **options)
    lookup = LlamaPromptLookupDecoding(max_ngram_size=2, num_pred_tokens=8)
    drafting = llama_cpp.Llama(str(path), draft_model=lookup, **options)  # computes the logits of all tokens

    def fresh(model: Any, prompt: list[int]) -> Any:
        model.reset()
        return model.generate(prompt, temp=0.0, reset=False)

    return lambda: timed(
        lambda prompt, most: fresh(model, prompt),
        lambda prompt, most: model.generate(prompt, temp=0.0),  # keeps the prefix that both share
        lambda prompt, most: fresh(drafting, prompt),
    ), 4.5


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
        return min(seconds) / numbers.nbytes, 0, 0, 0

    return step, 0


if __name__ == "__main__":
    main()
