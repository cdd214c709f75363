"""ChatGLM-6B computes what the original code computes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

import rag.chatglm  # noqa: F401  (registers the Auto classes)
from rag.chatglm.configuration import CACHE
from rag.chatglm.loading import load
from rag.chatglm.modeling_chatglm import Glm1ForCausalLM, rotary_table
from tests.rag.chatglm.golden import COPY, SETS, arrays, largest_difference
from tests.rag.chatglm.models import save_upstream

roots = pytest.mark.parametrize("root", SETS, ids=lambda path: path.parent.name)
PROMPTS = ("gmask", "gmask_ctx", "mask_mid", "mask_and_gmask", "gmask_first", "long")
HIDDEN = ("gmask_ctx", "mask_mid")
BATCHES = ("batch_gmask", "batch_mixed")


@pytest.fixture
def model(root: Path) -> Any:
    return load(root / "v1" / "tiny_safetensors", quant="none", dtype=torch.float32)


@pytest.fixture
def golden(root: Path) -> dict[str, Tensor]:
    return arrays(root / "v1" / "golden.npz")


@roots
@pytest.mark.parametrize("name", PROMPTS)
def test_logits_and_positions_are_the_originals(model: Any, golden: dict[str, Tensor], name: str) -> None:
    ids, places = golden[f"single.{name}.input_ids"], golden[f"single.{name}.position_ids"]
    with torch.no_grad():
        implicit, explicit = model(ids).logits, model(ids, position_ids=places).logits
    assert torch.equal(model.positions(ids), places)
    for logits in (implicit, explicit):
        assert largest_difference(logits, golden[f"single.{name}.logits"]) < 1e-3


@roots
def test_model_and_tokenizer_prefer_different_blanks(model: Any, golden: dict[str, Tensor]) -> None:
    ids = golden["single.mask_and_gmask_tokenizer.input_ids"]
    assert torch.equal(ids, golden["single.mask_and_gmask.input_ids"])
    places = model.positions(ids, prefer_mask=True)
    assert torch.equal(places, golden["single.mask_and_gmask_tokenizer.position_ids"])
    assert not torch.equal(places, model.positions(ids))
    with torch.no_grad():
        wanted = golden["single.mask_and_gmask_tokenizer.logits"]
        assert largest_difference(model(ids, position_ids=places).logits, wanted) < 1e-3


@roots
@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_states_keys_and_values_are_the_originals(
    model: Any, golden: dict[str, Tensor], name: str
) -> None:
    key, cache = f"single.{name}", DynamicCache()
    with torch.no_grad():
        out = model(golden[f"{key}.input_ids"], output_hidden_states=True, **{CACHE: cache})
    assert len(out.hidden_states) == model.config.num_layers + 1
    for index, state in enumerate(out.hidden_states):
        assert (state - golden[f"{key}.hidden_states.{index}"]).abs().max() < 1e-3
    keys, values = cache.layers[0].keys, cache.layers[0].values  # [B, h, S, d]
    assert (keys.permute(2, 0, 1, 3) - golden[f"{key}.past_key.0"]).abs().max() < 1e-3
    assert (values.permute(2, 0, 1, 3) - golden[f"{key}.past_value.0"]).abs().max() < 1e-3


@roots
@pytest.mark.parametrize("name", BATCHES)
def test_a_padded_batch_is_the_originals(model: Any, golden: dict[str, Tensor], name: str) -> None:
    ids, valid = golden[f"{name}.input_ids"], golden[f"{name}.valid"]
    mask = valid.long()
    places = model.positions(ids, mask)
    assert torch.equal(places, golden[f"{name}.position_ids"])
    with torch.no_grad():
        for logits in (model(ids, mask).logits, model(ids, mask, places).logits):
            assert (logits - golden[f"{name}.logits"])[valid].abs().max() < 1e-3


@roots
@pytest.mark.parametrize("name", ["gmask", "gmask_ctx", "mask_mid", *BATCHES])
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_words_are_the_originals(
    model: Any, golden: dict[str, Tensor], name: str, use_cache: bool
) -> None:
    ids, wanted = golden[f"generate.{name}.input_ids"], golden[f"generate.{name}.output_ids"]
    mask = golden.get(f"{name}.valid", torch.ones_like(ids)).long()
    options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 3}
    found = model.generate(ids, attention_mask=mask, **options, use_cache=use_cache)
    assert torch.equal(found, wanted)


@roots
def test_the_loss_and_its_gradients_are_the_originals(
    model: Any, golden: dict[str, Tensor], root: Path
) -> None:
    measured = json.loads((root / "v1" / "train.json").read_text("utf-8"))
    out = model.train()(golden["train.input_ids"], labels=golden["train.labels"])
    out.loss.backward()
    assert abs(out.loss.item() - measured["loss"]) < 1e-4
    assert largest_difference(out.logits, golden["train.logits"]) < 1e-3
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert set(gradients) == set(measured["grad_norm"])  # the tied weight counts once
    for name, norm in measured["grad_norm"].items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-3), name
    for key in (key for key in golden if key.startswith("train.grad.")):
        assert (gradients[key.removeprefix("train.grad.")] - golden[key]).abs().max() < 1e-3


@roots
def test_float16_is_within_the_stated_bands(root: Path, golden: dict[str, Tensor]) -> None:
    directory = root / "v1" / "tiny_safetensors"
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float16)
    for name, band in (("gmask_ctx", 0.15), ("mask_mid", 0.15), ("long", 0.25)):
        with torch.no_grad():
            logits = model(golden[f"single.{name}.input_ids"]).logits
        assert logits.dtype == torch.float16
        assert largest_difference(logits, golden[f"fp16.{name}.logits"]) < band, name


@roots
def test_rotary_tables_are_the_originals(root: Path) -> None:
    tables = arrays(root / "rope_v1.npz")
    dim = int(tables["dim"])
    for kind, dtype, exact in (("fp16", torch.float16, 0.0), ("fp32", torch.float32, 1e-6)):
        everywhere = torch.arange(len(tables[f"{kind}.cos"]))
        cos, sin = rotary_table(tables.get(f"{kind}.positions", everywhere), dim, dtype)
        assert (cos - tables[f"{kind}.cos"]).abs().max() <= exact
        assert (sin - tables[f"{kind}.sin"]).abs().max() <= exact


@roots
@pytest.mark.parametrize("bits", [4, 8])
def test_published_codes_give_the_originals_logits(root: Path, golden: dict[str, Tensor], bits: int) -> None:
    model = load(root / "v1" / f"tiny_int{bits}", quant="none")
    quantised = arrays(root / "v1" / "quant_golden.npz")
    with torch.no_grad():
        for name in HIDDEN:
            logits = model(quantised[f"int{bits}.{name}.input_ids"]).logits
            assert largest_difference(logits, quantised[f"int{bits}.{name}.logits"]) < 1e-3
        mask = golden["batch_gmask.valid"].long()
        logits = model(golden["batch_gmask.input_ids"], mask).logits
    wanted = quantised[f"int{bits}.batch_gmask.logits"]
    assert (logits - wanted)[golden["batch_gmask.valid"]].abs().max() < 1e-3
    out = model.generate(
        golden["generate.gmask.input_ids"], max_new_tokens=24, do_sample=False, eos_token_id=None
    )
    assert torch.equal(out, quantised[f"int{bits}.generate.gmask.output_ids"])


def changed(folder: Path, change: Any) -> Path:
    """The tiny checkpoint in `folder`, with what `change` did to its tensors."""
    there = COPY / "v1" / "tiny_safetensors"
    folder.mkdir()
    shutil.copyfile(there / "config.json", folder / "config.json")
    tensors = load_file(there / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("stored", ["another", "none"])
def test_the_head_is_always_the_embedding(tmp_path: Path, stored: str) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        head = tensors.pop("lm_head.weight")
        if stored == "another":
            tensors["lm_head.weight"] = head + 1

    golden = arrays(COPY / "v1" / "golden.npz")
    directory = changed(tmp_path / "changed", change)
    for model in (
        load(directory, quant="none", dtype=torch.float32),
        AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32),
    ):
        assert model.lm_head.weight is model.transformer.word_embeddings.weight
        with torch.no_grad():
            logits = model(golden["single.gmask_ctx.input_ids"]).logits
        assert largest_difference(logits, golden["single.gmask_ctx.logits"]) < 1e-3


def test_norms_may_be_stored_and_kept_in_float32(tmp_path: Path) -> None:
    """The published index implies float32 layer norms, as does PEFT's preparation for training."""

    def change(tensors: dict[str, Tensor]) -> None:
        for name in tensors:
            if "layernorm" in name:
                tensors[name] = tensors[name].float()

    golden = arrays(COPY / "v1" / "golden.npz")
    ids, wanted = golden["single.gmask_ctx.input_ids"], golden["fp16.gmask_ctx.logits"]
    model = AutoModelForCausalLM.from_pretrained(changed(tmp_path / "mixed", change), dtype=torch.float16)
    with torch.no_grad():
        assert largest_difference(model(ids).logits, wanted) < 0.15
        for name, parameter in model.named_parameters():
            if "layernorm" in name:
                parameter.data = parameter.data.float()
        logits = model(ids).logits
    assert logits.dtype == torch.float16
    assert largest_difference(logits, wanted) < 0.15


@pytest.mark.parametrize("upstream", [False, True])
def test_a_saved_model_is_read_again(tmp_path: Path, upstream: bool) -> None:
    ids = arrays(COPY / "v1" / "golden.npz")["single.gmask_ctx.input_ids"]
    model: Any = load(COPY / "v1" / "tiny_safetensors", quant="none", dtype=torch.float32)
    (save_upstream if upstream else type(model).save_pretrained)(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert config["inner_hidden_size"] == model.config.inner_hidden_size
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


@roots
def test_the_auto_classes_know_it(root: Path) -> None:
    for name in ("tiny_safetensors", "tiny_int8"):
        directory = root / "v1" / name
        assert AutoConfig.from_pretrained(directory).generation == 1
        assert isinstance(AutoModelForCausalLM.from_pretrained(directory), Glm1ForCausalLM)
