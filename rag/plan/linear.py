"""How fast int4 weights of a language model are multiplied here: python -m rag.plan.linear.

One row is what a word takes, and its time that of reading the weights; many rows are a prompt.
"""

import json
import subprocess
import sys
from time import perf_counter

OUT, COLUMNS = 27_392, 4_096  # ChatGLM2-6B's widest
WEIGHTS = 4  # so many that no cache holds them
PROMPT = 256
TURNS = 12


def rates() -> tuple[float, float]:
    """Operations a second of a prompt and bytes a second of a word, with all cores.

    Needs the extra `generate`. In a process of its own: it changes how its threads are shared out.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-m", "rag.plan.linear"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)  # ours: its traceback
    flops, size = json.loads(done.stdout)
    return flops, size


def main() -> None:
    import torch

    from rag.chatglm.quantize import BLOCK, Kernel, Packed

    codes = torch.randint(0, 256, (OUT, COLUMNS // 2), dtype=torch.uint8)
    scales = torch.full((OUT, COLUMNS // BLOCK), 1e-3, dtype=torch.float16)
    packed = Packed(codes, scales, 4, BLOCK, (OUT, COLUMNS))
    kernels = [Kernel(packed) for _ in range(WEIGHTS)]
    size = codes.nbytes + scales.numel() * 4  # as ONNX Runtime holds them
    best = {}
    for rows in (1, PROMPT):
        row = torch.randn(rows, COLUMNS)
        spent = []
        for turn in range(TURNS if rows > 1 else 10 * TURNS):
            begun = perf_counter()
            kernels[turn % WEIGHTS](row)
            spent.append(perf_counter() - begun)
        best[rows] = sorted(spent)[len(spent) // 10]  # other programs' turns left out
    json.dump((2 * OUT * COLUMNS * PROMPT / best[PROMPT], size / best[1]), sys.stdout)


if __name__ == "__main__":
    main()
