"""What 4 and 8 bits cost: error of each matrix at true width, divergence of whole small models.

    python benchmarks/quantize.py [--golden FOLDER]

The first table: relative error (Frobenius) of 512 rows of each of ChatGLM2-6B's matrices, of random
weights, normal and with heavy tails (Student's t, 5 degrees of freedom); beside ours upstream's one
scale a row, and ggml's q4_0. The second: mean KL divergence, in nats, of the next token's
distribution from the float32 model's, over the prompts of the small models in FOLDER (the goldens;
the repository's copy by default); their matrices are 64 to 176 columns wide, so that every row is
one or two blocks, and their random weights make them more sensitive than a trained model. The third: the
same of a small model that was trained, and the mean error of its matrices.
"""

import argparse
import random
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

import rag.chatglm.loading
from rag.chatglm.loading import save_quantized
from rag.chatglm.quantize import dequantize, quantize

ROOT = Path(__file__).parents[1]
MATRICES = {
    "query_key_value": 4096, "dense": 4096, "dense_h_to_4h": 4096, "dense_4h_to_h": 13696,
    "output_layer": 4096,
}  # fmt: skip
PROMPTS = {"v1": ("gmask", "gmask_ctx", "mask_mid"), "v2": ("short", "medium"), "v3": ("short", "medium")}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--golden", type=Path, default=ROOT / "tests" / "golden")
    options = parser.parse_args()
    torch.manual_seed(0)
    matrices()
    models(options.golden)
    trained()


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "int4, 32": lambda w: dequantize(quantize(w, bits=4, block=32)),
    "int4, 64": lambda w: dequantize(quantize(w, bits=4, block=64)),
    "int4, 128": lambda w: dequantize(quantize(w, bits=4, block=128)),
    "q4_0": lambda w: q4_0(w),
    "upstream int4": lambda w: upstream(w, 7),
    "int8, 128": lambda w: dequantize(quantize(w, bits=8, block=128)),
    "upstream int8": lambda w: upstream(w, 127),
}


def matrices() -> None:
    row("matrix", "weights", *WAYS)
    row(*["---"] * (len(WAYS) + 2))
    for name, columns in MATRICES.items():
        for kind in ("normal", "heavy tails"):
            weight = torch.randn(512, columns) * 0.02
            if kind == "heavy tails":
                weight = torch.distributions.StudentT(5.0).sample((512, columns)) * 0.02
            errors = ((way(weight) - weight).norm() / weight.norm() for way in WAYS.values())
            row(name, kind, *(f"{error:.4f}" for error in errors))


def q4_0(weight: Tensor) -> Tensor:
    """As ggml's quantize_row_q4_0: 32 columns share d = the weight of largest size / -8."""
    blocks = weight.view(len(weight), -1, 32)
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scale = largest / -8
    codes = (blocks / scale + 8.5).floor().clamp(0, 15) - 8
    return (codes * scale.half().float()).view_as(weight)


def upstream(weight: Tensor, levels: int) -> Tensor:
    """As the published int4 and int8 checkpoints: one scale for a row."""
    scale = weight.abs().amax(1, keepdim=True) / levels
    return (weight / scale).round() * scale.half().float()


def models(golden: Path) -> None:
    sys.stdout.write("\n")
    row("model", "int4", "upstream int4", "int8", "upstream int8")
    row(*["---"] * 5)
    for version in PROMPTS:
        float32 = golden / version / "tiny_safetensors"
        if not float32.is_dir():
            continue
        plain = logits(float32, version, golden, quant="none")
        cells = []
        for bits in (4, 8):
            with TemporaryDirectory() as folder:
                save_quantized(float32, Path(folder) / "packed", bits=bits)
                cells.append(divergence(plain, logits(Path(folder) / "packed", version, golden)))
            published = golden / version / f"tiny_int{bits}"
            has = published.is_dir()
            cells.append(divergence(plain, logits(published, version, golden)) if has else "")
        row(version, *cells)


@torch.no_grad()
def trained() -> None:
    """A small model that was trained (tests/tiny.py): all its matrices in each way, over its own prompts."""
    sys.path[0] = str(ROOT)  # the tests are there; here is another "finetune"
    from rag.chatglm.chat import encode_answer, encode_chat
    from rag.chatglm.tokenization import open_tokenizer
    from tests import tiny

    sys.stdout.write("\n")
    row("trained model", *WAYS)
    row(*["---"] * (len(WAYS) + 1))
    with TemporaryDirectory() as folder:
        with torch.enable_grad():
            directory = tiny.train(Path(folder) / "model")
        model = rag.chatglm.loading.load(directory, quant="none", device="cpu")
        tokenizer, dice = open_tokenizer(directory), random.Random(1)
    prompts = [tiny.row(dice) for _ in range(100)]
    ids = [encode_chat(m, tokenizer, 3) + encode_answer(a, tokenizer, 3) for m, a in prompts]
    whole = {name: p.clone() for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name}
    plain, cells, errors = [model(torch.tensor([each])).logits[0] for each in ids], [], []
    for way in WAYS.values():
        for name, weight in whole.items():
            padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % 32))
            model.get_parameter(name).copy_(way(padded)[:, : weight.shape[1]])
        changes = [(model.get_parameter(n) - w).norm() / w.norm() for n, w in whole.items()]
        errors.append(f"{torch.stack(changes).mean():.4f}")
        cells.append(divergence(plain, [model(torch.tensor([each])).logits[0] for each in ids]))
    row("relative error, mean over matrices", *errors)
    row("KL divergence", *cells)


def logits(directory: Path, version: str, golden: Path, quant: str | None = None) -> list[Tensor]:
    """[S, V] of each prompt."""
    model = rag.chatglm.loading.load(directory, quant=quant)  # type: ignore[arg-type]  (a literal)
    arrays = np.load(golden / version / "golden.npz")
    names = [f"single.{name}.input_ids" for name in PROMPTS[version]]
    with torch.inference_mode():
        return [model(torch.from_numpy(arrays[n])).logits[0] for n in names if n in arrays]


def divergence(plain: list[Tensor], other: list[Tensor]) -> str:
    pairs = zip(plain, other, strict=True)
    each = [(p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1) for p, q in pairs]
    same = [(p.argmax(-1) == q.argmax(-1)).float() for p, q in zip(plain, other, strict=True)]
    return f"{torch.cat(each).mean():.4f} ({torch.cat(same).mean():.0%} same first)"


def row(*cells: str) -> None:
    sys.stdout.write("| " + " | ".join(cells) + " |\n")


if __name__ == "__main__":
    main()
