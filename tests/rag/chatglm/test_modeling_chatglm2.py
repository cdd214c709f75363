"""ChatGLM2 and ChatGLM3 compute what the original code computes."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GlmForCausalLM, PreTrainedModel

import rag.chatglm  # noqa: F401  (registers the Auto classes)
from rag.chatglm.configuration import ChatGLM2Config
from rag.chatglm.loading import load
from rag.chatglm.modeling_chatglm import ChatGLM2Rotary
from tests.rag.chatglm.golden import SETS, arrays, largest_difference
from tests.rag.chatglm.models import to_upstream

CASES = [(root, version) for root in SETS for version in ("v2", "v3")]
cases = pytest.mark.parametrize(("root", "version"), CASES)


@pytest.fixture
def model(root: Path, version: str) -> PreTrainedModel:
    return load(root / version / "tiny_safetensors", quant="none", dtype=torch.float32)


@cases
def test_logits_are_the_originals(model: PreTrainedModel, root: Path, version: str) -> None:
    golden = arrays(root / version / "golden.npz")
    for name in ("short", "medium", "one", "long"):
        with torch.no_grad():
            logits = model(golden[f"single.{name}.input_ids"]).logits
        assert largest_difference(logits, golden[f"single.{name}.logits"]) < 1e-3, name


@cases
def test_a_padded_batch_is_its_rows(model: PreTrainedModel, root: Path, version: str) -> None:
    golden = arrays(root / version / "golden.npz")
    names = ("input_ids", "attention_mask", "position_ids")
    with torch.no_grad():
        logits = model(**{name: golden[f"batch.{name}"] for name in names}).logits
    valid = golden["batch.valid"].bool()
    assert (logits[valid] - golden["batch.logits"][valid]).abs().max() < 1e-3


@cases
@pytest.mark.parametrize("name", ["short", "medium", "batch"])
def test_greedy_words_are_the_originals(model: PreTrainedModel, root: Path, version: str, name: str) -> None:
    golden = arrays(root / version / "golden.npz")
    ids, expected = golden[f"generate.{name}.input_ids"], golden[f"generate.{name}.output_ids"]
    mask = golden.get(f"generate.{name}.attention_mask", torch.ones_like(ids))
    out = model.generate(ids, attention_mask=mask, max_new_tokens=24, do_sample=False, eos_token_id=None)
    assert torch.equal(out, expected)


@cases
def test_the_loss_and_its_gradients_are_the_originals(
    model: PreTrainedModel, root: Path, version: str
) -> None:
    golden = arrays(root / version / "golden.npz")
    measured = json.loads((root / version / "train.json").read_text("utf-8"))
    out = model.train()(golden["train.input_ids"], labels=golden["train.labels"])
    out.loss.backward()
    assert abs(out.loss.item() - measured["loss"]) < 1e-4
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    gradients = to_upstream(gradients, model.config)
    assert set(gradients) == set(measured["grad_norm"])
    for name, norm in measured["grad_norm"].items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-3), name
    for key in (key for key in golden if key.startswith("train.grad.")):
        assert (gradients[key.removeprefix("train.grad.")] - golden[key]).abs().max() < 1e-3


@cases
def test_float16_is_within_the_stated_bands(root: Path, version: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(root / version / "tiny_safetensors", dtype=torch.float16)
    golden = arrays(root / version / "golden.npz")
    for name, band in (("medium", 0.15), ("long", 0.25)):
        with torch.no_grad():
            logits = model(golden[f"single.{name}.input_ids"]).logits
        assert logits.dtype == torch.float16
        assert largest_difference(logits, golden[f"fp16.{name}.logits"]) < band, name


@pytest.mark.parametrize("root", SETS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rotary_tables_are_the_originals_bit_for_bit(root: Path, dtype: torch.dtype) -> None:
    tables = arrays(root / "rope_v2_v3.npz")
    dim = int(tables["dim"])
    config = ChatGLM2Config(generation=2, head_dim=2 * dim, rope_parameters=_rope())
    kind = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
    original = GlmForCausalLM(_small(config)).model.rotary_emb
    for version, rotary in (("v2", ChatGLM2Rotary(config)), ("v3", original)):
        key = f"{version}.{kind}"
        cos, sin = rotary(torch.empty(1, dtype=dtype), tables[f"{key}.positions"][None])
        cached = tables[f"{key}.cache"].float()
        exact = 0 if version == "v2" or kind != "fp32" else 1e-6
        for ours, column in ((cos, 0), (sin, 1)):
            assert (ours[0, :, : dim // 2].float() - cached[..., column]).abs().max() <= exact


def _rope(theta: float = 10000.0) -> dict[str, object]:
    return {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 0.5}


def _small(config: ChatGLM2Config) -> ChatGLM2Config:
    config.num_hidden_layers = 0
    config.vocab_size, config.pad_token_id = 2, 0
    return config


@pytest.mark.parametrize("root", SETS)
def test_the_32k_models_stretch_their_positions(root: Path, tmp_path: Path) -> None:
    golden = arrays(root / "v3" / "rope_ratio_golden.npz")
    there = root / "v3" / "tiny_safetensors"
    config = json.loads((there / "config.json").read_text("utf-8"))
    config["rope_ratio"] = golden["rope_ratio"].item()
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    (tmp_path / "model.safetensors").symlink_to(there / "model.safetensors")
    model = load(tmp_path, quant="none", dtype=torch.float32)
    for name in ("medium", "long"):
        with torch.no_grad():
            logits = model(golden[f"{name}.input_ids"]).logits
        assert largest_difference(logits, golden[f"{name}.logits"]) < 1e-3


@pytest.mark.parametrize("root", SETS)
@pytest.mark.parametrize("bits", [4, 8])
def test_published_codes_give_the_originals_logits(root: Path, bits: int) -> None:
    model = load(root / "v2" / f"tiny_int{bits}", quant="none")
    golden = arrays(root / "v2" / "quant_golden.npz")
    batch = arrays(root / "v2" / "golden.npz")
    for name in ("short", "medium"):
        with torch.no_grad():
            logits = model(golden[f"int{bits}.{name}.input_ids"]).logits
        assert largest_difference(logits, golden[f"int{bits}.{name}.logits"]) < 1e-3
    with torch.no_grad():
        logits = model(batch["batch.input_ids"], attention_mask=batch["batch.attention_mask"]).logits
    valid = batch["batch.valid"].bool()
    assert (logits[valid] - golden[f"int{bits}.batch.logits"][valid]).abs().max() < 1e-3
    ids = golden[f"int{bits}.short.input_ids"]
    out = model.generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=None)
    assert torch.equal(out, golden[f"int{bits}.generate.short.output_ids"])


@cases
def test_the_auto_classes_know_it(root: Path, version: str) -> None:
    directory = root / version / "tiny_safetensors"
    assert AutoConfig.from_pretrained(directory).generation == int(version[1])
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert type(model).__name__ == "ChatGLM2ForCausalLM"
