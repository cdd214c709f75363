"""Makes the small copies of v2 and v3 from the whole golden set: `python tests/golden/copy.py SET`."""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent
ROWS = 8  # of a long prompt's logits, the last ones
KEPT = (
    "single.short.",
    "single.medium.",
    "single.one.",
    "batch.",
    "generate.",
    "train.",
    "fp16.medium.",
)


def main(source: Path) -> None:
    for generation in ("v2", "v3"):
        here, there = HERE / generation, source / generation
        here.mkdir(exist_ok=True)
        golden = np.load(there / "golden.npz")
        arrays = {key: golden[key] for key in golden if key.startswith(KEPT)}
        arrays["single.long.input_ids"] = golden["single.long.input_ids"]
        for key in ("single.long.logits", "fp16.long.logits"):
            arrays[key] = golden[key][:, -ROWS:]
        np.savez_compressed(here / "golden.npz", **arrays)
        weights(there / "tiny_safetensors", here / "tiny_safetensors")
        (here / "train.json").write_bytes((there / "train.json").read_bytes())
    quantised(source / "v2", HERE / "v2")  # ChatGLM3's layout is ChatGLM2's
    rope(source)


def weights(there: Path, here: Path) -> None:
    """Every weight is a float16 number, so half the bytes hold the same model."""
    here.mkdir(exist_ok=True)
    tensors = load_file(there / "model.safetensors")
    save_file({k: v.astype(np.float16) for k, v in tensors.items()}, here / "model.safetensors")
    config = json.loads((there / "config.json").read_text("utf-8")) | {"torch_dtype": "float16"}
    (here / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def quantised(there: Path, here: Path) -> None:
    quant = np.load(there / "quant_golden.npz")
    np.savez_compressed(here / "quant_golden.npz", **{key: quant[key] for key in quant})
    for bits in ("tiny_int4", "tiny_int8"):
        (here / bits).mkdir(exist_ok=True)
        for name in ("config.json", "pytorch_model.bin"):
            (here / bits / name).write_bytes((there / bits / name).read_bytes())


def rope(source: Path) -> None:
    """Every 16th position of the tables; the variants of the 32k models, the last rows."""
    tables = np.load(source / "rope_v2_v3.npz")
    arrays = {"dim": tables["dim"]}
    for key in tables:
        if key.endswith(("cache", "positions")):
            arrays[key] = tables[key][::16]
    np.savez_compressed(HERE / "rope_v2_v3.npz", **arrays)
    ratio = np.load(source / "v3" / "rope_ratio_golden.npz")
    kept = {k: ratio[k][:, -ROWS:] if k.endswith("logits") else ratio[k] for k in ratio}
    np.savez_compressed(HERE / "v3" / "rope_ratio_golden.npz", **kept)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
