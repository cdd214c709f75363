"""Makes the small copies of v1, v2 and v3 from the whole golden set: `python tests/golden/copy.py SET`."""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent
ROWS = 8  # of a long prompt's logits, the last ones
KEPT = ("batch", "generate.", "train.", "fp16.gmask_ctx.", "fp16.mask_mid.", "fp16.medium.")
PREFIXED = {"v1": ("gmask_ctx", "batch_gmask"), "v2": ("medium", "batch")}


def main(source: Path) -> None:
    for generation in ("v1", "v2", "v3"):
        here, there = HERE / generation, source / generation
        here.mkdir(exist_ok=True)
        golden = np.load(there / "golden.npz")
        arrays = {key: golden[key] for key in golden if _kept(key)}
        for key in ("single.long.logits", "fp16.long.logits"):
            arrays[key] = golden[key][:, -ROWS:]
        np.savez_compressed(here / "golden.npz", **arrays)
        weights(there / "tiny_safetensors", here / "tiny_safetensors")
        (here / "train.json").write_bytes((there / "train.json").read_bytes())
    for generation, prompts in PREFIXED.items():  # ChatGLM3's layouts are ChatGLM2's
        here, there = HERE / generation, source / generation
        quantised(there, here)
        prefixes(there, here, prompts)
    rope(source)


def _kept(key: str) -> bool:
    """Everything but what is large and told by the rest: of `long`, ids and positions are enough."""
    if key.startswith("single.long."):
        return key.endswith(("input_ids", "position_ids"))
    return key.startswith((*KEPT, "single."))


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


def prefixes(there: Path, here: Path, prompts: tuple[str, ...]) -> None:
    prefix = np.load(there / "prefix_golden.npz")
    kept = tuple(f"{kind}.{name}." for kind in ("noproj", "proj") for name in ("weight", *prompts))
    arrays = {key: prefix[key] for key in prefix if key.startswith(("pre_seq_len", *kept))}
    np.savez_compressed(here / "prefix_golden.npz", **arrays)


def rope(source: Path) -> None:
    """Every 16th position of the tables; the variants of the 32k models, the last rows."""
    rope_1(source)
    tables = np.load(source / "rope_v2_v3.npz")
    arrays = {"dim": tables["dim"]}
    for key in tables:
        if key.endswith(("cache", "positions")):
            arrays[key] = tables[key][::16]
    np.savez_compressed(HERE / "rope_v2_v3.npz", **arrays)
    ratio = np.load(source / "v3" / "rope_ratio_golden.npz")
    kept = {k: ratio[k][:, -ROWS:] if k.endswith("logits") else ratio[k] for k in ratio}
    np.savez_compressed(HERE / "v3" / "rope_ratio_golden.npz", **kept)


def rope_1(source: Path) -> None:
    tables = np.load(source / "rope_v1.npz")
    arrays = {key: tables[key] for key in tables}
    arrays["fp16.positions"] = np.arange(len(tables["fp16.cos"]))
    for key in ("fp16.cos", "fp16.sin", "fp16.positions", "fp32.cos", "fp32.sin", "fp32.positions"):
        arrays[key] = arrays[key][::16]
    np.savez_compressed(HERE / "rope_v1.npz", **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
