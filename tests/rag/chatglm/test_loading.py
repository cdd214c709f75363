"""Directories become models, whole ones only, and come back as they were."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Glm4Config,
    Glm4ForCausalLM,
    GlmConfig,
    GlmForCausalLM,
    PreTrainedModel,
)

import rag.chatglm  # noqa: F401  (registers the Auto classes)
from ingest.errors import UserError
from rag.chatglm.configuration import ChatGLM2Config, generation_of
from rag.chatglm.loading import empty, load
from rag.chatglm.modeling_chatglm import ChatGLM2ForCausalLM
from tests.rag.chatglm.golden import COPY
from tests.rag.chatglm.models import save_upstream

TINY = COPY / "v2" / "tiny_safetensors"
IDS = torch.tensor([[64, 66, 300, 5, 17, 401]])


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A copy of a good directory, for the test to break."""
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def rewrite(directory: Path, **changes: Any) -> None:
    config = json.loads((directory / "config.json").read_text("utf-8")) | changes
    (directory / "config.json").write_text(json.dumps(config), "utf-8")


def retensor(directory: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(directory / "model.safetensors") | {
        name.replace("__", "."): tensor for name, tensor in changes.items()
    }
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, directory / "model.safetensors")


def test_a_model_in_our_layout_is_read_again(tmp_path: Path) -> None:
    model = load(TINY, quant="none")
    model.save_pretrained(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert "model.layers.0.self_attn.q_proj.weight" in names
    for again in (load(tmp_path, quant="none"), AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert generation_of(again.config) == 2
        assert torch.equal(logits(again), logits(model))


def test_a_model_in_upstreams_layout_is_read_again(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(TINY)
    save_upstream(model, tmp_path)
    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(TINY / "model.safetensors")
    theirs.pop("transformer.rotary_pos_emb.inv_freq", None)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    written = json.loads((tmp_path / "config.json").read_text("utf-8"))
    original = json.loads((TINY / "config.json").read_text("utf-8"))
    same = set(written) & set(original) - {"_name_or_path", "transformers_version", "architectures"}
    assert {name: written[name] for name in same} == {name: original[name] for name in same}
    assert len(same) > 15
    again = load(tmp_path, quant="none", dtype=torch.float16)
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("bits", [4, 8])
def test_published_codes_are_kept_in_our_layout(bits: int, tmp_path: Path) -> None:
    model: Any = load(COPY / "v2" / f"tiny_int{bits}", quant="none")
    model.save_pretrained(tmp_path)
    again = load(tmp_path, quant="none")
    assert torch.equal(logits(again), logits(model))


def test_glm4_of_upstreams_layout_is_transformers_glm(tmp_path: Path) -> None:
    config = ChatGLM2Config(
        generation=4, vocab_size=151552, hidden_size=16, intermediate_size=24, head_dim=8,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, pad_token_id=0,
        rope_parameters={
            "rope_type": "default", "rope_theta": 5_000_000.0, "partial_rotary_factor": 0.5
        },
    )  # fmt: skip
    model = ChatGLM2ForCausalLM(config).eval()
    save_upstream(model, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert written["rope_ratio"] == 500
    written.pop("generation")  # as upstream's own file
    (tmp_path / "config.json").write_text(json.dumps(written), "utf-8")
    again = load(tmp_path, quant="none")
    assert generation_of(again.config) == 4
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize(("kind", "config"), [(GlmForCausalLM, GlmConfig), (Glm4ForCausalLM, Glm4Config)])
def test_the_hf_and_0414_forms_are_transformers_own(kind: Any, config: Any, tmp_path: Path) -> None:
    sizes = {"vocab_size": 512, "hidden_size": 16, "intermediate_size": 24, "head_dim": 8}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = kind(config(**sizes, **heads, pad_token_id=0)).eval()
    model.save_pretrained(tmp_path)
    again = load(tmp_path, quant="none")
    assert type(again) is kind
    assert generation_of(again.config) == 4
    assert torch.equal(logits(again), logits(model))


def test_nf4_is_quantised_by_bitsandbytes() -> None:
    model, plain = load(TINY, quant="nf4", device="cpu"), load(TINY, quant="none")
    path = "model.layers.1.mlp.gate_up_proj"
    four, weight = model.get_submodule(path), plain.get_submodule(path).weight
    assert type(four) is Linear4bit
    again = dequantize_4bit(four.weight.data, four.weight.quant_state)
    assert (again - weight).norm() < 0.12 * weight.norm()  # nf4 of normal weights: 0.09


@pytest.mark.parametrize("kernels", [True, False])
def test_codes_of_bitsandbytes_keep_their_order_for_training(kernels: bool) -> None:
    """Which some CPUs would reorder then; rows that no kernel takes answer all the same."""
    model = load(TINY, quant="nf4", device="cpu", kernels=kernels)
    linears = [module for module in model.modules() if isinstance(module, Linear4bit)]
    before = [linear.weight.data.clone() for linear in linears]
    assert logits(model).isfinite().all()
    if not kernels:
        same = (linear.weight.data for linear in linears)
        assert all(torch.equal(*pair) for pair in zip(before, same, strict=True))


def test_an_empty_model_takes_no_memory() -> None:
    big = ChatGLM2Config(num_hidden_layers=28, vocab_size=65024, pad_token_id=0)
    model = empty(big)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())


MEMORY = """
import resource, sys, torch
from pathlib import Path
import rag.chatglm
from rag.chatglm.loading import load
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = load(Path(sys.argv[1]), quant="none", device="cpu")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((peak - base) * 1024 / sum(p.numel() * p.element_size() for p in model.parameters()))
"""


def test_loading_holds_little_more_than_the_model(tmp_path: Path) -> None:
    config = ChatGLM2Config(
        generation=3, vocab_size=8000, hidden_size=1024, intermediate_size=2560, head_dim=64,
        num_hidden_layers=10, num_attention_heads=16, num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    model = ChatGLM2ForCausalLM(config).half()
    save_upstream(model, tmp_path)  # one file: the hardest case
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 1.1


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is missing"):
        load(tmp_path)


def test_a_config_that_is_not_json_is_named(broken: Path) -> None:
    (broken / "config.json").write_text("{", "utf-8")
    with pytest.raises(UserError, match="is damaged"):
        load(broken)


def test_another_family_is_refused(broken: Path) -> None:
    (broken / "config.json").write_text('{"model_type": "llama"}', "utf-8")
    with pytest.raises(UserError, match="'llama'; this runs ChatGLM-6B"):
        load(broken)


def test_a_tensor_of_another_size_is_named_with_both_sizes(broken: Path) -> None:
    rewrite(broken, ffn_hidden_size=120)
    with pytest.raises(UserError, match=r"dense_h_to_4h|gate_up_proj.*224.*240"):
        load(broken)


def test_a_missing_tensor_is_named(broken: Path) -> None:
    retensor(broken, transformer__encoder__final_layernorm__weight=None)
    with pytest.raises(UserError, match=r"lacks transformer\.encoder\.final_layernorm\.weight"):
        load(broken)


def test_a_tensor_without_a_place_is_named(broken: Path) -> None:
    retensor(broken, transformer__vision__patch__weight=torch.zeros(3))
    with pytest.raises(UserError, match=r"holds transformer\.vision\.patch\.weight"):
        load(broken)


def test_fewer_layers_than_stored_are_noticed(broken: Path) -> None:
    rewrite(broken, num_layers=1)
    with pytest.raises(UserError, match=r"holds transformer\.encoder\.layers\.1"):
        load(broken)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_weights_are_refused(broken: Path, value: float) -> None:
    name = "transformer.encoder.layers.1.mlp.dense_4h_to_h.weight"
    weight = load_file(broken / "model.safetensors")[name]
    weight[3, 5] = value
    retensor(broken, **{name.replace(".", "__"): weight})
    with pytest.raises(UserError, match=r"layers\.1.*NaN or infinite"):
        load(broken)


def test_stored_codes_are_not_converted() -> None:
    with pytest.raises(UserError, match="holds int4 weights, which can't be converted to int8"):
        load(COPY / "v2" / "tiny_int4", quant="int8")


def test_codes_of_unknown_width_are_refused(tmp_path: Path) -> None:
    directory = Path(shutil.copytree(COPY / "v2" / "tiny_int4", tmp_path / "model"))
    rewrite(directory, quantization_bit=3)
    with pytest.raises(UserError, match="quantization_bit = 3; it is 4 or 8"):
        load(directory)
