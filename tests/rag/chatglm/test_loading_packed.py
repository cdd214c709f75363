"""Checkpoints with packed codes are the model quantised at load, whole ones only."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import rag.chatglm  # noqa: F401  (registers the Auto classes)
from ingest.errors import UserError
from rag.chatglm.loading import load, save_quantized
from rag.chatglm.quantize import PackedLinear
from tests.rag.chatglm.golden import COPY

IDS = {1: torch.tensor([[5, 6, 7, 1001, 1004, 9]]), 2: torch.tensor([[64, 66, 300, 5]])}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_packed_checkpoint_is_the_model_quantised_at_load(version: int, bits: int, tmp_path: Path) -> None:
    source = COPY / f"v{version}" / "tiny_safetensors"
    shares: list[float] = []
    save_quantized(source, tmp_path / "packed", bits=bits, progress=shares.append)
    assert shares == sorted(shares)
    stored, quantised = load(tmp_path / "packed", device="cpu"), load(source, quant=_quant(bits))
    with torch.no_grad():
        assert torch.equal(stored(IDS[version]).logits, quantised(IDS[version]).logits)
    assert type(stored.get_output_embeddings()) is PackedLinear
    exact = load(source, quant="none")
    with torch.no_grad():
        theirs = exact(IDS[version]).logits
        ours = stored(IDS[version]).logits
    assert (ours - theirs).norm() < {4: 0.6, 8: 0.06}[bits] * theirs.norm()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bits", [4, 8])
def test_published_codes_are_packed_exactly(version: int, bits: int, tmp_path: Path) -> None:
    source = COPY / f"v{version}" / f"tiny_int{bits}"
    save_quantized(source, tmp_path / "packed", bits=bits)
    name = {1: "transformer.layers.1.mlp.dense_4h_to_h", 2: "model.layers.1.mlp.down_proj"}[version]
    ours = load(tmp_path / "packed", quant="none").get_submodule(name)
    theirs = load(source, quant="none").get_submodule(name)
    assert torch.equal(ours.weight, theirs.weight)  # type: ignore[arg-type]  (a property)
    with torch.no_grad():
        fast = load(tmp_path / "packed", device="cpu")(IDS[version]).logits
        assert torch.equal(fast, load(source, device="cpu")(IDS[version]).logits)


def test_embeddings_stored_as_codes_are_read(tmp_path: Path) -> None:
    """The int4-qe variant: the embedding is packed, and the head is the same data."""
    source = Path(shutil.copytree(COPY / "v1" / "tiny_int4", tmp_path / "qe"))
    state = torch.load(source / "pytorch_model.bin", weights_only=True)
    words = state["transformer.word_embeddings.weight"].float()
    scale = (words.abs().amax(1) / 7).half()
    levels = (words / scale.float()[:, None]).round().to(torch.int8)
    codes = (levels[:, 0::2] << 4) | (levels[:, 1::2] & 15)
    for name in ("transformer.word_embeddings", "lm_head"):
        state |= {f"{name}.weight": codes, f"{name}.weight_scale": scale}
    torch.save(state, source / "pytorch_model.bin")
    config = (source / "config.json").read_text("utf-8")
    changed = config.replace('"quantization_embeddings": false', '"quantization_embeddings": true')
    (source / "config.json").write_text(changed, "utf-8")
    model = load(source, quant="none")
    rounded = levels.float() * scale.float()[:, None]
    assert torch.equal(model.get_input_embeddings()(IDS[1])[0], rounded[IDS[1][0]])
    assert torch.equal(model.get_output_embeddings().weight, rounded)  # type: ignore[union-attr]


def _quant(bits: int) -> Any:
    return f"int{bits}"


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", "utf-8")
    with pytest.raises(UserError, match="exists already"):
        save_quantized(COPY / "v2" / "tiny_safetensors", tmp_path, bits=4)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


KILLED = """
import os, signal, sys
from pathlib import Path
import rag.chatglm
from rag.chatglm.loading import save_quantized
def at(share):
    if share > 0.5:
        os.kill(os.getpid(), signal.SIGKILL)
save_quantized(Path(sys.argv[1]), Path(sys.argv[2]), bits=4, progress=at)
"""


def test_a_kill_half_way_leaves_no_folder_and_the_next_run_succeeds(tmp_path: Path) -> None:
    source, target = COPY / "v2" / "tiny_safetensors", tmp_path / "packed"
    command = [sys.executable, "-c", KILLED, str(source), str(target)]
    assert subprocess.run(command, check=False).returncode == -9
    assert not target.exists()
    save_quantized(source, target, bits=4)
    assert load(target).config.packed["bits"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


def test_a_damaged_packed_checkpoint_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_quantized(COPY / "v2" / "tiny_safetensors", tmp_path / "packed", bits=4)
    (file,) = (tmp_path / "packed").glob("*.safetensors")
    tensors = load_file(file)
    name = "model.layers.0.mlp.down_proj.codes"
    save_file(tensors | {name: tensors[name][:, :-1].contiguous()}, file)
    with pytest.raises(UserError, match=r"down_proj\.codes has the shape"):
        load(tmp_path / "packed")
