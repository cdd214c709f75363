"""Adapters in the versions of PEFT that ChatGLM3's finetune_demo pins: ours load there, theirs load here.

    python benchmarks/peft_versions.py FOLDER

FOLDER gets an environment for each of `VERSIONS`, with the transformers of its time; torch is this
environment's. The base is a module with the names and shapes of a tiny ChatGLM3's linear layers, in
transformers' layout and in upstream's, because no version has a class for both. Compared is what an
adapter adds to each weight, B A times its scale.
"""

import argparse
import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

VERSIONS = {
    "0.7.1": ("transformers==4.36.2", "accelerate==0.25.0", "tokenizers==0.15.2", "huggingface_hub==0.20.3"),
    "0.10.0": ("transformers==4.39.3", "accelerate==0.28.0", "tokenizers==0.15.2", "huggingface_hub==0.22.2"),
    "0.13.0": ("transformers==4.45.2", "accelerate==0.34.2", "tokenizers==0.20.3", "huggingface_hub==0.25.2"),
}
CHILD = """
import json, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from types import SimpleNamespace
import torch
from torch import nn
from safetensors.torch import load_file, save_file
from peft import LoraConfig, PeftModel, get_peft_model

def base(shapes):
    root = nn.Module()
    root.config = SimpleNamespace(model_type="chatglm", get=lambda *a: None, to_dict=lambda: {"_name_or_path": ""})
    root.prepare_inputs_for_generation = None
    for name, (out, into) in shapes.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        module.add_module(last, nn.Linear(into, out, bias=False))
        nn.init.zeros_(getattr(module, last).weight)
    return root

def changes(model):
    model = model.merge_and_unload()
    return {n.removesuffix(".weight"): p.detach().clone() for n, p in model.named_parameters()}

folder = Path(sys.argv[1])
for layout in ("native", "upstream"):
    shapes = json.loads((folder / f"{layout}.json").read_text())
    found = changes(PeftModel.from_pretrained(base(shapes), str(folder / layout)))
    save_file(found, str(folder / f"{layout}-read.safetensors"))
    torch.manual_seed(1)
    ends = sorted({name.rpartition(".")[2] for name in shapes})
    made = get_peft_model(base(shapes), LoraConfig(r=4, lora_alpha=12, target_modules=ends, task_type="CAUSAL_LM"))
    for name, value in made.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(value)
    made.save_pretrained(str(folder / f"{layout}-theirs"))
    save_file(changes(made), str(folder / f"{layout}-theirs.safetensors"))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    ours = write(folder)
    sys.stdout.write("| PEFT | layout | ours read there | theirs read here |\n| --- | --- | --- | --- |\n")
    for version, beside in VERSIONS.items():
        python = environment(folder / f"peft-{version}", [f"peft=={version}", *beside])
        done = subprocess.run([python, "-c", CHILD, str(folder)], capture_output=True, text=True)
        for layout, wanted in ours.items():
            cells = ("failed: " + (done.stderr.splitlines() or ["?"])[-1], "")
            if done.returncode == 0:
                cells = compared(folder, layout, wanted)
            sys.stdout.write(f"| {version} | {layout} | {cells[0]} | {cells[1]} |\n")
            sys.stdout.flush()


def environment(folder: Path, packages: list[str]) -> Path:
    """The interpreter of an environment with the packages, which finds all others here."""
    python = folder / "bin" / "python"
    if not (folder / "whole").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *packages], check=True)
        [site] = folder.glob("lib/python*/site-packages")
        (site / "others.pth").write_text(sysconfig.get_path("purelib"))
        (folder / "whole").touch()
    return python


def write(folder: Path) -> dict[str, dict]:
    """An adapter of a tiny ChatGLM3 in both layouts, and what it adds to each weight."""
    import torch

    from finetune.export import export
    from finetune.options import LoraOptions
    from finetune.train.lora import Lora
    from rag.chatglm.adapter_files import read_adapter
    from rag.chatglm.loading import load

    model = Path(__file__).parents[1] / "tests" / "golden" / "v3" / "tiny_safetensors"
    lora = Lora(load(model, quant="none", dtype=torch.float32, device="cpu"), LoraOptions(alpha=24.0))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in lora.trainable.items():
            if "lora_B" in name:
                value.normal_()
    (folder / "native").mkdir(exist_ok=True)
    lora.write(folder / "native")
    if not (folder / "upstream").exists():
        export(folder / "native", model, folder / "upstream", to="upstream")
    ours = {}
    for layout in ("native", "upstream"):
        ours[layout] = added(folder / layout)
        shapes = {name: list(value.shape) for name, value in ours[layout].items()}
        (folder / f"{layout}.json").write_text(json.dumps(shapes))
        read_adapter(folder / layout)
    return ours


def added(folder: Path) -> dict:
    """What an adapter that `rag` reads adds to each weight."""
    from rag.chatglm.adapter_files import read_adapter

    adapter = read_adapter(folder)
    assert adapter.config
    return {n: adapter.config.scale_of(n) * f.b.float() @ f.a.float() for n, f in adapter.modules.items()}


def compared(folder: Path, layout: str, ours: dict) -> tuple[str, str]:
    """The largest differences, relative to the largest change of each weight."""
    from safetensors.torch import load_file

    pairs = (
        (load_file(folder / f"{layout}-read.safetensors"), ours),
        (load_file(folder / f"{layout}-theirs.safetensors"), added(folder / f"{layout}-theirs")),
    )
    cells = []
    for theirs, own in pairs:
        assert theirs.keys() == own.keys()
        cells.append(max(float((theirs[n] - own[n]).abs().max() / own[n].abs().max()) for n in own))
    return f"equal within {cells[0]:.0e}", f"equal within {cells[1]:.0e}"


if __name__ == "__main__":
    main()
